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
    """Student-t interval of the mean: mean ± t_{(1+c)/2, n-1} s / sqrt(n), with s the sample
    deviation.
    """
    from scipy.stats import t

    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    values = [float(v) for v in values]
    n = len(values)
    if n == 0:
        raise ValueError("no values: an interval needs at least one")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Interval and test of a - b where a[i] and b[i] share a dataset, a shot count and a seed."""
    from scipy.stats import t

    a, b = list(a), list(b)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} values cannot be paired with {len(b)}; give the same runs for both methods"
        )
    interval = mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
    if interval.n == 1:
        return PairedDifference(interval.mean, math.nan, math.nan, 1, math.nan)
    standard_error = interval.half_width / float(t.ppf((1 + confidence) / 2, interval.n - 1))
    if standard_error == 0:  # every difference is the same number: certain, whatever it is
        p = 1.0 if interval.mean == 0 else 0.0
    else:
        p = float(2 * t.sf(abs(interval.mean) / standard_error, interval.n - 1))
    return PairedDifference(interval.mean, interval.low, interval.high, interval.n, p)
