"""Time and peak memory of whole steps in the variants of `step_variants.py`, and what fits in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..adapters.config import AdapterConfig
from ..clip.architectures import clip_architecture
from ..clip.backbone import Backbone
from ..core.schema import UnknownName
from ..costs import memory as memory_costs
from ..costs.memory import GIB
from ..weights.spec import BackboneSpec
from .peak_memory import peak_memories
from .step_variants import OTHERS, VARIANTS, Delayed, Size, make_step, precision
from .timing import paired_times, ratios

RESERVE = 0.9  # of the memory that is free now: the rest is for what the closed form does not know


def step_times(
    backbones: Mapping[str, Backbone],
    forms: Mapping[str, tuple[str, Size]],
    rounds: int,
    delays: Mapping[str, float] | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return round, name, seconds of steps. forms: name -> (variant, size); backbones by precision.

    delays: seconds that a form is made slower, to see that a slower one is found slower.
    """
    steps: dict[str, Callable[[], object]] = {
        name: make_step(backbones[precision(variant)], variant, size)
        for name, (variant, size) in forms.items()
    }
    for name, seconds in (delays or {}).items():
        if name not in steps:
            raise UnknownName("form to delay", name, steps)
        steps[name] = Delayed(steps[name], seconds)
    device = next(iter(backbones.values())).device
    return paired_times(steps, rounds, warmup=1, device=device, min_seconds=0.02, on_round=on_round)


def step_memory(
    spec: BackboneSpec, forms: Mapping[str, tuple[str, Size]], device: str
) -> pd.DataFrame:
    """Return name, prepared_bytes, peak_bytes of each form; a fresh process for each."""
    base = spec.model_dump(exclude={"precision"})
    arguments = [{"spec": base, "variant": v, "size": asdict(size)} for v, size in forms.values()]
    found = peak_memories("blocklora_lib.measure.step_variants:prepare", arguments, device)
    return pd.DataFrame(
        {"name": name} | asdict(memory) for name, memory in zip(forms, found, strict=True)
    )


def compare(
    times: pd.DataFrame, memory: pd.DataFrame | None, baselines: Sequence[str]
) -> pd.DataFrame:
    """Return the columns of `timing.ratios` for each baseline, and the memory where it was
    measured.

    That is prepared_bytes, peak_bytes, and peak_ratio: the peak by the baseline's.
    """
    frames = []
    for baseline in baselines:
        frame = ratios(times, baseline)
        if memory is not None:
            frame = frame.merge(memory, on="name", how="left")
            frame["peak_ratio"] = (
                frame["peak_bytes"] / frame.set_index("name")["peak_bytes"][baseline]
            )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def forms_of(
    variants: Sequence[str], kinds: Sequence[str], size: Size
) -> dict[str, tuple[str, Size]]:
    """Return {name: (variant, size)}: our variants with each kind of adapter, other code's with
    LoRA.
    """
    forms = {}
    for variant in variants:
        if variant not in VARIANTS:
            raise UnknownName("variant", variant, VARIANTS)
        if variant in OTHERS:
            forms[variant] = variant, replace(size, kind="lora")
            continue
        for kind in kinds:
            name = variant if kind == "block_lora" else f"{variant} {kind}"
            forms[name] = variant, replace(size, kind=kind)
    return forms


def missing(variant: str, model: str, size: Size, available: float) -> str | None:
    """Say why a variant cannot run here at this size; None where it can.

    Other code's memory is estimated by the closed form of CLIP-LoRA's (an upper bound for peft's);
    a model that the closed form does not know is let through.
    """
    if variant == "peft" and find_spec("peft") is None:
        return "peft is not installed; pip install peft"
    if variant not in OTHERS:
        return None
    need = estimate(model, size)
    if need is None or need <= RESERVE * available:
        return None
    return (
        f"{variant} at {size.classes} classes needs about {need / GIB:.0f} GiB by the closed form, "
        f"and {available / GIB:.0f} GiB are free"
    )


def estimate(model: str, size: Size) -> int | None:
    """Bytes of a float32 step of CLIP-LoRA's code by `theory.memory_model`; None for an unknown
    model.

    That is a GPU's, whose dropout keeps masks of one byte; on a CPU they are float32.
    """
    try:
        architecture = clip_architecture(model)
    except ValueError:
        return None
    lora = AdapterConfig(kind="lora", rank=size.rank)
    parts = memory_costs.clip_lora_code_memory(architecture, lora, size.batch, size.classes, 4)
    tokens = (size.batch * architecture.vision.tokens, size.classes * architecture.text.tokens)
    masks = sum(
        t * tower.width * tower.layers for t, tower in zip(tokens, architecture.towers, strict=True)
    )
    return memory_costs.total_bytes(parts) + 3 * len(lora.targets) * masks


def free_memory(
    device: torch.device, facts: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that this process may still take there: of the GPU, the machine or its control group.

    inf if nobody says.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = math.inf
    try:
        lines = dict(line.split(":", 1) for line in facts.read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit, used = (
            (group / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        free = min(free, int(limit) - int(used))
    except (OSError, KeyError, ValueError):  # 'max': no limit
        pass
    return free


def rows_with(frame: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    """Return the frame with constant columns in front."""
    for i, (name, value) in enumerate(facts.items()):
        frame.insert(i, name, value)
    return frame
