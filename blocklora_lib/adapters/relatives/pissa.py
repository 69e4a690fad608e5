"""PiSSA: A and B start as the principal part of the weight, and the rest of it is frozen.

    W = U S Vᵀ,  A₀ = √(S_r/s) V_rᵀ,  B₀ = U_r √(S_r/s);   W' = (W - s B₀ A₀) + s B A

A: (r, d_in), B: (d_out, r), trained from A₀ and B₀ of the r largest singular values; r (d_in +
d_out) numbers. Here W itself stays as it is, and the update is the difference to the start:

    ΔW = s (B A - B₀ A₀),   x ΔWᵀ = s dropout(x) A B - s x A₀ B₀

So `unmerge` gives W's own bits, the first step starts from exactly W, and a file, which holds A, B,
A₀ and B₀, needs W alone to be loaded on, not a residual made beforehand.

Source: Meng et al. 2024, arXiv 2404.02948 (NeurIPS); huggingface/peft 0.21.2 tuners/lora/layer.py.

| | paper and code | here |
|---|---|---|
| frozen | the residual W - s B₀ A₀, written over W | W, and A₀ and B₀ beside it |
| files | A and B, for that residual; or a LoRA of rank 2 r made of them | A, B, A₀, B₀ |
| SVD | exact, or by a few random iterations | exact, float32 |
| dropout | on the trained part's input; 0 in the paper | on the trained part's input |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.schema import AdapterError
from ..adapter import Adapter
from ..config import AdapterConfig


class PiSSA(Adapter):
    """ΔW = s (B A - B₀ A₀)."""

    alone = True
    A_0: Tensor
    B_0: Tensor

    def __init__(
        self, config: AdapterConfig, d_in: int, d_out: int, generator: torch.Generator | None = None
    ):
        super().__init__(config, d_in, d_out)
        if config.rank > min(d_in, d_out):
            raise AdapterError(
                f"kind='pissa' with rank={config.rank}: a weight of {d_out} x {d_in} has "
                f"{min(d_in, d_out)} singular values; use a rank of at most as many"
            )
        nothing = torch.zeros(0, dtype=torch.float32, device="cpu")
        self.A = nn.Parameter(nothing.new_zeros(config.rank, d_in))
        self.B = nn.Parameter(nothing.new_zeros(d_out, config.rank))
        self.register_buffer("A_0", self.A.detach().clone())
        self.register_buffer("B_0", self.B.detach().clone())

    def begin(self, weight: Tensor) -> None:
        if not weight.isfinite().all():
            raise AdapterError(
                "kind='pissa' starts from the singular values of W, which is not finite; "
                "repair the weights"
            )
        u, s, vh = torch.linalg.svd(weight.to(self.A.dtype), full_matrices=False)
        r = len(self.A)
        root = (s[:r] / self.scale).sqrt()
        self.A_0.copy_(root[:, None] * vh[:r])
        self.B_0.copy_(u[:, :r] * root)
        self.A.copy_(self.A_0)
        self.B.copy_(self.B_0)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A - self.B_0 @ self.A_0)

    def _update(self, x: Tensor) -> Tensor:
        start = F.linear(F.linear(x.to(self.A_0.dtype), self.A_0) * self.scale, self.B_0)
        return super()._update(x) - start
