"""One source on other sets: transfer to other classes, and to shifted variants of the source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from .comparisons import difference_by_set, over_sets
from .summaries import (
    AVERAGE,
    CELL,
    MEANS,
    counted,
    few_shot_summary,
    in_method_order,
    zero_shot,
)


def domain_summary(runs: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return few_shot_summary on the source, on each other evaluated set, and on those on average.

    runs: those of the source set, with a row for each evaluated set. `dataset` is the set
    evaluated on.
    """
    part = runs[runs["dataset"] == source]
    shifted = part[part["evaluated_on"] != source]
    frames = [few_shot_summary(part)] if (part["evaluated_on"] == source).any() else []
    frames += (
        [few_shot_summary(shifted.assign(dataset=shifted["evaluated_on"]))] if len(shifted) else []
    )
    return pd.concat(frames, ignore_index=True)


def robustness(summary: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return source and mean variant accuracy (%) of each method and shots.

    And both minus zero-shot's. summary: of domain_summary. A method that lacks a variant has no row
    at that number of shots. `kept`: variant accuracy as a share of source accuracy. n: seeds of the
    mean that has the fewest.
    """
    variants = summary[~summary["dataset"].isin([source, AVERAGE])]
    whole = variants.groupby(CELL)["mean"].agg(["mean", "count"])
    mean = whole.loc[whole["count"] == variants["dataset"].nunique(), "mean"].rename("variants")
    own = summary[summary["dataset"] == source].set_index(CELL)["mean"].rename("source")
    frame = pd.concat([own, mean], axis=1).dropna().reset_index()
    zero = zero_shot(frame)
    frame["kept"] = frame["variants"] / frame["source"]
    for name in ("source", "variants"):
        start = zero[name].iloc[0] if len(zero) else math.nan
        frame[f"{name}_gain"] = frame[name] - start
    rest = summary[summary["dataset"] != AVERAGE].groupby(CELL, as_index=False)
    frame = frame.merge(
        rest.agg(n=("n", "min"), expected=("expected", "max"), complete=("complete", "all"))
    )
    return in_method_order(frame).reset_index(drop=True)


def set_differences(runs: pd.DataFrame, against: str, sets: Sequence[str]) -> pd.DataFrame:
    """Return each trained method minus `against`, in points, on each set and on their average.

    runs: one trained shot count, and zero-shot. On a set: MEANS over seeds, of which both methods
    saw the same images. Average, over `sets`: of over_sets, so that n counts sets. Columns:
    evaluated_on, method, method_label, against, MEANS, p.
    """
    labels = dict(zip(runs["method"], runs["method_label"], strict=True))
    frames = []
    for method in (m for m in labels if m not in (against, "zero_shot")):
        rows = difference_by_set(runs, method, against).assign(p=math.nan)
        chosen = rows[rows["evaluated_on"].isin(sets)]
        if len(chosen):
            d = over_sets(rows, sets)
            sd = float(chosen["mean"].std())  # of the sets' means; nan for one
            average = [AVERAGE, d.mean, d.low, d.high, d.n, sd, d.expected, d.complete, d.p_value]
            columns = ["evaluated_on", *MEANS, "p"]
            rows = pd.concat(
                [rows[columns], pd.DataFrame([average], columns=columns)], ignore_index=True
            )
        frames.append(rows.assign(method=method, method_label=labels[method], against=against))
    columns = ["evaluated_on", "method", "method_label", "against", *MEANS, "p"]
    frame = in_method_order(pd.concat(frames, ignore_index=True).assign(shots=0))
    return frame[columns].reset_index(drop=True)


def source_and_average(differences: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return each comparison on the source beside its average over the other sets, a row each.

    differences: of set_differences, perhaps with a column `shots`. Columns: method, method_label,
    against, shots (if given), on_source, on_others, low, high, p, gained (sets with a mean above
    0), sets (in the average) and seeds, '3' or '2 of 3', of the source's mean. A comparison without
    an average has no row.
    """
    keys = ["method", "method_label", "against", *({"shots"} & set(differences.columns))]
    rows = []
    for key, part in differences.groupby(keys, sort=False):
        at = part.set_index("evaluated_on")
        if AVERAGE not in at.index:
            continue
        own, average = at.loc[source], at.loc[AVERAGE]
        others = at.drop(index=[source, AVERAGE])["mean"]
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "on_source": own["mean"],
                "on_others": average["mean"],
                **average[["low", "high", "p"]],
                "gained": int((others > 1e-9).sum()),
                "sets": int(average["n"]),
                "seeds": counted(int(own["n"]), int(own["expected"])),
            }
        )
    return pd.DataFrame(rows)
