"""Methods against each other, paired: a difference is of runs that share set, shots and seed.

A seed that one of two methods lacks is in neither's mean; what is left says so by n, expected and
complete, as every summary does. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..runs.results import PLANNED
from .intervals import PairedDifference, paired_difference
from .summaries import UNIT, check_single, counted, in_points, planned, summarise, told_by


def several(n: int, expected: int, what: str) -> str:
    """Write '3 sets', '2 of 3 sets' or '1 set'. what: begins with a plural, as 'pairs of runs'."""
    noun, *rest = what.split(" ", 1)
    noun = noun.removesuffix("s") if n == expected == 1 else noun
    return " ".join([counted(n, expected), noun, *rest])


@dataclass(frozen=True)
class Matched:
    """values: a row for each repetition of all columns. expected: how many there should be."""

    values: pd.DataFrame
    expected: int

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.values)

    def told(self, what: str) -> str:
        """Write '3 seeds', or '2 of 3 seeds (those that all have)'."""
        return several(self.n, self.expected, what) + (
            " (those that all have)" if self.n < self.expected else ""
        )


def matched(
    runs: pd.DataFrame,
    over: Sequence[str],
    names: Sequence[object] | None = None,
    column: str = "method",
    value: str = "accuracy",
) -> Matched:
    """Return `value` of the runs that share `over`, a column for each of `names` in `column`.

    None is all names. A repetition that another method of `runs` has, or that is planned, is
    expected; zero-shot's is not, since it is one run. ValueError names what has no run at all, or
    no repetition in common.
    """
    trained = runs[runs["shots"] > 0] if "shots" in runs.columns else runs
    names = sorted(trained[column].unique()) if names is None else list(names)
    if missing := [str(name) for name in names if name not in set(trained[column])]:
        raise ValueError(f"no run of {' or '.join(missing)} to compare with")
    wide = trained.pivot(index=list(over), columns=column, values=value)
    values = wide[names].dropna()
    if values.empty:
        raise ValueError(
            f"{', '.join(map(str, names))} have no run of the same {' and '.join(over)}"
        )
    return Matched(values, max(len(wide), planned(trained, over)))


@dataclass(frozen=True)
class OverSets(PairedDifference):
    """A mean of differences over n of `expected` sets or seeds, over `pairs` of all expected."""

    expected: int = 0
    pairs: int = 0
    pairs_expected: int = 0

    @property
    def complete(self) -> bool:
        """Whether no set and no pair is missing."""
        return (self.n, self.pairs) == (self.expected, self.pairs_expected)

    def told(self, what: str = "sets") -> str:
        """Write what the mean rests on: '11 sets, 33 pairs of runs'."""
        return f"{several(self.n, self.expected, what)}, {self.pairs_told}"

    @property
    def pairs_told(self) -> str:
        """Write '33 pairs of runs'."""
        return several(self.pairs, self.pairs_expected, "pairs of runs")


def difference_by_set(runs: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return the MEANS over seeds of a - b, in points, on each evaluated set and number of shots.

    b that needs no training is one run, with which every seed of a is compared. Neighbours of a
    pair are all trained runs of that set and number of shots. Columns: evaluated_on, shots,
    then MEANS.
    """
    for name in (a, b):
        if name not in set(runs["method"]):
            known = ", ".join(sorted(set(runs["method"])))
            raise ValueError(f"no run of {name} to compare with; methods in this frame: {known}")
    runs = in_points(runs)
    trained = runs[runs["shots"] > 0]
    at = ["evaluated_on", "shots", "seed"]
    rows = trained[[*at, *({PLANNED, UNIT} & set(runs.columns))]].drop_duplicates(at)
    single = (runs.loc[runs["method"] == b, "shots"] == 0).all()
    keys = ["evaluated_on"] if single else at
    rows["difference"] = _points(trained, a, at, rows) - _points(runs, b, keys, rows)
    return summarise(rows, ["evaluated_on", "shots"], "difference", ["evaluated_on", "shots"])


def _points(runs: pd.DataFrame, method: str, keys: list[str], rows: pd.DataFrame) -> pd.Series:
    """Return the accuracy (%) of the method's run that shares `keys` with each row, else nan."""
    own = runs[runs["method"] == method]
    check_single(own, keys)
    found = dict(zip(told_by(own, keys), own["accuracy"], strict=True))
    return pd.Series([found.get(key, math.nan) for key in told_by(rows, keys)], rows.index, float)


def over_sets(by_set: pd.DataFrame, sets: Sequence[str] | None = None) -> OverSets:
    """Return mean, interval and paired t-test over sets, at one number of shots.

    by_set: of difference_by_set. sets: those that are wanted (None: all). Without a single pair all
    is nan, and n is 0.
    """
    sets = list(by_set["evaluated_on"] if sets is None else sets)
    rows = by_set[by_set["evaluated_on"].isin(sets)]
    means = rows.loc[rows["n"] > 0, "mean"].tolist()
    return _over(means, len(sets), int(rows["n"].sum()), int(rows["expected"].sum()))


def difference_by_seed(runs: pd.DataFrame, a: str, b: str) -> OverSets:
    """Return a - b in points, the mean over the evaluated sets within a seed, over seeds.

    One training is evaluated on all of these sets, so it is the seeds that are independent. A seed
    that lacks a set of either method is left out: a mean over fewer sets is another quantity. b
    that needs no training is one run, with which every seed of a is compared. n and expected count
    seeds; without a whole seed all is nan.
    """
    own = runs[runs["method"] == b]
    if (own["shots"] == 0).all():
        few = runs.loc[runs["shots"] > 0, ["shots", "seed"]].drop_duplicates()
        others = runs[runs["method"] != b]
        runs = pd.concat([others, own.drop(columns=["shots", "seed"]).merge(few, how="cross")])
    pairs = matched(runs, ["evaluated_on", "seed"], [a, b])
    difference = 100 * (pairs.values[a] - pairs.values[b]).astype(float).unstack("evaluated_on")
    seeds = runs.loc[runs["shots"] > 0, "seed"].nunique()
    sets = runs.loc[runs["shots"] > 0, "evaluated_on"].nunique()
    whole = difference.dropna().mean(axis=1) if difference.shape[1] == sets else pd.Series([])
    return _over(whole.tolist(), max(seeds, pairs.expected // sets), pairs.n, pairs.expected)


def change_over_shots(by_set: pd.DataFrame, few: int, many: int) -> OverSets:
    """Return by how much a difference grows from few to many shots, over the sets that have both.

    by_set: of difference_by_set.
    """
    wide = by_set[by_set["n"] > 0].pivot(index="evaluated_on", columns="shots", values="mean")
    change = (wide[many] - wide[few]).dropna() if {few, many} <= set(wide) else pd.Series([])
    at = by_set[by_set["shots"].isin([few, many])]
    pairs, expected = int(at["n"].sum()), int(at["expected"].sum())
    return _over(change.tolist(), by_set["evaluated_on"].nunique(), pairs, expected)


def _over(values: list[float], expected: int, pairs: int, pairs_expected: int) -> OverSets:
    """Return mean, interval and test of differences, of `expected`; nan where there is none."""
    nothing = PairedDifference(math.nan, math.nan, math.nan, 0)
    d = paired_difference(values, [0.0] * len(values)) if values else nothing
    return OverSets(
        *(d.mean, d.low, d.high, d.n, d.p_value),
        expected=expected,
        pairs=pairs,
        pairs_expected=pairs_expected,
    )


def over_sets_by_shots(by_set: pd.DataFrame) -> pd.DataFrame:
    """Return over_sets of difference_by_set at each number of shots, a row each.

    Columns: shots, mean, low, high, n (sets), p_value, sets_above (where the mean is above 0),
    pairs ('33', or '32 of 33', pairs of runs), complete.
    """
    rows = []
    for shots, part in by_set.groupby("shots"):
        d = over_sets(part)
        above, pairs = int((part["mean"] > 1e-9).sum()), counted(d.pairs, d.pairs_expected)
        means = dict(mean=d.mean, low=d.low, high=d.high, n=d.n, p_value=d.p_value)
        rows.append(dict(shots=shots, **means, sets_above=above, pairs=pairs, complete=d.complete))
    return pd.DataFrame(rows)
