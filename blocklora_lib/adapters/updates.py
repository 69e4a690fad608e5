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

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.schema import AdapterError
from ..layers.eager import without_autocast
from ..layers.update import Update
from .config import AdapterConfig
from .dropout import dropped_projection, sum_blocks


class Adapter(Update):
    """A low-rank update x ↦ x ΔWᵀ, without the frozen product x Wᵀ. x: (..., d_in) -> (..., d_out).

    A subclass says what it stores, `factors` (what the fast path multiplies) and `delta_weight`
    (the definition). Parameters are float32 whatever the backbone's dtype; `.double()` moves them,
    and the arithmetic, to float64.
    """

    # learning rate of B over that of A; only the collapsed form differs, see there
    up_lr_ratio: int = 1
    input_blocks: int = 1  # n where the cut runs along the input
    B: nn.Parameter  # (d_out, width), or (n, d_out, width)

    def __init__(self, config: AdapterConfig, d_in: int, d_out: int):
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.scale, self.dropout = config.scale, config.dropout

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (width, d_in or d_in/n) and Σ B_i (d_out, width), added before any product."""
        raise NotImplementedError

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
        x = x.to(down.dtype)
        if self.training and self.dropout > 0:
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
        return (
            f"d_in={self.d_in}, d_out={self.d_out}, "
            f"scale={self.scale:.4g}, dropout={self.dropout:g}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        # model.half() and model.to(bfloat16) move the backbone; adapters follow the device and stay
        # in float32
        def keep_precision(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_precision, recurse)


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
