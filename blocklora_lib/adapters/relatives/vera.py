"""VeRA: random matrices of all layers stay fixed, and two vectors of each layer are trained.

    ΔW = diag(b) B diag(d) A

A: (r, d_in), B: (d_out, r), frozen, of one draw for all layers of a shape; d: (r,), trained from
0.1; b: (d_out,), trained from 0. r + d_out numbers, so that r may be large. There is no scale s.

Source: Kopiczko et al. 2024, arXiv 2310.11454 (ICLR); huggingface/peft 0.21.2 tuners/vera.

| | paper and code | here |
|---|---|---|
| A, B | one draw of the largest shape; smaller layers take a part of it | one draw of each shape |
| draw | kaiming-uniform, from a fixed seed (0) or saved | the same, always from seed 0: a file \
holds b and d |
| rate | larger than LoRA's, for b and d alike | the schedule's |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter
from ..config import AdapterConfig


def fixed(rank: int, d_in: int, d_out: int) -> Iterator[tuple[str, Tensor]]:
    """Yield A and B by name, in float32 on the CPU: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
        bound = math.sqrt(6 / shape[1])  # kaiming-uniform, gain √2
        drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
        yield name, drawn.uniform_(-bound, bound, generator=generator)


class VeRA(Adapter):
    """ΔW = diag(b) B diag(d) A: two thin products, as LoRA's, with b and d multiplied in."""

    A: Tensor
    B: Any  # a buffer here

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        for name, drawn in fixed(config.rank, d_in, d_out):
            self.register_buffer(name, drawn, persistent=False)
        self.d = nn.Parameter(self.A.new_full((config.rank,), 0.1))
        self.b = nn.Parameter(self.A.new_zeros(d_out))

    def share(self, held: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
        self.A, self.B = held.setdefault((self.d_in, self.d_out), (self.A, self.B))

    @torch.inference_mode(False)
    def draw(self) -> None:
        """Draw A and B again, where d lies and in its format: no state holds them."""
        for name, drawn in fixed(len(self.d), self.d_in, self.d_out):
            setattr(self, name, drawn.to(self.d.device, self.d.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VeRA:
        empty = self.A.is_meta
        super()._apply(fn, recurse)
        if empty and not self.A.is_meta:  # by to_empty
            self.draw()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.A.is_meta and not self.d.is_meta:  # assign=True
            self.draw()

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.d[:, None] * self.A, self.b[:, None] * self.B

    def delta_weight(self) -> Tensor:
        return self.b[:, None] * (self.B @ (self.d[:, None] * self.A))
