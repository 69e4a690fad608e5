"""Means of runs, each with what it rests on: the one place where runs are averaged. No torch.

A summary is a frame with a row a mean and the columns MEANS: mean, low and high (95% interval), n,
sd, expected, complete. n counts repetitions, such as seeds; `expected` is how many there should be:
all that the mean's neighbours have between them, and no fewer than the experiment plans. A run that
failed or has still to be made has no row, and is what makes a mean not `complete`: a mean over
other runs is another quantity, which is drawn hollow, said in words and never the best. A frame's
column `unit`, if it has one, is what sets two of its values apart at least (`mean_interval`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .intervals import mean_interval

if TYPE_CHECKING:  # imported where it is used: the command line reads names from here
    import pandas as pd
from ..runs.results import PLANNED

MEANS = ["mean", "low", "high", "n", "sd", "expected", "complete"]
UNIT = "unit"
AVERAGE = "average"  # the name under which the mean over all sets stands beside the sets
RUN_COLUMNS = ("dataset", "evaluated_on", "shots", "seed", "method", "method_label", "accuracy")
CELL = ["method", "method_label", "shots"]
# The order in which methods are listed everywhere; one that is not named here follows, by name.
METHOD_ORDER = (
    "zero_shot",
    "linear_probe",
    "lp_plus",
    "tip_adapter",
    "tip_adapter_f",
    "clip_adapter",
    "task_res",
    "zs_lp",
    "clap",
    "prolip",
    "gda",
    "proker",
    "coop",
    "kgcoop",
    "prograd",
    "cocoop",
    "maple",
    "promptsrc",
    "lora",
    "block_lora",
    "lora_plus",
    "lora_r1",
    "frozen_a",
)


def summarise(
    runs: pd.DataFrame,
    by: Sequence[str],
    value: str = "accuracy",
    within: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
) -> pd.DataFrame:
    """Return a row for each group of `by`, in their order, with the MEANS of `value` over its runs.

    within: columns of `by` in which neighbours agree; groups that do are to have the same
    repetitions (none: all groups are). over: columns that name a repetition. A run whose value is
    nan counts as missing. KeyError for an unknown column, ValueError where a group has two runs of
    one repetition.
    """
    import pandas as pd

    by, within, over = list(by), list(within), list(over)
    if missing := [c for c in [*by, *within, *over, value] if c not in runs.columns]:
        raise KeyError(
            f"no column {', '.join(missing)}; the frame has {', '.join(map(str, runs.columns))}"
        )
    check_single(runs, [*by, *over])
    expected = _expected(runs, within, over)
    # by hand: pandas' groupby takes seven times as long on so few rows
    groups: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    units = runs[UNIT].tolist() if UNIT in runs.columns else [0.0] * len(runs)
    for group, v, unit in zip(told_by(runs, by), runs[value].tolist(), units, strict=True):
        groups.setdefault(group, []).append((v, unit))
    places = [_places(runs[name]) for name in by]
    rows = []
    for group in sorted(groups, key=lambda group: _in_order(group, places)):
        values, least = [v for v, _ in groups[group] if v == v], max(u for _, u in groups[group])
        near = tuple(group[by.index(name)] for name in within)
        rows.append([*group, *_means(values, expected[near], least)])
    return pd.DataFrame(rows, columns=[*by, *MEANS])


def _places(column: pd.Series) -> dict[object, int]:
    """The place of each category of a column that has some: their order is not that of letters."""
    categories = getattr(column.dtype, "categories", ())
    return {category: i for i, category in enumerate(categories)}


def _in_order(
    group: tuple[object, ...], places: Sequence[Mapping[object, int]]
) -> list[tuple[bool, bool, Any]]:
    """What sorts groups as pandas does: nan comes last, and texts after numbers."""
    told = [p.get(v, v) for v, p in zip(group, places, strict=True)]
    return [(v != v, isinstance(v, str), 0 if v != v else v) for v in told]


def _expected(
    runs: pd.DataFrame, within: list[str], over: list[str]
) -> Mapping[tuple[object, ...], int]:
    """Return how many repetitions neighbours are to have: what one of them has, or is planned."""
    if not within:
        return {(): max(len(runs[over].drop_duplicates()), planned(runs, over))}
    near, others = told_by(runs, within), [name for name in over if name != "seed"]
    there = Counter(key for key, _ in {*zip(near, told_by(runs, over), strict=True)})
    if PLANNED in runs.columns:
        of_each = Counter(key for key, _ in {*zip(near, told_by(runs, others), strict=True)})
        for key, plan in zip(near, runs[PLANNED].fillna(0), strict=True):
            there[key] = max(there[key], int(plan) * of_each[key])
    return there


def told_by(runs: pd.DataFrame, columns: Sequence[str]) -> list[tuple[object, ...]]:
    """Return what these columns say of each row, with one nan that equals itself. On a few rows
    far faster than pandas' own ways to merge and compare.
    """
    values = (
        [math.nan if v is None or v != v else v for v in runs[name].tolist()] for name in columns
    )
    return list(zip(*values, strict=True)) or [()] * len(runs)


def check_single(runs: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse two runs of which these columns say the same."""
    seen = set()
    for key in told_by(runs, columns):
        if key in seen:
            told = ", ".join(f"{name}={v}" for name, v in zip(columns, key, strict=True))
            raise ValueError(
                f"several runs of {told} in one mean; name in `by` what sets them apart, or give "
                "the experiment one of it"
            )
        seen.add(key)


def summarise_each(
    runs: pd.DataFrame, by: Sequence[str], values: Sequence[str], within: Sequence[str] = ()
) -> pd.DataFrame:
    """Return `summarise` of each of `values`, named by the column `quantity`, one below another."""
    import pandas as pd

    return pd.concat(
        [summarise(runs, by, value, within).assign(quantity=value) for value in values],
        ignore_index=True,
    )


def _means(values: list[float], expected: int, unit: float) -> list[object]:
    """Return MEANS of values."""
    n = len(values)
    if not n:
        return [math.nan, math.nan, math.nan, 0, math.nan, expected, False]
    i = mean_interval(values, unit=unit)
    sd = math.sqrt(math.fsum((v - i.mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return [i.mean, i.low, i.high, n, sd, expected, n == expected]


def planned(near: pd.DataFrame, over: Sequence[str]) -> int:
    """Return how many repetitions are planned for each mean of neighbours; 0 if nothing tells."""
    if PLANNED not in near.columns or near[PLANNED].isna().all():
        return 0
    others = [name for name in over if name != "seed"]
    return int(near[PLANNED].max()) * (len(near[others].drop_duplicates()) if others else 1)


def counted(n: int, expected: int) -> str:
    """Write how many of those expected there are: '3', or '2 of 3'."""
    return f"{n}" if n == expected else f"{n} of {expected}"


def seeds_told(summary: pd.DataFrame) -> str:
    """Write over how many seeds a summary's trained means are: '3 seeds', '1 to 3 of 3 seeds'."""
    rows = summary[summary["shots"] > 0] if "shots" in summary.columns else summary
    if rows.empty:
        return "no seed"
    least, most, expected = int(rows["n"].min()), int(rows["n"].max()), int(rows["expected"].max())
    if rows["complete"].all():
        return f"{least} seed{'s' * (most > 1)}" if least == most else f"{least} to {most} seeds"
    found = f"{least}" if least == most else f"{least} to {most}"
    return f"{found} of {expected} seeds (hollow: fewer than planned, or than a neighbour's)"


def check_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs; refuse a frame without the run store's columns, or without a finished run."""
    missing = [c for c in RUN_COLUMNS if c not in runs.columns]
    if missing:
        raise ValueError(
            f"the frame has no column {', '.join(missing)}; give RunStore(...).frame()"
        )
    if runs.empty:
        raise ValueError(
            "no finished run in this frame; compute some with `blocklora grid --profile NAME`"
        )
    return runs


def in_method_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows sorted by METHOD_ORDER, label and shots."""
    known = {name: i for i, name in enumerate(METHOD_ORDER)}
    order = rows["method"].map(lambda name: known.get(name, len(known)))
    return (
        rows.assign(_order=order)
        .sort_values(["_order", "method", "method_label", "shots"])
        .drop(columns="_order")
    )


def in_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with accuracy in %, and the `unit` that one of their `total` images makes."""
    unit = {UNIT: 100.0 / runs["total"]} if "total" in runs.columns else {}
    return runs.assign(accuracy=100.0 * runs["accuracy"].astype(float), **unit)


def own_images(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows evaluated on the images of the set that was trained on."""
    return runs[runs["evaluated_on"] == runs["dataset"]]


def few_shot_summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the MEANS over seeds, in %, of each (dataset, method, shots), and of `average`.

    Neighbours are of one set and number of shots. The average is taken over the sets within a seed,
    then over seeds; a seed that lacks one of the sets is missing there, because a mean over fewer
    sets is another quantity.
    """
    return _with_average(in_points(own_images(check_runs(runs))), "accuracy")


class TooFewRuns(ValueError):
    """A frame lacks the runs that a quantity is of."""


def gains(runs: pd.DataFrame, shots: int | None = None) -> pd.DataFrame:
    """Return MEANS of accuracy minus zero-shot, in points, at `shots` (None: the most).

    TooFewRuns: there is no zero-shot run, or beside it none with so many shots.
    """
    runs = in_points(own_images(check_runs(runs)))
    zero = zero_shot(runs).set_index("dataset")["accuracy"]
    if zero.empty:
        raise TooFewRuns(
            "no zero-shot run (shots = 0) in this frame; a gain needs one for each set"
        )
    shots = int(runs["shots"].max()) if shots is None else shots
    part = runs[(runs["shots"] == shots) & runs["dataset"].isin(zero.index)]
    if part.empty or shots == 0:
        known = ", ".join(str(s) for s in sorted(runs["shots"].unique()) if s > 0)
        raise TooFewRuns(
            f"no trained run with shots={shots} beside a zero-shot run; this frame has {known}"
            if known
            else "no trained run in this frame, only zero-shot; compute some with `blocklora grid`"
        )
    return _with_average(part.assign(gain=part["accuracy"] - part["dataset"].map(zero)), "gain")


def zero_shot(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of zero-shot: of `zero_shot`, or of the first method that trains nothing."""
    untrained = runs[runs["shots"] == 0]
    names = sorted(untrained["method"].unique(), key=lambda name: (name != "zero_shot", name))
    return untrained[untrained["method"].isin(names[:1])]


def _with_average(runs: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the summary of `value` for each set, and for all of them within a seed."""
    import pandas as pd

    parts, near = (
        [summarise(runs, ["dataset", *CELL], value, ["dataset", "shots"])],
        ["dataset", "shots"],
    )
    sets = runs["dataset"].nunique()
    if sets > 1:
        columns = {value: (value, "mean"), "count": (value, "count")}
        columns |= {name: (name, "max") for name in {PLANNED, UNIT} & {*runs.columns}}
        by_seed = runs.groupby([*CELL, "seed"]).agg(**columns).reset_index().assign(dataset=AVERAGE)
        if UNIT in by_seed:
            by_seed[UNIT] /= sets
        by_seed[value] = by_seed[value].where(by_seed["count"] == sets)
        average = summarise(by_seed, ["dataset", *CELL], value, near)
        parts += [average[average["n"] > 0]] if (average["n"] > 0).any() else []
    summary = in_method_order(pd.concat(parts, ignore_index=True))
    return summary[["dataset", *CELL, *MEANS]].reset_index(drop=True)


def trained_parameters(runs: pd.DataFrame) -> dict[str, int]:
    """Return method label -> trainable parameters, where its runs agree on one number."""
    counts = runs.dropna(subset=["trainable_parameters"]).groupby("method_label")
    found = {label: set(numbers) for label, numbers in counts["trainable_parameters"]}
    return {label: int(max(n)) for label, n in found.items() if len(n) == 1 and max(n) > 0}
