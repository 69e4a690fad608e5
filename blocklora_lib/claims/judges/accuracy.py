"""Judges of accuracies: of runs, and of published numbers. Vague words get their meaning here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...analysis.comparisons import Matched, OverSets, difference_by_set, matched, over_sets
from ...analysis.intervals import PairedDifference, mean_interval, paired_difference
from ...analysis.summaries import counted, own_images, summarise
from ...display.tables import shots_of
from ...runs.results import MissingResults
from ..claim import Evidence, Finding

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def by_method(
    runs: DataFrame, over: list[str], methods: list[str], value: str = "accuracy"
) -> Matched:
    """Return `value` of the runs that share `over`, a column a method; refuse a missing method."""
    missing = [m for m in methods if m not in set(runs["method"])]
    if missing:
        raise MissingResults(
            f"no run of {' or '.join(missing)} to compare with; list it under methods in the "
            "profile, then make the runs with `blocklora grid`"
        )
    try:
        return matched(runs, over, methods, value=value)
    except ValueError as nothing:
        raise MissingResults(
            f"{nothing}; `blocklora grid --retry-failed` makes failed ones again"
        ) from None


def differences(runs: DataFrame, a: str, b: str, shots: int) -> OverSets:
    """Paired difference a - b in points of accuracy over the sets at `shots`.

    On a set: the mean over the seeds that both methods have, for a failed seed of one would be
    compared with nothing.
    """
    part = own_images(runs[runs["shots"] == shots])
    by_method(part, ["dataset", "seed"], [a, b])  # refuses what cannot be paired
    return over_sets(difference_by_set(part, a, b))


def points(d: PairedDifference) -> str:
    """Write a difference with its interval."""
    return f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"


def rests_on(*compared: OverSets) -> str:
    """Write over how many sets and pairs of runs each difference is a mean, once if all are over as
    many.
    """
    return ", then ".join(dict.fromkeys(d.told() for d in compared))


def trained_shots(runs: DataFrame) -> list[int]:
    """Shot counts of the trained runs, in order."""
    return sorted(int(k) for k in runs["shots"].unique() if k > 0)


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


def without_a(e: Evidence) -> Finding:
    runs = e.runs()
    few, many = trained_shots(runs)[0], trained_shots(runs)[-1]
    first, last = (differences(runs, "block_lora", "frozen_a", k) for k in (few, many))
    return Finding(
        None
        if math.isnan(first.low) or few == many
        else bool(first.low > 0 and last.mean < first.mean),
        f"Trained minus frozen: {points(first)} at {shots_of(few)}, {points(last)} at {many}, over "
        f"{rests_on(first, last)}; one learning rate for both.",
    )


def number_of_blocks(e: Evidence) -> Finding:
    runs, told, saves, hurts = own_images(e.runs("blocks")), [], True, {}
    runs = runs.assign(n_blocks=runs["n_blocks"].astype(int), accuracy=100 * runs["accuracy"])
    for reading, part in runs.groupby("reading"):
        found = matched(part, ["dataset", "seed"], column="n_blocks")
        table = found.values
        size = part.groupby("n_blocks")["trainable_parameters"].first()
        one, most = table.columns.min(), table.columns.max()
        cut = (
            size[one] * size.index if reading == "block_rank" else size[one] + 0 * size.index
        )  # of the LoRA cut
        saves &= bool((size[1:] < cut[1:]).all())
        hurts[reading] = paired_difference(table[one], table[most])
        means = ", ".join(f"{value:.1f}% (n = {n})" for n, value in table.mean().items())
        told.append(
            f"{reading}, r = {part['rank'].iloc[0]:.0f}: {means}; n = {one} minus n = {most} "
            f"{points(hurts[reading])} over {found.told('pairs of set and seed')}"
        )
    sets = " and ".join(sorted(runs["dataset"].unique()))
    total = hurts.get("total_rank")
    seen = total is not None and not math.isnan(total.low)
    undecided = seen and saves and total.low <= 0 < total.high
    return Finding(
        saves and total.low > 0 if seen and not undecided else None,
        f"{'. '.join(told)}. {sets}, {shots_of(runs['shots'].iloc[0])}.",
        undecided=undecided,
    )


def competitive(e: Evidence) -> Finding:
    """Judge both halves: transfer over the targets, domain generalization over the variants of the
    source.
    """
    margin, halves, told, missing = 1.0, [], [], []
    for experiment, where in (
        ("cross_dataset", "other sets"),
        ("few_shot", "shifted variants of the source"),
    ):
        try:
            runs = e.runs(experiment)
            other = runs[runs["evaluated_on"] != runs["dataset"]]
            if other.empty:
                raise MissingResults(f"The profile's {experiment} runs are evaluated on no {where}")
            most = trained_shots(other)[-1]
            at_most = other[other["shots"] == most]
            by_method(at_most, ["evaluated_on", "seed"], ["block_lora", "lora"])
            by_set = difference_by_set(at_most, "block_lora", "lora")
        except MissingResults as lacking:
            missing.append(lacking)
            told.append(f"Not run on {where}: {str(lacking).rstrip('.')}.")
            continue
        d = over_sets(by_set)
        above = [_above_zero_shot(other, at_most, m) for m in ("block_lora", "lora")]
        gains = "" if None in above else f"; against zero-shot {above[0]:+.1f} and {above[1]:+.1f}"
        halves.append(None if math.isnan(d.low) else d.mean >= -margin)
        told.append(
            f"On {counted(d.n, d.expected)} {where}, at {shots_of(most)}, {d.pairs_told}: "
            f"Block-LoRA minus LoRA {points(d)}{gains}."
        )
    if len(missing) == 2:
        raise missing[0]
    fails, undecided = False in halves, len(halves) < 2 or None in halves
    return Finding(
        False if fails else None if undecided else True,
        f"'Competitive': on average at most {margin:.0f} point below LoRA, in both. "
        f"{' '.join(told)}",
    )


def _above_zero_shot(runs: DataFrame, at_most: DataFrame, method: str) -> float | None:
    """Return a method's mean gain over zero-shot over all sets, in points; None where a pair is
    missing.
    """
    zero = runs[runs["shots"] == 0]
    if zero.empty:
        return None
    import pandas as pd

    d = over_sets(difference_by_set(pd.concat([at_most, zero]), method, zero["method"].iloc[0]))
    return d.mean if d.complete else None


def beyond_clip(e: Evidence) -> Finding:
    return Finding(
        None, "No model but CLIP and no task but few-shot classification was run here.", "nothing"
    )


def sharing(e: Evidence) -> Finding:
    task = e.table("15_shared_subspace", "shared_task")
    block = task[task["form"] == "block_lora"]
    fails, helps = (block[block["task"] == name] for name in ("fails", "helps"))
    by_blocks = fails.groupby("n_blocks")[["error", "floor"]].mean()
    one, many = by_blocks.index.min(), by_blocks.index.max()
    few = helps["samples"].min()
    shared = matched(helps[helps["samples"] == few], ["seed"], column="n_blocks", value="error")
    seeds = shared.values
    gain = paired_difference(seeds[one], seeds[many])
    lora = task[(task["task"] == "helps") & (task["form"] == "lora") & (task["samples"] == few)]
    lora = lora.groupby("n_blocks")["error"].mean()
    at_floor = (by_blocks["error"] - by_blocks["floor"]).abs().max() < 0.01
    return Finding(
        bool(
            at_floor
            and by_blocks.loc[one, "error"] < 0.01 < by_blocks.loc[many, "floor"]
            and gain.low > 0
        ),
        f"{task['directions'].max()} orthogonal directions wanted: error "
        f"{by_blocks.loc[one, 'error']:.3f} at n = {one}, {by_blocks.loc[many, 'error']:.3f} at n "
        f"= {many}, the floor of rank r/n. One direction, {few} noisy samples: "
        f"{seeds[one].mean():.2f} at n = {one}, {seeds[many].mean():.2f} at n = {many}, over "
        f"{shared.told('seeds')}; plain LoRA of rank r/n reaches {lora[many]:.2f}, so the width "
        "regularises, not the sharing.",
        "constructed",
    )


def collapse(e: Evidence) -> Finding:
    """A mean over the seeds that did not diverge is neither best nor worst: those that did are
    counted.
    """
    runs, zero = own_images(e.runs("collapse")), e.runs()
    sets = sorted(runs["dataset"].unique())
    zero = own_images(zero[(zero["shots"] == 0) & zero["dataset"].isin(sets)])
    if lacking := set(sets) - set(zero["dataset"]):
        raise MissingResults(
            f"no zero-shot run of {', '.join(sorted(lacking))} to compare with; make it with "
            "`blocklora grid`"
        )
    zero = 100 * zero["accuracy"].mean()
    runs = runs.assign(accuracy=100 * runs["accuracy"])
    cells = summarise(runs, ["lr", "init_scale"], over=["dataset", "seed"])
    whole, diverged = cells[cells["complete"]], e.failed("collapse", "diverged")
    lost = f"{diverged} runs diverged; {counted(int(cells['complete'].sum()), len(cells))} settings have all "
    lost += f"{cells['expected'].max()} runs."
    if whole.empty:
        return Finding(None, f"Zero-shot {zero:.1f}%. {lost}", undecided=True)
    best, worst = whole.loc[whole["mean"].idxmax()], whole.loc[whole["mean"].idxmin()]
    by_scale = ", ".join(
        f"{cell.mean:.1f}% ({cell.init_scale:g}"
        + ("" if cell.complete else f"; {counted(cell.n, cell.expected)} runs")
        + ")"
        for cell in cells[cells["lr"] == best["lr"]].itertuples()
    )
    highest = whole[whole["lr"] == cells["lr"].max()]["mean"].max()
    at_highest = (
        "no setting at the highest rate has all its runs"
        if math.isnan(highest)
        else (f"at the highest rate at most {highest:.1f}%")
    )
    return Finding(
        bool((worst["mean"] < zero or diverged) and best["mean"] > zero),
        f"Zero-shot {zero:.1f}%. Best at lr = {best['lr']:g}, by initial scale: {by_scale}. Worst "
        f"{worst['mean']:.1f}% at lr = {worst['lr']:g}, scale {worst['init_scale']:g}; "
        f"{at_highest}. {lost}",
    )


def control_is_the_same(e: Evidence) -> Finding:
    runs = e.runs()
    found = by_method(
        runs, ["dataset", "evaluated_on", "shots", "seed"], ["block_lora", "lora_plus"], "correct"
    )
    apart = (found.values["block_lora"] - found.values["lora_plus"]).abs()
    totals = runs[runs["method"] == "block_lora"].set_index(found.values.index.names)["total"]
    few = (
        ""
        if found.n == found.expected
        else f" (of {found.expected}; the others lack one of the two runs)"
    )
    answers = int(totals.loc[found.values.index].sum())
    k = trained_shots(runs)[-1]
    d = differences(runs, "block_lora", "lora_plus", k)
    return Finding(
        bool(apart.sum() <= 0.01 * answers),
        f"{int((apart == 0).sum())} of {found.n} accuracies{few} are the same to the last answer; "
        f"{int(apart.sum())} of {answers:,} answers apart (float32 rounding); {points(d)} at "
        f"{shots_of(k)}, over {d.told()}.",
    )


def width_is_what_counts(e: Evidence) -> Finding:
    runs = e.runs()
    k = trained_shots(runs)[-1]
    part = own_images(runs[runs["shots"] == k])
    methods = ["block_lora", "lora_r1", "lora"]
    shared = by_method(part, ["dataset", "seed"], methods)  # three differences of the same runs
    means = 100 * shared.values.groupby("dataset").mean()
    block, half, between = (
        paired_difference(means[a], means[b])
        for a, b in (("block_lora", "lora"), ("lora_r1", "lora"), ("block_lora", "lora_r1"))
    )
    return Finding(
        None
        if math.isnan(between.low)
        else bool(block.mean < 0 and half.mean < 0 and between.low <= 0 <= between.high),
        f"At {shots_of(k)} against LoRA of rank r: Block-LoRA {points(block)}, LoRA of rank r/n "
        f"{points(half)}; Block-LoRA minus LoRA of rank r/n {points(between)}; over "
        f"{counted(len(means), part['dataset'].nunique())} sets, "
        f"{shared.told('pairs of set and seed')}.",
    )
