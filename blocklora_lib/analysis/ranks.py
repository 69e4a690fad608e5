"""Whether a bound orders what is measured: gaps of runs, and rank correlations over data sets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .intervals import Interval, mean_interval
from .summaries import own_images

GROUP = ["method", "method_label", "dataset", "shots"]


def generalization_gaps(runs: pd.DataFrame) -> pd.DataFrame:
    """Return train minus test accuracy of each method, set and shots, means over seeds (0 to 1).

    Columns: GROUP, train_accuracy, accuracy, seeds, parameters, gap. Runs that were not trained, or
    tell no accuracy on their training images, have no row.
    """
    runs = own_images(runs)
    runs = runs[(runs["shots"] > 0) & runs["train_accuracy"].notna()]
    gaps = runs.groupby(GROUP, sort=False, as_index=False).agg(
        train_accuracy=("train_accuracy", "mean"),
        accuracy=("accuracy", "mean"),
        seeds=("seed", "nunique"),
        parameters=("trainable_parameters", "first"),
    )
    return gaps.assign(gap=gaps["train_accuracy"] - gaps["accuracy"])


def rank_correlation(gaps: pd.DataFrame, within: str, by: str = "bound") -> dict[str, float]:
    """Return Spearman's correlation of `by` and gap within `within`, averaged over data sets.

    gaps: dataset, gap, `by` and `within`, the column that is held fixed. low, high: Student's 95%
    interval over data sets, nan for fewer than two. values: the most that are ranked in one group;
    groups: those in which both vary; data_sets: those with such a group.
    """
    found: dict[str, list[float]] = {}
    groups = gaps.groupby(["dataset", within])
    for (name, *_), part in groups:
        if part[by].nunique() > 1 and part["gap"].nunique() > 1:
            found.setdefault(name, []).append(part[by].corr(part["gap"], method="spearman"))
    means = [float(np.mean(values)) for values in found.values()]
    over = mean_interval(means) if means else Interval(math.nan, math.nan, math.nan, 0)
    return {
        "values": int(groups.size().max()) if len(gaps) else 0,
        "groups": sum(map(len, found.values())),
        "data_sets": len(found),
        "mean": over.mean,
        "low": over.low,
        "high": over.high,
    }


def over_data_sets(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the mean bound and gap of each method and number of shots, over data sets."""
    return gaps.groupby(["method_label", "shots"], as_index=False)[["bound", "gap"]].mean()


def by_method(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return each method_label's parameters, accuracies and gap: means over sets and shots."""
    columns = ["parameters", "train_accuracy", "accuracy", "gap"]
    return gaps.groupby("method_label")[columns].mean()


def twins(gaps: pd.DataFrame, tolerance: float = 0.005) -> list[tuple[str, str]]:
    """Return the pairs of methods that train the same classifier under different counts.

    The same: train and test accuracy agree within `tolerance` on every set and number of shots.
    None where all methods look the same, as they do where they have hardly left zero-shot.
    """
    counts = by_method(gaps)["parameters"]
    wide = gaps.pivot_table(
        index="method_label", columns=["dataset", "shots"], values=["train_accuracy", "accuracy"]
    )
    if not wide.std().mean() > 0.01:
        return []
    return [
        (a, b)
        for a, b in itertools.combinations(counts.index, 2)
        if counts[a] != counts[b] and np.allclose(wide.loc[a], wide.loc[b], atol=tolerance)
    ]


def farthest_of_equal_count(methods: pd.DataFrame) -> Sequence[str]:
    """Return the two method labels of equal `parameters` whose gaps differ most; () without a pair.

    methods: of `by_method`.
    """
    counts, gap = methods["parameters"], methods["gap"]
    equal = [(a, b) for a, b in itertools.combinations(methods.index, 2) if counts[a] == counts[b]]
    return max(equal, key=lambda pair: abs(gap[pair[0]] - gap[pair[1]]), default=())
