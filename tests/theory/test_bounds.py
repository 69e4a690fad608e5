"""Bounds against scipy's distributions, a grid, closed forms of other routes, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.theory.bounds import (
    bits_allowed,
    bound,
    collapsed,
    counted_parameters,
    inverse_kl,
    occam_bound,
    occam_bound_exact,
    ratio,
    same_class_lora,
    samples_needed,
    total_rank_lora,
)

VIT_B_16 = [(768, 768)] * 36 + [(512, 512)] * 36  # q, k, v of 12 vision and 12 text layers
delta = 0.05

readings = st.sampled_from(["total_rank", "block_rank"])
sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))  # block_rank, n


def block_lora(reading, block_rank, n, kind="block_lora"):
    return AdapterConfig(
        kind=kind,
        reading=reading,
        rank=block_rank * n if reading == "total_rank" else block_rank,
        n_blocks=n,
    )


# the information-theoretic bound


def test_the_papers_default_by_hand():
    parameters = counted_parameters(AdapterConfig(kind="block_lora", rank=2, n_blocks=2), VIT_B_16)
    assert parameters == 36 * (768 + 512) * (1 + 2)  # d_in r/n + r d_out with r = n = 2
    # 160 samples: EuroSAT at 16 shots. 2 σ² = 1/2
    assert bound(parameters, 16, 160) == pytest.approx(
        math.sqrt(138_240 * 16 * math.log(2) / (2 * 160))
    )


def test_it_bounds_the_gap_where_the_information_is_known():
    """W is one fair coin flip kept from one sample: I(S; W) = ln 2 = H(W), N = 1, q = K = 1.

    Loss 1 if w == z: on the sample always 1, on fresh data 1/2. The gap of 1/2 stays under the
    bound.
    """
    assert 0.5 <= bound(1, 1, 1) == pytest.approx(math.sqrt(math.log(2) / 2))


@pytest.mark.parametrize("samples", [1, 5, 50])
def test_the_gaussian_mean_keeps_under_its_information(samples):
    """Z ~ N(0, 1), W = sign of the mean of S, loss -w z: σ = 1, the gap is E|mean| = √(2/(π N)).

    W is a function of S and a fair coin, so that I(S; W) = H(W) = ln 2: one parameter of one bit,
    exactly.
    """
    rng = np.random.default_rng(samples)
    mean = rng.normal(size=(200_000, samples)).mean(axis=1)
    gap = np.abs(mean).mean()  # of the loss -w z with w = sign(mean): train -|mean|, fresh data 0
    assert gap == pytest.approx(math.sqrt(2 / (math.pi * samples)), rel=0.02)
    assert (
        gap
        <= bound(1, 1, samples, sigma=1.0)
        == pytest.approx(math.sqrt(2 * math.log(2) / samples))
    )


@given(st.integers(1, 10**9), st.floats(0.1, 64), st.integers(1, 10**7), st.floats(0.01, 10))
def test_it_is_monotone_and_its_inverses_invert(parameters, bits, samples, sigma):
    value = bound(parameters, bits, samples, sigma)
    assert (
        bound(parameters + 1, bits, samples, sigma)
        >= value
        >= bound(parameters, bits, samples + 1, sigma)
    )
    assert bound(
        parameters, bits, samples_needed(value, parameters, bits, sigma), sigma
    ) == pytest.approx(value)
    assert bits_allowed(value, parameters, samples, sigma) == pytest.approx(bits)


@given(readings, sizes, st.integers(1, 64))
def test_block_lora_is_tighter_than_the_lora_of_total_rank_and_looser_than_its_own_class(
    reading, size, d
):
    block_rank, n = size
    config = block_lora(reading, block_rank, n)
    ours, total, own = (
        counted_parameters(c, [(d, d)])
        for c in (config, total_rank_lora(config), same_class_lora(config))
    )
    assert ratio(ours, total) == pytest.approx(math.sqrt((1 + n) / (2 * n)))
    assert ratio(ours, own) == pytest.approx(math.sqrt((1 + n) / 2))
    assert counted_parameters(collapsed(config), [(d, d)]) == own


@given(sizes, st.integers(1, 64))
def test_only_the_d_in_term_is_divided_by_n(size, d):
    block_rank, n = size
    config, total = (block_lora("total_rank", block_rank, n), block_rank * n)
    lora = counted_parameters(total_rank_lora(config), [(7 * d, d)])
    ours = counted_parameters(config, [(7 * d, d)])
    assert lora == total * (7 * d + d)
    assert ours * n == total * (7 * d + n * d)


@given(readings, sizes)
def test_without_a_only_one_b_counts(reading, size):
    block_rank, n = size
    config = collapsed(block_lora(reading, block_rank, n, kind="frozen_a"))
    assert config.kind == "frozen_a"
    assert counted_parameters(config, [(9, 5)]) == 5 * block_rank


def test_the_cut_along_the_input_has_no_copies():
    config = AdapterConfig(kind="block_lora", reading="input", rank=2, n_blocks=4)
    assert collapsed(config) is config
    assert counted_parameters(config, [(8, 8)]) == 2 * 2 + 2 * 8
    assert same_class_lora(config).rank == 2


# kl, Occam, PAC-Bayes


@pytest.mark.slow
@given(st.floats(0, 0.99), st.floats(1e-6, 3))
def test_inverse_kl_on_a_grid(error, budget):
    p = np.linspace(max(error, 1e-9), 1 - 1e-9, 200_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = (error * np.log(error / p) if error > 0 else 0) + (1 - error) * np.log(
            (1 - error) / (1 - p)
        )
    assert inverse_kl(error, budget) == pytest.approx(p[kl <= budget].max(), abs=1.1e-5)


@pytest.mark.parametrize(
    ("wrong", "samples"), [(0, 10), (3, 40), (100, 320), (319, 320), (320, 320)]
)
@pytest.mark.parametrize("bits", [0, 1, 20, 300])
def test_exact_bound_is_scipys_clopper_pearson(wrong, samples, bits):
    level = delta * 2.0**-bits
    theirs = 1.0 if wrong == samples else stats.beta.isf(level, wrong + 1, samples - wrong)
    theirs = max(theirs, min(1.0, (wrong + 1) / samples))  # Hoeffding's range
    ours = occam_bound_exact(wrong, bits, samples, delta)
    assert ours == pytest.approx(theirs, rel=1e-9)
    if ours > (wrong + 1) / samples:
        assert stats.binom.logcdf(wrong, samples, ours) == pytest.approx(math.log(level), rel=1e-6)


@given(
    st.integers(1, 400).flatmap(lambda m: st.tuples(st.integers(0, m), st.just(m))),
    st.floats(0, 500),
)
def test_exact_is_never_above_chernoff_and_bits_cost(sample, bits):
    wrong, samples = sample
    exact, chernoff = (
        occam_bound_exact(wrong, bits, samples, delta),
        occam_bound(wrong / samples, bits, samples, delta),
    )
    assert wrong / samples <= exact <= max(chernoff, (wrong + 1) / samples) + 1e-12
    assert chernoff <= occam_bound(wrong / samples, bits + 1, samples, delta)
    assert exact <= occam_bound_exact(wrong, bits + 1, samples, delta) + 1e-12
    assert occam_bound(wrong / samples, bits, samples, delta / 2) >= chernoff


@pytest.mark.parametrize(("wrong", "samples"), [(1, 5), (1, 7), (38, 40)])
def test_of_a_long_code_and_few_samples_nothing_is_known(wrong, samples):
    """scipy's search for it ended in nan, which was returned."""
    assert occam_bound_exact(wrong, 700, samples, 0.05) == 1.0


@pytest.mark.parametrize("draws", ["iid", "fixed number a class", "without replacement"])
@pytest.mark.parametrize("classifiers", [1, 64])
def test_bounds_fail_at_most_as_often_as_they_may(draws, classifiers):
    """The classifier of fewest errors of 64 is taken: without log2 64 bits the bound would fail."""
    rng, repeats, samples, risk = np.random.default_rng(1), 4000, 50, 0.3
    if draws == "iid":
        wrong = rng.binomial(samples, risk, (repeats, classifiers))
    elif draws == "fixed number a class":  # two classes with error 0.05 and 0.55: mean 0.3
        wrong = sum(rng.binomial(samples // 2, p, (repeats, classifiers)) for p in (0.05, 0.55))
    else:
        wrong = rng.hypergeometric(30, 70, samples, (repeats, classifiers))
    fewest, bits, most = wrong.min(axis=1), math.log2(classifiers), 0.2
    table = {int(k): occam_bound(k / samples, bits, samples, most) for k in np.unique(fewest)}
    exact = {int(k): occam_bound_exact(int(k), bits, samples, most) for k in np.unique(fewest)}
    free = {int(k): occam_bound(k / samples, 0, samples, most) for k in np.unique(fewest)}
    failed, failed_exact, failed_free = (
        np.mean([table_of[int(k)] < risk for k in fewest]) for table_of in (table, exact, free)
    )
    noise = 4 * math.sqrt(most / repeats)  # four standard deviations of a share of repeats
    assert failed <= most + noise
    assert failed_exact <= most + noise
    if classifiers == 64 and draws == "iid":
        assert failed_free > most + noise  # choosing must be paid for


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: bound(10, 16, 0), "samples=0 .*shots"),
        (lambda: bound(10, 0, 5), "bits=0 .*32"),
        (lambda: bound(10, 16, 5, sigma=-1), "sigma=-1 .*0.5"),
        (lambda: bound(10, 16, math.nan), "samples=nan"),
        (lambda: bound(-1, 16, 5), "parameters=-1"),
        (lambda: samples_needed(0, 10, 16), "target=0"),
        (lambda: bits_allowed(1, 0, 5), "parameters=0"),
        (lambda: ratio(3, 0), "reference=0"),
        (lambda: occam_bound(0.1, 8, 100, 0.0), "delta=0.0 .*0.05"),
        (lambda: occam_bound(0.1, 8, 100, 1), "delta=1 "),
        (lambda: occam_bound(0.1, -1, 100, 0.1), "bits=-1"),
        (lambda: occam_bound(1.1, 8, 100, 0.1), "error=1.1"),
        (lambda: occam_bound_exact(5, 8, 4, 0.1), "wrong=5 of samples=4"),
        (lambda: occam_bound_exact(1, 2000, 4, 0.1), "bits=2000"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(call, names):
    with pytest.raises(ValueError, match=names):
        call()
