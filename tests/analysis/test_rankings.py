"""Ranks, wins, fronts and adjusted p-values against scipy, definitions and known simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from blocklora_lib.analysis import rankings
from blocklora_lib.analysis.intervals import holm
from blocklora_lib.analysis.rankings import (
    accuracies,
    against,
    average_ranks,
    budgets,
    extremes,
    pareto_front,
    spread_between_sources,
)


def runs(accuracy, methods=("a", "b", "zero_shot"), sets=("x", "y", "z"), shots=(1, 4), seeds=2):
    """A frame of runs in which accuracy(method, set, shots, seed) is what a run gives."""
    rows = []
    for m, d in itertools.product(methods, sets):
        cells = [(0, 0)] if m == "zero_shot" else itertools.product(shots, range(1, seeds + 1))
        for k, s in cells:
            rows.append(
                dict(method=m, method_label=m.upper(), dataset=d, evaluated_on=d, shots=k, seed=s,
                     accuracy=accuracy(m, d, k, s), key=f"{m}{d}{k}{s}", seeds_planned=seeds,
                     trainable_parameters=len(m), seconds_train=float(s), updates=k)
            )  # fmt: skip
    for name in rankings.BUDGET:
        for row in rows:
            row.setdefault(name, 1)
    return pd.DataFrame(rows)


def test_ranks_are_those_of_each_set():
    scores = pd.DataFrame({"a": [3.0, 1.0], "b": [2.0, 1.0], "c": [1.0, 5.0]})
    found = average_ranks(scores)
    assert found.mean.to_dict() == {"a": (1 + 2.5) / 2, "b": (2 + 2.5) / 2, "c": (3 + 1) / 2}
    assert found.n == 2


def test_friedman_is_scipys_and_the_difference_is_nemenyis():
    random = np.random.default_rng(0)
    scores = pd.DataFrame(random.normal(size=(14, 4)), columns=list("abcd"))
    found = average_ranks(scores)
    assert found.p_value == stats.friedmanchisquare(*scores.to_numpy().T).pvalue
    # Demšar (2006), table 5: q at 5% is 2.569 for four classifiers; his example has 14 sets
    assert found.critical == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), rel=1e-3)
    # two: Nemenyi's is then the sign of ranks, q = 1.960
    two = average_ranks(scores[["a", "b"]])
    assert two.critical == pytest.approx(1.960 * math.sqrt(1 / 14), rel=1e-3)
    assert math.isnan(two.p_value)


@pytest.mark.slow
def test_of_methods_that_do_not_differ_one_pair_in_twenty_is_told_apart_at_most():
    """The family-wise error of the critical difference, simulated."""
    random, wrong = np.random.default_rng(1), 0
    for _ in range(150):
        found = average_ranks(pd.DataFrame(random.normal(size=(12, 6))))
        wrong += found.mean.max() - found.mean.min() > found.critical
    assert wrong / 150 < 0.09  # 5% and two standard errors


def test_bars_join_what_is_alike():
    found = rankings.Ranks(pd.Series({"a": 1.0, "b": 1.8, "c": 2.7, "d": 4.5}), 9, 0.01, 1.0)
    assert found.alike == [("a", "b"), ("b", "c")]
    alone = rankings.Ranks(pd.Series({"a": 1.0, "b": 3.0}), 9, 0.01, 1.0)
    assert alone.alike == []
    whole = rankings.Ranks(pd.Series({"a": 1.0, "b": 1.5, "c": 1.9}), 9, 0.01, 1.0)
    assert whole.alike == [("a", "c")]


@pytest.mark.parametrize("n", [1, 2])
def test_ranks_of_little(n):
    found = average_ranks(pd.DataFrame({"a": [1.0] * n, "b": [1.0] * n, "c": [1.0] * n}))
    assert found.mean.tolist() == [2.0] * 3
    assert math.isnan(found.p_value)
    assert math.isnan(found.critical) == (n == 1)


def test_gains_with_sets_and_with_seeds_as_units():
    random = np.random.default_rng(3)
    noise = {}

    def accuracy(m, d, k, s):
        return 0.5 + noise.setdefault((m, d, k, s), random.normal(scale=0.05))

    frame = runs(accuracy, sets=tuple("uvwxyz"), seeds=3)
    found = against(frame, "a", 4).set_index("method")
    wide = 100 * frame[frame["shots"] == 4].pivot(
        index=["dataset", "seed"], columns="method", values="accuracy"
    )
    gain = wide["b"] - wide["a"]
    by_set, by_seed = gain.groupby("dataset").mean(), gain.groupby("seed").mean()
    b = found.loc["b"]
    for mean, low, high, units in (
        (b["mean"], b["low"], b["high"], by_set),
        (b["seed_mean"], b["seed_low"], b["seed_high"], by_seed),
    ):
        ends = stats.t.interval(0.95, len(units) - 1, units.mean(), stats.sem(units))
        assert (mean, low, high) == pytest.approx((units.mean(), *ends))
    assert b["p_value"] == pytest.approx(stats.ttest_1samp(by_set, 0).pvalue)
    zero = 100 * frame[frame["shots"] == 0].set_index("dataset")["accuracy"]
    gains = {"b": by_set, "zero_shot": zero - wide["a"].groupby("dataset").mean()}
    tests = [stats.wilcoxon(gains[name]).pvalue for name in ("b", "zero_shot")]
    assert found["wilcoxon"].tolist() == pytest.approx(holm(tests))
    for name, values in gains.items():
        row = found.loc[name]
        counts = [(values > 1).sum(), (values.abs() <= 1).sum(), (values < -1).sum()]
        assert row[["wins", "ties", "losses"]].tolist() == counts
        assert row["mean"] == pytest.approx(values.mean())
    assert (found.loc["zero_shot", "seeds"], b["seeds"], b["sets"]) == (0, 3, 6)


@pytest.mark.parametrize("seed", range(4))
def test_gains_are_counted_by_images_and_not_by_rounding(seed):
    """Of a hundred images each: a gain of exactly a point was a win, one of none had a sign."""
    random, sets, one = np.random.default_rng(seed), tuple("stuvwxyz"), {}
    counts = {(m, d): random.integers(50, 60, 3) for m in "ab" for d in sets}
    counts |= {("b", d): random.permutation(counts["a", d]) for d in sets[:3]}
    counts |= {("b", d): random.permutation(counts["a", d] + 1) for d in sets[3:5]}
    for (m, d), found in counts.items():
        one |= {(m, d, s + 1): found[s] / 100 for s in range(3)}
    frame = runs(lambda m, d, k, s: one[m, d, s], methods=("a", "b"), sets=sets, seeds=3)
    (row,) = against(frame, "a", 4).to_dict("records")
    gains = np.array([(counts["b", d] - counts["a", d]).sum() for d in sets])  # of 300 images
    expected = [(gains > 3).sum(), (abs(gains) <= 3).sum(), (gains < -3).sum()]
    assert [row["wins"], row["ties"], row["losses"]] == expected
    assert row["wilcoxon"] == pytest.approx(stats.wilcoxon(gains).pvalue)


def test_a_set_that_lacks_a_method_is_in_no_rank():
    frame = runs(lambda m, d, k, s: 0.1 * k)
    frame = frame[~((frame["method"] == "b") & (frame["dataset"] == "y") & (frame["shots"] == 4))]
    assert accuracies(frame, 4).index.tolist() == ["x", "z"]
    assert accuracies(frame, 1).index.tolist() == ["x", "y", "z"]


def test_a_missing_seed_is_told():
    frame = runs(lambda m, d, k, s: 0.1 * k)
    frame = frame[~((frame["method"] == "b") & (frame["dataset"] == "y") & (frame["seed"] == 2))]
    found = against(frame, "a", 4).set_index("method")
    assert not found.loc["b", "complete"]
    assert found.loc["zero_shot", "complete"]


def test_what_shares_no_run_with_the_reference_gains_nan():
    frame = runs(lambda m, d, k, s: 0.1 * k, methods=("a", "b", "c"))
    frame = frame[(frame["dataset"] == "x") == (frame["method"] == "b")]
    b, c = against(frame, "a", 4).to_dict("records")
    assert math.isnan(b["mean"])
    assert (b["sets"], b["seeds"], b["wins"], b["ties"]) == (0, 0, 0, 0)
    assert (c["mean"], c["sets"], c["seeds"]) == (0.0, 2, 2)


def test_nothing_is_held_against_a_reference_without_a_run():
    """In a part of a store: at the other number of shots, 17 ended in difference_by_set's error."""
    frame = runs(lambda m, d, k, s: 0.1 * k)
    frame = frame[~((frame["method"] == "a") & (frame["shots"] == 4))]
    assert against(frame, "a", 4).empty
    assert len(against(frame, "a", 1)) == 2


def test_budgets_are_means_over_sets():
    frame = runs(lambda m, d, k, s: {"x": 0.1, "y": 0.2, "z": 0.6}[d] + 0.01 * s)
    found = budgets(frame, 4).set_index("method")
    assert found.loc["a", "accuracy"] == pytest.approx(100 * (0.3 + 0.015))
    assert found.loc["a", ["updates", "seconds_train", "runs"]].tolist() == [4, 1.5, 6]
    assert found.loc["zero_shot", ["updates", "runs"]].tolist() == [0, 3]


def test_ranks_are_of_the_seeds_that_all_have():
    """a is the better one on each seed, and lacks its easier one: it was ranked last."""
    frame = runs(lambda m, d, k, s: 0.5 + 0.1 * s + 0.02 * (m == "a"), methods=("a", "b"))
    frame = frame[(frame["method"] == "b") | (frame["seed"] == 1)]
    scores = accuracies(frame, 4)
    assert scores["a"].tolist() == pytest.approx([62.0] * 3)
    assert average_ranks(scores).mean.to_dict() == {"a": 1.0, "b": 2.0}


def test_sums_in_another_order_share_a_rank():
    """15.000000000000002 and 15 were two ranks."""
    shares = {"a": (0.1, 0.2), "b": (0.15, 0.15)}
    frame = runs(lambda m, d, k, s: shares[m][s - 1], methods=("a", "b"))
    assert average_ranks(accuracies(frame, 4)).mean.to_dict() == {"a": 1.5, "b": 1.5}


def test_without_a_critical_difference_nothing_is_alike():
    assert average_ranks(pd.DataFrame({"a": [3.0], "b": [2.0]})).alike == []


def test_a_method_without_the_hard_set_is_on_no_front():
    frame = runs(lambda m, d, k, s: 0.9 if d == "x" else 0.3)
    found = budgets(frame[(frame["method"] != "b") | (frame["dataset"] == "x")], 4)
    found = found.set_index("method")
    assert found["complete"].to_dict() == {"a": True, "b": False, "zero_shot": True}
    assert found.loc["b", ["runs", "expected"]].tolist() == [2, 6]
    assert found.loc["b", "accuracy"] > found.loc["a", "accuracy"]
    front = pareto_front(found["updates"], found["accuracy"], found["complete"])
    assert not front[list(found.index).index("b")]


@pytest.mark.parametrize("seed", range(5))
def test_a_front_by_its_definition(seed):
    random = np.random.default_rng(seed)
    cost, gain = random.integers(0, 6, 15), random.integers(0, 6, 15)
    beaten = [
        any(
            c <= cost[i] and g >= gain[i] and (c < cost[i] or g > gain[i])
            for c, g in zip(cost, gain, strict=True)
        )
        for i in range(15)
    ]
    assert pareto_front(cost, gain) == [not b for b in beaten]


def test_what_gains_the_same_in_another_order_of_sums_is_on_the_front_too():
    assert pareto_front([0, 0, 1], [0.1 + 0.2, 0.3, 0.3 + 1e-15]) == [True, True, False]


def test_what_is_not_known_is_on_no_front():
    assert pareto_front([1.0, math.nan, 2.0], [1.0, 9.0, math.nan]) == [True, False, False]


def test_sources_that_disagree():
    rows = pd.DataFrame(
        dict(method="m", dataset=["x", "x", "y", "x"], shots=[1, 1, 1, 1],
             published=[50.0, 51.5, 3.0, math.nan], source=["s", "t", "s", "none published"])
    )  # fmt: skip
    (row,) = spread_between_sources(rows).to_dict("records")
    assert row == dict(method="m", dataset="x", shots=1, low=50.0, high=51.5, sources=2, spread=1.5)


def test_what_no_record_tells_is_no_budget():
    frame = runs(lambda m, d, k, s: 0.5)
    frame["fit_bytes"] = [None] * len(frame)  # as of records from before it was measured
    assert budgets(frame, 4)["fit_bytes"].isna().all()


def test_a_method_loses_and_gains_most_where_its_sets_say():
    gains = pd.DataFrame(
        {"A": [-4.06, 1.0, -1e-14, -0.3, math.nan], "B": [1.0, 2.0, 3.0, 4.0, 5.0]},
        index=["Flags", "Chess", "MNIST", "Photos", "Letters"],
    )
    a, b = extremes(gains, 3).to_dict("records")
    assert a.pop("mean") == pytest.approx((-4.06 + 1.0 - 0.3) / 4)
    assert a == {"method": "A", "loses most on": "Flags -4.1, Photos -0.3",
                 "gains most on": "Chess +1.0"}  # fmt: skip
    assert (b["loses most on"], b["gains most on"]) == (
        "-",
        "Letters +5.0, Photos +4.0, MNIST +3.0",
    )
