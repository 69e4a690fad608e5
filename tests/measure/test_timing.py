"""Pairing, order and refusals of the timing, on a clock of our own: nothing here depends on real
time.
"""

from __future__ import annotations

import gc
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from blocklora_lib.core.schema import UnknownName
from blocklora_lib.measure import timing
from blocklora_lib.measure.timing import (
    conditions,
    equivalent,
    in_random_order,
    in_words,
    median_interval,
    paired_times,
    ratios,
)


def frame(**columns) -> pd.DataFrame:
    """Times as `paired_times` gives them, from a list of seconds for each name."""
    rounds = len(next(iter(columns.values())))
    return pd.DataFrame(
        [(i + 1, n, columns[n][i]) for i in range(rounds) for n in columns]
    ).set_axis(["round", "name", "seconds"], axis=1)


def row(times: pd.DataFrame, name: str = "b", baseline: str = "a") -> dict:
    return ratios(times, baseline).set_index("name", drop=False).loc[name].to_dict()


class Clock:
    """Stands in for time.perf_counter; a function advances it by its cost."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def function(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


# taking times


@pytest.mark.slow
def test_every_round_runs_every_function_once_in_a_shuffled_order(clock):
    names = ["a", "b", "c"]
    times = paired_times({n: clock.function(n, 1.0) for n in names}, rounds=40, warmup=2)
    assert clock.log[:6] == ["a", "a", "b", "b", "c", "c"]  # the warm-up, which counts for nothing
    rounds = [clock.log[i : i + 3] for i in range(6, len(clock.log), 3)]
    assert len(rounds) == 40
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) == 6  # all orders occur
    assert list(times.columns) == ["round", "name", "seconds"]
    assert times["name"].tolist() == names * 40
    assert (times["seconds"] == 1.0).all()


@pytest.mark.slow
def test_the_order_depends_on_the_seed_alone(clock):
    def order(seed):
        clock.log.clear()
        paired_times({n: clock.function(n, 1.0) for n in "abc"}, rounds=5, seed=seed)
        return list(clock.log)

    first = order(1)
    np.random.seed(3)
    assert order(1) == first != order(2)


@pytest.mark.slow
def test_short_functions_are_called_until_a_sample_is_long_enough(clock):
    functions = {"short": clock.function("short", 0.25e-3), "long": clock.function("long", 5e-3)}
    times = paired_times(functions, rounds=3, warmup=1, min_seconds=1e-3)
    assert clock.log.count("short") == 1 + 3 * 4
    assert clock.log.count("long") == 1 + 3
    assert times.groupby("name")["seconds"].first().round(9).to_dict() == {
        "short": 0.25e-3,
        "long": 5e-3,
    }


@pytest.mark.slow
def test_garbage_is_not_collected_within_a_sample_and_is_again_afterwards(clock):
    function = clock.function("a", 1.0)
    seen = []
    paired_times({"a": lambda: (function(), seen.append(gc.isenabled()))}, rounds=3, warmup=1)
    assert seen == [True, False, False, False]
    assert gc.isenabled()


@pytest.mark.slow
def test_an_error_of_a_function_comes_through_and_leaves_collection_on(clock):
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        paired_times({"a": fails}, rounds=5, warmup=2, min_seconds=0)
    assert gc.isenabled()


@pytest.mark.slow
def test_progress_is_told_of_each_round(clock):
    told = []
    paired_times({"a": clock.function("a", 1)}, rounds=3, on_round=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(functions={}, rounds=5), "no function to time"),
        (dict(functions={"a": int}, rounds=2), "rounds=2 gives no quartiles; use at least 3"),
        (dict(functions={"a": int}, rounds=5, warmup=0), "warmup=0"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_times(**arguments)


# ratios


def test_ratios_are_formed_within_rounds():
    # the machine gets ten times slower halfway; within every round b takes exactly half of a
    drift = np.array([1, 1, 1, 1, 10, 10, 10, 10.0])
    found = row(frame(a=2 * drift, b=drift))
    for column in ("ratio", "ratio_q1", "ratio_q3", "ratio_low", "ratio_high"):
        assert found[column] == 0.5, column
    assert found["resolved"]
    assert found["rounds"] == 8
    assert found["seconds_q1"] == np.quantile(drift, 0.25)


def test_shuffled_rows_and_other_names_change_nothing():
    times = frame(a=[1, 2, 3, 2, 2, 2, 2.0], b=[2.0] * 7, c=[9.0] * 7)
    expected = row(times)
    assert row(times.sample(frac=1, random_state=1)) == expected
    assert expected["ratio"] == 1.0


def test_the_baseline_is_one_and_never_resolved():
    found = row(frame(a=np.arange(1, 12.0), b=np.ones(11)), name="a")
    assert (found["ratio_low"], found["ratio"], found["ratio_high"]) == (1, 1, 1)
    assert not found["resolved"]


def test_an_unknown_baseline_names_the_known():
    with pytest.raises(UnknownName, match="unknown baseline 'dens'; did you mean 'dense'"):
        ratios(frame(dense=[1, 1, 1.0], loop=[1, 1, 1.0]), "dens")


def test_a_round_that_lacks_a_name_is_refused():
    with pytest.raises(ValueError, match="'b' has no time in round 2"):
        ratios(frame(a=[1, 1, 1.0], b=[1, 1, 1.0]).drop(index=3), "a")


@pytest.mark.parametrize("rounds", [3, 4, 5])
def test_too_few_rounds_resolve_nothing_however_clear(rounds):
    found = row(frame(a=np.ones(rounds), b=np.full(rounds, 0.01)))
    assert math.isnan(found["ratio_low"])
    assert not found["resolved"]
    assert not equivalent(row(frame(a=np.ones(rounds), b=np.ones(rounds))), 0.05)


# the interval


@pytest.mark.slow
@given(st.integers(1, 200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(deadline=None, max_examples=60)
def test_the_interval_is_the_narrowest_of_order_statistics_that_covers(n, confidence):
    low, high = median_interval(list(range(1, n + 1)), confidence)  # values are their own ranks
    cover = [
        1 - 2 * binom.cdf(k - 1, n, 0.5) for k in range(1, (n + 1) // 2 + 1)
    ]  # of [x_(k), x_(n+1-k)]
    enough = [k for k, c in enumerate(cover, 1) if c >= confidence - 1e-12]
    if not enough:
        assert math.isnan(low)
        assert math.isnan(high)
    else:
        assert (low, high) == (enough[-1], n + 1 - enough[-1])


@pytest.mark.slow
def test_it_covers_the_median_of_skewed_ratios_as_often_as_it_says():
    draw = np.random.default_rng(1)
    samples = np.exp(draw.normal(size=(4000, 11)))  # the true median is 1
    held = [low <= 1 <= high for low, high in map(median_interval, samples)]
    assert np.mean(held) >= 0.95  # 0.988 by the binomial


@pytest.mark.slow
def test_equal_functions_are_seldom_resolved():
    draw = np.random.default_rng(2)
    wrong = [
        row(frame(a=np.exp(draw.normal(size=11) / 3), b=np.exp(draw.normal(size=11) / 3)))[
            "resolved"
        ]
        for _ in range(200)
    ]
    assert np.mean(wrong) <= 0.05


# several processes


def several(*processes: pd.DataFrame) -> pd.DataFrame:
    """Times as `in_processes` gives them."""
    return pd.concat([p.assign(process=i) for i, p in enumerate(processes, 1)], ignore_index=True)


def test_each_process_gives_one_value_its_median():
    # within each process the rounds agree; from process to process they do not
    ofs = [0.5, 0.6, 0.7, 0.8, 0.9, 1.1]
    times = several(*(frame(a=np.ones(20), b=np.full(20, ratio)) for ratio in ofs))
    found = row(times)
    assert found["ratio"] == np.median(ofs)
    assert (found["ratio_low"], found["ratio_high"]) == (0.5, 1.1)
    assert (found["rounds"], found["processes"]) == (120, 6)
    assert not found["resolved"]
    assert in_words(found).endswith("over 6 processes, which holds 1")
    alone = row(several(*(frame(a=np.ones(20), b=np.full(20, ratio)) for ratio in ofs[:1])))
    assert (alone["processes"], alone["ratio_high"], alone["resolved"]) == (1, 0.5, True)


def test_five_processes_resolve_nothing_however_many_their_rounds():
    found = row(several(*[frame(a=np.ones(50), b=np.full(50, 0.1))] * 5))
    assert math.isnan(found["ratio_low"])
    assert not found["resolved"]
    assert in_words(found).startswith("open: 5 processes give no interval")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [6, 9])
def test_a_process_of_its_own_kind_is_covered_only_with_processes_as_units(processes):
    """A ratio that is 1 at the median of processes, and is moved in each by 20%."""
    draw, boards, by_rounds, by_processes = np.random.default_rng(3), 100, 0, 0
    for _ in range(boards):
        moved = np.exp(0.2 * draw.normal(size=processes))
        noise = np.exp(0.02 * draw.normal(size=(processes, 11)))
        times = several(*(frame(a=np.ones(11), b=of) for of in moved[:, None] * noise))
        by_processes += row(times)["resolved"]
        by_rounds += row(times.assign(round=times.index // 2).drop(columns="process"))["resolved"]
    assert by_processes <= binom.isf(1e-3, boards, 0.05)
    assert by_rounds > boards / 3  # what an interval over all rounds would have said


def test_a_round_that_lacks_a_name_is_named_with_its_process():
    times = several(frame(a=[1, 1, 1.0], b=[1, 1, 1.0]), frame(a=[1, 1, 1.0], b=[1, 1, 1.0]))
    with pytest.raises(ValueError, match="'b' has no time in round 2 of process 2"):
        ratios(times.drop(index=9), "a")


def test_functions_are_made_in_an_order_of_the_seed_and_named_in_theirs():
    orders = set()
    for seed in range(20):
        made = []
        found = in_random_order(lambda name, made=made: made.append(name) or name, "abc", seed)
        assert list(found.items()) == [(name, name) for name in "abc"]
        orders.add(tuple(made))
    assert len(orders) == 6


# verdicts

NOISE = np.array([0.98, 1.02, 0.99, 1.01, 1.0, 1.03, 0.97, 1.0, 1.01, 0.99, 1.0])


def test_an_effect_larger_than_its_spread_is_reported_with_it():
    found = row(frame(a=np.ones(11), b=0.71 * NOISE))
    assert in_words(found) == "0.71x [0.70, 0.72]"
    assert in_words(found, better_than=0.75) == "0.71x [0.70, 0.72], at most 0.75x"
    assert in_words(found, better_than=0.71) == "0.71x [0.70, 0.72], not told apart from 0.71x"
    assert in_words(found, better_than=0.5) == "0.71x [0.70, 0.72], above 0.50x"


def test_an_effect_within_its_spread_is_not_resolved():
    found = row(frame(a=np.ones(11), b=0.97 * (1 + 8 * (NOISE - 1))))
    assert in_words(found).startswith("open: 0.97x, an effect of 3.0%, within a spread of [")


def test_too_few_rounds_resolve_nothing():
    found = in_words(row(frame(a=[1, 1, 1.0], b=[0.5, 0.5, 0.5])))
    assert found.startswith("open: 3 rounds give no interval")


def test_equal_is_shown_only_by_an_interval_within_the_margin():
    narrow, wide = (
        row(frame(a=np.ones(11), b=NOISE)),
        row(frame(a=np.ones(11), b=1 + 8 * (NOISE - 1))),
    )
    assert equivalent(narrow, 0.05)
    assert not equivalent(wide, 0.05)  # no difference found, and no equality either
    assert not narrow["resolved"]
    assert not wide["resolved"]
    assert in_words(narrow, margin=0.05).endswith("equal within 5%")
    assert "open" in in_words(wide, margin=0.05)
    small = row(frame(a=np.ones(11), b=1.03 + (NOISE - 1) / 10))
    assert small["resolved"]  # different, and yet equal within the margin: both can be shown
    assert equivalent(small, 0.05)


@pytest.mark.parametrize("margin", [0, -0.1, 1, 5])
def test_a_margin_outside_zero_to_one_is_refused(margin):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        equivalent({"ratio_low": 1, "ratio_high": 1}, margin)


def test_conditions_name_the_machine_without_its_host():
    import platform

    facts = conditions("cpu")
    assert {"device", "processor", "threads", "load_average", "torch"} <= set(facts)
    assert facts["threads"] >= 1
    assert platform.node() not in [str(value) for value in facts.values()]


def test_conditions_name_the_instructions_and_the_cores_of_this_process(monkeypatch):
    """The same step takes other times, and other ratios, with AVX2 than with AVX-512."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)  # taskset -c 0
    facts = conditions("cpu")
    assert facts["cores"] == 1
    assert facts["instructions"] == torch.backends.cpu.get_cpu_capability()
