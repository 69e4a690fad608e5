"""The one training loop of all methods that learn through a tower.

By a profile's training settings it is AdamW, a cosine of the rate and cross-entropy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.seeding import generator, seeded_torch
from ..data.augment import augment
from ..data.image_files import ImageFiles, ahead
from .contract import Context

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


@dataclass(frozen=True)
class Plan:
    """The steps of a run: which images each shows, at which rate, by which optimizer.

    order: the indices of each step's images, (B,). rate(step): its learning rate, steps counted
    from 0; a group whose own is not `lr` keeps its ratio to it. epochs: as many passes over the
    images as come nearest to it.
    """

    order: Sequence[Tensor]
    epochs: int
    lr: float
    rate: Callable[[int], float]
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    augment: Literal["clip_lora", "light", "none"]
    divergence_factor: float = 4.0

    @property
    def images_seen(self) -> int:
        """In all steps, each time anew."""
        return sum(map(len, self.order))


def settings_plan(context: Context) -> Plan:
    """The plan of the context's training settings."""
    images, _, spec = context.to_train()
    steps = spec.steps(context.shots)
    order = batches(len(images), spec.batch_size, generator(context.seed, "shuffle"))

    def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
        )

    return Plan(
        order=list(itertools.islice(order, steps)),
        epochs=max(1, round(steps / -(-len(images) // spec.batch_size))),
        lr=spec.lr,
        rate=lambda step: cosine_lr(step, steps, spec.lr, spec.lr_min),
        optimizer=adamw,
        augment=spec.augment,
        divergence_factor=spec.divergence_factor,
    )


def train(
    context: Context,
    groups: list[dict[str, Any]],
    logits: Callable[[Tensor], Tensor],
    scaled: bool = False,
    plan: Plan | None = None,
    objective: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    after: Callable[[int], None] = lambda step: None,
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Minimise objective(logits(images), labels); return the loss of every step, skipped steps.

    groups: optimizer groups, each with its own lr and weight_decay, whose ratios to the plan's lr
    the schedule keeps.
    logits: float32 views (B, 3, H, W) of the context's images, pixels 0..255 -> (B, C). Of files,
    the next batch is read while a step computes.
    scaled: multiply the loss by a power of two, as CLIP-LoRA does, so that gradients do not vanish
    in a float16 backbone. A step whose gradients overflow then changes no parameter and halves the
    factor; it is skipped, and the schedule moves on.
    plan: by default that of the context's training settings. objective: a loss, or several, (n,),
    of which the first is told; backward(losses) leaves gradients on the parameters. after(step):
    called after each, steps counted from 1.
    All randomness comes from the context's seed: shuffling and augmentation by generators of their
    own, dropout by torch's global one, whose state is given back.
    """
    plan = plan or settings_plan(context)
    device, steps = context.few()[0].device, len(plan.order)
    optimizer = plan.optimizer(groups)
    ratios = [group["lr"] / plan.lr for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    shown = _shown(context, plan)
    losses: list[float] = []
    skipped: list[int] = []
    with seeded_torch(context.seed, "dropout", device), closing(shown):
        for step, (views, truth) in enumerate(shown, 1):
            lr = plan.rate(step - 1)
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            scores = logits(views)
            loss = objective(scores.float(), truth)
            losses.append(loss.flatten()[0].item())
            _watch(losses, steps, lr, plan.divergence_factor, scores.shape[1])
            optimizer.zero_grad()
            backward(scaler.scale(loss))
            scaler.step(optimizer)
            factor = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() < factor:
                skipped.append(step)
            if skipped[-_WINDOW:] == list(range(step - _WINDOW + 1, step + 1)):
                reason = f"the gradients of {_WINDOW} steps in a row are not finite"
                raise TrainingDiverged(step, steps, losses[-1], lr, reason)
            after(step)
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


def _shown(context: Context, plan: Plan) -> Generator[tuple[Tensor, Tensor]]:
    """Yield each step's views (B, 3, H, W), pixels 0..255, float32, and labels (B,)."""
    images, labels = context.few()
    randomness = generator(context.seed, "augmentation")
    labels = labels.to(images.device)
    shown = (
        (augment(images[index], plan.augment, randomness), labels[index])
        for index in (index.to(images.device) for index in plan.order)
    )
    return ahead(shown) if isinstance(images, ImageFiles) else shown


def _watch(losses: list[float], steps: int, lr: float, most: float, classes: int) -> None:
    if not math.isfinite(losses[-1]):
        raise TrainingDiverged(len(losses), steps, losses[-1], lr, "the loss is not finite")
    start = max(losses[0], math.log(classes))
    recent = sum(losses[-_WINDOW:]) / _WINDOW
    if len(losses) > _WINDOW and recent > most * start:
        reason = f"the mean loss of {_WINDOW} steps is {recent / start:.1f} times the first one"
        raise TrainingDiverged(len(losses), steps, losses[-1], lr, reason)
