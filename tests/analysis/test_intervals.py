"""Intervals and paired tests against scipy's own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from blocklora_lib.analysis.intervals import (
    Interval,
    every,
    holm,
    mean_interval,
    paired_difference,
    together,
    widened,
)

values = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30)


@pytest.mark.slow
@given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(sample, confidence):
    assume(max(sample) - min(sample) > 1e-6)
    ours = mean_interval(sample, confidence)
    theirs = stats.ttest_1samp(sample, 0.0).confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)
    assert ours.mean == pytest.approx(sum(sample) / len(sample))
    assert ours.n == len(sample)


def test_one_seed_has_no_interval():
    ours = mean_interval([0.5])
    assert (ours.mean, ours.n) == (0.5, 1)
    assert all(math.isnan(x) for x in (ours.low, ours.high, ours.half_width))


@pytest.mark.parametrize(
    ("seeds", "images", "right"), [(2, 10, 0.3), (2, 10, 0.85), (3, 10, 0.85), (2, 200, 0.5)]
)
def test_equal_accuracies_are_not_certain(seeds, images, right):
    """All draws of so many seeds, each with its probability: an interval of width 0 missed the
    truth in up to 26% of them.
    """
    chance = stats.binom.pmf(np.arange(images + 1), images, right)
    missed = 0.0
    for k in itertools.product(range(images + 1), repeat=seeds):
        if len({*k}) > 1 and chance[[*k]].prod() < 1e-7:
            continue
        ours = mean_interval([100 * n / images for n in k], unit=100 / images)
        assert ours.high > ours.low
        if not ours.low <= 100 * right <= ours.high:
            missed += chance[[*k]].prod()
    assert missed < 0.06


def test_equal_values_of_an_unknown_unit_have_no_interval():
    for found in (mean_interval([20.0] * 3), paired_difference([20.0] * 3, [15.0] * 3)):
        assert (found.above(10), found.below(30), found.within(50)) == (None, None, None)
        assert math.isnan(found.half_width)
    none = paired_difference([20.0] * 3, [20.0] * 3)  # no difference anywhere
    assert (none.low, none.high, none.within(1), none.above()) == (0, 0, True, None)
    # with it: of 2 x 3 of 10, half a step of ten points is the least standard deviation
    known = mean_interval([30.0, 30.0], unit=10)
    assert known.half_width == pytest.approx(stats.t.isf(0.025, 1) * 5 / 2**0.5)
    assert together() is None


@pytest.mark.parametrize("n", [3, 5, 11, 33])
@pytest.mark.parametrize(("times", "low", "high"), [(1.0, 0.5, 0.62), (1.4, 0.78, 0.84)])
def test_an_effect_of_half_an_interval_is_seen_half_of_the_time(n, times, low, high):
    """What the scoreboard says of its smallest visible effects: in closed form, and drawn."""
    critical = stats.t.ppf(0.975, n - 1)
    assert low < stats.nct.sf(critical, n - 1, times * critical) < high
    effect = times * critical / math.sqrt(n)  # in standard deviations
    drawn = np.random.default_rng(n).normal(effect, 1, (2000, n))
    seen = np.mean([mean_interval(sample.tolist()).above() is True for sample in drawn])
    assert seen == pytest.approx(stats.nct.sf(critical, n - 1, times * critical), abs=0.04)


@pytest.mark.slow
@given(
    values.flatmap(
        lambda a: st.tuples(
            st.just(a), st.lists(st.floats(0, 1, width=32), min_size=len(a), max_size=len(a))
        )
    )
)
def test_paired_difference_is_scipys(pair):
    a, b = pair
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assume(max(differences) - min(differences) > 1e-6)
    ours, theirs = paired_difference(a, b), stats.ttest_rel(a, b)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-9, abs=1e-12
    )


def test_paired_difference_of_one_pair_and_of_equal_pairs():
    assert math.isnan(paired_difference([0.5], [0.4]).p_value)
    assert paired_difference([0.5, 0.25], [0.5, 0.25]).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_interval([]), "no values"),
        (lambda: mean_interval([1.0, 2.0], 95), "confidence=95"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "cannot be paired"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.slow
@given(values, st.integers(1, 12))
def test_a_widened_interval_is_students_at_bonferronis_level(sample, looks):
    assume(max(sample) - min(sample) > 1e-3)
    ours = widened(mean_interval(sample), looks, len(sample) - 1)
    theirs = mean_interval(sample, 1 - 0.05 / looks)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_together_is_wrong_at_most_once_in_20_times_at_the_margin_of_every_question():
    rng, looks = np.random.default_rng(0), 5
    said = [
        together(*((mean_interval(rng.normal(size=4)), Interval.above) for _ in range(looks)))
        for _ in range(2000)
    ]
    assert 0.015 < said.count(False) / len(said) < 0.05
    each = [every(*(mean_interval(rng.normal(size=4)).above() for _ in range(looks)))
            for _ in range(2000)]  # fmt: skip
    assert each.count(False) / len(each) > 0.09  # what the wider intervals are for


def test_together_asks_each_question_and_one_that_is_open_leaves_all_open():
    high, low, open_ = Interval(2, 1, 3, 9), Interval(-2, -3, -1, 9), Interval(0, -1, 1, 9)
    assert together((high, Interval.above), (low, Interval.below)) is True
    assert together((high, Interval.above), (open_, Interval.above)) is None
    assert together((low, Interval.above), (open_, Interval.above)) is False
    just = Interval(-2, -3.95, -0.05, 9)  # below 0 as one look, not as one of two
    assert together((just, Interval.above)) is False
    assert together((just, Interval.above), (high, Interval.above)) is None
    assert together((Interval(1, math.nan, math.nan, 1), Interval.above)) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_by_its_definition():
    p = [0.01, 0.04, 0.03, math.nan, 0.005]
    found = holm(p)
    known = sorted(q for q in p if not math.isnan(q))
    for value, adjusted in zip(p, found, strict=True):
        if math.isnan(value):
            assert math.isnan(adjusted)
            continue
        steps = [(len(known) - i) * q for i, q in enumerate(known) if q <= value]
        assert adjusted == pytest.approx(min(1.0, max(steps)))


def test_holm_keeps_the_error_of_all_together():
    random, wrong = np.random.default_rng(2), 0
    for _ in range(2000):
        wrong += min(holm(random.uniform(size=8).tolist())) <= 0.05
    assert 0.03 < wrong / 2000 < 0.065
