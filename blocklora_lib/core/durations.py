"""Durations in words. No torch."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Return a duration as people say it: '40 s', '3:05 min', '2:10 h'."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
