"""What ends the equality of the B_i, or of Block-LoRA and its collapsed form: hooks, adapters.

Each hook acts on every adapter of a set, between backward and step (`before_update` of a
`Learner`) or after the step (`after_update`). B is (n, d_out, b) in Block-LoRA and (d_out, b) in
the collapsed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.attach import AdapterSet
from ..adapters.updates import BlockLoRA
from ..core.seeding import generator
from .trajectories import Hook, Task, split_parameters


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return what the last backward pass gave a parameter."""
    if parameter.grad is None:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no gradient yet")
    return parameter.grad


def block_rates(factors: Sequence[float]) -> dict[str, Hook]:
    """Give block i factors[i] times the learning rate: its move is scaled after the step."""
    before: dict[int, Tensor] = {}

    def remember(adapters: AdapterSet, step: int) -> None:
        before.update({id(up): up.detach().clone() for up in split_parameters(adapters)[1]})

    def scale(adapters: AdapterSet, step: int) -> None:
        for up in split_parameters(adapters)[1]:
            rates = torch.tensor(factors, dtype=up.dtype, device=up.device).view(-1, 1, 1)
            up.copy_(before[id(up)] + rates * (up - before[id(up)]))

    return {"before_update": remember, "after_update": scale}


def block_noise(size: float, n_blocks: int, seed: int) -> dict[str, Hook]:
    """Add noise to each B_i's gradient, as for differential privacy; to one B's, their mean."""

    def add(adapters: AdapterSet, step: int) -> None:
        draw = generator(seed, f"noise/{step}")
        for up in split_parameters(adapters)[1]:
            noise = torch.randn(n_blocks, *up.shape[-2:], generator=draw, dtype=up.dtype).to(
                up.device
            )
            grad = gradient(up)
            grad += size * (noise if up.dim() == 3 else noise.mean(0))

    return {"before_update": add}


def clip(
    threshold: float, weight_of_b: float = 1.0, noted: list[tuple[float, float]] | None = None
) -> dict[str, Hook]:
    """Clip by the global norm, ‖g‖² = Σ ‖g_A‖² + weight_of_b Σ ‖g_B‖²; `noted` collects both sums.

    Block-LoRA counts each ‖g_B‖² n times. Only weight_of_b = n makes the collapsed form do
    the same.
    """

    def act(adapters: AdapterSet, step: int) -> None:
        sums: list[Any] = [
            sum(gradient(p).square().sum() for p in group) for group in split_parameters(adapters)
        ]
        down, up = sums
        if noted is not None:
            noted.append((float(down), float(up)))
        norm = (down + weight_of_b * up).sqrt()
        for parameter in adapters.parameters():
            grad = gradient(parameter)
            grad *= torch.clamp(threshold / norm, max=1.0)

    return {"before_update": act}


def clip_tensors(threshold_a: float, threshold_b: float) -> dict[str, Hook]:
    """Clip each tensor's gradient by its own norm; the stacked B_i are one, of norm √n ‖g_B‖."""

    def act(adapters: AdapterSet, step: int) -> None:
        for group, threshold in zip(
            split_parameters(adapters), (threshold_a, threshold_b), strict=True
        ):
            for parameter in group:
                grad = gradient(parameter)
                grad *= torch.clamp(threshold / grad.norm(), max=1.0)

    return {"before_update": act}


def norm_scaled(degree: float = 1.0) -> dict[str, Hook]:
    """Give each matrix a step of degree k in its own size, ‖p‖^k g / ‖g‖; k = 1: as LARS does."""

    def act(adapters: AdapterSet, step: int) -> None:
        for parameter in adapters.parameters():
            grad = gradient(parameter)
            size, length = (p.norm(dim=(-2, -1), keepdim=True) for p in (parameter.detach(), grad))
            grad *= size**degree / length

    return {"before_update": act}


def adam_norm_scaled() -> dict[str, Hook]:
    """Scale Adam's step u to the tensor's norm, u ‖p‖ / ‖u‖, as LAMB does (You et al. 2020)."""
    moments: dict[int, tuple[Tensor, Tensor]] = {}

    def act(adapters: AdapterSet, step: int) -> None:
        for parameter in adapters.parameters():
            grad = gradient(parameter)
            if step == 0:
                moments[id(parameter)] = torch.zeros_like(grad), torch.zeros_like(grad)
            first, second = moments[id(parameter)]
            first.lerp_(grad, 1 - 0.9)
            second.lerp_(grad.square(), 1 - 0.999)
            size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-6
            move = first / (1 - 0.9 ** (step + 1)) / size
            grad.copy_(move * parameter.detach().norm() / move.norm())

    return {"before_update": act}


def orthogonalised() -> dict[str, Hook]:
    """Replace each matrix of gradients G = U Σ Vᵀ by U Vᵀ, as Muon does (there by an iteration)."""

    def act(adapters: AdapterSet, step: int) -> None:
        for parameter in adapters.parameters():
            u, _, v = torch.linalg.svd(gradient(parameter), full_matrices=False)
            gradient(parameter).copy_(u @ v)

    return {"before_update": act}


def rounded_parameters(
    dtype: torch.dtype, stochastic: bool = False, seed: int = 1
) -> dict[str, Hook]:
    """Keep parameters on the grid of `dtype`: round after each step, to nearest or at random."""

    def act(adapters: AdapterSet, step: int) -> None:
        draw = generator(seed, f"rounding/{step}")
        for parameter in adapters.parameters():
            if stochastic:  # nearest, after noise that is uniform within one unit in the last place
                unit = torch.finfo(dtype).eps * 2.0 ** parameter.abs().log2().floor().clamp(
                    min=-126
                )
                noise = torch.rand(parameter.shape, generator=draw, dtype=parameter.dtype) - 0.5
                parameter.add_(unit * noise.to(unit.device))
            parameter.copy_(parameter.to(dtype))

    return {"after_update": act}


class DroppedBlocks(BlockLoRA):
    """Block-LoRA whose B_i are dropped one by one, each with probability 1/2: Σ 2 m_i B_i."""

    def factors(self) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().factors()
        kept = torch.randint(0, 2, (len(self.B), 1, 1)).to(self.B)
        return self.A_s, (2 * kept * self.B).sum(0)


class NonlinearAdapter(Adapter):
    """x ↦ s Σ_i tanh(c_i x A_s) B_i: nonlinear between the projections; c_i = 1 unless given."""

    gains: tuple[float, ...] = ()

    def _update(self, x: Tensor) -> Tensor:
        down: Any = self.A_s if hasattr(self, "A_s") else self.A
        ups: Tensor = self.B if self.B.dim() == 3 else self.B[None]
        gains = self.gains or (1.0,) * len(ups)
        hidden = nn.functional.linear(x, down)
        return self.scale * sum(
            torch.tanh(c * hidden) @ up.T for c, up in zip(gains, ups, strict=True)
        )

    def delta_weight(self) -> Tensor:
        """Return what takes the place of ΔW: the answers to the d_in unit inputs, (d_out, d_in)."""
        return self._update(torch.eye(self.d_in, dtype=self.B.dtype, device=self.B.device)).T


class NonlinearEqual(NonlinearAdapter):
    """All blocks share one nonlinearity."""


class NonlinearUnequal(NonlinearAdapter):
    """Each of three blocks has a nonlinearity of its own."""

    gains = (0.5, 1.0, 1.5)


def altered(task: Task, kind: type[Adapter]) -> Task:
    """Return the task with adapters of another class, which has the same parameters."""

    def attach(*args: Any) -> AdapterSet:
        adapters = task.attach(*args)
        for adapter in adapters.adapters.values():
            adapter.__class__ = kind
        return adapters

    return replace(task, attach=attach)


def quantise(values: Tensor, bits: int, draw: torch.Generator | None = None) -> Tensor:
    """Round to 2^bits - 1 even levels in ±max|values|; with `draw`, after dither one step wide."""
    step = values.abs().max() / (2 ** (bits - 1) - 1)
    dither = torch.tensor(0.0)
    if draw is not None:
        dither = torch.rand(values.shape, generator=draw, dtype=values.dtype) - 0.5
    return step * torch.round(values / step + dither.to(values.device))
