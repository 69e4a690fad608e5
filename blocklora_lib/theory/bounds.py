"""Generalization bounds: the paper's information-theoretic one, and ones that bite. No torch.

Notation. S are N training samples (the paper writes n, which here counts blocks), W is what
training returns, R(W) its error on the distribution and R̂(W) its error on S.

1. Xu and Raginsky (2017), Theorem 1: samples i.i.d., a loss that is σ-sub-Gaussian for every w.
   Then, in expectation over S and the randomness of training,

       |E[R(W) - R̂(W)]| <= sqrt(2 σ² I(S; W) / N).

   A loss in [0, 1], such as the 0-1 error, has σ = 1/2 (Hoeffding's lemma). Training that stores K
   numbers of q bits each has I(S; W) <= H(W) <= K q ln 2 nats: so Zhu et al. (ICML 2024) compare
   LoRA with its halves, and so the paper compares Block-LoRA with LoRA. It is a parameter count
   under a square root. It needs that W is all that training takes from S: a step count or a seed
   that was chosen on S would have to be counted.

2. For one classifier out of a countable set, each with a code of `bits` bits that form a prefix
   code fixed before S was drawn (Occam's bound): the test-set bound of Langford (2005) at
   confidence δ 2^-bits, joined over all codes by Kraft's inequality. Compressed networks: Zhou et
   al. (2019), Lotfi et al. (2022). It holds with probability 1 - δ over S, for every classifier of
   the set at once.

A sample with a fixed number of images a class is independent but not identically distributed: R is
then the balanced error. The moment bound behind kl survives that, by concavity of ln (Hoeffding
1963, Theorem 1), and survives drawing without replacement too (ibid., Theorem 4). The binomial tail
survives unequal classes in the range where it is used, by Hoeffding (1956), but not drawing without
replacement: see `occam_bound_exact`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scipy.optimize import brentq
from scipy.special import betainccinv

from ..adapters.config import CUT, AdapterConfig
from ..costs import adapter as adapter_costs

SIGMA_UNIT_LOSS = 0.5  # of any loss in [0, 1]: Hoeffding's lemma
Shapes = Iterable[tuple[int, int]]  # (d_in, d_out) of each adapted projection


def bound(parameters: float, bits: float, samples: float, sigma: float = SIGMA_UNIT_LOSS) -> float:
    """sqrt(2 σ² K q ln 2 / N): bound on the expected gap, in units of the loss. 0 parameters: 0."""
    _positive(bits=bits, samples=samples, sigma=sigma)
    _not_negative(parameters=parameters)
    return math.sqrt(2 * sigma**2 * parameters * bits * math.log(2) / samples)


def samples_needed(
    target: float, parameters: float, bits: float, sigma: float = SIGMA_UNIT_LOSS
) -> float:
    """N at which the bound is `target`: 2 σ² K q ln 2 / target². Below 1 it says something."""
    _positive(target=target, bits=bits, sigma=sigma)
    _not_negative(parameters=parameters)
    return 2 * sigma**2 * parameters * bits * math.log(2) / target**2


def bits_allowed(
    target: float, parameters: float, samples: float, sigma: float = SIGMA_UNIT_LOSS
) -> float:
    """q, bits a parameter, at which the bound is `target`: N target² / (2 σ² K ln 2)."""
    _positive(target=target, parameters=parameters, samples=samples, sigma=sigma)
    return samples * target**2 / (2 * sigma**2 * parameters * math.log(2))


def ratio(parameters: float, reference: float) -> float:
    """Bound of one form over that of another, sqrt(K / K'): σ, q and N cancel."""
    _not_negative(parameters=parameters)
    _positive(reference=reference)
    return math.sqrt(parameters / reference)


def counted_parameters(config: AdapterConfig, shapes: Shapes) -> int:
    """K of an adapter: all numbers that it trains, over all adapted projections."""
    return sum(adapter_costs.parameters(config, d_in, d_out) for d_in, d_out in shapes)


def collapsed(config: AdapterConfig) -> AdapterConfig:
    """The form that stores Σ B_i in place of the B_i: what the adapter computes, copies aside.

    The B_i act through their sum alone, so S -> (A_s, B_1 .. B_n) -> (A_s, Σ B_i) is a Markov chain
    and the classifier is a function of its end. By data processing the bound of this form holds for
    Block-LoRA (and its 'w/o A') too. Σ B_i is held, as by the library, in the number format of the
    B_i: q bits again. Under reading 'input' there is one B already, and the form is its own.
    """
    if config.reading == "input" or config.kind not in CUT:
        return config
    kind = "frozen_a" if config.kind == "frozen_a" else "collapsed"
    return AdapterConfig(
        **config.model_dump(exclude={"kind", "rank", "n_blocks", "reading"}),
        kind=kind,
        rank=config.block_rank,
        n_blocks=1,
    )


def total_rank_lora(config: AdapterConfig) -> AdapterConfig:
    """The LoRA that is cut into blocks: what 'tighter than LoRA' is said against."""
    return _lora(config, config.total_rank)


def same_class_lora(config: AdapterConfig) -> AdapterConfig:
    """The LoRA whose updates ΔW are those that the adapter can express: rank block_rank.

    Under reading 'input' it is the smallest LoRA that contains them, rank r.
    """
    return _lora(config, config.block_rank)


def _lora(config: AdapterConfig, rank: int) -> AdapterConfig:
    return AdapterConfig(
        **config.model_dump(exclude={"kind", "rank", "n_blocks", "reading"}), kind="lora", rank=rank
    )


def inverse_kl(error: float, budget: float) -> float:
    """Largest p >= error with kl(error || p) <= budget, kl between Bernoulli variables, in nats."""
    _unit_interval(error=error)
    _not_negative(budget=budget)
    if error == 1 or budget == math.inf:
        return 1.0
    if error == 0:
        return -math.expm1(-budget)  # kl(0 || p) = -ln(1 - p)

    # in t = -ln(1 - p), so that p close to 1 keeps its digits
    def excess(t: float) -> float:
        return (
            error * math.log(error / -math.expm1(-t))
            + (1 - error) * (math.log1p(-error) + t)
            - budget
        )

    low = -math.log1p(-error)
    high = low + 1.0
    while excess(high) < 0:
        high *= 2
    return -math.expm1(-brentq(excess, low, high, xtol=1e-14, rtol=1e-14)) if budget > 0 else error


def occam_bound(error: float, bits: float, samples: int, delta: float) -> float:
    """R <= kl⁻¹(R̂, (bits ln 2 + ln(1/δ)) / N): the relative-entropy Chernoff bound over all codes.

    error = R̂, an observed share of wrong answers. Langford (2005), Occam's razor bound. Holds for
    i.i.d. draws, for a fixed number of draws from each class (R balanced likewise), and for draws
    without replacement from a finite set.
    """
    _check_sample(samples, delta)
    _not_negative(bits=bits)
    return inverse_kl(error, (bits * math.log(2) - math.log(delta)) / samples)


def occam_bound_exact(wrong: int, bits: float, samples: int, delta: float) -> float:
    """Largest p with P[Binomial(N, p) <= wrong] >= δ 2^-bits: Clopper and Pearson's over all codes.

    Langford (2005), test-set bound. At least (wrong + 1)/N: for a sum of independent draws with
    unequal chances of mean p, P[sum <= c] <= P[Binomial(N, p) <= c] where c <= N p - 1 (Hoeffding
    1956), so that the bound holds for a fixed number of draws from each class as well. Draws must
    be independent.
    """
    _check_sample(samples, delta)
    _not_negative(bits=bits)
    if not 0 <= wrong <= samples or wrong != int(wrong):
        raise ValueError(
            f"wrong={wrong} of samples={samples}; give a whole number from 0 to {samples}"
        )
    if wrong == samples:
        return 1.0
    level = delta * 2.0**-bits
    if level < 1e-300:
        raise ValueError(
            f"bits={bits} at delta={delta} is a confidence below 1e-300, "
            "where the binomial tail has no digits left; use occam_bound, or a code below 900 bits"
        )
    # P[Binomial(N, p) <= c] = 1 - I_p(c + 1, N - c); the complement keeps the digits of a small
    # level
    found = float(betainccinv(wrong + 1, samples - wrong, level))
    # nan: so near to 1 that its search did not end
    return 1.0 if math.isnan(found) else max(found, (wrong + 1) / samples)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be a positive number; {_WAY_OUT[name]}")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} must not be negative; {_WAY_OUT[name]}")


def _unit_interval(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie in [0, 1]; give the share of wrong answers")


def _check_sample(samples: int, delta: float) -> None:
    _positive(samples=samples)
    if not 0 < delta < 1:
        raise ValueError(
            f"delta={delta} must lie strictly between 0 and 1; "
            "it is the chance that the bound fails, for example 0.05"
        )


_WAY_OUT = {
    "bits": "give the bits that the code or each number takes, for example 32",
    "samples": "count the training images, classes x shots",
    "sigma": "use 0.5 for a loss in [0, 1]",
    "target": "use 1 for the point where the bound starts to say something",
    "parameters": "count the trained numbers, for example by counted_parameters",
    "reference": "compare with a form that trains something",
    "budget": "it is (bits ln 2 + ln 1/delta)/N, or (KL + ln(2 sqrt N/delta))/N",
}
