"""Time and peak memory of whole steps in the variants of `steps.py`, and what fits in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec

import pandas as pd
import torch

from ..clip.architectures import clip_architecture
from ..clip.backbone import Backbone
from ..core import machine
from ..core.schema import UnknownName
from ..costs.memory import GIB, clip_lora_code_memory, total_bytes
from ..costs.ways import OTHER_STEPS, STEPS
from ..weights.spec import BackboneSpec
from .peak_memory import peak_memories
from .steps import Size, make_step, precision
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
        steps[name] = _delayed(steps[name], seconds)
    device = next(iter(backbones.values())).device
    return paired_times(steps, rounds, warmup=1, device=device, min_seconds=0.02, on_round=on_round)


def _delayed(function: Callable[[], object], seconds: float) -> Callable[[], object]:
    def slower() -> object:
        time.sleep(seconds)
        return function()

    return slower


def step_memory(
    spec: BackboneSpec, forms: Mapping[str, tuple[str, Size]], device: str
) -> pd.DataFrame:
    """Return name, prepared_bytes, peak_bytes of each form; a fresh process for each."""
    base = spec.model_dump(exclude={"precision"})
    arguments = [{"spec": base, "variant": v, "size": asdict(size)} for v, size in forms.values()]
    found = peak_memories("blocklora_lib.measure.steps:prepare", arguments, device)
    return pd.DataFrame(
        {"name": name} | asdict(memory) for name, memory in zip(forms, found, strict=True)
    )


def compare(
    times: pd.DataFrame, memory: pd.DataFrame | None, baselines: Sequence[str]
) -> pd.DataFrame:
    """Return the columns of `timing.ratios` for each baseline, and of memory where it was measured.

    Those are prepared_bytes, peak_bytes, and peak_ratio: the peak by the baseline's.
    """
    frames = []
    for baseline in baselines:
        frame = ratios(times, baseline)
        if memory is not None:
            frame = frame.merge(memory, on="name", how="left")
            peaks = frame.set_index("name")["peak_bytes"]
            frame["peak_ratio"] = frame["peak_bytes"] / peaks[baseline]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def forms_of(
    variants: Sequence[str], kinds: Sequence[str], size: Size
) -> dict[str, tuple[str, Size]]:
    """Return {name: (variant, size)}: ours with each kind of adapter, other code's with LoRA."""
    forms = {}
    for variant in variants:
        if variant not in STEPS:
            raise UnknownName("variant", variant, STEPS)
        if variant in OTHER_STEPS:
            forms[variant] = variant, replace(size, kind="lora")
            continue
        for kind in kinds:
            name = variant if kind == "block_lora" else f"{variant} {kind}"
            forms[name] = variant, replace(size, kind=kind)
    return forms


def missing(variant: str, model: str, size: Size, available: float) -> str | None:
    """Say why a variant cannot run here at this size; None where it can.

    Other code's memory is that of the closed form for CLIP-LoRA's (an upper bound for peft's), with
    a CPU's masks of dropout; a model that the closed form does not know is let through.
    """
    if variant == "peft" and find_spec("peft") is None:
        return "peft is not installed; pip install peft"
    if variant not in OTHER_STEPS:
        return None
    try:
        architecture = clip_architecture(model)
    except ValueError:
        return None
    lora = replace(size, kind="lora").adapter
    need = total_bytes(
        clip_lora_code_memory(architecture, lora, size.batch, size.classes, size=4, mask=4)
    )
    if need <= RESERVE * available:
        return None
    return (
        f"{variant} at {size.classes} classes needs about {need / GIB:.0f} GiB by the closed form, "
        f"and {available / GIB:.0f} GiB are free"
    )


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take there: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory()
