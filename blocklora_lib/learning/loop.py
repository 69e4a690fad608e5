"""The one training loop of all gradient methods: AdamW, a cosine of the rate, cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.seeding import generator, seeded_torch
from ..data.augment import augment
from ..data.image_files import ImageFiles, ahead
from .contract import Context
from .spec import TrainingSpec

_WINDOW = 20  # steps whose mean loss is watched


class TrainingDiverged(RuntimeError):
    """Training left the numbers; says where, and what to try."""

    def __init__(self, step: int, steps: int, loss: float, lr: float, reason: str) -> None:
        self.step, self.loss, self.lr = step, loss, lr
        self.retry = (
            f"use a lower lr (for example {lr / 10:.1e}), a smaller adapter scale (alpha), or fp32"
        )
        super().__init__(
            f"training diverged at step {step} of {steps}: {reason} (loss {loss:.4g}, learning "
            f"rate {lr:.3g}); {self.retry}"
        )


def train(
    context: Context,
    groups: list[dict[str, Any]],
    logits: Callable[[Tensor], Tensor],
    scaled: bool = False,
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Minimise cross-entropy of logits(images); return the loss of every step, and skipped steps.

    groups: optimizer groups, each with its own lr and weight_decay, whose ratios to the lr of the
    context's training settings the schedule keeps.
    logits: float32 views (B, 3, H, W) of the context's images, pixels 0..255 -> (B, C). Of files,
    the next batch is read while a step computes.
    scaled: multiply the loss by a power of two, as CLIP-LoRA does, so that gradients do not vanish
    in a float16 backbone. A step whose gradients overflow then changes no parameter and halves the
    factor; it is skipped, and the schedule moves on.
    All randomness comes from the context's seed: shuffling and augmentation by generators of their
    own, dropout by torch's global one, whose state is given back.
    """
    images, _, spec = context.to_train()
    device = images.device
    steps = spec.steps(context.shots)
    optimizer = torch.optim.AdamW(
        groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
    )
    ratios = [group["lr"] / spec.lr for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    shown = _shown(context, steps)
    losses: list[float] = []
    skipped: list[int] = []
    with seeded_torch(context.seed, "dropout", device), closing(shown):
        for step, (views, truth) in enumerate(shown, 1):
            lr = cosine_lr(step - 1, steps, spec.lr, spec.lr_min)
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            scores = logits(views)
            loss = F.cross_entropy(scores.float(), truth)
            losses.append(loss.item())
            _watch(losses, steps, lr, spec, scores.shape[1])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            factor = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() < factor:
                skipped.append(step)
            if skipped[-_WINDOW:] == list(range(step - _WINDOW + 1, step + 1)):
                reason = f"the gradients of {_WINDOW} steps in a row are not finite"
                raise TrainingDiverged(step, steps, losses[-1], lr, reason)
            if context.on_step:
                context.on_step(step, steps, losses[-1])
    if not all(torch.isfinite(p).all() for p in parameters):
        raise TrainingDiverged(steps, steps, losses[-1], lr, "a trained parameter is not finite")
    return tuple(losses), tuple(skipped)


def cosine_lr(step: int, steps: int, lr: float, lr_min: float) -> float:
    """lr_min + (lr - lr_min)(1 + cos(π step/steps))/2, as CosineAnnealingLR; step: 0..steps-1."""
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * step / steps)) / 2


def batches(n: int, batch_size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches without end: a permutation an epoch, whose last batch may be short."""
    while True:
        yield from torch.randperm(n, generator=shuffle).split(batch_size)


def images_seen(n: int, batch_size: int, steps: int) -> int:
    """How many images so many of the batches of n show, each time anew."""
    epochs, rest = divmod(steps, -(-n // batch_size))
    return epochs * n + rest * batch_size


def _shown(context: Context, steps: int) -> Generator[tuple[Tensor, Tensor]]:
    """Yield each step's views (B, 3, H, W), pixels 0..255, float32, and labels (B,)."""
    images, labels, spec = context.to_train()
    order = batches(len(images), spec.batch_size, generator(context.seed, "shuffle"))
    randomness = generator(context.seed, "augmentation")
    labels = labels.to(images.device)
    shown = (
        (augment(images[index], spec.augment, randomness), labels[index])
        for index in (next(order).to(images.device) for _ in range(steps))
    )
    return ahead(shown) if isinstance(images, ImageFiles) else shown


def _watch(losses: list[float], steps: int, lr: float, spec: TrainingSpec, classes: int) -> None:
    if not math.isfinite(losses[-1]):
        raise TrainingDiverged(len(losses), steps, losses[-1], lr, "the loss is not finite")
    start = max(losses[0], math.log(classes))
    recent = sum(losses[-_WINDOW:]) / _WINDOW
    if len(losses) > _WINDOW and recent > spec.divergence_factor * start:
        reason = f"the mean loss of {_WINDOW} steps is {recent / start:.1f} times the first one"
        raise TrainingDiverged(len(losses), steps, losses[-1], lr, reason)
