"""Judges of single numbers that were published: could they be, and do own runs reach them?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...analysis.intervals import mean_interval
from ...analysis.summaries import counted, summarise
from ..claim import Evidence, Finding

if TYPE_CHECKING:
    from pandas import Series


def published(e: Evidence, dataset: str, shots: int, method: str | None = None) -> list[float]:
    """Return the published few-shot accuracies (%) on ViT-B/16, of all methods or of one."""
    known = e.published
    known = known[(known["setting"] == "few_shot") & (known["backbone"] == "ViT-B/16")]
    known = known[(known["target_dataset"] == dataset) & (known["shots"] == shots)]
    return known.loc[
        known["method"].isin([method] if method else known["method"]), "accuracy"
    ].tolist()


def reached(e: Evidence, dataset: str, shots: int) -> Series | None:
    """Return Block-LoRA's MEANS (%) over seeds, of a published profile; None without such runs."""
    if e.small_backbone or dataset not in e.profile.datasets:
        return None
    runs = e.runs()
    part = runs[(runs["evaluated_on"] == dataset) & (runs["shots"] == shots)]
    rows = summarise(part.assign(accuracy=100 * part["accuracy"]), ["method"])
    rows = rows[rows["method"] == "block_lora"]
    return rows.iloc[0] if len(rows) else None


def covers(own: Series, claimed: float) -> bool | None:
    """Whether the interval of `own` allows the claimed number; None where one seed gives no
    interval.
    """
    return None if math.isnan(own["low"]) else bool(own["low"] <= claimed <= own["high"])


def imagenet_at_16(e: Evidence) -> Finding:
    claimed, values = 93.65, published(e, "ImageNet", 16)
    about = mean_interval(values, 0.999)
    half = about.half_width * math.sqrt(len(values) + 1)  # for one more value, not for the mean
    low, high = about.mean - half, about.mean + half
    text = (
        f"{len(values)} published 16-shot values on ViT-B/16 lie in {min(values):.1f} to "
        f"{max(values):.1f}; one more is expected in {low:.1f} to {high:.1f} (99.9%)."
    )
    own = reached(e, "imagenet", 16)
    if own is None:
        return Finding(low <= claimed <= high, f"{text} No such run here.", "published")
    told = f"{text} Own runs: {own['mean']:.2f}, {counted(own['n'], own['expected'])} seeds."
    return Finding(covers(own, claimed), told, undecided=True)


def leads(e: Evidence) -> Finding:
    told, holds = [], []
    cases = (("EuroSAT", 4, 88.08, 3.7, "CLIP-LoRA"), ("ImageNet", 1, 70.43, 3.4, "PromptSRC"))
    for dataset, at, claimed, gain, rival in cases:
        known = published(e, dataset, at, rival)[0]
        relative, absolute = 100 * (claimed / known - 1), claimed - known
        kind = "relative" if abs(relative - gain) < abs(absolute - gain) else "points"
        own = reached(e, dataset.lower(), at)
        holds += [] if own is None else [covers(own, claimed)]
        told.append(
            f"{dataset}: {rival} published {known:.2f}, so +{relative:.1f}% relative, "
            f"+{absolute:.1f} points: the claim counts {kind}"
            + (
                ""
                if own is None
                else f"; own runs {own['mean']:.2f}, {counted(own['n'], own['expected'])} seeds"
            )
        )
    if len(holds) < len(cases):
        return Finding(None, f"Needs runs of profile paper. {'; '.join(told)}.", "published")
    return Finding(
        False if False in holds else None if None in holds else True,
        f"{'; '.join(told)}.",
        undecided=True,
    )
