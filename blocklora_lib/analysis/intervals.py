"""Means and intervals over seeds. One seed says nothing about the spread: nan, not zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """mean, with the bounds low and high of the confidence interval over n values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """The number after the plus-minus sign."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference(Interval):
    """mean of a - b over pairs, its interval, and the two-sided p-value of the paired t-test."""

    p_value: float = math.nan


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the Student-t interval of the mean: mean ± t_{(1+c)/2, n-1} s / sqrt(n)."""
    tested = _tested(values, confidence)
    return Interval(tested.mean, tested.low, tested.high, tested.n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Interval and test of a - b where a[i] and b[i] share a dataset, a shot count and a seed."""
    a, b = list(a), list(b)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} values cannot be paired with {len(b)}; give the same runs for both methods"
        )
    return _tested([x - y for x, y in zip(a, b, strict=True)], confidence)


def _tested(values: Sequence[float], confidence: float) -> PairedDifference:
    """Return the t-test of the values' mean against 0, which of differences is the paired test."""
    from scipy.stats import ttest_1samp

    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    values = [float(v) for v in values]
    if not values:
        raise ValueError("no values: an interval needs at least one")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, 1, math.nan)
    # the same number up to the rounding of per cents: certain, whatever it is
    if math.isclose(min(values), max(values), rel_tol=1e-12, abs_tol=1e-12):
        return PairedDifference(mean, mean, mean, n, float(abs(mean) <= 1e-12))
    test = ttest_1samp(values, 0)
    low, high = test.confidence_interval(confidence)
    return PairedDifference(mean, float(low), float(high), n, float(test.pvalue))
