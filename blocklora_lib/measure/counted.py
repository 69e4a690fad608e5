"""What torch itself counts: operations, kept tensors, peaks, to hold the closed forms against.

Models are built on torch's "meta" device, where tensors have shapes and no numbers, so that a
ViT-L/14 is counted in half a second. Attention runs by its MATH kernel while operations are
counted: the counter knows the two products it is made of, and has no entry for the CPU's fused
kernel. `nn.MultiheadAttention`'s inference path, one kernel without an entry too, is off. Two
products that the counter would pass by are in the library itself and get entries: `addmm_`, the
in-place form of `addmm`, that adds the fused update, and oneDNN's product with frozen weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..clip.architectures import read_config
from ..clip.towers import TextTower, encode_images
from ..core.seeding import generator


def build_clip(
    name: str, device: str = "meta", half: bool = False, **changes: dict[str, Any] | bool
) -> nn.Module:
    """Build a preset's model, frozen, in eval mode.

    changes: vision_cfg={..}, text_cfg={..}, quick_gelu=.. in place of the preset's own. half:
    bfloat16 as open_clip has it, with norms in float32.
    """
    from open_clip.model import CLIP, convert_weights_to_lp

    config = read_config(name)
    for key, change in changes.items():
        config[key] = config[key] | change if isinstance(change, dict) else change
    with torch.device(device):
        model = CLIP(**config, cast_dtype=torch.bfloat16 if half else None)
    if half:
        convert_weights_to_lp(model, torch.bfloat16)
    return model.eval().requires_grad_(False)


def attach_in_training(model: nn.Module, config: AdapterConfig) -> AdapterSet:
    """Attach adapters, whose dropout is on, to a model in eval mode, as training has it."""
    adapters = attach(model, config, generator(1, "adapter"))
    for adapter in adapters.adapters.values():
        adapter.train()
    return adapters


def prompts_of_length(model: Any, prompts: int, length: int) -> Tensor:
    """Return token ids (C, context length) on the CPU, whose longest prompt has `length` tokens."""
    tokens = torch.zeros(prompts, model.context_length, dtype=torch.int64)
    tokens[:, : length - 1] = 1
    tokens[:, length - 1] = model.vocab_size - 1  # the end has the highest id
    return tokens


def tower_call(
    model: Any, kind: str, sequences: int, length: int | None = None
) -> Callable[[], Tensor]:
    """Return a call of one tower: images for "vision", prompts of `length` tokens for "text"."""
    if kind == "vision":
        device = model.visual.conv1.weight.device
        size = (sequences, 3, *model.visual.image_size)
        images = torch.ones(size, device=device, dtype=model.visual.conv1.weight.dtype)
        return lambda: encode_images(model, images)
    tokens = prompts_of_length(model, sequences, length or model.context_length)
    return lambda: TextTower(model).encode(tokens)


def count_multiply_adds(function: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the multiply-adds of function(), and of backward from it (0 without a graph)."""
    entries = {
        torch.ops.aten.addmm_: _addmm_flops,
        torch.ops.mkldnn._linear_pointwise: _linear_flops,
    }
    with _countable():
        with FlopCounterMode(display=False, custom_mapping=entries) as forward:
            output = function()
        with FlopCounterMode(display=False, custom_mapping=entries) as backward:
            if output.requires_grad:
                output.backward(torch.ones_like(output))
    flops = forward.get_total_flops(), backward.get_total_flops()
    assert not any(count % 2 for count in flops)  # the counter doubles each multiply-add
    return flops[0] // 2, flops[1] // 2


def kept_bytes(function: Callable[[], object], model: nn.Module | None = None) -> int:
    """Return the bytes that autograd keeps for backward while function() runs: each storage once.

    The parameters and buffers of `model` are not counted: they are there anyway.
    """
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    # the tensor too: a freed address could be given out again
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _ = function()  # held until the hooks have seen everything
    return sum(size for size, _ in kept.values())


def _addmm_flops(total: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    """2 p q s of (p x q)(q x s), the entry that torch has for `addmm`."""
    return 2 * left[0] * left[1] * right[1]


def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """The same of oneDNN's product x Wᵀ. x: (.., d_in), weight: (d_out, d_in)."""
    return 2 * math.prod(x) * weight[0]


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes of the CPU allocations of function() that live at once.

    From the allocator's own events, as the profiler records them: what a GPU reports as its peak of
    allocated memory. Kernels' private buffers and the allocator's slack are not in it.
    """
    kinds = [ProfilerActivity.CPU]
    with profile(activities=kinds, profile_memory=True, acc_events=True) as recorded:
        function()
    cpu = torch._C._autograd.DeviceType.CPU
    profiler: Any = recorded.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    live = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes() if event.device_type() == cpu else 0
        largest = max(largest, live)
    return largest


@contextmanager
def _countable() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
