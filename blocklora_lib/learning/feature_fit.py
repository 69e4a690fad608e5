"""What methods on cached features are made of: predictor, choice of settings, training by steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.seeding import generator
from .contract import Context
from .count import Choice
from .feature_cache import Features
from .loop import TrainingDiverged, batches, cosine_lr, moved_together
from .method import Predictor
from .selection import choose
from .told import Told

Score = Callable[[Features, Tensor], Tensor]


class FeaturePredictor(Predictor):
    """Frozen towers, and what a method makes of their rows.

    score(features, prompts) -> logits (N, C); prompts: rows of the classes' prompts, (C, d), as
    long as the tower gives them. trained: what the method trains. images_seen, updates: of all that
    was trained, settings that were not chosen among them; loss: of what was chosen.
    """

    updates = 0

    def __init__(
        self,
        context: Context,
        score: Score,
        trained: Sequence[Tensor] = (),
        loss: Sequence[float] = (),
        images_seen: int = 0,
        choice: Choice | None = None,
        updates: int | None = None,
    ) -> None:
        self.context, self._score, self.choice = context, score, choice
        self.trainable_parameters = sum(part.numel() for part in trained)
        self.loss, self.images_seen = tuple(loss), images_seen
        self.updates = len(self.loss) if updates is None else updates

    def classifier(self, tokens: Tensor) -> Tensor:
        """Rows of prompts, as long as the tower gives them: (C, d)."""
        return self.context.prompts(tokens)

    def scores(self, features: Features, classifier: Tensor) -> Tensor:
        """Features of N images -> (N, C)."""
        with torch.no_grad():
            return self._score(features, classifier)

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, C)."""
        return self.scores(self.context.cache.encode(self.context.backbone, images), classifier)


def scaled_cosines(context: Context) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (f, t) -> τ f unit(t)ᵀ.  f: (N, d) unit rows of images, t: (K, d) -> (N, K)."""
    scale = context.backbone.logit_scale
    return lambda unit, prompts: scale * unit @ F.normalize(prompts, dim=-1).T


def zero_shot(context: Context) -> Score:
    """Return the score of the frozen towers alone."""
    cosines = scaled_cosines(context)
    return lambda features, prompts: cosines(features.unit, prompts)


def one_hot(context: Context, classes: int) -> Tensor:
    """The few images' labels: (N, C), float32."""
    return F.one_hot(labels_of(context), classes).float()


def labels_of(context: Context) -> Tensor:
    """The few images' labels on the backbone's device: (N,)."""
    assert context.labels is not None
    return context.labels.to(context.backbone.device)


def mean_view(context: Context, views: int) -> Tensor:
    """Unit rows (N, d) of the few images, of the mean over their random views if there are such."""
    rows = context.features(views).rows
    return F.normalize(rows.unflatten(0, (max(views, 1), -1)).mean(0), dim=-1)


def all_views(context: Context, views: int) -> tuple[Features, Tensor]:
    """Features and labels of all random views of the few images, or of the images themselves."""
    return context.features(views), labels_of(context).repeat(max(views, 1))


def select(
    context: Context, grid: dict[str, Sequence[float]], score: Callable[..., Score]
) -> tuple[dict[str, float], Choice | None]:
    """Return the settings to use: the only ones of the grid, or those chosen on validation images.

    score(**settings) is the score under them.
    """
    if all(len(values) == 1 for values in grid.values()):
        return {name: values[0] for name, values in grid.items()}, None
    if context.validation is None:
        raise ValueError(
            f"{', '.join(grid)} are to be chosen, and there are no validation images; give each "
            "one value"
        )
    source, labels = context.validation
    features = context.validated(source)
    prompts = context.prompts(context.tokens)
    with torch.no_grad():
        choice = choose(grid, lambda **settings: score(**settings)(features, prompts), labels)
    return choice.settings, choice


def fit_best(
    context: Context,
    grid: dict[str, Sequence[float]],
    train: Callable[[float], tuple[list[Tensor], list[float], int]],
    scores: Callable[[list[Tensor]], Callable[..., Score]],
) -> FeaturePredictor:
    """Train once at each rate `lr` of the grid, and choose from the grid.

    train(lr) -> what was trained, losses, images seen; scores(trained)(**others) is the score under
    the grid's other settings. A rate at which training diverges is not chosen; TrainingDiverged
    where it does at each.
    """
    fitted: dict[float, tuple[list[Tensor], list[float], int]] = {}
    made: dict[float, Callable[..., Score]] = {}

    def score(lr: float, **others: float) -> Score:
        if lr not in made:
            try:
                fitted[lr] = train(lr)
            except TrainingDiverged:
                if not fitted and lr == grid["lr"][-1]:
                    raise
                nothing = torch.full((1, 1), math.nan)
                made[lr] = lambda **_: lambda features, _: nothing.expand(len(features), 1)
            else:
                made[lr] = scores(fitted[lr][0])
        return made[lr](**others)

    chosen, choice = select(context, grid, score)
    final = score(**chosen)
    trained, losses, _ = fitted[chosen["lr"]]
    updates = sum(len(losses) for _, losses, _ in fitted.values())
    seen = sum(seen for _, _, seen in fitted.values())
    return FeaturePredictor(context, final, trained, losses, seen, choice, updates)


def parameter(value: Tensor) -> Tensor:
    """A copy that is trained."""
    return value.detach().clone().requires_grad_()


def descend(
    context: Context,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor], Tensor],
    order: Sequence[Tensor],
    rate: Callable[[int], float],
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Take a step on loss(index) for each index of the order; return the losses.

    rate: the factor on the groups' rates at a step, counted from 0. after(step): called after each,
    counted from 1. TrainingDiverged where a loss is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []

    def look(step: int, value: float) -> None:
        losses.append(value)
        if not math.isfinite(value):
            lr = rate(step - 1) * rates[0]
            reason = "the loss is not finite"
            raise TrainingDiverged(step, len(order), value, lr, reason, rates[0])
        if context.on_step:
            context.on_step(step, len(order), value)

    told = Told(context.backbone.device, len(order), look)
    with torch.enable_grad():
        for step, index in enumerate(order):
            for group, first in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = first * rate(step)
            value = loss(index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            after(step + 1)
            told.tell(value.detach())
    return losses


def epochs_of(
    context: Context, size: int, epochs: int, views: int = 0, drop_last: bool = False
) -> list[Tensor]:
    """Batches of so many epochs over the few images, each in an order of its own.

    views: of so many random views an epoch shows one, and the next epoch the next. drop_last: as
    Dassl's loader, an epoch leaves out a last batch that is short, but never all.
    """
    n = len(labels_of(context))
    full = n // size if drop_last and n >= size else -(-n // size)
    order, found = batches(n, size, generator(context.seed, "shuffle")), []
    for epoch in range(epochs):
        shown = [next(order) for _ in range(-(-n // size))][:full]
        found += [index + n * (epoch % max(views, 1)) for index in shown]
    return list(moved_together(found, context.backbone.device))


def pooled_epochs(context: Context, size: int, epochs: int, views: int = 0) -> list[Tensor]:
    """Batches of so many epochs, each drawn anew from all random views of the few images.

    An epoch has as many batches as one pass over the images themselves, the last one left out where
    it is short.
    """
    n, random = len(labels_of(context)), generator(context.seed, "shuffle")
    found = []
    for _ in range(epochs):
        pool = torch.randperm(n * max(views, 1), generator=random)
        found += pool.split(size)[: max(n // size, 1)]
    return list(moved_together(found, context.backbone.device))


def cosine(steps: int) -> Callable[[int], float]:
    """The factor (1 + cos(π step/steps))/2: a cosine to 0, as CosineAnnealingLR has it."""
    return lambda step: cosine_lr(step, steps, 1.0, 0.0)


def dassl_cosine(epochs: int, steps: int, lr: float, warm: float = 1e-5) -> Callable[[int], float]:
    """The factor of Dassl's schedule: `warm` in epoch 1, then lr (1 + cos(π (e - 2)/E))/2 in e.

    steps: of all epochs together. Source: KaiyangZhou/Dassl.pytorch@c61a1b5 dassl/optim; its rate
    changes once an epoch, so that the last one never reaches 0.
    """

    def rate(step: int) -> float:
        epoch = step * epochs // steps
        return warm / lr if epoch == 0 else cosine_lr(epoch - 1, epochs, 1.0, 0.0)

    return rate


class Last:
    """A function of an object and a value that remembers its last result: grids vary one value."""

    def __init__(self, made: Callable[[Any, Any], Tensor]) -> None:
        self._made = made
        self._given: tuple[Any, Any] = (None, None)
        self._found: Tensor | None = None

    def __call__(self, of: Any, value: Any) -> Tensor:
        """The function's result, computed anew where it is asked for another object or value."""
        before = self._given[1]
        same = before is value or (isinstance(value, float) and before == value)
        if self._found is None or self._given[0] is not of or not same:
            self._given, self._found = (of, value), self._made(of, value)
        return self._found
