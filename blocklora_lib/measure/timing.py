"""Paired timing: every round runs every function once, so what slows a round slows all of it.

A shared machine drifts by tens of percent within minutes; two runs one after the other compare the
drift. Here a ratio is formed within each round, t_i(name)/t_i(baseline), and its median over the
rounds is reported with a distribution-free interval. A ratio whose interval holds 1 is *not
resolved*: it is no result, neither 'faster' nor 'equal'. That two forms cost the same is a
statement of its own, see `equivalent`.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..core.collection import no_collection
from ..core.machine import processor_name
from ..core.schema import UnknownName

CONFIDENCE = 0.95
MIN_ROUNDS = 3


def paired_times(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    seed: int = 0,
    min_seconds: float = 1e-3,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return round, name, seconds: each function once a round, in an order shuffled anew.

    A sample lasts at least `min_seconds`: it calls its function as often as that needs by the
    warm-up's last call, and `seconds` is for one call. A GPU is synchronised around a sample.
    Garbage is collected between rounds, never within a sample. on_round(i, rounds) is called after
    each round, for a progress bar.
    """
    if not functions:
        raise ValueError("no function to time; give at least one, as {name: function}")
    if rounds < MIN_ROUNDS:
        raise ValueError(f"rounds={rounds} gives no quartiles; use at least {MIN_ROUNDS}")
    if warmup < 1:
        raise ValueError(f"warmup={warmup}; use at least 1, since first calls allocate and compile")
    device, calls = torch.device(device), {}
    for name, function in functions.items():
        for _ in range(warmup):
            seconds = _sample(function, 1, device)
        calls[name] = max(1, math.ceil(min_seconds / max(seconds, 1e-7)))
    order, shuffle, rows = list(functions), random.Random(seed), []
    gc.collect()
    for i in range(1, rounds + 1):
        shuffle.shuffle(order)
        with no_collection():
            found = {
                name: _sample(functions[name], calls[name], device) / calls[name] for name in order
            }
        gc.collect(1)  # the young; a full collection walks all of torch
        rows += [(i, name, found[name]) for name in functions]
        if on_round:
            on_round(i, rounds)
    return pd.DataFrame(rows, columns=["round", "name", "seconds"])


def _sample(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the seconds of so many calls."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for the GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return order statistics that hold the median with at least this confidence, or nan, nan.

    Whatever their distribution, the number of N independent values below the median is binomial (N,
    1/2), so [x_(k), x_(N+1-k)] misses it with probability 2 P(at most k - 1 heads in N throws). The
    largest k for which that is at most 1 - confidence is taken. At 95% there is none for N < 6.
    """
    from scipy.stats import binom

    # not scipy.stats.quantile_test: it finds its two ends apart, and of few values one may be nan
    ordered = np.sort(np.asarray(values, dtype=float))
    fit = [
        k
        for k in range(1, len(ordered) // 2 + 1)
        if 2 * binom.cdf(k - 1, len(ordered), 0.5) <= 1 - confidence
    ]
    return (float(ordered[fit[-1] - 1]), float(ordered[-fit[-1]])) if fit else (np.nan, np.nan)


def ratios(times: pd.DataFrame, baseline: str, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return one row a name: median and quartiles of its seconds and of its ratio to `baseline`.

    Columns name, baseline, seconds_median, seconds_q1, seconds_q3, ratio, ratio_q1, ratio_q3,
    ratio_low, ratio_high, rounds, resolved. [ratio_low, ratio_high] is `median_interval` of the
    ratios of the rounds, at 95% unless told. resolved: the interval excludes 1, so the effect is
    larger than what the spread leaves open. Fewer than 6 rounds never resolve anything. Each row
    stands for itself: of twenty ratios that are truly 1, one may be resolved.
    """
    wide = by_round(times)
    if baseline not in wide:
        raise UnknownName("baseline", baseline, wide.columns)
    rows = []
    for name in wide:
        ratio = wide[name] / wide[baseline]
        rows.append(
            {"name": name, "baseline": baseline}
            | quartiles(wide[name], "seconds_median", "seconds")
            | quartiles(ratio, "ratio", "ratio")
            | resolution(ratio, "ratio", 1, confidence)
        )
    return pd.DataFrame(rows)


def by_round(times: pd.DataFrame) -> pd.DataFrame:
    """Return seconds, a row a round, a column a name. A round that lacks a name is refused."""
    wide = times.pivot(index="round", columns="name", values="seconds").rename_axis(columns=None)
    wide = wide[list(dict.fromkeys(times["name"]))]
    if wide.isna().any().any():
        name = wide.columns[wide.isna().any()][0]
        rounds = wide.index[wide[name].isna()].tolist()
        raise ValueError(
            f"{name!r} has no time in round {rounds[0]}; give the whole frame of paired_times"
        )
    return wide


def quartiles(values: Sequence[float], median: str, prefix: str) -> dict[str, float]:
    """Return {median: .., prefix_q1: .., prefix_q3: ..}."""
    q1, q2, q3 = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return {median: float(q2), f"{prefix}_q1": float(q1), f"{prefix}_q3": float(q3)}


def resolution(
    values: Sequence[float], prefix: str, nothing: float, confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Return prefix_low, prefix_high, rounds, and resolved: whether that leaves `nothing` out."""
    low, high = median_interval(values, confidence)
    resolved = low > nothing or high < nothing
    found = {f"{prefix}_low": low, f"{prefix}_high": high}
    return found | {"rounds": len(values), "resolved": resolved}


def equivalent(row: Mapping[str, Any], margin: float = 0.05) -> bool:
    """Whether a row of `ratios` is shown to be 1 within ±margin: its interval lies in 1 ± margin.

    Two one-sided tests (Schuirmann 1987), by way of the interval. At 95% that is stricter than the
    90% which the two tests at 5% would need. False means 'not shown', never 'different'.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin} must lie between 0 and 1, as in 0.05")
    return bool(row["ratio_low"] >= 1 - margin and row["ratio_high"] <= 1 + margin)


def verdict(
    row: Mapping[str, Any], better_than: float | None = None, margin: float | None = None
) -> str:
    """Put a row of `ratios` in words: '0.71x [0.69, 0.73]', or 'open: ...'.

    better_than: a ratio that the paper names; added is whether the interval reaches it. margin:
    also say 'equal within 5%' where `equivalent` shows it.
    """
    found = f"{row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
    if margin is not None and equivalent(row, margin):
        return f"{found}, equal within {margin:.0%}"
    if not row["resolved"]:
        return f"open: {_spread(row)}"
    if better_than is None:
        return found
    if row["ratio_high"] <= better_than:
        return f"{found}, at most {better_than:.2f}x"
    reach = "not told apart from" if row["ratio_low"] <= better_than else "above"
    return f"{found}, {reach} {better_than:.2f}x"


def _spread(row: Mapping[str, Any]) -> str:
    rounds, effect = int(row["rounds"]), abs(row["ratio"] - 1)
    if math.isnan(row["ratio_low"]):
        found = f"(effect {effect:.1%} at {row['ratio']:.2f}x)"
        return f"{rounds} rounds give no interval of the median {found}"
    return (
        f"{row['ratio']:.2f}x, an effect of {effect:.1%}, within a spread of "
        f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] over {rounds} rounds, which holds 1"
    )


def conditions(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what a time depends on besides the code: device, processor, threads, torch, load."""
    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return {
        "device": gpu or device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(load, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
