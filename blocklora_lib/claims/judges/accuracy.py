"""Judges of accuracies of runs. Vague words get their meaning here.

Units are what is independent: sets where every set is trained on, seeds where one training is
evaluated on many sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...analysis.comparisons import (
    Matched,
    OverSets,
    change_over_shots,
    difference_by_seed,
    difference_by_set,
    matched,
    over_sets,
    several,
)
from ...analysis.intervals import Interval, paired_difference, together
from ...analysis.summaries import own_images, zero_shot
from ...display.tables import shots_of
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding
from .words import points, rests_on, smallest

if TYPE_CHECKING:
    from pandas import DataFrame

MARGIN = 1.0  # points of accuracy: a difference within it is called none
RIVALS = {"lora": "LoRA", "promptsrc": "PromptSRC"}  # whom the paper names
UNFAIR = " Not each has a rate of its own, so nothing follows."


def side_by_side(
    runs: DataFrame,
    over: list[str],
    names: Sequence[object],
    value: str = "accuracy",
    column: str = "method",
) -> Matched:
    """Return `value` of the runs that share `over`, a column for each of `names`, or MissingResults
    where one has no run, or several.
    """
    missing = [f"{name}" for name in names if name not in set(runs[column])]
    if missing:
        what = "" if column == "method" else f"{column} "
        raise MissingResults(
            f"no run of {what}{' or '.join(missing)} to compare with; list it in the profile, then "
            "make the runs with `blocklora grid`, failed ones again with `--retry-failed`"
        )
    if runs[runs[column].isin(names)].duplicated([*over, column]).any():
        raise MissingResults(
            f"several of its runs share {', '.join([*over, column])}, and no mean may mix them; "
            "give the experiment one of what else it varies"
        )
    try:
        return matched(runs, over, names, column, value)
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
    side_by_side(part, ["dataset", "seed"], [a, b])  # refuses what cannot be paired
    return over_sets(difference_by_set(part, a, b))


def trained_shots(runs: DataFrame) -> list[int]:
    """Shot counts of the trained runs, in order."""
    return sorted(int(k) for k in runs["shots"].unique() if k > 0)


def own_rates(e: Evidence, *methods: str) -> bool:
    """Whether the rate of each of these methods was chosen for it."""
    entries = {entry.name: entry for entry in e.profile.methods}
    methods = tuple(m for m in methods if m not in entries or entries[m] in e.profile.trained)
    rates = [entries[name].training.get("lr") for name in methods if name in entries]
    waits = {*methods} & {*e.profile.waiting}
    return len(rates) == len(methods) and None not in rates and not waits


def without_a(e: Evidence) -> Finding:
    """C11: a gap at the fewest shots, and a change of that gap which is itself resolved."""
    runs = e.runs()
    few, many = trained_shots(runs)[0], trained_shots(runs)[-1]
    if few != 1 or few == many:
        told = " and ".join(map(str, trained_shots(runs)))
        raise MissingResults(f"The claim is about 1 shot and more, and the runs are at {told}")
    part = own_images(runs[runs["shots"].isin([few, many])])
    side_by_side(part, ["dataset", "shots", "seed"], ["block_lora", "frozen_a"])  # or refuse
    own, frozen = _cuts(e, "block_lora", "frozen_a")
    if own != frozen:
        raise MissingResults(
            f"frozen_a is to have block_lora's width, rank and scale, {own}, and has {frozen}; "
            "change the profile"
        )
    by_set = difference_by_set(part, "block_lora", "frozen_a")
    first, last = (over_sets(by_set[by_set["shots"] == k]) for k in (few, many))
    change = change_over_shots(by_set, few, many)
    fair = own_rates(e, "block_lora", "frozen_a")
    holds = together((first, Interval.above), (change, Interval.below))
    rates = "each at a rate of its own" if fair else "at one rate for both, chosen for neither"
    if not fair and any(own_rates(e, name) for name in ("block_lora", "frozen_a")):
        rates = "not each at a rate of its own"
    return Finding(
        holds if fair else None,
        f"Trained minus frozen, {rates}: {points(first)} at {shots_of(few)}, {points(last)} at "
        f"{many}; the gap changes by {points(change)}; over {rests_on(first, last)}.",
        smallest=smallest(first, change),
    )


def competitive(e: Evidence) -> Finding:
    """C14: non-inferior in both halves, transfer to other sets and shifted variants of the source.

    Against LoRA, and PromptSRC where it has runs. Every set is judged by the same few trainings, so
    the units are seeds.
    """
    told, missing, seen = [], [], []
    named = {"block_lora"}
    for experiments, where in (
        (("cross_dataset",), "other sets"),
        (("comparison", "few_shot"), "shifted variants of the source"),
    ):
        try:
            experiment, runs = _first(e, *experiments)
            other = runs[runs["evaluated_on"] != runs["dataset"]]
            if other.empty:
                raise MissingResults(f"The profile's {experiment} runs are evaluated on no {where}")
            most = trained_shots(other)[-1]
            at_most = other[other["shots"] == most]
            side_by_side(at_most, ["evaluated_on", "seed"], ["block_lora", "lora"])
        except MissingResults as lacking:
            missing.append(lacking)
            told.append(f"Not there for {where}: {str(lacking).rstrip('.')}.")
            continue
        rivals = [name for name in RIVALS if name in set(at_most["method"])]
        found = [difference_by_seed(at_most, "block_lora", name) for name in rivals]
        above = [_above_zero_shot(other, at_most, m) for m in ("block_lora", "lora")]
        gains = "" if None in above else f"; against zero-shot {above[0]:+.1f} and {above[1]:+.1f}"
        seen += found
        named |= {*rivals}
        minus = ", minus ".join(
            f"{RIVALS[name]} {points(d)}" for name, d in zip(rivals, found, strict=True)
        )
        n = at_most["evaluated_on"].nunique()
        what = where if n > 1 else where.replace("sets", "set").replace("variants", "variant")
        told.append(
            f"On {n} {what}, at {shots_of(most)}, "
            f"{rests_on(*found, what='seeds')}: Block-LoRA minus {minus}{gains}."
        )
    holds = together(*((d, no_worse) for d in seen))
    if missing and holds is not False:  # what is there does not settle it
        raise missing[0]
    fair = own_rates(e, *named)
    return Finding(
        holds if fair else None,
        f"'Competitive': at most {MARGIN:.0f} point below whom it names, in both. {' '.join(told)}"
        + ("" if fair else UNFAIR),
        smallest=smallest(*seen),
    )


def no_worse(d: Interval) -> bool | None:
    """Whether it is at most the margin below."""
    return d.above(-MARGIN)


def _first(e: Evidence, *experiments: str) -> tuple[str, DataFrame]:
    """The first of these experiments that has its runs, or MissingResults of the last."""
    for experiment in experiments[:-1]:
        try:
            return experiment, e.runs(experiment)
        except MissingResults:
            continue
    return experiments[-1], e.runs(experiments[-1])


def outperforms_or_matches(e: Evidence) -> Finding:
    """C18: non-inferior to CLIP-LoRA (LoRA of rank r) and to PromptSRC at each number of shots.

    The units are sets. One rival at one number of shots contradicts 'or matches', so that answer
    has Bonferroni's wider intervals.
    """
    runs = e.runs("comparison")
    shots = trained_shots(runs)
    found = [(name, k, differences(runs, "block_lora", name, k)) for name in RIVALS for k in shots]
    fair = own_rates(e, "block_lora", *RIVALS)
    holds = together(*((d, no_worse) for *_, d in found))
    rates = "" if fair else UNFAIR
    return Finding(
        holds if fair else None,
        f"'Or matches': at most {MARGIN:.0f} point below, at each of {', '.join(map(str, shots))} "
        "shots. Block-LoRA minus "
        + "; minus ".join(f"{RIVALS[m]}, {shots_of(k)}: {points(d)}" for m, k, d in found)
        + f"; over {rests_on(*(d for *_, d in found))}.{rates}",
        smallest=smallest(*(d for *_, d in found)),
    )


def _above_zero_shot(runs: DataFrame, at_most: DataFrame, method: str) -> float | None:
    """Return a method's mean gain over zero-shot over all sets, in points; None where a pair is
    missing.
    """
    zero = zero_shot(runs)
    if zero.empty:
        return None
    import pandas as pd

    d = over_sets(difference_by_set(pd.concat([at_most, zero]), method, zero["method"].iloc[0]))
    return d.mean if d.complete else None


def control_is_the_same(e: Evidence) -> Finding:
    """O2: equivalence where rounding can tell the two apart.

    Where n is a power of two both compute the same bits, so the experiment `twins` has other n.
    """
    runs = own_images(e.runs("twins"))
    runs = runs.assign(method=runs["method"].str.partition(",")[0])  # without what is varied
    runs = runs[~runs["n_blocks"].isin([2**k for k in range(32)])]
    if runs.empty:
        raise MissingResults("Each n of twins is a power of two, whose bits are equal; add n = 3")
    over = ["reading", "rank", "n_blocks", "dataset", "shots", "seed"]
    found = side_by_side(runs, over, ["block_lora", "lora_plus"], "correct")
    pairs, accuracy = found.values, side_by_side(runs, over, ["block_lora", "lora_plus"]).values
    totals = runs[runs["method"] == "block_lora"].set_index(over)["total"]
    apart = (pairs["block_lora"] - pairs["lora_plus"]).abs()
    means = 100 * accuracy.groupby("dataset").mean()  # the units
    d, answer = paired_difference(means["block_lora"], means["lora_plus"]), 100 / totals.min()
    forms = sorted({(n, reading) for reading, _, n, *_ in pairs.index})
    return Finding(
        d.within(MARGIN),
        f"Where the two round differently, {', '.join(f'n = {n} ({r})' for n, r in forms)}: "
        f"{points(d)} over {several(len(means), len(means), 'sets')}, "
        f"{found.told('pairs of runs')}; equal: within {MARGIN:.0f} point. "
        f"{int(apart.sum()):,} of {int(totals.loc[pairs.index].sum()):,} answers apart, "
        f"{int((apart == 0).sum())} accuracies the same to the last answer.",
        # no spread at all would say that any effect had been seen: one answer is the least
        smallest=smallest(d, Interval(0.0, -answer, answer, 1)),
    )


def width_is_what_counts(e: Evidence) -> Finding:
    """O3: Block-LoRA loses to LoRA of rank r; so does LoRA of rank r/n, its equal at one scale."""
    runs = e.runs()
    k = trained_shots(runs)[-1]
    part = own_images(runs[runs["shots"] == k])
    methods = ["block_lora", "lora_r1", "lora"]
    shared = side_by_side(part, ["dataset", "seed"], methods)  # three differences of the same runs
    (width, rank, scale), one, whole = _cuts(e, *methods)
    if (one[0], whole[0]) != (width, rank):
        raise MissingResults(
            f"lora_r1 and lora are to have the width and the rank of block_lora, {width} and "
            f"{rank}, and have {one[0]} and {whole[0]}; change the profile"
        )
    means = 100 * shared.values.groupby("dataset").mean()
    block, half, between = (
        paired_difference(means[a], means[b])
        for a, b in (("block_lora", "lora"), ("lora_r1", "lora"), ("block_lora", "lora_r1"))
    )
    sets = part["dataset"].nunique()
    level = abs(scale / one[2] - 1) < 0.01
    lost, fair = block.below(), own_rates(e, *methods)
    # of no loss nothing can be said
    holds = between.within(MARGIN) if lost and level and fair else None
    holds = half.below() if holds else holds  # the width has to lose, too
    other = "" if level else f", whose scale is another ({one[2]:.3f}, not {scale:.3f})"
    return Finding(
        holds,
        f"At {shots_of(k)} against LoRA of rank r: Block-LoRA {points(block)}, LoRA of rank r/n "
        f"{points(half)}{other}; Block-LoRA minus LoRA of rank r/n {points(between)}, equal: "
        f"within {MARGIN:.0f} point; over {several(len(means), sets, 'sets')}, "
        f"{shared.told('pairs of set and seed')}."
        + ("" if lost else " A loss of Block-LoRA is not shown.")
        + (" A loss of LoRA of rank r/n is not shown." if lost and not half.below() else "")
        + ("" if fair else UNFAIR),
        smallest=smallest(block, between),
    )


def _cuts(e: Evidence, *methods: str) -> list[tuple[int, int, float]]:
    """Return (width of A_s, rank that is cut, scale) of each of these methods in the profile."""
    found = (e.profile.entry(name).method_spec.load().settings for name in methods)
    return [(s.block_rank, s.total_rank, float(f"{s.scale:.4g}")) for s in found]
