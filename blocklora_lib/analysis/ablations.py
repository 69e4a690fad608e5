"""Ablations as frames: the number of blocks, rate and scale at the start, the adapter's place."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .summaries import in_points, summarise, summarise_each

BLOCKS = ["reading", "rank", "n_blocks", "dataset"]
START = ["dataset", "lr", "init_scale"]
PLACE = ["group", "place", "dataset"]
DEFAULT = " (default)"  # the end of the name of the place that others are compared with
GROUPS = ("projections", "towers", "layers")  # in this order


def by_blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the MEANS of accuracy, in %, for each reading, rank, number of blocks and set.

    runs: BLOCKS, seed, accuracy (0 to 1), trainable_parameters. Further columns: parameters, and
    minus_one, the mean difference to one block in points over `pairs` pairs of runs of one seed;
    nan where one block was not run.
    """
    runs = in_points(runs)
    means = summarise(runs, BLOCKS, within=["dataset"])
    counts = runs.drop_duplicates(BLOCKS)[[*BLOCKS, "trainable_parameters"]]
    means = means.merge(counts.rename(columns={"trainable_parameters": "parameters"}), on=BLOCKS)
    means["parameters"] = means["parameters"].astype(int)
    one = runs[runs["n_blocks"] == 1]
    delta = runs.assign(delta=_points_above(runs, one, ["reading", "rank", "dataset", "seed"]))
    apart = means[BLOCKS].merge(summarise(delta, BLOCKS, "delta", ["dataset"]), on=BLOCKS)
    # of equal accuracies 0, not the rounding of a sum
    return means.assign(minus_one=apart["mean"].round(9), pairs=apart["n"])


def by_start(runs: pd.DataFrame, zero_shot: Mapping[str, float]) -> pd.DataFrame:
    """Return what training from each learning rate and initial scale came to, in %.

    runs: START, seed, accuracy, train_accuracy; zero_shot: accuracy by set; all 0 to 1. Columns:
    START, test and training (means over the seeds that did not fail), worst (test), seeds, of,
    zero_shot, below (how many runs end below zero-shot).
    """
    both = summarise_each(runs, START, ["accuracy", "train_accuracy"], ["dataset"])
    test, training = (
        both[both["quantity"] == name].reset_index(drop=True)
        for name in ("accuracy", "train_accuracy")
    )
    table = test[START].assign(
        test=test["mean"],
        worst=runs.groupby(START)["accuracy"].min().to_numpy(),
        training=training["mean"],
        seeds=test["n"],
        of=test["expected"],
    )
    table["zero_shot"] = table["dataset"].map(zero_shot)
    below = runs["accuracy"] < runs["dataset"].map(zero_shot)
    table["below"] = below.groupby([runs[name] for name in START]).sum().to_numpy()
    percents = ["test", "worst", "training", "zero_shot"]
    table[percents] = 100 * table[percents]
    return table


def placed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with `group` (of GROUPS) and `place`, read from the varied method's name."""
    places = [_place(method) for method in runs["method"]]
    return runs.assign(group=[group for group, _ in places], place=[place for _, place in places])


def _place(method: str) -> tuple[str, str]:
    """Return (group, place) of 'block_lora,targets=q+k+v', of towers=.., layers=.. or another."""
    group, _, value = method.partition(",")[2].partition("=")
    if group == "targets":
        return "projections", value.replace("+", ", ") + (DEFAULT if value == "q+k+v" else "")
    if group == "towers":
        return group, f"{value.replace('+', ' and ')} tower{' only' if '+' not in value else 's'}"
    if group != "layers":
        return group, value
    depths = value.split("+")
    n = len(depths)
    for end, whole in (("first", range(n)), ("last", range(-n, 0))):
        if depths == [*map(str, whole)]:
            return group, f"{end} layer only" if n == 1 else f"{end} {n} layers"
    return group, f"layer{'s' * (n > 1 or value == 'all')} {', '.join(depths)}"


def by_place(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the MEANS of accuracy, in %, of each place and set, and the place's parameters.

    runs: of `placed`, accuracy 0 to 1. Rows stand by group, then by parameters.
    """
    rows = summarise(in_points(runs), PLACE, within=["dataset"])
    counts = runs.groupby("place")["trainable_parameters"].max()
    rows["parameters"] = rows["place"].map(counts).astype(int)
    order = rows["group"].map({group: i for i, group in enumerate(GROUPS)})  # others come last
    rows = rows.assign(_order=order).sort_values(["_order", "parameters", "place"], kind="stable")
    return rows.drop(columns="_order").reset_index(drop=True)


def minus_default(runs: pd.DataFrame) -> pd.DataFrame:
    """Return each place's difference to the default's, in points, paired over seeds: its MEANS.

    runs: of `placed`. All is nan, over 0 pairs, where the default was not run.
    """
    runs = in_points(runs)
    default = runs[runs["place"].str.endswith(DEFAULT)]
    delta = runs.assign(delta=_points_above(runs, default, ["dataset", "seed"]))
    return summarise(delta, PLACE, "delta", ["dataset"])


def _points_above(runs: pd.DataFrame, base: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Return each run's accuracy minus that of the run of `base` with the same keys."""
    start = base.set_index(keys)["accuracy"].reindex(pd.MultiIndex.from_frame(runs[keys]))
    return runs["accuracy"] - start.to_numpy()
