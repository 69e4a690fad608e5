"""Many methods on many sets: ranks with a critical difference, wins, fronts, budgets. No torch.

Sets are the units of a rank: on each set methods are ranked by their means over the seeds that all
have there, and only sets on which every method has a mean are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .comparisons import difference_by_seed, difference_by_set, over_sets
from .intervals import holm
from .summaries import in_points, own_images, planned

TIE = 1.0  # points of accuracy: a difference within it is called none
DIGITS = 9  # of points: the same counts over the same images, in another order of sums, are one
COSTS = ("trainable_parameters", "seconds_train", "fit_bytes")
BUDGET = ("updates", "images_seen", "image_passes", "text_passes", *COSTS)


@dataclass(frozen=True)
class Ranks:
    """mean: each method's rank, 1 the best, averaged over n sets.

    p_value: of Friedman's test that no method differs. critical: by how much two mean ranks have to
    differ (Nemenyi); nan for fewer than two sets or methods.
    """

    mean: pd.Series
    n: int
    p_value: float
    critical: float

    @property
    def alike(self) -> list[tuple[str, str]]:
        """The longest runs of methods, first and last by rank, within the critical difference; none
        where there is no such difference.
        """
        if math.isnan(self.critical):
            return []
        order = self.mean.sort_values(kind="stable")
        found: list[tuple[int, int]] = []
        for i, first in enumerate(order):
            last = int(np.searchsorted(order, first + self.critical, side="right")) - 1
            if last > i and (not found or last > found[-1][1]):
                found.append((i, last))
        return [(order.index[i], order.index[j]) for i, j in found]


def accuracies(runs: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return mean accuracies over the seeds that all methods have, in points: a row a set, a column
    a method.

    A set that lacks a method is left out. What trains nothing stands at every number of shots.
    """
    part = own_images(runs[runs["shots"].isin([0, shots])])
    trained, untrained = part[part["shots"] > 0], part[part["shots"] == 0]
    seeds = trained.pivot(index=["dataset", "seed"], columns="method", values="accuracy").dropna()
    single = untrained.pivot(index="dataset", columns="method", values="accuracy")
    scores = seeds.groupby("dataset").mean().join(single, how="inner" if len(single) else "left")
    return 100 * scores.sort_index(axis=1).dropna()


def average_ranks(scores: pd.DataFrame, alpha: float = 0.05) -> Ranks:
    """Rank methods on each set; scores that are equal but for rounding share a rank.

    scores: a row a set, a column a method, more is better. Critical difference of two mean ranks:
    q_α sqrt(k (k + 1) / (6 n)), with Friedman's test before it. Source: Demšar, JMLR 7 (2006) 1-30.
    """
    from scipy.stats import friedmanchisquare, studentized_range

    n, k = scores.shape
    scores = scores.round(DIGITS)
    ranks = scores.rank(axis=1, ascending=False)
    if n < 2 or k < 2:
        return Ranks(ranks.mean(), n, math.nan, math.nan)
    critical = studentized_range.ppf(1 - alpha, k, math.inf) * math.sqrt(k * (k + 1) / (12 * n))
    same = scores.nunique(axis=1).le(1).all()  # the statistic is 0/0
    p = float(friedmanchisquare(*scores.T.to_numpy()).pvalue) if k > 2 and not same else math.nan
    return Ranks(ranks.mean(), n, p, float(critical))


def against(runs: pd.DataFrame, reference: str, shots: int) -> pd.DataFrame:
    """Return what every other method gains on a reference at this number of shots, in points.

    Columns: method, shots; with sets as units mean, low, high, p_value, sets; wins, ties, losses,
    sets on which the gain is above, within or below TIE; wilcoxon, the signed-rank test over the
    sets, adjusted for the number of methods (Holm); with seeds as units, the mean over the sets
    within a seed, seed_mean, seed_low, seed_high, seeds; complete. A method that is not trained is
    one run, and has no seeds. What shares no run with the reference gains nan; no row where that
    has no run itself.
    """
    from scipy.stats import wilcoxon

    part = own_images(runs[runs["shots"].isin([0, shots])])
    rows = []
    part = part if reference in set(part["method"]) else part.iloc[:0]
    for name in sorted(set(part["method"]) - {reference}):
        both = part[part["method"].isin([name, reference])]
        by_set = difference_by_set(both, reference, name)
        by_set = by_set[by_set["shots"] == shots]
        d, gains = over_sets(by_set), -by_set.loc[by_set["n"] > 0, "mean"].round(DIGITS)
        row = dict(method=name, shots=shots, mean=-d.mean, low=-d.high, high=-d.low)
        row |= dict(p_value=d.p_value, sets=d.n, complete=d.complete)
        row |= dict(wins=int((gains > TIE).sum()), losses=int((gains < -TIE).sum()))
        row["ties"] = len(gains) - row["wins"] - row["losses"]
        row["wilcoxon"] = float(wilcoxon(gains).pvalue) if gains.any() else math.nan
        seeds = dict(seed_mean=math.nan, seed_low=math.nan, seed_high=math.nan, seeds=0)
        if d.n and (both.loc[both["method"] == name, "shots"] == shots).all():
            s = difference_by_seed(both, name, reference)
            seeds = dict(seed_mean=s.mean, seed_low=s.low, seed_high=s.high, seeds=s.n)
        rows.append(row | seeds)
    found = pd.DataFrame(rows)
    return found.assign(wilcoxon=holm(found["wilcoxon"].tolist())) if rows else found


def budgets(runs: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return each method's accuracy (points) and what fitting took, means over sets and seeds.

    Columns: method, method_label, accuracy, runs, expected (as many as are planned, or as the
    method with the most has; what trains nothing has one a set), complete, then BUDGET; nan where
    no record tells it.
    """
    part = in_points(own_images(runs[runs["shots"].isin([0, shots])]))
    part = part.astype(dict.fromkeys(BUDGET, float))  # None: what no record tells
    sets = part.groupby(["method", "method_label", "dataset"])[["accuracy", *BUDGET]].mean()
    means = sets.groupby(level=[0, 1]).mean().reset_index()
    n = means["method"].map(part.groupby("method")["key"].nunique())
    once = means["method"].map(part.groupby("method")["shots"].max()) == 0
    most = max([planned(part[part["shots"] > 0], ["dataset", "seed"]), *n[~once]])
    expected = np.where(once, part["dataset"].nunique(), most)
    means = means.assign(runs=n, expected=expected, complete=n == expected)
    return means.sort_values("accuracy", ascending=False)


def pareto_front(
    cost: Sequence[float], gain: Sequence[float], complete: Sequence[bool] | None = None
) -> list[bool]:
    """Return which points no other one beats: none costs less for as much, or gives more for less.

    A point that costs and gives the same as another one is on the front with it; nan is not, nor is
    what is not `complete`: its gain is a mean over other runs.
    """
    c, g = np.asarray(cost, float), np.asarray(gain, float).round(DIGITS)
    g = g if complete is None else np.where(complete, g, math.nan)
    no_worse = (c <= c[:, None]) & (g >= g[:, None])
    better = (c < c[:, None]) | (g > g[:, None])
    return list(~(no_worse & better).any(axis=1) & ~np.isnan(c) & ~np.isnan(g))


def spread_between_sources(published: pd.DataFrame) -> pd.DataFrame:
    """Return how far apart sources are on the published value of one method, set and shots.

    published: method, dataset, shots, published, source. Columns: method, dataset, shots, low,
    high, spread (points), sources; only where there are two sources or more.
    """
    groups = published.dropna(subset="published").groupby(["method", "dataset", "shots"])
    found = groups.agg(
        low=("published", "min"), high=("published", "max"), sources=("source", "nunique")
    ).reset_index()
    return found[found["sources"] > 1].assign(spread=found["high"] - found["low"])


def extremes(gains: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """Return on which sets methods lose and gain most, at most n of each.

    gains: in points, a row a set, a column a method. Columns: method, mean, loses most on (the
    worst first), gains most on (the best first), as 'Flags -4.1, Chess -0.3'; '-' for none.
    """

    def told(part: pd.Series) -> str:
        return ", ".join(f"{name} {gain:+.1f}" for name, gain in part.head(n).items()) or "-"

    rows = []
    for method, by_set in gains.items():
        order = by_set.dropna().round(DIGITS).sort_values(kind="stable")
        rows.append(
            {
                "method": method,
                "mean": order.mean(),
                "loses most on": told(order[order < 0]),
                "gains most on": told(order[order > 0].iloc[::-1]),
            }
        )
    return pd.DataFrame(rows)
