"""How time and memory of our step grow, as lines: with classes, images, rank, blocks and threads.

Time: all points of an axis run once in every round; a line is fitted in each round by least
squares, and its slope is the median over the rounds, with the distribution-free interval of
`timing.median_interval`. Memory: one process a point, one line, the interval of its slope by
Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from ..clip.backbone import Backbone
from .steps import Size, make_step, precision
from .timing import CONFIDENCE, by_round, median_interval, paired_times

FIELDS = {"classes": "classes", "images": "batch", "rank": "rank", "blocks": "n_blocks"}
AXES = (*FIELDS, "threads")


def points(axis: str, values: Sequence[int], base: Size) -> dict[int, Size]:
    """Return {value: size}: the base with one thing changed.

    blocks: at the rank that all of them divide, since Block-LoRA cuts r in n equal parts.
    """
    if axis == "threads":
        return dict.fromkeys(values, base)
    if axis == "blocks":
        base = replace(base, rank=math.lcm(base.rank, *values))
    if axis == "rank":
        values = [v for v in values if v % base.n_blocks == 0]
    changes: Any = [{FIELDS[axis]: value} for value in values]
    return {value: replace(base, **how) for value, how in zip(values, changes, strict=True)}


def axis_times(
    backbones: Mapping[str, Backbone],
    variant: str,
    axis: str,
    sizes: Mapping[int, Size],
    rounds: int,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return round, name, seconds of a step; name is the value on the axis."""
    backbone, threads = backbones[precision(variant)], torch.get_num_threads()
    if axis == "threads":
        step = make_step(backbone, variant, next(iter(sizes.values())))
        functions: dict[Any, Any] = {v: _with_threads(step, v, threads) for v in sizes}
    else:
        functions = {value: make_step(backbone, variant, size) for value, size in sizes.items()}
    return paired_times(
        functions, rounds, warmup=1, device=backbone.device, min_seconds=0.02, on_round=on_round
    )


def _with_threads(step: Callable[[], object], threads: int, after: int) -> Callable[[], None]:
    def run() -> None:
        torch.set_num_threads(threads)
        try:
            step()
        finally:
            torch.set_num_threads(after)

    return run


def time_line(times: pd.DataFrame) -> dict[str, float]:
    """Fit seconds = intercept + slope x in every round. times: `axis_times`.

    Returns slope, slope_low, slope_high, intercept, rounds, and residual: how far the medians lie
    from the line, at most, as a share of the largest. A large residual says that growth is not
    linear.
    """
    wide = by_round(times)
    x = wide.columns.to_numpy(dtype=float)
    lines = np.polyfit(x, wide.to_numpy().T, 1)  # (2, rounds)
    low, high = median_interval(lines[0])
    slope, intercept = np.median(lines, axis=1)
    medians = wide.median().to_numpy()
    residual = np.abs(np.polyval(np.polyfit(x, medians, 1), x) - medians).max() / medians.max()
    return {
        "slope": float(slope), "slope_low": low, "slope_high": high, "intercept": float(intercept),
        "rounds": len(wide), "residual": float(residual),
    }  # fmt: skip


def memory_line(values: Sequence[float], sizes: Sequence[float]) -> dict[str, float]:
    """Fit bytes = intercept + slope x; slope_low and slope_high are nan for two points."""
    fit = stats.linregress(values, sizes)
    freedom = len(values) - 2
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * fit.stderr if freedom > 0 else math.nan
    off = np.abs(fit.intercept + fit.slope * np.asarray(values) - np.asarray(sizes)).max()
    return {
        "slope": float(fit.slope), "slope_low": float(fit.slope - half),
        "slope_high": float(fit.slope + half), "intercept": float(fit.intercept),
        "rounds": 1, "residual": float(off / max(sizes)),
    }  # fmt: skip
