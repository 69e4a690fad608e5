"""Judges of accuracies of runs. Vague words get their meaning here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...analysis.comparisons import Matched, OverSets, difference_by_set, matched, over_sets
from ...analysis.intervals import PairedDifference, paired_difference
from ...analysis.summaries import counted, own_images
from ...display.tables import shots_of
from ...runs.results import MissingResults
from ..claim import Evidence, Finding

if TYPE_CHECKING:
    from pandas import DataFrame


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
