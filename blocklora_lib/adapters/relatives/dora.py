"""DoRA: the length of each row of the weight is trained apart from its direction.

    W' = m V / ‖V‖,   V = W + s B A;   ΔW = W' - W = (g - 1) W + g s B A,   g = m / ‖V‖

W: (d_out, d_in), frozen; A: (r, d_in), B: (d_out, r), as LoRA's; m: (d_out,), trained from ‖W‖; the
norm is taken of each row. r (d_in + d_out) + d_out numbers. Of q, k and v that lie in one tensor,
each has its own: a row belongs to one of them.

Source: Liu et al. 2024, arXiv 2402.09353 (ICML); huggingface/peft 0.21.2 tuners/lora/dora.py.

| | paper and code | here |
|---|---|---|
| gradient of ‖V‖ | none: a constant in the backward pass (section 4.3) | the same |
| dropout | on the x that ΔW, of W too, is multiplied by: x Wᵀ + dropout(x) ΔWᵀ | the same |
| fused q, k, v | peft refuses | each by itself |
| start of A | kaiming-uniform | LoRA's, by the same generator |
| weight decay | that of the optimizer, of m too | the same |

A row of W without length has no direction: refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.schema import AdapterError
from ...layers.dropped import dropped_projections
from ...layers.eager import without_autocast
from ...layers.frozen import frozen_linear
from ..adapter import Adapter, draw_a
from ..config import AdapterConfig


class DoRA(Adapter):
    """ΔW = (g - 1) W + g s B A: it depends on W, so ask `delta_on` and `update_on`."""

    alone = True

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        self.A = nn.Parameter(draw_a(config, config.rank, d_in, d_in, generator))
        self.B = nn.Parameter(self.A.new_zeros(d_out, config.rank))
        self.magnitude = nn.Parameter(self.A.new_ones(d_out))

    def begin(self, weight: Tensor) -> None:
        norm = self.norm(weight.to(self.B.dtype))
        if not ((norm > 0) & norm.isfinite()).all():
            row = int(((norm > 0) & norm.isfinite()).int().argmin())
            raise AdapterError(
                f"kind='dora' divides by the length of each row of W, and that of row {row} is "
                f"{float(norm[row]):g}; use kind='lora', or repair the weights"
            )
        self.magnitude.copy_(norm)

    def norm(self, weight: Tensor) -> Tensor:
        """‖V‖ of each row, without a gradient: (d_out,)."""
        delta = self.scale * (self.B.detach() @ self.A.detach())
        return torch.linalg.vector_norm(weight.detach() + delta, dim=1)

    def delta_on(self, weight: Tensor) -> Tensor:
        w = weight.to(self.B.dtype)
        g = (self.magnitude / self.norm(w))[:, None]
        return (g - 1) * w + g * (self.scale * (self.B @ self.A))

    def update_on(self, weight: Tensor, x: Tensor) -> Tensor:
        if x.is_nested:
            raise AdapterError("kind='dora' takes no nested tensor; use a padded one")
        return without_autocast(lambda x: self._on(weight.to(self.B.dtype), x), x)

    def _on(self, weight: Tensor, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.d_in).to(weight.dtype)
        if self.training and self.dropout > 0:  # one mask for both products
            both = dropped_projections(rows, (self.A[None], weight[None]), self.dropout)
            hidden, base = (product[0] for product in both)
        else:
            hidden, base = F.linear(rows, self.A), frozen_linear(rows, weight)
        g = self.magnitude / self.norm(weight)
        total = (g - 1) * base + g * F.linear(hidden * self.scale, self.B)
        return total.view(*x.shape[:-1], self.d_out)

    def delta_weight(self) -> Tensor:
        raise AdapterError("ΔW of kind='dora' depends on W; ask delta_on(weight)")

    def update(self, x: Tensor) -> Tensor:
        raise AdapterError("ΔW of kind='dora' depends on W; ask update_on(weight, x)")
