"""Two trainings in lockstep: how far apart their updates ΔW are, and how far apart the blocks B_i.

The update of Block-LoRA, ΔWᵀ = s A_s B, depends on the B_i through B = Σ B_i alone, so ∂L/∂B_i =
∂L/∂B for every i. Let an optimizer move A_s, and each B_i, by its own gradients g_1 .. g_t alone,

    B_i ← (1 - η λ) B_i - η u_t(g_1, .., g_t)        η learning rate, λ decoupled weight decay.

From equal starts all B_i stay equal, and B moves by B ← (1 - η λ) B - n η u_t: one matrix with
learning rate n η and weight decay λ/n. If the decay is coupled, u_t(g + λ B_i), the B_i = B/n see g
+ (λ/n) B: the same ratios. `kind="collapsed"` and `AdapterSet.parameter_groups` are that form; here
both are trained side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.attach import AdapterSet, attach, attach_linear
from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone
from ..clip.towers import TextTower, encode_images
from ..core.seeding import derive_seed, generator, seeded_torch
from ..learning.loop import cosine_lr

Hook = Callable[[AdapterSet, int], None]
CPU = torch.device("cpu")

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,  # its weight decay is coupled: added to the gradient
    "AdamW": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Task:
    """A frozen model, and the loss of its step-th minibatch. build: a fresh, equal copy."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]
    attach: Callable[..., AdapterSet] = attach


@dataclass
class Learner:
    """Adapters on a model in float64, their optimizer, and what is done around its steps."""

    task: Task
    adapters: AdapterSet
    optimizer: torch.optim.Optimizer
    seed: int
    before_update: Hook | None = None  # sees the gradients
    after_update: Hook | None = None  # sees the new parameters
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, step: int, factor: float = 1.0) -> float:
        """Take one step at `factor` times the learning rates and return the loss before it."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with same_masks(self.seed, step, next(self.adapters.parameters()).device):
            loss = self.task.loss(self.adapters.model, step)
        self.optimizer.zero_grad()
        loss.backward()
        if self.before_update:
            self.before_update(self.adapters, step)
        self.optimizer.step()
        if self.after_update:
            with torch.no_grad():
                self.after_update(self.adapters, step)
        return loss.item()

    def updates(self) -> list[Tensor]:
        """Return ΔW of every site, (d_out, d_in) each."""
        return [adapter.delta_weight().detach() for adapter in self.adapters.adapters.values()]


@contextmanager
def same_masks(seed: int, step: int, device: torch.device = CPU) -> Iterator[None]:
    """Give every learner of this seed the same dropout masks, and torch's generator back as it was.

    `torch.manual_seed` reaches for a GPU as well and takes as long as a small step: only there it
    is used.
    """
    if device.type != "cpu":
        with seeded_torch(seed, f"dropout/{step}", device):
            yield
        return
    draws = torch.default_generator
    state = draws.get_state()
    draws.manual_seed(derive_seed(seed, f"dropout/{step}"))
    try:
        yield
    finally:
        draws.set_state(state)


def make_learner(
    task: Task,
    config: AdapterConfig,
    optimizer: str | Callable[..., torch.optim.Optimizer],
    lr: float,
    decay: float = 0.0,
    seed: int = 1,
    ratios: tuple[float, float] | None = None,
    **hooks: Hook,
) -> Learner:
    """Attach adapters drawn from `seed` and give them their optimizer.

    Learning rate and weight decay of B are those of A times and divided by n in the collapsed form,
    else as those of A (`AdapterSet.parameter_groups`). ratios = (of rates, of decays) replaces
    both: for controls.
    """
    adapters = task.attach(task.build(), config, generator(seed, "adapter")).double()
    for adapter in adapters.adapters.values():
        adapter.train()  # dropout on the adapters' input; the frozen model stays as it was built
    groups = adapters.parameter_groups(lr, decay)
    if ratios is not None:
        down, up = split_parameters(adapters)
        groups = [
            {"params": down, "lr": lr, "weight_decay": decay},
            {"params": up, "lr": lr * ratios[0], "weight_decay": decay * ratios[1]},
        ]
    build = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    return Learner(task, adapters, build(groups, lr=lr), seed, **hooks)


def split_parameters(adapters: AdapterSet) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable down-projections and the up-projections."""
    named = [pair for adapter in adapters.adapters.values() for pair in adapter.named_parameters()]
    return [p for name, p in named if name != "B"], [p for name, p in named if name == "B"]


def collapsed(config: AdapterConfig) -> AdapterConfig:
    """Return the same adapter with one B = Σ B_i."""
    return config.model_copy(update={"kind": "collapsed"})


def follow(ours: Learner, other: Learner, steps: int, final: float = 0.01) -> pd.DataFrame:
    """Train both along a cosine from 1 to `final` times their rates; compare after every step.

    Columns: step, difference (`relative_difference` of `ours` to `other`), spread (of the B_i of
    `ours`, relative), distance (the same, not divided), loss.
    """
    rows = []
    for step in range(steps):
        factor = cosine_lr(step, steps, 1.0, final)
        loss, _ = ours.step(step, factor), other.step(step, factor)
        difference = relative_difference(ours.updates(), other.updates())
        distance, largest = distance_of_blocks(ours.adapters)
        relative = distance / largest if 0 < distance < math.inf else distance
        rows.append((step + 1, difference, relative, distance, loss))
    return pd.DataFrame(rows, columns=["step", "difference", "spread", "distance", "loss"])


def relative_difference(ours: list[Tensor], others: list[Tensor]) -> float:
    """Return the largest ‖ΔW - ΔW'‖ / ‖ΔW'‖ (Frobenius) over the sites; 0 where both are zero."""
    pairs = zip(ours, others, strict=True)
    return _most((u - v).norm() / (1 if torch.equal(u, v) else v.norm()) for u, v in pairs)


def distance_of_blocks(adapters: AdapterSet) -> tuple[float, float]:
    """Return max |B_i - B_j| over blocks, entries and sites (0: equal bits), and max |B_i|."""
    stacks = [a.B.detach() for a in adapters.adapters.values() if a.B.dim() == 3]
    distance = _most((blocks.amax(0) - blocks.amin(0)).max() for blocks in stacks)
    return distance, _most(blocks.abs().max() for blocks in stacks)


def _most(values: Iterable[Tensor]) -> float:
    """The largest number; inf where one is none, since what diverged coincides with nothing."""
    numbers = [value.item() for value in values]
    return math.inf if any(map(math.isnan, numbers)) else max(numbers, default=0.0)


def set_blocks(adapters: AdapterSet, total: float, offsets: float, seed: int) -> None:
    """Start Σ B_i at random numbers of size `total`, in equal B_i plus offsets that sum to zero."""
    draw = generator(seed, "start of B")
    for adapter in adapters.adapters.values():
        up = adapter.B.data
        whole = total * torch.randn(up.shape[-2:], generator=draw, dtype=up.dtype)
        if up.dim() == 2:
            up.copy_(whole)
            continue
        own = torch.randn(up.shape, generator=generator(seed, "offsets"), dtype=up.dtype)
        up.copy_(whole / len(up) + offsets * (own - own.mean(0)))


def decay_alone(
    optimizer: str, lr: float, decay: float, steps: int, final: float = 0.01
) -> list[float]:
    """Return what is left of 1 after every step of `follow`'s schedule where no gradient is seen:
    of B_i - B_j if the optimizer is linear or its decay decoupled, for the common gradient cancels.
    """
    left = nn.Parameter(torch.ones(1, dtype=torch.float64))
    one = OPTIMIZERS[optimizer]([left], lr=lr, weight_decay=decay)
    path = []
    for step in range(steps):
        one.param_groups[0]["lr"] = lr * cosine_lr(step, steps, 1.0, final)
        left.grad = torch.zeros_like(left)
        one.step()
        path.append(left.item())
    return path


def batches(samples: int, size: int, seed: int) -> Callable[[int], Tensor]:
    """Return step -> indices of its minibatch, the same at every call."""
    return lambda step: torch.randint(samples, (size,), generator=generator(seed, f"batch/{step}"))


def attention_task(
    seed: int, width: int = 24, heads: int = 4, noise: float = 1.0, batch: int = 8
) -> Task:
    """Fit self-attention to another's noisy outputs: 64 sequences of 6 tokens, q, k, v, o adapted.

    The noise keeps every gradient away from zero. Without it Adam's quotient m/√v would become that
    of two rounding errors once the fit is perfect, and no two correct programs would agree.
    """

    def build() -> nn.Module:
        with seeded_torch(seed, "model"):
            return nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)

    with seeded_torch(seed, "data"):
        x = torch.randn(64, 6, width, dtype=torch.float64)
        teacher = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            y = teacher(x, x, x, need_weights=False)[0]
            y += noise * y.std() * torch.randn_like(y)
        y /= y.std()
    chosen = batches(len(x), batch, seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        z = x[chosen(step)]
        return (model(z, z, z, need_weights=False)[0] - y[chosen(step)]).square().mean()

    return Task(build, loss)


def linear_task(
    seed: int,
    d_in: int = 24,
    d_out: int = 16,
    noise: float = 1.0,
    batch: int = 32,
    samples: int = 128,
) -> Task:
    """Fit a frozen projection to another one's noisy outputs through an adapter."""
    draw = generator(seed, "linear task")
    weight, teacher = (
        torch.randn(d_out, d_in, generator=draw, dtype=torch.float64) for _ in range(2)
    )
    x = torch.randn(samples, d_in, generator=draw, dtype=torch.float64)
    y = x @ (weight + teacher).T / d_in**0.5
    y += noise * torch.randn(y.shape, generator=draw, dtype=torch.float64)
    chosen = batches(samples, batch, seed)

    def build() -> nn.Module:
        layer = nn.Linear(d_in, d_out, bias=False, dtype=torch.float64)
        layer.weight.data = weight / d_in**0.5
        return layer

    def loss(model: nn.Module, step: int) -> Tensor:
        index = chosen(step)
        return (model(x[index]) - y[index]).square().mean()

    return Task(build, loss, lambda model, config, draw: attach_linear(model, "", config, draw))


def clip_task(
    backbone: Backbone, images: Tensor, labels: Tensor, tokens: Tensor, seed: int, batch: int = 8
) -> Task:
    """Few-shot classification by a CLIP in float64, both towers: cross-entropy of scaled cosines.

    images: (N, 3, H, W), pixels; labels: (N,); tokens: (C, context length); on any device.
    """
    images = backbone.preprocess(images).double()
    labels, tokens = labels.to(images.device), tokens.to(images.device)
    chosen = batches(len(images), batch, seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        index, tower = chosen(step), TextTower(model)
        features = F.normalize(encode_images(model, images[index]), dim=-1)
        classes = F.normalize(tower.encode(tokens), dim=-1)
        return F.cross_entropy(tower.model.logit_scale.exp() * features @ classes.T, labels[index])

    return Task(lambda: deepcopy(backbone.model).double(), loss)
