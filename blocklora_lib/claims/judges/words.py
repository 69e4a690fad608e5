"""Differences in words: with their interval, what they could have shown, and on what they rest."""

from __future__ import annotations

from ...analysis.comparisons import OverSets
from ...analysis.intervals import Interval, ends


def points(d: Interval) -> str:
    """Write a difference with its interval."""
    return f"{d.mean:+.1f} points {ends(d.low, d.high, '+.1f')}" if d.n else "(no pair of runs)"


def smallest(*compared: Interval) -> str:
    """Write the smallest effect that the least certain of these differences could have shown."""
    widths = [d.half_width for d in compared]
    if any(width != width for width in widths):
        return "none, for there is no interval"
    if not (most := max(widths)):
        return "one answer, for none differs"
    return f"{most:.1f} points" if most >= 0.05 else f"{most:.1g} points"


def rests_on(*compared: OverSets, what: str = "sets") -> str:
    """Write over how many sets and pairs of runs each is a mean, once if all are over as many."""
    return ", then ".join(dict.fromkeys(d.told(what) for d in compared))
