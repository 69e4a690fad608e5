"""What a training step asks of a GPU that is not there: kernels, and waits for it.

A kernel is an operator that writes numbers on the stand-in's GPU (fake_cuda.py): no view, no memory
that is only taken. Fused attention, which the stand-in's C++ does not have, is one kernel each way
(and two more for a mask); `block_diag` is a fill and a copy for each block. A wait is whatever the
CPU reads of the GPU, and a copy to it from memory that is not pinned, or that is not asynchronous.

    python tests/launches.py      # the table: classes, kernels of a step, waits of a step
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fake_cuda
import open_clip
import torch
from fake_cuda import CudaTensor, wait_of
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

MODEL = {  # of the depth of ViT-B/16; no count depends on widths
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32, "patch_size": 16, "width": 32, "layers": 12, "head_width": 16,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 12,
    },
}  # fmt: skip
NOTHING = {  # takes or names memory
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_"),
    *("detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias", "resize_"),
    *("is_pinned", "_pin_memory", "sym_size", "is_same_size", "_has_compatible_shallow_copy_type"),
}


class Launches:
    """kernels, waits: by name, how many."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()

    def waits(self, why: str) -> None:
        self.waited[why] += 1

    def sees(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        why = wait_of(func, args, kwargs)
        if why:
            self.waits(why)
        if why is not None or name in NOTHING or func.is_view:
            return
        if name == "block_diag":
            self.kernels[name] += 1 + len(args[0])
            return
        self.kernels[name] += 1

    def attention(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        q, k, v, mask, p, causal = (*args, *(None,) * 6)[:6]
        mask = kwargs.get("attn_mask", mask)
        causal = bool(kwargs.get("is_causal", causal))
        assert not kwargs.get("dropout_p", p)
        return FusedAttention.apply(self, function, q, k, v, mask, causal)


class FusedAttention(torch.autograd.Function):
    """One kernel forward, one backward; its results lie as CUDA's do, heads beside heads."""

    @staticmethod
    def forward(ctx, counted, function, q, k, v, mask, causal):
        ctx.save_for_backward(q, k, v)
        mask = None if mask is None else mask.held
        ctx.rest = counted, lambda *qkv: function(*qkv, attn_mask=mask, is_causal=causal)
        counted.kernels["attention mask"] += 2 * (mask is not None)
        counted.kernels["attention"] += 1
        with _disable_current_modes():
            return CudaTensor(beside(ctx.rest[1](q.held, k.held, v.held)))

    @staticmethod
    def backward(ctx, grad):
        counted, function = ctx.rest
        counted.kernels["attention backward"] += 1
        with _disable_current_modes(), torch.enable_grad():
            parts = [t.held.detach().requires_grad_() for t in ctx.saved_tensors]
            grads = torch.autograd.grad(function(*parts), parts, grad.held)
        return None, None, *(CudaTensor(beside(g)) for g in grads), None, None


def beside(x: Tensor) -> Tensor:
    """(N, H, L, D), in memory (N, L, H, D)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@contextmanager
def counting() -> Iterator[Launches]:
    """Count what is asked of the stand-in's GPU within it."""
    found = Launches()
    fake_cuda._counting.append(found)
    try:
        yield found
    finally:
        fake_cuda._counting.remove(found)


def deep_clip(folder: Any) -> str:
    """Name of MODEL, which open_clip then knows."""
    import json

    path = folder / "Deep-launches.json"
    path.write_text(json.dumps(MODEL), encoding="utf-8")
    open_clip.add_model_config(path)
    return path.stem


def trained(
    backbone: Any, classes: int, steps: int, batch: int = 4, augment: str = "clip_lora",
    **settings: Any,
) -> Any:  # fmt: skip
    """Train adapters on noise for so many steps by the library's own loop; the predictor."""
    from blocklora_lib.adapters.config import AdapterConfig
    from blocklora_lib.core.seeding import generator
    from blocklora_lib.learning.adapter_fit import fit_adapters
    from blocklora_lib.learning.contract import Context
    from blocklora_lib.learning.spec import TrainingSpec
    from blocklora_lib.measure.prompts import class_prompts

    draw = generator(1, "pixels")
    images = torch.randint(0, 256, (2 * batch, 3, 32, 32), dtype=torch.uint8, generator=draw)
    spec = TrainingSpec(
        steps_per_shot=steps, batch_size=batch, augment=augment, lr=1e-3,
        **settings.pop("training", {}),
    )  # fmt: skip
    tokens = backbone.tokenize(class_prompts(classes))
    labels = (torch.arange(2 * batch) % classes).to(backbone.device)
    context = Context(
        backbone, tokens, backbone.resize(images), labels, spec, 1, 1, settings.pop("on_step", None)
    )
    return fit_adapters(context, AdapterConfig(**{"rank": 2, **settings}))


def step_launches(model: str, classes: int, precision: str = "fp32", **settings: Any) -> Launches:
    """What a step more of a run asks for: a run of two steps less one of one."""
    from blocklora_lib.clip.backbone import load_backbone
    from blocklora_lib.weights.spec import BackboneSpec

    found = []
    backbone = load_backbone(
        BackboneSpec(name=model, pretrained="none", precision=precision), "cuda"
    )
    for steps in (1, 1, 2):  # once for what is made once and kept
        with counting() as counted:
            trained(backbone, classes, steps, **dict(settings)).close()
        found.append(counted)
    _, less, more = found
    more.kernels.subtract(less.kernels)
    more.waited.subtract(less.waited)
    return more


def main() -> None:
    """Print kernels and waits of a step at 10, 100 and 1000 classes."""
    import tempfile
    from pathlib import Path

    names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, fake_cuda.fake_cuda():
        model = deep_clip(Path(folder))
        for precision in ("fp32", "fp16"):
            for kind in ("lora", "block_lora"):
                for classes in (10, 100, 1000) if not names else (1000,):
                    found = step_launches(model, classes, precision, kind=kind)
                    print(
                        f"{precision} {kind:10} {classes:5} classes: {found.kernels.total():5} "
                        f"kernels, {found.waited.total()} waits {dict(+found.waited)}",
                        flush=True,
                    )
                    if names:
                        print(found.kernels.most_common(40))


if __name__ == "__main__":
    main()
