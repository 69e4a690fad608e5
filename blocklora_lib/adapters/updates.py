"""LoRA, Block-LoRA and their kin: the mathematics of the low-rank update ΔW, in pure torch.

Notation, the paper's: a frozen projection maps x (..., d_in) to x Wᵀ (..., d_out), W as `nn.Linear`
stores it. The update is

    x ΔWᵀ = s · x A B              A: d_in x r  (down),   B: r x d_out  (up)

and Block-LoRA cuts A and B into n blocks and shares one down-projection block A_s among all of
them:

    x ΔWᵀ = s Σ_i x A_s B_i = s · (x A_s) (Σ_i B_i)

Training sums the B_i first (one addition) and then does one product; inference folds ΔW into W
(`attach.py`). Tensors are stored the way `nn.Linear` stores weights, (out, in): `A_s` is (width of
A_s, its input), `B` is (n, d_out, width of A_s). Public text on the paper does not settle what (r,
n) means, so the three readings exist side by side, see `AdapterConfig.reading`. At n = 1 every
reading is LoRA of rank r, bit for bit from the same generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.schema import AdapterError
from .adapter import Adapter, draw_a
from .config import AdapterConfig
from .relatives.dora import DoRA
from .relatives.pissa import PiSSA
from .relatives.vera import VeRA


class LoRA(Adapter):
    """ΔWᵀ = s A B. A: d_in x r, B: r x d_out. Hu et al. 2021, with CLIP-LoRA's initialisation."""

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        self.A = nn.Parameter(draw_a(config, config.block_rank, d_in, d_in, generator))
        self.B = nn.Parameter(self.A.new_zeros(d_out, config.block_rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A)


class CollapsedBlockLoRA(LoRA):
    """ΔWᵀ = s A_s B with B = Σ B_i: LoRA of the width of A_s, with Block-LoRA's scale.

    The B_i of Block-LoRA all receive the same gradient, so from equal starts they stay equal. One B
    whose learning rate is n times as large, and whose weight decay is divided by n, takes the same
    steps under SGD and Adam(W).
    """

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out, generator)
        self.up_lr_ratio = config.n_blocks


class BlockLoRA(Adapter):
    """ΔWᵀ = s Σ_i A_s B_i = s A_s Σ_i B_i. A_s: d_in x b shared, B_i: b x d_out, i = 1..n.

    Reading "total_rank": b = r/n, parameters d_in r/n + r d_out. Reading "block_rank": b = r, d_in
    r + n r d_out.
    """

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        self.A_s = nn.Parameter(draw_a(config, config.block_rank, d_in, d_in, generator))
        self.B = nn.Parameter(self.A_s.new_zeros(config.n_blocks, d_out, config.block_rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A_s, self.B.sum(0)

    @staticmethod
    def stacked(adapters: Sequence[Any]) -> tuple[Tensor, Tensor]:
        blocks = torch.stack([adapter.B for adapter in adapters])
        if blocks.requires_grad:  # one gradient for all blocks: written out once, not for each B
            blocks.register_hook(Tensor.contiguous)
        return torch.stack([adapter.A_s for adapter in adapters]), blocks.sum(1)

    def delta_weight(self) -> Tensor:
        return self.scale * torch.einsum("nob,bi->oi", self.B, self.A_s)


class InputBlockLoRA(Adapter):
    """ΔWᵀ = s [A_s; ..; A_s] B, so x A B = (Σ_i x_i) A_s B. x = [x_1 .. x_n]; A_s: (d_in/n) x r.

    The cut runs along the input: n products x_i A_s become one addition and one product, the d_in
    term of the parameters is divided by n, d_in r/n + r d_out, and the update keeps rank r.
    """

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        self.input_blocks = config.n_blocks
        if d_in % self.input_blocks:
            fits = ", ".join(str(n) for n in range(1, 17) if d_in % n == 0)
            raise AdapterError(
                f"d_in={d_in} cannot be cut into n_blocks={self.input_blocks} equal inputs; "
                f"use n_blocks in ({fits}, ..), "
                "or reading='total_rank' or 'block_rank', which cut along the rank"
            )
        # fan-in stays d_in: A has d_in rows, and n times as many inputs reach each row of A_s
        self.A_s = nn.Parameter(
            draw_a(config, config.rank, d_in // self.input_blocks, d_in, generator)
        )
        self.B = nn.Parameter(self.A_s.new_zeros(d_out, config.rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A_s, self.B

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ torch.cat([self.A_s] * self.input_blocks, dim=1))


class FrozenABlockLoRA(BlockLoRA):
    """The ablation 'w/o A': A_s stays at its random start, only the B_i train."""

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out, generator)
        freeze_a(self)


class FrozenAInputBlockLoRA(InputBlockLoRA):
    """'w/o A' under the reading that cuts along the input."""

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out, generator)
        freeze_a(self)


def freeze_a(adapter: BlockLoRA | InputBlockLoRA) -> None:
    """Make A_s a buffer: saved and moved with the adapter, never trained."""
    start = adapter.A_s.detach()
    del adapter.A_s
    adapter.register_buffer("A_s", start)


def make_adapter(
    config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
) -> Adapter:
    """Build the adapter of a projection d_in -> d_out. No generator: torch's global one."""
    refuse_size(config, d_in, d_out)
    along_input = config.reading == "input"
    classes: dict[str, Callable[..., Adapter]] = {
        "lora": LoRA,
        "block_lora": InputBlockLoRA if along_input else BlockLoRA,
        "frozen_a": FrozenAInputBlockLoRA if along_input else FrozenABlockLoRA,
        "collapsed": CollapsedBlockLoRA,
        "dora": DoRA,
        "pissa": PiSSA,
        "vera": VeRA,
    }
    return classes[config.kind](config, d_in, d_out, generator)


def refuse_size(config: AdapterConfig, d_in: int, d_out: int) -> None:
    """Refuse an adapter several times as large as its weight, before memory is asked for."""
    width, copies = config.block_rank, config.n_blocks if config.reading == "block_rank" else 1
    numbers, most = width * (d_in + copies * d_out), max(4 * d_in * d_out, 2**20)
    if numbers > most:
        raise AdapterError(
            f"rank={config.rank}, n_blocks={config.n_blocks} would be an adapter of "
            f"{numbers:,} numbers for a weight of {d_out} x {d_in} = {d_in * d_out:,}; "
            "use a smaller rank or fewer blocks"
        )
