"""Runs of retrieval as runs of several sets: one for each way of looking and number of finds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

WAYS = ("image to text", "text to image")


def by_way(runs: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return a row for each run, evaluated set and column of finds, which are its accuracy.

    Rows are called 'TITLE: image to text, first 5', as data set and as evaluated set, so that
    summaries and gains of classification read them.
    """
    finds = [name for name in runs.columns if name.startswith(WAYS)]
    parts = [
        runs.assign(
            accuracy=runs[name], evaluated_on=runs["evaluated_on"].map(titles) + f": {name}"
        )
        for name in finds
    ]
    found = pd.concat(parts, ignore_index=True)
    return found.assign(dataset=found["evaluated_on"])
