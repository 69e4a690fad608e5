"""Judges of single numbers that were published: could they be, and do own runs reach them?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...analysis.intervals import Interval, mean_interval, together
from ...analysis.summaries import counted, in_points, summarise
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding
from .words import smallest

if TYPE_CHECKING:
    from pandas import Series

MARGIN = 1.0  # points: own runs this near to a published number reach it
UNKNOWN = "a number of a summary, not known to be the paper's"


def published(e: Evidence, dataset: str, shots: int, method: str | None = None) -> Series:
    """Return the published few-shot accuracies (%) on ViT-B/16 by method: all, or one.

    Of a method that several sources report, the mean: it is one method, and counts once, whatever
    stands in brackets behind its name (a rerun, a version).
    """
    known = e.published
    known = known[(known["setting"] == "few_shot") & (known["backbone"] == "ViT-B/16")]
    known = known[(known["target_dataset"] == dataset) & (known["shots"] == shots)]
    known = known if method is None else known[known["method"] == method]
    return known.groupby(known["method"].str.partition(" (")[0])["accuracy"].mean()


def reached(e: Evidence, dataset: str, shots: int) -> Series | None:
    """Return Block-LoRA's MEANS (%) over seeds, of a published profile; None without such runs."""
    if not e.profile.published or dataset not in e.profile.datasets:
        return None
    runs = e.runs()
    part = runs[(runs["evaluated_on"] == dataset) & (runs["shots"] == shots)]
    rows = summarise(in_points(part), ["method"])
    rows = rows[rows["method"] == "block_lora"]
    return rows.iloc[0] if len(rows) else None


def apart(own: Series, claimed: float) -> Interval:
    """Own mean minus the claimed number, with the interval of own seeds."""
    found = own[["mean", "low", "high"]] - claimed
    return Interval(found["mean"], found["low"], found["high"], own["n"])


def near(found: Interval) -> bool | None:
    """Whether own runs are within MARGIN of the claimed number: shown, excluded, or open."""
    return found.within(MARGIN)


def imagenet_at_16(e: Evidence) -> Finding:
    """C9: whether one more published value could be that high, and whether own runs are near it."""
    claimed, values = 93.65, published(e, "ImageNet", 16)
    about = mean_interval(values, 0.999)
    half = about.half_width * math.sqrt(len(values) + 1)  # for one more value, not for the mean
    low, high = about.mean - half, about.mean + half
    text = (
        f"16-shot values of {len(values)} methods published on ViT-B/16 lie in "
        f"{values.min():.1f} to {values.max():.1f}; one more is expected in {low:.1f} to "
        f"{high:.1f} (99.9%, if it is drawn as they were)."
    )
    own = reached(e, "imagenet", 16)
    if own is None:
        # what could be so need not be so
        holds = False if not math.isnan(half) and not low <= claimed <= high else None
        told, seen = f"{text} No such run here.", f"{half:.1f} points"
        return Finding(holds, told, "published", seen, UNKNOWN)
    told = f"{text} Own runs: {own['mean']:.2f}, {counted(own['n'], own['expected'])} seeds."
    found = apart(own, claimed)
    return Finding(near(found), told, smallest=smallest(found), but=UNKNOWN)


def leads(e: Evidence) -> Finding:
    """C10: whether own runs are near both numbers; how its percentages count is arithmetic."""
    told, found = [], []
    cases = (("EuroSAT", 4, 88.08, 3.7, "CLIP-LoRA"), ("ImageNet", 1, 70.43, 3.4, "PromptSRC"))
    for dataset, at, claimed, gain, rival in cases:
        known = published(e, dataset, at, rival).iloc[0]
        relative, absolute = 100 * (claimed / known - 1), claimed - known
        kind = "relative" if abs(relative - gain) < abs(absolute - gain) else "points"
        own = reached(e, dataset.lower(), at)
        told.append(
            f"{dataset}: {rival} published {known:.2f}, so {relative:+.1f}% relative, "
            f"{absolute:+.1f} points: the claim counts {kind}"
            + (
                ""
                if own is None
                else f"; own runs {own['mean']:.2f}, {counted(own['n'], own['expected'])} seeds"
            )
        )
        found += [] if own is None else [apart(own, claimed)]
    if len(found) < len(cases):
        raise MissingResults(
            f"needs runs of a published profile on eurosat and imagenet: `blocklora grid --profile "
            f"paper`. {'; '.join(told)}"
        )
    return Finding(
        together(*((d, near) for d in found)), f"{'; '.join(told)}.", smallest=smallest(*found)
    )
