"""What a training step costs on a GPU, and in which arithmetic."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.seeding import seeded_torch
from .timing import synchronise

Numbers = dict[str, Any]
WARM_UP = 3  # steps before the clock starts: kernels are chosen and memory is taken


def release(device: torch.device) -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def step_costs(
    make: Callable[[], Callable[[], Tensor]], steps: int, device: torch.device
) -> Numbers:
    """Return what the step that `make` loads takes: medians in ms, peaks in GiB, model and all.

    ms: until the device has done a step; host_ms: until the step returns, which is how long Python
    needs to ask for it (and waits where the optimiser looks at a number). before_gib is what others
    still held.
    """
    gib = _gib(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = gib("memory_allocated")
    step = make()
    times, hosts = [], []
    with seeded_torch(1, "dropout", device):
        for _ in range(WARM_UP):
            step()
        synchronise(device)
        for _ in range(steps):
            start = time.perf_counter()
            loss = step()
            hosts.append(time.perf_counter() - start)
            synchronise(device)
            times.append(time.perf_counter() - start)
    return {
        "ms": round(1e3 * statistics.median(times), 2),
        "host_ms": round(1e3 * statistics.median(hosts), 2),
        "peak_gib": gib("max_memory_allocated"),
        "reserved_gib": gib("max_memory_reserved"),
        "before_gib": before,
        "loss": loss.item(),
    }


def _gib(device: torch.device) -> Callable[[str], float | None]:
    """Read torch.cuda's statistics; None on a CPU, whose peaks hold all that the process did."""
    if device.type != "cuda":
        return lambda what: None
    return lambda what: round(getattr(torch.cuda, what)(device) / 2**30, 3)
