"""The one training loop of all methods that learn through a tower.

By a profile's training settings it is AdamW, a cosine of the rate and cross-entropy.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
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
from .replayed import Replayed
from .told import WINDOW, Told


class TrainingDiverged(RuntimeError):
    """Training left the numbers; says where, and what to try.

    lr: the step's rate; highest: of all steps, which the advice is a tenth of.
    """

    def __init__(
        self, step: int, steps: int, loss: float, lr: float, reason: str, highest: float = 0.0
    ) -> None:
        self.step, self.loss, self.lr, self.reason = step, loss, lr, reason
        self.highest = highest or lr
        self.retry = (
            f"use a lower lr (for example {self.highest / 10:.1e}), of adapters a smaller scale "
            "(alpha), or fp32"
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
    replays: bool = False,
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
    called after each, steps counted from 1. replays: compute forward and backward passes by CUDA
    graphs (see `replayed`).
    All randomness comes from the context's seed: shuffling and augmentation by generators of their
    own, dropout by torch's global one, whose state is given back.
    """
    plan = plan or settings_plan(context)
    run, shown, classes = Run(context, groups, plan, scaled), views_shown(context, plan), 0

    def both_passes(views: Tensor, truth: Tensor) -> Tensor:
        """Leave the gradients of a step, and return its losses."""
        nonlocal classes
        scores = logits(views)
        classes = scores.shape[-1]
        loss = objective(scores.float(), truth)
        run.optimizer.zero_grad()
        backward(run.scaler.scale(loss))
        return loss.detach()

    passes: Callable[..., Tensor] = both_passes
    if replays:
        lengths = Counter(len(index) for index in plan.order)
        passes = Replayed(both_passes, lengths, context.backbone, run.parameters)
    with seeded_torch(context.seed, "dropout", run.device), closing(shown):
        for step, (views, truth) in enumerate(shown, 1):
            run.begin(step)
            loss = passes(views, truth)
            run.take_step()
            after(step)
            run.tell(loss, classes)
    return run.finish()


class Run:
    """What a run has of its own while it trains: optimizer, loss's factor, losses, divergence."""

    def __init__(
        self, context: Context, groups: list[dict[str, Any]], plan: Plan, scaled: bool
    ) -> None:
        self.plan, self.steps, self._on_step = plan, len(plan.order), context.on_step
        self.device = context.few()[0].device
        self.optimizer = plan.optimizer(groups)
        self._ratios = [group["lr"] / plan.lr for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self._one = torch.ones((), device=self.device)
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self._factor = float(self.scaler.scale(self._one))
        self._told = Told(self.device, self.steps, self._look)
        self._classes = 0

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin(self, step: int) -> None:
        """Set the rates of a step, counted from 1."""
        lr = self.plan.rate(step - 1)
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio

    def take_step(self) -> None:
        """Move the parameters by the gradients of the scaled loss, if those are finite."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def tell(self, loss: Tensor, classes: int) -> None:
        """Tell a step's loss, the first of several; TrainingDiverged, within 20 steps."""
        self._classes = classes
        self._told.tell(loss.flatten()[0], self.scaler.scale(self._one))

    def _look(self, step: int, loss: float, factor: float) -> None:
        self.losses.append(loss)
        if reason := _watch(self.losses, self.plan.divergence_factor, self._classes):
            raise self._diverged(reason)
        if factor < self._factor:
            self.skipped.append(step)
        self._factor = factor
        if self.skipped[-WINDOW:] == list(range(step - WINDOW + 1, step + 1)):
            raise self._diverged(f"the gradients of {WINDOW} steps in a row are not finite")
        if self._on_step:
            self._on_step(step, self.steps, loss)

    def finish(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return the loss of every step, and the steps skipped; TrainingDiverged, once more."""
        if not torch.stack([torch.isfinite(p).all() for p in self.parameters]).all():
            raise self._diverged("a trained parameter is not finite")
        return tuple(self.losses), tuple(self.skipped)

    def _diverged(self, reason: str) -> TrainingDiverged:
        step, plan = len(self.losses), self.plan
        lr = plan.rate(step - 1)
        return TrainingDiverged(step, self.steps, self.losses[-1], lr, reason, plan.lr)


def cosine_lr(step: int, steps: int, lr: float, lr_min: float) -> float:
    """lr_min + (lr - lr_min)(1 + cos(π step/steps))/2, as CosineAnnealingLR; step: 0..steps-1."""
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * step / steps)) / 2


def batches(n: int, batch_size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches without end: a permutation an epoch, whose last batch may be short."""
    while True:
        yield from torch.randperm(n, generator=shuffle).split(batch_size)


def moved_together(order: Sequence[Tensor], device: torch.device | str) -> tuple[Tensor, ...]:
    """The index batches of an order on a device, by one copy: each of them would be waited for."""
    return torch.cat(list(order)).to(device).split([len(index) for index in order])


def views_shown(context: Context, plan: Plan) -> Generator[tuple[Tensor, Tensor]]:
    """Yield each step's views (B, 3, H, W), pixels 0..255, float32, and labels (B,)."""
    images, labels = context.few()
    randomness = generator(context.seed, "augmentation")
    of_files = isinstance(images, ImageFiles)
    labels = labels.to(images.device)
    places = moved_together(plan.order, images.device)
    read = moved_together(plan.order, "cpu") if of_files else places
    shown = (
        (augment(images[index], plan.augment, randomness), labels[place])
        for index, place in zip(read, places, strict=True)
    )
    return ahead(shown) if of_files else shown


def _watch(losses: list[float], most: float, classes: int) -> str:
    """Why the last step diverged, "" where it did not."""
    if not math.isfinite(losses[-1]):
        return "the loss is not finite"
    start = max(losses[0], math.log(classes))
    recent = sum(losses[-WINDOW:]) / WINDOW
    if len(losses) > WINDOW and recent > most * start:
        return f"the mean loss of {WINDOW} steps is {recent / start:.1f} times the first one"
    return ""
