"""Means, intervals, tests together. One seed says nothing about the spread: nan, not zero.

Nor do seeds that agree to the last image: accuracies come in steps, the `unit` of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def ends(low: float, high: float, form: str) -> str:
    """Write an interval, its numbers formatted by `form`; one that is not there in words."""
    return f"[{low:{form}}, {high:{form}}]" if low == low else "(no interval)"


@dataclass(frozen=True)
class Interval:
    """mean, with the bounds low and high of the confidence interval over n values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """The number after the plus-minus sign: an effect as large is seen in half of repeats."""
        return (self.high - self.low) / 2

    def above(self, bound: float = 0.0) -> bool | None:
        """Whether the interval lies above the bound: superiority, or non-inferiority where the
        bound is a margin below 0. None: it holds the bound, or there is no interval.
        """
        return True if self.low > bound else False if self.high < bound else None

    def below(self, bound: float = 0.0) -> bool | None:
        """Whether the interval lies below the bound; None as in `above`."""
        above = self.above(bound)
        return None if above is None else not above

    def within(self, margin: float) -> bool | None:
        """Whether it lies in ±margin; False where it lies outside, None where it crosses a margin.

        Two one-sided tests (Schuirmann 1987) by way of the interval, which at 95% is stricter than
        the 90% that the two at 5% need.
        """
        return every(self.above(-margin), self.below(margin))


Question = Callable[[Interval], bool | None]


@dataclass(frozen=True)
class PairedDifference(Interval):
    """mean of a - b over pairs, its interval, and the two-sided p-value of the paired t-test."""

    p_value: float = math.nan


def every(*answers: bool | None) -> bool | None:
    """Return what holds of all: False where one is False, else None where one is open."""
    return False if False in answers else None if None in answers else True


def together(*asked: tuple[Interval, Question]) -> bool | None:
    """Return whether the answer to each question, asked of its 95% Student interval, is True; None
    where nothing is asked.

    It takes one False to contradict them together, so that answer needs the wider interval that
    Bonferroni asks of one among so many looks.
    """
    if not asked:
        return None
    if all(question(found) for found, question in asked):
        return True
    wide = [question(widened(found, len(asked), found.n - 1)) for found, question in asked]
    return False if False in wide else None


def widened(found: Interval, looks: int, freedom: float = math.inf) -> Interval:
    """Return a 95% interval made as wide as Bonferroni asks of one among so many looks.

    By the ratio of Student's quantiles of these degrees of freedom, on both sides by themselves. By
    default they are normal ones: for an interval of order statistics, whose values are not at hand.
    """
    from scipy.stats import t

    factor = t.isf(0.025 / looks, freedom) / t.isf(0.025, freedom)
    low, high = (found.mean + factor * (end - found.mean) for end in (found.low, found.high))
    return Interval(found.mean, low, high, found.n)


def mean_interval(values: Sequence[float], confidence: float = 0.95, unit: float = 0.0) -> Interval:
    """Return the Student-t interval of the mean: mean ± t_{(1+c)/2, n-1} s / sqrt(n).

    unit: the least that sets two values apart, as 100/N points of an accuracy over N images; s is
    at least half of it. Where it is not known (0), equal values have no interval, unless all are 0:
    no difference anywhere.
    """
    tested = _tested(values, confidence, unit)
    return Interval(tested.mean, tested.low, tested.high, tested.n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, unit: float = 0.0
) -> PairedDifference:
    """Interval and test of a - b where a[i] and b[i] share a dataset, a shot count and a seed.

    unit: of a difference, as of `mean_interval`.
    """
    a, b = list(a), list(b)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} values cannot be paired with {len(b)}; give the same runs for both methods"
        )
    return _tested([x - y for x, y in zip(a, b, strict=True)], confidence, unit)


def _tested(values: Sequence[float], confidence: float, unit: float) -> PairedDifference:
    """Return the t-test of the values' mean against 0, which of differences is the paired test."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    values = [float(v) for v in values]
    if not values:
        raise ValueError("no values: an interval needs at least one")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, 1, math.nan)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    # the same number up to the rounding of per cents
    if math.isclose(min(values), max(values), rel_tol=1e-12, abs_tol=1e-12):
        spread = 0.0
    if not (spread := max(spread, unit / 2)):
        none = abs(mean) <= 1e-12
        ends = (mean, mean) if none else (math.nan, math.nan)
        return PairedDifference(mean, *ends, n, 1.0 if none else math.nan)
    from scipy.special import stdtr, stdtrit  # a quarter of a second, which equal values need not

    error = spread / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return PairedDifference(mean, mean - half, mean + half, n, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in their order; nan stays nan."""
    found, worst = [math.nan] * len(p_values), 0.0
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for at, (p, i) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - at) * p))
        found[i] = worst
    return found
