"""Paired timing: every round runs every function once, so what slows a round slows all of it.

A shared machine drifts by tens of percent within minutes; two runs one after the other compare the
drift. Here a ratio is formed within each round, t_i(name)/t_i(baseline), and its median over the
rounds is reported with a distribution-free interval. A ratio whose interval holds 1 is *not
resolved*: it is no result, neither 'faster' nor 'equal'. That two forms cost the same is a
statement of its own, see `equivalent`.

Within one process a ratio is steadier than it is from process to process: where the tensors lie,
and which kernels a library has chosen, stay. Times of several processes (`processes.py`) have a
column `process`; each then gives one ratio, its median, and these are the values of the interval.
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
from ..core.machine import processor_name, usable_cpus
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


def in_random_order(
    make: Callable[[str], Callable[[], object]], names: Sequence[str], seed: int = 0
) -> dict[str, Callable[[], object]]:
    """Return {name: make(name)} for `paired_times`, made in an order that the seed draws.

    What is made first has other places in memory than what is made last; here no name always has.
    """
    made = {name: make(name) for name in random.Random(seed).sample(names, len(names))}
    return {name: made[name] for name in names}


def ratios(times: pd.DataFrame, baseline: str, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return one row a name: median and quartiles of its seconds and of its ratio to `baseline`.

    Columns name, baseline, seconds_median, seconds_q1, seconds_q3, and those of `spread` of the
    ratio, at 95% unless told. resolved: the interval excludes 1, so the effect is larger than what
    the spread leaves open. Each row stands for itself: of twenty ratios that are truly 1, one may
    be resolved.
    """
    wide = by_round(times)
    if baseline not in wide:
        raise UnknownName("baseline", baseline, wide.columns)
    rows = []
    for name in wide:
        rows.append(
            {"name": name, "baseline": baseline}
            | quartiles(wide[name], "seconds_median", "seconds")
            | spread(wide[name] / wide[baseline], "ratio", 1, confidence)
        )
    return pd.DataFrame(rows)


def ratios_by(times: pd.DataFrame, keys: Sequence[str], baseline: str) -> pd.DataFrame:
    """Return the rows of `ratios` of each value of these columns, behind them; name is `form`."""
    parts = times.groupby(list(keys), sort=False)
    found = {key: ratios(part, baseline) for key, part in parts}
    frame = pd.concat(found, names=keys).reset_index(keys).reset_index(drop=True)
    return frame.rename(columns={"name": "form"})


def by_round(times: pd.DataFrame) -> pd.DataFrame:
    """Return seconds, a row a round of a process, a column a name. None may lack a name."""
    at = [level for level in ("process", "round") if level in times]
    wide = times.pivot(index=at, columns="name", values="seconds").rename_axis(columns=None)
    wide = wide[list(dict.fromkeys(times["name"]))]
    if wide.isna().any().any():
        name = wide.columns[wide.isna().any()][0]
        lacking = wide.index[wide[name].isna()].to_frame().iloc[0]
        where = " of ".join(f"{level} {lacking[level]}" for level in reversed(at))
        raise ValueError(f"{name!r} has no time in {where}; give the whole frame of paired_times")
    return wide


def quartiles(values: Sequence[float], median: str, prefix: str) -> dict[str, float]:
    """Return {median: .., prefix_q1: .., prefix_q3: ..}."""
    q1, q2, q3 = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return {median: float(q2), f"{prefix}_q1": float(q1), f"{prefix}_q3": float(q3)}


def spread(
    values: pd.Series, name: str, nothing: float, confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Return a median with what is known of it, from a value a round.

    Keys name, name_q1, name_q3 (quartiles of all rounds), name_low, name_high (`median_interval` of
    what is independent: the rounds of one process, or the median of each of several), rounds,
    processes, and resolved: whether the interval leaves `nothing` out. Fewer than 6 never do.
    """
    several = "process" in values.index.names and values.index.unique("process").size > 1
    independent = values.groupby("process").median() if several else values
    low, high = median_interval(independent, confidence)
    return (
        quartiles(values, name, name)
        | {name: float(np.median(independent)), f"{name}_low": low, f"{name}_high": high}
        | {"rounds": len(values), "processes": len(independent) if several else 1}
        | {"resolved": low > nothing or high < nothing}
    )


def equivalent(row: Mapping[str, Any], margin: float = 0.05) -> bool:
    """Whether a row of `ratios` is shown to be 1 within ±margin: its interval lies in 1 ± margin.

    Two one-sided tests (Schuirmann 1987), by way of the interval. At 95% that is stricter than the
    90% which the two tests at 5% would need. False means 'not shown', never 'different'.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin} must lie between 0 and 1, as in 0.05")
    return bool(row["ratio_low"] >= 1 - margin and row["ratio_high"] <= 1 + margin)


def in_words(
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
        return f"open: {_open(row)}"
    if better_than is None:
        return found
    if row["ratio_high"] <= better_than:
        return f"{found}, at most {better_than:.2f}x"
    reach = "not told apart from" if row["ratio_low"] <= better_than else "above"
    return f"{found}, {reach} {better_than:.2f}x"


def seen_over(row: Mapping[str, Any]) -> str:
    """Say what the interval of a row of `ratios` is over: '11 rounds', or '9 processes'."""
    several = row.get("processes", 1) > 1  # of a record that does not say, one
    return f"{row['processes']:.0f} processes" if several else f"{row['rounds']:.0f} rounds"


def _open(row: Mapping[str, Any]) -> str:
    effect = abs(row["ratio"] - 1)
    if math.isnan(row["ratio_low"]):
        found = f"(effect {effect:.1%} at {row['ratio']:.2f}x)"
        return f"{seen_over(row)} give no interval of the median {found}"
    return (
        f"{row['ratio']:.2f}x, an effect of {effect:.1%}, within a spread of "
        f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] over {seen_over(row)}, which holds 1"
    )


def conditions(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what a time depends on besides the code: device, processor, threads, torch, load.

    instructions: the widest vector instructions of torch's own kernels, such as AVX512. cores:
    those that this process may use.
    """
    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return {
        "device": gpu or device.type,
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cpus(),
        "threads": torch.get_num_threads(),
        "load_average": round(load, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
