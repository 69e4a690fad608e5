"""How accuracy depends on the learning rate, method by method, where rates were chosen; and where
in their grids chosen settings stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from ..runs.record import RunRecord
from .intervals import paired_difference
from .summaries import in_method_order


def rate_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Return each method's mean accuracy (%) at each rate at which no run failed, a row each.

    runs: of `Notebook.rates`, with `chosen` true at a method's chosen rate. low and high lie about
    the mean as far as the 95% interval of the paired difference from the chosen rate reaches, over
    sets (nan there, and with one set): a rate whose interval holds the chosen one's mean is not
    told apart from it.
    """
    rows = []
    for (method, label), own in in_method_order(runs).groupby(
        ["method", "method_label"], sort=False
    ):
        cells = own.pivot_table(index=["dataset", "shots", "seed"], columns="lr", values="accuracy")
        cells = 100 * cells.loc[:, cells.notna().all()]
        by_set = cells.groupby("dataset").mean()
        chosen = own.loc[own["chosen"], "lr"].iloc[0]
        for lr in by_set:
            reach = paired_difference(by_set[lr], by_set[chosen]).half_width
            reach = math.nan if lr == chosen else reach
            mean = float(cells[lr].mean())
            rows.append((method, label, lr, mean, mean - reach, mean + reach, lr == chosen))
    columns = ["method", "method_label", "lr", "mean", "low", "high", "chosen"]
    return pd.DataFrame(rows, columns=columns).assign(sets=runs["dataset"].nunique())


def at_the_edge(records: Iterable[RunRecord]) -> dict[str, tuple[int, int]]:
    """Return of each setting that runs chose how many choices stand at an end of its grid, of all.

    A better value may lie beyond that end, where a linear probe, which searches around its grid's
    best, may have chosen. Where a run tried one value alone, nothing was chosen.
    """
    found, of = Counter[str](), Counter[str]()
    for record in records:
        choice = record.result and record.result.choice
        for name, value in choice.settings.items() if choice else ():
            grid = record.spec.method.settings[name]
            if len(grid) > 1:
                of[name] += 1
                found[name] += not min(grid) < value < max(grid)
    return {name: (found[name], of[name]) for name in of}
