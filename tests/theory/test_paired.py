"""The bound on a difference of risks: against enumeration, simulation, the sign test and a loop."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blocklora_lib.theory.bounds import inverse_kl
from blocklora_lib.theory.paired import (
    STAKES,
    bits_to_spare,
    budget,
    log_wealth,
    risk_difference,
    worst_pairing,
)

counts = st.tuples(*[st.integers(0, 60)] * 3)  # worse, better, neither


def wealth(stake, mean, losses):
    """The game itself, image by image."""
    return math.prod(1 - stake * (x - mean) / (1 - mean) for x in losses)


@settings(max_examples=25, deadline=None)
@given(counts, st.sampled_from(STAKES), st.floats(-0.9, 0.9))
def test_the_wealth_is_that_of_the_game(cut, stake, mean):
    worse, better, same = cut
    played = wealth(stake, mean, [1] * worse + [-1] * better + [0] * same)
    assert math.exp(log_wealth(stake, mean, worse, better, sum(cut))) == pytest.approx(
        played, rel=1e-9, abs=1e-300
    )


@pytest.mark.parametrize("chances", [(0.2, 0.5, 0.3), (0.05, 0.9, 0.05), (0.6, 0.4, 0.0)])
@pytest.mark.parametrize("stake", STAKES)
def test_the_game_is_fair_at_the_mean_alone(chances, stake):
    """By enumeration of all 3^6 samples: E W = 1 at μ; above 1 where too high a mean is claimed."""
    mean = chances[0] - chances[2]
    fair = above = 0.0
    for drawn in product(range(3), repeat=6):
        chance = math.prod(chances[k] for k in drawn)
        losses = [(1, 0, -1)[k] for k in drawn]
        fair += chance * wealth(stake, mean, losses)
        above += chance * wealth(stake, mean + 0.1, losses)
    assert fair == pytest.approx(1, rel=1e-12)
    assert above > 1.001  # what rejects it


def test_unequal_means_and_draws_without_replacement_do_not_make_it_favourable():
    means, mean = (0.7, -0.1, -0.9), -0.1
    assert math.prod(1 - 0.5 * (m - mean) / (1 - mean) for m in means) < 1
    losses = [1, 0, 0, -1, -1, -1]
    mean, chosen = sum(losses) / 6, [t for t in product(range(6), repeat=3) if len({*t}) == 3]
    expected = np.mean([wealth(0.75, mean, [losses[i] for i in t]) for t in chosen])
    assert expected < 1


@pytest.mark.slow
def test_it_fails_no_more_often_than_delta():
    rng = np.random.default_rng(1)
    chances, samples, delta = (0.1, 0.7, 0.2), 80, 0.2
    drawn = rng.multinomial(samples, chances, size=2000)
    with np.errstate(all="ignore"):
        failed = [
            risk_difference(worse, better, samples, 0, delta) < chances[0] - chances[2]
            for worse, _, better in drawn.tolist()
        ]
    assert np.mean(failed) <= delta
    unpaid = [  # the stake chosen on the data and nothing paid, no chance of failure: it fails more
        max(log_wealth(c, -0.1, w, b, samples) for c in STAKES) > 0 for w, _, b in drawn.tolist()
    ]
    assert np.mean(unpaid) > delta


@given(counts, st.integers(0, 40))
def test_the_gain_is_certified_where_bits_are_to_spare(cut, bits):
    (worse, better, _), samples = cut, sum(cut)
    spare = bits_to_spare(worse, better, samples, bits, 0.05)
    end = risk_difference(worse, better, samples, bits, 0.05)
    assert (end < 0) == (spare > 0)
    assert -1 <= end <= 1
    if samples:
        assert end >= (worse - better) / samples - 1e-9  # never below what was seen
        assert end <= risk_difference(worse, better, samples, bits + 1, 0.05) + 1e-12


def test_at_zero_it_is_the_sign_test():
    """m kl(share | 1/2) to the grid of stakes, Chernoff's exponent of the exact binomial tail."""
    for worse, better in ((5, 60), (20, 80), (40, 60)):
        m, share = worse + better, worse / (worse + better)
        kl = math.log(2) + share * math.log(share) + (1 - share) * math.log(1 - share)
        most = max(log_wealth(c, 0.0, worse, better, 500) for c in STAKES)
        assert 0.97 * m * kl <= most <= m * kl + 1e-12
        assert stats.binom.cdf(worse, m, 0.5) <= math.exp(-most)


def test_it_is_tighter_than_two_bounds_apart_and_than_split_kl():
    worse, better, samples, bits, delta = 8, 110, 400, 60, 0.05
    end = risk_difference(worse, better, samples, bits, delta)
    each = (bits * math.log(2) - math.log(delta / 2)) / samples
    split = inverse_kl(worse / samples, each) - 1 + inverse_kl(1 - better / samples, each)
    assert end < 0 < split  # Wu and Seldin (2022): the events X >= 0 and X >= 1 apart
    assert end > (worse - better) / samples


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from(STAKES), st.floats(-0.8, 0.8))
def test_the_worst_pairing_is_the_worst(right, zero_shot, stake, mean):
    samples = 30
    worse, better = worst_pairing(right, zero_shot, samples)
    assert worse - better == zero_shot - right
    possible = [
        (w, w + right - zero_shot)
        for w in range(samples + 1)
        if w <= min(zero_shot, samples - right) and w + right - zero_shot >= 0
    ]
    least = min(log_wealth(stake, mean, *pair, samples) for pair in possible)
    assert log_wealth(stake, mean, worse, better, samples) == pytest.approx(least, abs=1e-9)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="worse=7 and better=8 of samples=10"):
        log_wealth(0.5, 0.0, 7, 8, 10)
    with pytest.raises(ValueError, match=r"bits=-1, delta=0\.05"):
        budget(-1, 0.05)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        budget(0, 1.0)
