"""Runs that differ in their seed alone, trained at once: one batch through the frozen towers.

Each has its own adapters, dropout masks, order and views of images, loss and optimizer, so that its
result is that of the run alone but for rounding. A GPU that waits for Python computes several in
the time of one; memory grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..adapters.stack import attach_stack
from ..clip.backbone import Backbone
from ..clip.towers import TextTower, images_are_plain
from ..core.seeding import generator, seeded_torch
from ..layers.stacked import Draws
from .adapter_fit import AdapterPredictor
from .contract import Context
from .loop import Plan, Run, TrainingDiverged, settings_plan, views_shown

Outcome = TrainingDiverged | tuple[tuple[float, ...], tuple[int, ...]]  # or losses, skipped steps


@dataclass(frozen=True)
class Trained:
    """One run of a stack: what it trained, and the loss of every step, and the steps skipped."""

    adapters: AdapterSet
    loss: tuple[float, ...]
    overflows: tuple[int, ...]

    def predictor(self, context: Context) -> AdapterPredictor:
        """Attach what was trained to the context's backbone, until the predictor is closed."""
        config, start = self.adapters.config, generator(context.seed, "adapter")
        adapters = attach(context.backbone.model, config, start)
        for name, adapter in adapters.adapters.items():
            adapter.load_state_dict(self.adapters.adapters[name].state_dict())
            adapter.eval()
        predictor = AdapterPredictor(context, adapters)
        predictor.loss, predictor.overflows = self.loss, self.overflows
        predictor.images_seen = settings_plan(context).images_seen
        return predictor


def can_stack(one: Context, other: Context, config: AdapterConfig) -> bool:
    """Whether two runs of one set, method and number of shots can be trained as one batch.

    Not where their batches differ in size, where a training is not `stackable`, nor in towers that
    are not open_clip's plain transformers.
    """
    backbone, (_, _, training) = one.backbone, one.to_train()
    orders = [settings_plan(context).order for context in (one, other)]
    plain = {"text": TextTower(backbone.model).can_pack, "vision": images_are_plain(backbone.model)}
    return (
        type(backbone) is Backbone
        and other.backbone is backbone
        and torch.equal(one.tokens, other.tokens)
        and other.training == training
        and training.stackable
        and [len(index) for index in orders[0]] == [len(index) for index in orders[1]]
        and all(plain[tower] for tower in config.towers)
    )


def fit_stack(
    contexts: Sequence[Context], config: AdapterConfig
) -> list[Trained | TrainingDiverged]:
    """Train runs that `can_stack`, in order; one that diverges takes no other with it.

    The backbone is as it was afterwards.
    """
    backbone, (_, _, training) = contexts[0].backbone, contexts[0].to_train()
    seeds = [context.seed for context in contexts]
    draws = Draws(seeds, "dropout", backbone.device)
    starts = [generator(seed, "adapter") for seed in seeds]
    sets = attach_stack(backbone.model, config, starts, draws)
    try:
        for _, site in sets[-1].sites:
            site.adapters.train()
        predictors = [AdapterPredictor(*pair) for pair in zip(contexts, sets, strict=True)]
        given = [p.to_train(context) for p, context in zip(predictors, contexts, strict=True)]
        groups = [
            own.parameter_groups(lr=training.lr, weight_decay=training.weight_decay) for own in sets
        ]
        with backbone.training_kernels():
            found = train_stack(
                [context for context, _ in given],
                groups,
                predictors[0].training_logits(given[0][1], runs=len(contexts)),
                scaled=backbone.dtype == torch.float16,
            )
    finally:
        sets[-1].detach()
    return [
        outcome if isinstance(outcome, TrainingDiverged) else Trained(own, *outcome)
        for own, outcome in zip(sets, found, strict=True)
    ]


def train_stack(
    contexts: Sequence[Context],
    groups: Sequence[list[dict[str, Any]]],
    logits: Callable[[Tensor], Tensor],
    scaled: bool = False,
) -> list[Outcome]:
    """As `loop.train`, of S runs: what each returns, or how it diverged.

    groups: each run's own; logits: views of all, run by run, (S B, 3, H, W) -> (S, B, C).
    """
    plans: list[Plan] = [settings_plan(context) for context in contexts]
    runs = [Run(*own, scaled) for own in zip(contexts, groups, plans, strict=True)]
    live, outcomes = dict(enumerate(runs)), dict[int, Outcome]()
    with ExitStack() as stack:
        stack.enter_context(seeded_torch(contexts[0].seed, "dropout", runs[0].device))
        shown = [
            stack.enter_context(closing(views_shown(context, plan)))
            for context, plan in zip(contexts, plans, strict=True)
        ]
        for step, given in enumerate(zip(*shown, strict=True), 1):
            for run in live.values():
                run.begin(step)
            scores = logits(torch.cat([views for views, _ in given])).float()
            losses = {s: F.cross_entropy(scores[s], given[s][1]) for s in live}
            for run in live.values():
                run.optimizer.zero_grad()
            # each loss reaches the parameters of its own run alone
            torch.stack([live[s].scaler.scale(loss) for s, loss in losses.items()]).sum().backward()
            for s, loss in losses.items():
                try:
                    live[s].take_step()
                    live[s].tell(loss.detach(), scores.shape[-1])
                except TrainingDiverged as error:
                    outcomes[s] = error
                    del live[s]
            if not live:
                break
    for s, run in live.items():
        try:
            outcomes[s] = run.finish()
        except TrainingDiverged as error:
            outcomes[s] = error
    return [outcomes[s] for s in range(len(runs))]
