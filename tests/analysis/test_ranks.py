"""Does a bound order the gaps? Against correlations of scipy and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from blocklora_lib.analysis.ranks import (
    by_method,
    farthest_of_equal_count,
    generalization_gaps,
    rank_correlation,
    twins,
)


def test_a_gap_is_train_minus_test_on_the_images_of_the_set():
    columns = ["method", "dataset", "evaluated_on", "shots", "seed", "train_accuracy", "accuracy"]
    runs = pd.DataFrame(
        [
            ("lora", "a", "a", 4, 1, 0.9, 0.5),
            ("lora", "a", "a", 4, 2, 1.0, 0.7),
            ("lora", "a", "b", 4, 1, 0.9, 0.1),  # a variant
            ("zero_shot", "a", "a", 0, 1, 0.4, 0.4),  # not trained
            ("coop", "a", "a", 4, 1, math.nan, 0.6),  # does not tell
        ],
        columns=columns,
    ).assign(method_label=lambda runs: runs["method"].str.upper(), trainable_parameters=7)
    (row,) = generalization_gaps(runs).itertuples()
    assert (row.method_label, row.dataset, row.shots, row.seeds, row.parameters) == (
        *("LORA", "a", 4, 2, 7),
    )
    assert row.gap == pytest.approx(0.95 - 0.6)


def gaps(seed=0, sets=4, methods=5):
    draw = np.random.default_rng(seed)
    rows = [
        (f"m{m}", f"set{s}", 4, 10.0 + m, draw.normal())
        for s in range(sets)
        for m in range(methods)
    ]
    return pd.DataFrame(rows, columns=["method_label", "dataset", "shots", "bound", "gap"])


def test_the_correlation_is_scipys_averaged_over_sets():
    frame = gaps()
    found = rank_correlation(frame, "shots")
    by_set = [
        stats.spearmanr(part["bound"], part["gap"])[0] for _, part in frame.groupby("dataset")
    ]
    assert found["mean"] == pytest.approx(np.mean(by_set))
    around = stats.t.interval(0.95, 3, np.mean(by_set), stats.sem(by_set))
    assert (found["low"], found["high"]) == pytest.approx(around)
    assert (found["values"], found["groups"], found["data_sets"]) == (5, 4, 4)


def test_where_nothing_varies_there_is_no_correlation():
    one = rank_correlation(gaps(sets=1), "shots")
    assert not math.isnan(one["mean"])
    assert math.isnan(one["low"])  # one set has no interval
    constant = rank_correlation(gaps().assign(bound=1.0), "shots")
    assert (constant["groups"], constant["data_sets"], constant["values"]) == (0, 0, 5)
    assert math.isnan(constant["mean"])
    assert rank_correlation(gaps().iloc[:0], "shots")["values"] == 0


def of_methods(**methods):
    """A frame of gaps: label -> (parameters, {set: (train, test)})."""
    rows = [
        (label, name, 4, count, train, test, train - test)
        for label, (count, by_set) in methods.items()
        for name, (train, test) in by_set.items()
    ]
    columns = ["method_label", "dataset", "shots", "parameters", "train_accuracy", "accuracy"]
    return pd.DataFrame(rows, columns=[*columns, "gap"])


def test_twins_agree_on_every_set_under_different_counts():
    same = {"a": (0.9, 0.5), "b": (0.8, 0.4)}
    frame = of_methods(
        block=(60, same),
        plus=(40, {"a": (0.901, 0.499), "b": (0.8, 0.4)}),
        copy=(60, same),  # as many parameters as block: no twin of it
        other=(80, {"a": (0.99, 0.2), "b": (0.5, 0.45)}),
    )
    assert twins(frame) == [("block", "plus"), ("copy", "plus")]
    assert twins(of_methods(block=(60, same), plus=(40, same))) == []  # nothing has moved
    methods = by_method(frame)
    assert methods.loc["block", ["train_accuracy", "accuracy", "gap"]].tolist() == pytest.approx(
        [0.85, 0.45, 0.4]
    )
    assert farthest_of_equal_count(methods) == ("block", "copy")
    assert farthest_of_equal_count(methods.drop("copy")) == ()
