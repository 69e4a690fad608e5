"""Whether an adapter is better than zero-shot: a bound on the difference of their risks itself.

Both answer the same N images, so that each image has a loss of three values, X = -1 where only the
adapter is right, 1 where only zero-shot is, 0 otherwise, of mean μ = R(adapter) - R(zero-shot). For
a stake c in (0, 1), fixed before the data are seen,

    W_c(μ) = Π_i (1 - c (X_i - μ) / (1 - μ))        is positive, with E W_c(μ) <= 1,

as a gambler's wealth in a game that is fair at μ (Waudby-Smith and Ramdas 2024). By Markov's
inequality and a prior 2^-bits over codes and stakes, with probability 1 - δ for all at once

    ln W_c(μ) < bits ln 2 + ln(1/δ),

and since W_c rises with μ, this is an upper end of μ; below 0 the gain is certified. At μ = 0 and
the best stake, ln W is m kl(share of losses | 1/2) over the m images on which the two differ: the
sign test. Independent draws of unequal means are allowed: E W is then a product of 1 - c (μ_i - μ)
/ (1 - μ), at most 1 by concavity of ln; so are draws without replacement (Hoeffding 1963, Theorem
4, for sums of ln(1 - c (X_i - μ) / (1 - μ))).
"""

from __future__ import annotations

import math

from scipy.optimize import brentq

STAKES = (0.06, 0.12, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)  # log2(8) = 3 bits name one


def log_wealth(stake: float, mean: float, worse: int, better: int, samples: int) -> float:
    """Return ln W_c(μ) for `worse` images at X = 1, `better` ones at -1 and the rest at 0."""
    if min(worse, better, samples - worse - better) < 0:
        raise ValueError(
            f"worse={worse} and better={better} of samples={samples}; count each image once"
        )
    counts = ((1, worse), (-1, better), (0, samples - worse - better))
    return sum(n * math.log1p(-stake * (x - mean) / (1 - mean)) for x, n in counts)


def budget(bits: float, delta: float) -> float:
    """Return bits ln 2 + ln(1/δ), in nats, the bits of a stake included."""
    if not 0 < delta < 1 or not bits >= 0:
        raise ValueError(
            f"bits={bits}, delta={delta}; give the bits of the code, 0 or more, and a chance "
            "strictly between 0 and 1 that the bound fails, for example 0.05"
        )
    return (bits + math.log2(len(STAKES))) * math.log(2) - math.log(delta)


def risk_difference(worse: int, better: int, samples: int, bits: float, delta: float) -> float:
    """Return an upper end of R(adapter) - R(zero-shot), in [-1, 1]; see the module."""
    limit = budget(bits, delta)

    def end(stake: float) -> float:
        def excess(mean: float) -> float:
            return log_wealth(stake, mean, worse, better, samples) - limit

        top = 1 - 1e-12
        return brentq(excess, -1.0, top, xtol=1e-12) if excess(top) > 0 else 1.0

    return min(end(stake) for stake in STAKES)


def bits_to_spare(worse: int, better: int, samples: int, bits: float, delta: float) -> float:
    """Return by how many bits the gain is certified; negative: how many a code has too many."""
    most = max(log_wealth(stake, 0.0, worse, better, samples) for stake in STAKES)
    return (most - budget(bits, delta)) / math.log(2)


def worst_pairing(right: int, zero_shot: int, samples: int) -> tuple[int, int]:
    """Return (worse, better) of two counts of right answers, as many pairs apart as there can be.

    Of pairings with one difference, W falls with the images on which the two differ, since ln(1 - c
    (x - μ)/(1 - μ)) is concave in x: what this one certifies, the true one does.
    """
    worse = min(zero_shot, samples - right)
    return worse, worse + right - zero_shot
