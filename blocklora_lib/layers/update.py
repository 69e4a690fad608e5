"""What falls on a frozen weight: any update ΔW that has a fast path; adapters say which."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Update(nn.Module):
    """An update ΔW of a frozen weight W: (d_out, d_in). Subclasses say what it is made of."""

    dropout: float  # of the input x, while training

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), its definition."""

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """Return x ΔWᵀ, by the fast path, dropout included. x: (..., d_in) -> (..., d_out)."""

    def delta_on(self, weight: Tensor) -> Tensor:
        """Return ΔW on this W; most updates are the same on each."""
        return self.delta_weight()

    def update_on(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return x ΔWᵀ on this W, as `update`."""
        return self.update(x)
