"""What every adapter is: a low-rank update of a frozen projection, and the start of its A."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.schema import AdapterError
from ..layers.dropped import dropped_projection, sum_blocks
from ..layers.eager import without_autocast
from ..layers.update import Update
from .config import AdapterConfig


class Adapter(Update):
    """A low-rank update x ↦ x ΔWᵀ, without the frozen product x Wᵀ. x: (..., d_in) -> (..., d_out).

    A subclass says what it stores, `factors` (what the fast path multiplies) and `delta_weight`
    (the definition). Parameters are float32 whatever the backbone's dtype; `.double()` moves them,
    and the arithmetic, to float64.
    """

    # learning rate of B over that of A; only the collapsed form differs, see there
    up_lr_ratio: int = 1
    input_blocks: int = 1  # n where the cut runs along the input
    alone: bool = False  # whether attention computes it apart from its neighbours among q, k, v
    B: nn.Parameter  # (d_out, width), or (n, d_out, width)
    # neither is to be set: a file keeps the config's, and neighbours are computed as one
    scale = property(lambda self: self._scale)
    dropout = property(lambda self: self._dropout)

    def __init__(self, config: AdapterConfig, d_in: int, d_out: int):
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self._scale, self._dropout = config.scale, config.dropout

    def share(self, held: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
        """Hold what adapters of one shape have in common once; most have nothing."""

    def begin(self, weight: Tensor) -> None:
        """Start what depends on the frozen W, (d_out, d_in), when attached; files hold it."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (width, d_in or d_in/n) and Σ B_i (d_out, width), added before any product."""
        raise NotImplementedError

    @staticmethod
    def stacked(adapters: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return the factors of m adapters of one kind and shape as (m, ..) each."""
        downs, ups = zip(*(adapter.factors() for adapter in adapters), strict=True)
        return torch.stack(downs), torch.stack(ups)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), scale included, by its definition."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return x ΔWᵀ. x: (..., d_in) -> (..., d_out), in x's dtype."""
        return self.update(x).to(x.dtype)

    def update(self, x: Tensor) -> Tensor:
        """Return x ΔWᵀ = s · (x A_s)(Σ B_i), in the adapter's dtype; dropout falls on x."""
        return without_autocast(self._update, x)

    def _update(self, x: Tensor) -> Tensor:
        down, up = self.factors()
        x, drops = x.to(down.dtype), self.training and self.dropout > 0
        if x.is_nested and (drops or (self.input_blocks > 1 and x.layout is torch.strided)):
            raise AdapterError(
                "an adapter with dropout in training, or with reading='input', takes no such "
                "nested tensor; use dropout=0 and another reading, or a padded tensor"
            )
        if drops:
            rows = x.reshape(-1, self.d_in)
            hidden = dropped_projection(rows, down[None], self.dropout, self.input_blocks)
            hidden = hidden.view(*x.shape[:-1], len(down))
        else:
            hidden = nn.functional.linear(sum_blocks(x, self.input_blocks), down)
        return nn.functional.linear(hidden * self.scale, up)

    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def extra_repr(self) -> str:
        how = f"scale={self.scale:.4g}, dropout={self.dropout:g}"
        return f"d_in={self.d_in}, d_out={self.d_out}, {how}"

    @torch.inference_mode(False)  # what is moved there trains afterwards, too
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        # model.half() and model.to(bfloat16) move the backbone; adapters follow the device and stay
        # in float32
        def keep_precision(t: Tensor) -> Tensor:
            moved = fn(t)
            if t.is_meta and not moved.is_meta:  # by to_empty: no numbers until loaded
                nn.init.constant_(moved, math.nan)
            return t.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_precision, recurse)


def draw_a(
    config: AdapterConfig, rows: int, columns: int, fan_in: int, generator: torch.Generator | None
) -> Tensor:
    """Draw the start of A: (rows, columns) in float32, on the generator's device, or the CPU."""
    a = torch.empty(
        rows, columns, dtype=torch.float32, device=generator.device if generator else "cpu"
    )
    if config.init == "normal":
        return a.normal_(0.0, config.init_scale / math.sqrt(fan_in), generator=generator)
    # nn.init.kaiming_uniform_(a=sqrt 5) written out, the same bits: there fan_in is read off the
    # shape, which the reading "input" would turn into d_in/n
    gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    bound = config.init_scale * math.sqrt(3.0) * (gain / math.sqrt(fan_in))
    return a.uniform_(-bound, bound, generator=generator)
