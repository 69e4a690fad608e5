"""One curve for all cuts: under Adam n, the scale s and the rate of B count through n s η alone.

Write A_s = σ a, where σ = init_scale, and M = s σ Σ B_i, so that ΔW = M a and each B_i sees the
gradient s σ G, G = ∂L/∂M. For ε = 0 a step of Adam does not change where all gradients of a matrix
are multiplied by a number: with its step u_t, and rates η and decays λ of A and of B,

    M ← (1 - η_B λ_B) M - τ u_t(G_1 .. G_t),                 τ = n s σ η_B,
    a ← (1 - η_A λ_A) a - (η_A/σ) u_t(∂L/∂a_1 .. ∂L/∂a_t).

Of one width, ΔW depends on τ, η_A/σ and the two decays a step; with ε > 0 on ε_B/(s σ) and ε_A σ as
well. From B = 0 the first step is M = -τ sign(G), and a stays: a line, along which the loss is
known before any training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import CUT, AdapterConfig
from ..core.seeding import generator
from ..data.dataset import Dataset
from ..data.sampling import draw
from ..learning.adapter_fit import AdapterPredictor
from ..learning.contract import Context
from ..learning.evaluation import evaluate
from ..learning.loop import settings_plan, train
from ..runs.profile import Profile
from ..runs.workbench import Workbench
from .trajectories import split_parameters


def per_rate(config: AdapterConfig) -> float:
    """Return n s σ, what τ is to the rate of B; n is 1 where one B learns."""
    copies = config.n_blocks if config.kind in CUT and config.reading != "input" else 1
    return copies * config.scale * config.init_scale


def rates(config: AdapterConfig, tau: float, rate: float, decay: float = 0.0) -> dict[str, Any]:
    """Return arguments of `make_learner` at τ, with A's rate η_A/σ and so much of its decay.

    Both matrices shrink by 1 - rate x decay a step, whatever the config.
    """
    lr = rate * config.init_scale
    ratio = tau / per_rate(config) / lr
    return {"lr": lr, "decay": decay / config.init_scale, "ratios": (ratio, 1 / ratio)}


@dataclass(frozen=True)
class FirstStep:
    """The loss along M = -t sign(G), where the first step of Adam goes.

    slope: g = ‖G‖₁, by which it begins to fall; curvature: h, its second derivative; crossing: the
    first t where it is back at its start, inf where that is beyond 64 τ*.
    """

    slope: float
    curvature: float
    crossing: float

    @property
    def threshold(self) -> float:
        """τ* = 2g/h, where L - g t + h t²/2 is back at L."""
        return 2 * self.slope / self.curvature


def line(
    adapters: AdapterSet, loss: Callable[[], Tensor]
) -> tuple[float, Callable[[float], float]]:
    """Return ‖G‖₁, and t -> the loss at M = -t sign(G), of adapters at their start, B = 0.

    loss(): of their model, the same at every call. They stay at their start.
    """
    ups, unit = split_parameters(adapters)[1], per_rate(adapters.config)
    gradients = torch.autograd.grad(loss(), ups)

    @torch.no_grad()
    def along(t: float) -> float:
        for up, gradient in zip(ups, gradients, strict=True):
            up.copy_(gradient.sign() * (-t / unit))
        value = loss().item()
        for up in ups:
            up.zero_()
        return value

    return sum(gradient.abs().sum().item() for gradient in gradients) / unit, along


def first_step(adapters: AdapterSet, loss: Callable[[], Tensor]) -> FirstStep:
    """Look along the first step before any training; arguments as of `line`.

    The curvature is a second difference, over a fall of about a twentieth of the loss. It has to be
    positive: else ValueError. The crossing is looked for at eight points an octave.
    """
    slope, along = line(adapters, loss)
    start = along(0.0)
    small = 0.05 * start / slope
    curvature = (along(small) - 2 * start + along(-small)) / small**2
    if curvature <= 0:
        raise ValueError(
            f"the loss along the first step has curvature {curvature:.3g}: by its second order the "
            "step helps however long it is; look at another start (seed)"
        )
    found = FirstStep(slope, curvature, math.inf)
    low = 0.0  # the loss falls from there
    for eighth in range(-16, 49):
        high = found.threshold * 2 ** (eighth / 8)
        if along(high) > start:
            for _ in range(24):
                middle = (low + high) / 2
                low, high = (low, middle) if along(middle) > start else (middle, high)
            return replace(found, crossing=high)
        low = high
    return found


def reach(factors: Sequence[float], betas: tuple[float, float] = (0.9, 0.999)) -> float:
    """Return R: no entry of M leaves ±R τ in steps at these factors of the rates.

    R = Σ_t f_t c_t. Both moments are means of what was seen, with weights w and v, so that by
    Cauchy and Schwarz |m| <= c √(second moment), c² = Σ_i w_i²/v_i. A first step has c = 1.
    """
    total = 0.0
    for t, factor in enumerate(factors, 1):
        powers = [[beta**i for i in range(t)] for beta in betas]
        w, v = ([x / sum(weights) for x in weights] for weights in powers)
        total += factor * math.sqrt(sum(a * a / b for a, b in zip(w, v, strict=True)))
    return total


def few_shots(
    bench: Workbench, profile: Profile, name: str, shots: int, seed: int
) -> tuple[Dataset, Context]:
    """Draw images of a bundled set, to be trained on as the profile trains Block-LoRA."""
    data: Any = bench.dataset(name)  # the images of a split are one tensor
    backbone, labels = bench.backbone(profile.backbone), data.labels("train")
    chosen = draw(labels, shots, seed, profile.draw, data.classes)
    images = backbone.resize(data.images("train")[chosen])
    training = profile.training_of(profile.entry("block_lora"))
    tokens, given = backbone.tokenize(data.prompts), labels[chosen].to(images.device)
    return data, Context(backbone, tokens, images, given, training, shots, seed)


@contextmanager
def adapted(context: Context, config: AdapterConfig) -> Iterator[AdapterPredictor]:
    """Put adapters on the context's model, at the start that its seed draws; then take them off."""
    draws = generator(context.seed, "adapter")
    predictor = AdapterPredictor(context, attach(context.backbone.model, config, draws))
    try:
        yield predictor
    finally:
        predictor.close()


def first_step_on(context: Context, config: AdapterConfig) -> FirstStep:
    """Look along the first step on all images at once, without augmentation or dropout."""
    images, labels = context.few()
    assert isinstance(images, Tensor)  # bundled
    with adapted(context, config) as predictor:
        scores = predictor.training_logits()
        return first_step(
            predictor.adapters, lambda: F.cross_entropy(scores(images.float()), labels)
        )


def accuracy(
    data: Dataset, context: Context, config: AdapterConfig, tau: float, rate: float
) -> float:
    """Train as the context says, but at τ and η_A/σ = rate; return the accuracy on test images."""
    *_, training = context.to_train()
    given = rates(config, tau, rate, training.weight_decay)
    lr, decay, (faster, weaker) = given["lr"], given["decay"], given["ratios"]
    final = training.lr_min * lr / training.lr  # as far down the cosine
    training = training.model_copy(update={"lr": lr, "lr_min": final})
    plan = settings_plan(replace(context, training=training))
    with adapted(context, config) as predictor:
        down, up = split_parameters(predictor.adapters)
        groups: list[dict[str, Any]] = [
            {"params": down, "lr": lr, "weight_decay": decay},
            {"params": up, "lr": lr * faster, "weight_decay": decay * weaker},
        ]
        for adapter in predictor.adapters.adapters.values():
            adapter.train()
        with context.backbone.training_kernels():
            train(context, groups, predictor.training_logits(), plan=plan)
        for adapter in predictor.adapters.adapters.values():
            adapter.eval()
        return evaluate(predictor, context.backbone, [data], "test")[data.name].accuracy


def half_lost(points: Sequence[tuple[float, float]], start: float) -> float:
    """Return the first t past the best value where half of its gain over `start` is lost again.

    points: (t, value), t ascending. Between two of them by the logarithm of t; nan if none is.
    """
    best = max(range(len(points)), key=lambda i: points[i][1])
    half = (points[best][1] + start) / 2
    for (low, above), (high, below) in pairwise(points[best:]):
        if below <= half < above:
            return low * (high / low) ** ((above - half) / (above - below))
    return math.nan
