"""Curves of accuracy over the learning rate: means of whole cells, paired over sets."""

from __future__ import annotations

import itertools
import math
import statistics
from types import SimpleNamespace

import pandas as pd
import pytest

from blocklora_lib.analysis.rates import at_the_edge, rate_curves

SETS, SHOTS, RATES = ("a", "b", "c"), (1, 16), (0.01, 0.1)
LEVEL = {"a": 0.2, "b": 0.5, "c": 0.8}
GAIN = {"a": 0.03, "b": 0.05, "c": 0.01}  # of the rate 0.1 over 0.01


def tried(lost=()) -> pd.DataFrame:
    """Runs of one method; lost: (rate, set) whose run at 16 shots failed."""
    rows = [
        (name, k, 1, "lora", "LoRA", lr, LEVEL[name] + k / 1000 + GAIN[name] * (lr == 0.1))
        for name, k, lr in itertools.product(SETS, SHOTS, RATES)
        if not (k == 16 and (lr, name) in lost)
    ]
    columns = ["dataset", "shots", "seed", "method", "method_label", "lr", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(chosen=lambda rows: rows["lr"] == 0.1)


def test_a_curve_has_means_and_paired_intervals():
    low, high = rate_curves(tried()).to_dict("records")
    assert (low["lr"], low["chosen"], high["lr"], high["chosen"]) == (0.01, False, 0.1, True)
    assert low["mean"] == pytest.approx(100 * (0.5 + 0.0085))
    assert high["mean"] - low["mean"] == pytest.approx(3)
    # the levels of the sets, which differ by 30 points, are in no interval: differences alone are
    reach = (
        4.302653 * statistics.stdev([3, 5, 1]) / math.sqrt(3)
    )  # t of 97.5%, 2 degrees of freedom
    assert low["high"] - low["mean"] == pytest.approx(reach, rel=1e-6)
    assert low["mean"] - low["low"] == pytest.approx(reach, rel=1e-6)
    assert math.isnan(high["low"])
    assert low["sets"] == 3


def test_a_rate_at_which_a_run_failed_is_left_out():
    (row,) = rate_curves(tried(lost=[(0.01, "b")])).to_dict("records")
    assert row["lr"] == 0.1


def test_one_set_has_no_interval():
    curves = rate_curves(tried().query("dataset == 'a'"))
    assert curves["low"].isna().all()
    assert curves["mean"].tolist() == pytest.approx([20.85, 23.85])


def test_choices_at_an_end_of_their_grid_are_counted():
    grids = {"lr": (0.1, 1.0, 10.0), "beta": (1.0, 2.0), "alpha": (3.0,)}

    def run(lr, beta):
        choice = SimpleNamespace(settings={"lr": lr, "beta": beta, "alpha": 3.0})
        method = SimpleNamespace(settings=grids)
        return SimpleNamespace(
            spec=SimpleNamespace(method=method), result=SimpleNamespace(choice=choice)
        )

    runs = [run(10.0, 1.0), run(1.0, 2.0), run(0.1, 1.0), run(1.0, 1.0)]
    nothing = SimpleNamespace(result=SimpleNamespace(choice=None))
    failed = SimpleNamespace(result=None)
    # of one value nothing was chosen; of two, each is an end
    assert at_the_edge([*runs, nothing, failed]) == {"lr": (2, 4), "beta": (4, 4)}
    # a linear probe's search goes on from the grid's best, inwards and outwards
    assert at_the_edge([run(31.6, 1.0), run(0.05, 1.0), run(3.2, 1.0)])["lr"] == (2, 3)
