"""Training steps on a GPU, ours and CLIP-LoRA's, and what they cost."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone
from ..core.devices import repeatable
from ..core.seeding import generator, seeded_torch
from .other_code import clip_lora
from .step_variants import class_prompts
from .training_step import random_images

Numbers = dict[str, Any]
WARM_UP = 3  # steps before the clock starts: kernels are chosen and memory is taken
DROPOUT = 0.25
LR, DECAY = 2e-4, 1e-2  # CLIP-LoRA's


class NotCovered(ValueError):
    """A model that CLIP-LoRA's code does not run."""


@contextmanager
def products(device: torch.device, strict: bool, tf32: bool = False) -> Iterator[None]:
    """`repeatable`, and with `tf32` float32 products of fewer digits; what was set before is set
    again.
    """
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    with repeatable(device, strict):
        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = tf32
            yield
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


def release(device: torch.device) -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Return when the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def adapted(backbone: Backbone, dropout: float = DROPOUT) -> AdapterSet:
    """Attach Block-LoRA(2, 2) to a backbone, ready to train."""
    config = AdapterConfig(kind="block_lora", rank=2, n_blocks=2, dropout=dropout)
    adapters = attach(backbone.model, config, generator(1, "adapter"))
    for adapter in adapters.adapters.values():
        adapter.train()  # the frozen model stays in eval mode
    return adapters


def our_step(
    backbone: Backbone,
    adapters: AdapterSet,
    classes: int,
    batch: int,
    share_prefix: bool = False,
    checkpoint: bool = False,
    class_chunk: int | None = None,
) -> Callable[[], Tensor]:
    """Return a training step as `learning.loop.train` takes it, which waits for no result: it returns
    the loss.
    """
    tokens, images = backbone.tokenize(class_prompts(classes)), random_images(backbone, batch)
    prompts = backbone.pack(tokens, share_prefix=share_prefix, class_chunk=class_chunk)
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=LR, weight_decay=DECAY), fused=True)

    def scores() -> Tensor:
        text = backbone.encode_prompts(prompts, checkpoint=checkpoint)
        return backbone.logit_scale * backbone.encode_images(images, checkpoint=checkpoint) @ text.T

    half = backbone.dtype == torch.float16
    return _step(scores, optimizer, classes, images, half, backbone.training_kernels)


def clip_lora_step(
    backbone: Backbone, classes: int, batch: int, autocast: bool
) -> Callable[[], Tensor]:
    """Return the step of CLIP-LoRA's computation, restated: float32, or float16 by autocast as it
    runs.
    """
    model, device = backbone.model, backbone.device
    try:
        heads = [
            tower.resblocks[0].attn.num_heads
            for tower in (model.visual.transformer, model.transformer)
        ]
    except AttributeError:
        raise NotCovered(
            f"CLIP-LoRA's code has no towers like those of {backbone.spec.name}"
        ) from None
    theirs = clip_lora.ClipLora(model.state_dict(), heads, dropout=DROPOUT)
    theirs = theirs.to(device).reset(generator(1, "adapter")).train()
    tokens, images = backbone.tokenize(class_prompts(classes)), random_images(backbone, batch)
    optimizer, _ = clip_lora.optimisation(theirs.parameters(), LR, steps=1, weight_decay=DECAY)

    def scores() -> Tensor:
        with torch.autocast(device.type, torch.float16) if autocast else nullcontext():
            return theirs.logits(images, tokens)

    return _step(scores, optimizer, classes, images, autocast)


def _step(
    scores: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    classes: int,
    images: Tensor,
    scaled: bool,
    kernels: Callable[[], Any] = nullcontext,
) -> Callable[[], Tensor]:
    labels = (torch.arange(len(images)) % classes).to(images.device)
    scaler = torch.amp.GradScaler(images.device.type, enabled=scaled)

    def step() -> Tensor:
        with kernels():
            loss = F.cross_entropy(scores().float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return step


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
        wait(device)
        for _ in range(steps):
            start = time.perf_counter()
            loss = step()
            hosts.append(time.perf_counter() - start)
            wait(device)
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
    """A reader of torch.cuda's statistics; None on a CPU, whose peaks hold all that the process
    ever did.
    """
    if device.type != "cuda":
        return lambda what: None
    return lambda what: round(getattr(torch.cuda, what)(device) / 2**30, 3)
