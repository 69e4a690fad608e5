"""What numbers of a GPU are accepted: `benchmarks/gpu_check.py` asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .gpu_acceptance import Sizes
from .gpu_steps import Numbers
from .steps import NotCovered

FINITE = "the loss is finite"
SMALL_CARD = 24e9 / 2**30  # GiB, of claim C13: a thousand classes fit a GPU of 24 GB
# what a card is asked for by `Sizes`' own model and batch
RESERVED = 22  # GiB, at most
HOST = 0.6  # of a step, at most, where a graph asks for its kernels
FROM_VIEWS, FROM_FILES, CORES = 5000, 1000, 8  # images a second; from files with so many cores
FASTER, AT = 3, 100  # times, than CLIP-LoRA's computation in fp16, at so many classes


def finite(numbers: Numbers) -> bool:
    """Whether a step's loss is a number."""
    return math.isfinite(numbers["loss"])


def fits(numbers: Numbers) -> bool:
    """Whether a small card would do; on a CPU there is no peak to look at."""
    limits = {"peak_gib": SMALL_CARD, "reserved_gib": RESERVED}
    taken = {name: numbers.get(name) for name in limits}
    return finite(numbers) and all(n is None or n < limits[name] for name, n in taken.items())


def hides_python(numbers: Numbers) -> bool:
    """Whether the device, and not Python, takes most of a step."""
    return finite(numbers) and numbers["host_ms"] < HOST * numbers["ms"]


def above(name: str, least: float, numbers: Numbers) -> bool:
    """Whether the number of this name is at least so large."""
    return numbers[name] >= least


def standard(sizes: Sizes, device: torch.device) -> bool:
    """Whether it is what a card is asked for; another model, or a CPU, is measured alone."""
    usual = Sizes()
    return device.type == "cuda" and (sizes.model, sizes.batch) == (usual.model, usual.batch)


def times_as_fast(results: Sequence[Mapping[str, Any]], classes: int) -> Numbers:
    """Divide the times of the two steps. NotCovered where one was not measured."""
    took = {r["case"]: r["numbers"].get("ms") for r in results if r["what"] == "step"}
    theirs, ours = (
        took.get(f"{name}, {classes} classes")
        for name in ("CLIP-LoRA, fp16 autocast", "ours, fp16, strict, graphs")
    )
    if not theirs or not ours:
        raise NotCovered(f"at {classes} classes one of the two steps was not measured")
    return {"times_as_fast": round(theirs / ours, 2)}
