"""An adapter in a few dozen bits: a code, its length, the decoder, and training on coded values.

The form is 'w/o A': A_s is drawn from a seed that is fixed beforehand, so that only B has to be
written down. All numbers of all B together, D of them, lie in a random subspace that the same
seed fixes,

    vec(B) = Δ P z,     P: D x k,  P_ij ~ N(0, 1/k),     z_j in {-(L-1)/2, ..., (L-1)/2},

as in the intrinsic dimension of Li et al. (2018), which Lotfi et al. (2022) code for bounds. A code
is one whole number: what was chosen from the `CodeSpace` (placement, k, L, Δ), then the k symbols
in base L. The choice fixes the length of the rest, so that no code is the beginning of another one,
and Kraft's inequality holds: 2^-bits is a prior over all of them. The space is data-free: it is
written down before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..core.seeding import generator


@dataclass(frozen=True)
class CodeSpace:
    """All that a code can say, fixed before the data are seen; each choice is paid for in bits."""

    placements: Sequence[AdapterConfig]  # kind "frozen_a", so that B is all that is trained
    dimensions: Sequence[int]  # k
    levels: Sequence[int]  # L
    scales: Sequence[float]  # Δ
    # of A_s and P: part of the space, so it costs nothing and must not be chosen on the data
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("placements", "dimensions", "levels", "scales"):
            values = getattr(self, name)
            if not len(values):
                raise ValueError(f"{name} of a code space is empty; give at least one choice")
            if len(set(values)) != len(values):
                raise ValueError(
                    f"{name} of a code space lists a choice twice; "
                    "each one costs bits, list it once"
                )
        if kinds := sorted({p.kind for p in self.placements} - {"frozen_a"}):
            raise ValueError(
                f"placements name kind {', '.join(kinds)}; "
                "only 'frozen_a' has an A that a seed fixes"
            )
        if min(self.dimensions) < 1 or min(self.levels) < 2 or min(self.scales) <= 0:
            raise ValueError(
                f"dimensions={list(self.dimensions)}, "
                f"levels={list(self.levels)}, scales={list(self.scales)}; "
                "use dimensions from 1, levels from 2 and positive scales"
            )

    @property
    def header_bits(self) -> int:
        """Bits that name one placement, k, L and Δ."""
        return sum(_width(v) for v in (self.placements, self.dimensions, self.levels, self.scales))


@dataclass(frozen=True)
class AdapterCode:
    """One adapter: a choice from the space and the k symbols, each in 0..L-1."""

    placement: AdapterConfig
    levels: int
    scale: float
    symbols: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """k, the number of symbols."""
        return len(self.symbols)


def quantise(values: np.ndarray | Tensor, levels: int, scale: float) -> np.ndarray:
    """Return, for each value, the nearest symbol 0..L-1 on the grid Δ (-(L-1)/2 .. (L-1)/2)."""
    middle = (levels - 1) / 2
    return np.clip(np.floor(np.asarray(values) / scale + middle + 0.5), 0, levels - 1).astype(
        np.int64
    )


def dequantise(symbols: Sequence[int] | np.ndarray, levels: int, scale: float) -> np.ndarray:
    """Return Δ (symbol - (L-1)/2)."""
    return scale * (np.asarray(symbols, dtype=np.float64) - (levels - 1) / 2)


def code_length_bits(code: AdapterCode, space: CodeSpace) -> int:
    """Bits of the whole code: the header, and k symbols of L levels as one number in base L."""
    return space.header_bits + _payload_bits(code.dimension, code.levels)


def encode(code: AdapterCode, space: CodeSpace) -> bytes:
    """Write the code to bytes, the last one filled up with zeros."""
    if not all(0 <= s < code.levels for s in code.symbols):
        raise ValueError(f"symbols must lie in 0..{code.levels - 1}; quantise the values first")
    number = 0
    for values, value in _fields(space, code):
        if value not in values:
            raise ValueError(
                f"{value} is not in the code space, which has {list(values)}; take one of these"
            )
        number = number << _width(values) | list(values).index(value)
    payload = 0
    for symbol in code.symbols:
        payload = payload * code.levels + symbol
    bits = code_length_bits(code, space)
    number = number << _payload_bits(code.dimension, code.levels) | payload
    return (number << -bits % 8).to_bytes(-(-bits // 8), "big")


def decode(content: bytes, space: CodeSpace) -> AdapterCode:
    """Read a code: from the bytes and the space alone."""
    number, left = int.from_bytes(content, "big"), 8 * len(content)
    chosen: list[Any] = []
    for values in (space.placements, space.dimensions, space.levels, space.scales):
        left -= _width(values)
        if left < 0 or (index := number >> left & (1 << _width(values)) - 1) >= len(values):
            raise ValueError(
                "these bytes are no code of this space; decode with the space that encoded them"
            )
        chosen.append(values[index])
    placement, dimension, levels, scale = chosen
    left -= _payload_bits(dimension, levels)
    if left not in range(8):
        raise ValueError(
            f"{len(content)} bytes do not hold {dimension} symbols; was the code cut off?"
        )
    payload, symbols = number >> left & (1 << _payload_bits(dimension, levels)) - 1, []
    for _ in range(dimension):
        payload, symbol = divmod(payload, levels)
        symbols.append(symbol)
    return AdapterCode(placement, levels, scale, tuple(reversed(symbols)))


class CodedAdapters:
    """Adapters whose B are written from symbols; A_s and P follow from the space's seed."""

    def __init__(
        self, model: nn.Module, placement: AdapterConfig, dimension: int, seed: int
    ) -> None:
        self.adapters: AdapterSet = attach(model, placement, generator(seed, "adapter"))
        for adapter in self.adapters.adapters.values():
            adapter.eval()  # no dropout: what is scored is what is decoded
        self.parameters = list(self.adapters.parameters())
        shape = (sum(p.numel() for p in self.parameters), dimension)
        self.basis = torch.randn(shape, generator=generator(seed, "subspace")) / math.sqrt(
            dimension
        )
        self.basis = self.basis.to(self.parameters[0].device)

    def write(self, symbols: np.ndarray | Sequence[int], levels: int, scale: float) -> None:
        """Set vec(B) = Δ P z."""
        z = torch.as_tensor(
            dequantise(symbols, levels, scale), dtype=self.basis.dtype, device=self.basis.device
        )
        parts = (self.basis @ z).split([p.numel() for p in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def pull_back(self, scale: float) -> Tensor:
        """Return ∂L/∂z = Δ Pᵀ ∂L/∂vec(B) by the last backward pass, whose gradients are cleared."""
        gradients = [p.grad.flatten() for p in self.parameters if p.grad is not None]
        for parameter in self.parameters:
            parameter.grad = None
        return scale * self.basis.T @ torch.cat(gradients)

    def close(self) -> None:
        """Leave the model as it was."""
        self.adapters.detach()


def restore(code: AdapterCode, space: CodeSpace, model: nn.Module) -> CodedAdapters:
    """Put the adapter that a code describes on a model."""
    coded = CodedAdapters(model, code.placement, code.dimension, space.seed)
    coded.write(code.symbols, code.levels, code.scale)
    return coded


Score = tuple[float, float]  # wrong answers, then the loss: compared in this order


def fit_symbols(
    coded: CodedAdapters,
    levels: int,
    scale: float,
    objective: Callable[[], tuple[int, Tensor]],
    steps: int = 150,
    lr: float = 0.1,
    sweeps: int = 2,
) -> tuple[np.ndarray, Score]:
    """Return the symbols with the fewest wrong answers that were met, and their score.

    objective() -> (wrong answers, differentiable loss) on the training images, with the B now
    written. First Adam on z, rounded in the forward pass while the gradient passes through as if it
    were not; then sweeps that move one symbol by one level and keep what helps. How the symbols are
    found costs no bits, they alone are what a code holds.
    """
    basis, edge = coded.basis, (levels - 1) / 2 + 0.49
    z = torch.zeros(basis.shape[1], device=basis.device, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: Any = None
    score: Score = (math.inf, math.inf)
    for _ in range(steps):
        symbols = quantise(z.detach().cpu(), levels, 1.0)
        coded.write(symbols, levels, scale)
        wrong, loss = objective()
        if (wrong, loss.item()) < score:
            best, score = symbols, (wrong, loss.item())
        loss.backward()
        z.grad = coded.pull_back(scale)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            z.clamp_(-edge, edge)
    for _ in range(sweeps):
        before = score
        best, score = _sweep(coded, best, score, levels, scale, objective)
        if score == before:
            break
    coded.write(best, levels, scale)
    return best, score


@torch.no_grad()
def _sweep(
    coded: CodedAdapters,
    best: np.ndarray,
    score: Score,
    levels: int,
    scale: float,
    objective: Callable[[], tuple[int, Tensor]],
) -> tuple[np.ndarray, Score]:
    for place in range(len(best)):
        for step in (-1, 1):
            trial = best.copy()
            trial[place] += step
            if not 0 <= trial[place] < levels:
                continue
            coded.write(trial, levels, scale)
            wrong, loss = objective()
            if (wrong, loss.item()) < score:
                best, score = trial, (wrong, loss.item())
    return best, score


def _fields(space: CodeSpace, code: AdapterCode) -> list[tuple[Sequence[Any], object]]:
    return [
        (space.placements, code.placement),
        (space.dimensions, code.dimension),
        (space.levels, code.levels),
        (space.scales, code.scale),
    ]


def _width(values: Sequence[Any]) -> int:
    """Bits that name one of these."""
    return (len(values) - 1).bit_length()


def _payload_bits(dimension: int, levels: int) -> int:
    """Bits of the largest number with k digits in base L, exactly."""
    return (levels**dimension - 1).bit_length()
