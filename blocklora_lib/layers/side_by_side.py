"""Updates of neighbours that one product with frozen weights computes together: q, k, v."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dropped import dropped_projection, sum_blocks
from .eager import on_gpu, plain_eager, without_autocast
from .frozen import frozen_linear

Updates = Sequence[Any]  # of each neighbour a low-rank `Update` with factors, or None


def updated_product(x: Tensor, weight: Tensor, bias: Tensor | None, updates: Updates) -> Tensor:
    """Return [x (W_q + ΔW_q)ᵀ, x (W_k + ΔW_k)ᵀ, ..] + bias; None stands for no update.

    x: (..., E); weight: (m E, E), bias: (m E,) -> (..., m E).
    """
    present = [update for update in updates if update is not None]
    if not present:
        return frozen_linear(x, weight, bias)
    if any(update.alone for update in present):
        return add_each(frozen_linear(x, weight, bias), x, updates, weight)
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    if on_gpu(x) and frozen and len(present) == len(updates) and _drops(present[0]):
        return without_autocast(lambda x: _in_few_kernels(x, weight, bias, present), x)
    return add_updates(frozen_linear(x, weight, bias), x, updates)


def add_updates(base: Tensor, x: Tensor, updates: Updates) -> Tensor:
    """Return base + [x ΔW_qᵀ, x ΔW_kᵀ, x ΔW_vᵀ]; None stands for no update.

    base: (..., m E) for m updates or None, x: (..., E).

    The updates, of one kind, are two products: their A side by side, h = x [A_q A_k A_v], then
    their Σ B_i as a block diagonal. While dropout is on, each of them sees x through a mask of its
    own.
    """
    return without_autocast(lambda x: _add_updates(base, x, updates), x)


def _add_updates(base: Tensor, x: Tensor, updates: Updates) -> Tensor:
    present = [update for update in updates if update is not None]
    first = present[0]
    factors = {update: update.factors() for update in present}
    downs = [down for down, _ in factors.values()]
    rows = x.reshape(-1, x.shape[-1]).to(downs[0].dtype)  # (T, E), T = N L tokens
    if _drops(first):
        hidden = dropped_projection(rows, torch.stack(downs), first.dropout, first.input_blocks)
        hidden = hidden.transpose(0, 1).flatten(1)
    else:
        hidden = F.linear(sum_blocks(rows, first.input_blocks), torch.cat(downs))  # (T, m b)
    nothing = hidden.new_empty(0, first.d_out)
    up = torch.block_diag(
        *(nothing if update is None else factors[update][1].T for update in updates)
    )
    total = base.reshape(-1, base.shape[-1]).to(torch.promote_types(base.dtype, up.dtype))
    # in place: autograd needs the result of the frozen product nowhere
    add = total.addmm_ if plain_eager(total) else total.addmm
    total = add(hidden.to(total.dtype), up.to(total.dtype), alpha=first.scale)
    return total.view_as(base).to(base.dtype)


def add_each(base: Tensor, x: Tensor, updates: Updates, weight: Tensor) -> Tensor:
    """The same for updates that are computed one by one, on their rows of W. weight: (m E, E)."""
    m = len(updates)
    parts = zip(base.chunk(m, -1), weight.chunk(m), updates, strict=True)
    added = (b if a is None else (b + a.update_on(w, x)).to(b.dtype) for b, w, a in parts)
    return torch.cat(list(added), -1)


def _drops(update: Any) -> bool:
    return update.training and update.dropout > 0


def _in_few_kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, updates: Sequence[Any]
) -> Tensor:
    """On a GPU a step waits for Python, which asks for kernel after kernel: here for few.

    The masks are torch's own, of p as it is.
    """
    first, rows = updates[0], x.reshape(-1, x.shape[-1])
    downs, ups = _ahead[-1].factors(updates) if _ahead else first.stacked(updates)
    how = first.scale, first.dropout, first.input_blocks
    product = _UpdatedProduct.apply(rows, weight, bias, downs, ups, *how)
    return product.view(*x.shape[:-1], len(weight))


class FactorsAhead:
    """Within it, the factors of all updates are stacked at once: for each shape, not each product.

    Which stand side by side is seen in the first step.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[int, ...], Sequence[Any]] = {}
        self._made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def factors(self, updates: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """A (m, b, d_in or d_in/n) and Σ B_i (m, d_out, b) of m updates."""
        which = tuple(map(id, updates))
        if which not in self._made:
            self._asked[which] = updates
            return updates[0].stacked(updates)
        return self._made[which]

    def __enter__(self) -> None:
        shapes: dict[Any, list[Sequence[Any]]] = {}
        for updates in self._asked.values():
            first = updates[0]
            shapes.setdefault((type(first), first.d_in, first.d_out), []).append(updates)
        for groups in shapes.values():
            factors = groups[0][0].stacked([update for updates in groups for update in updates])
            parts = zip(
                *(f.split([len(updates) for updates in groups]) for f in factors), strict=True
            )
            for updates, part in zip(groups, parts, strict=True):
                self._made[tuple(map(id, updates))] = part
        _ahead.append(self)

    def __exit__(self, *error: object) -> None:
        _ahead.remove(self)
        self._made = {}


_ahead: list[FactorsAhead] = []  # the one within which updates are computed, if any


class _UpdatedProduct(torch.autograd.Function):
    """y = x Wᵀ + b, and s (x ∘ M_j) A_jᵀ B_jᵀ added to the j-th of its m parts.

    x: (T, E), W: (m E', E), A: (m, b, E/n), B: (m, E', b). The masks and h_j = Σ_i (x ∘ M_j)_i A_jᵀ
    are kept; backward forms x ∘ M_j again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        downs: Tensor,
        ups: Tensor,
        scale: float,
        p: float,
        n: int,
    ) -> Tensor:
        rows, m = x.to(downs.dtype), len(downs)
        masked, kept = torch.native_dropout(rows.expand(m, *rows.shape), p, True)
        hidden = torch.bmm(sum_blocks(masked, n), downs.mT)
        total = F.linear(x, weight, bias)
        if total.dtype == downs.dtype:
            _parts(total, m).baddbmm_(hidden, ups.mT, alpha=scale)
        else:  # summed in the adapters' precision, and rounded once
            _parts(total, m).add_(_scaled_product(hidden, ups.mT, scale))
        ctx.save_for_backward(rows, weight, downs, ups, kept, hidden)
        ctx.how = scale, 1 / (1 - p), n, x.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, downs, ups, kept, hidden = ctx.saved_tensors
        scale, spread, n, dtype = ctx.how
        parts = _parts(grad.to(downs.dtype), len(downs))
        grad_ups = _scaled_product(parts.mT, hidden, scale)
        below = _scaled_product(parts, ups, scale)
        masked = torch.ops.aten.native_dropout_backward(rows.expand(kept.shape), kept, spread)
        grad_downs = torch.bmm(below.mT, sum_blocks(masked, n))
        grad_x = None
        if ctx.needs_input_grad[0]:
            spreads = torch.bmm(below, downs).repeat(1, 1, n) if n > 1 else torch.bmm(below, downs)
            masked = torch.ops.aten.native_dropout_backward(spreads, kept, spread)
            grad_x = masked.sum(0).to(dtype).addmm_(grad, weight)
        return grad_x, None, None, grad_downs, grad_ups, None, None, None


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """s a b of matrices side by side, in one kernel."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def _parts(product: Tensor, m: int) -> Tensor:
    """(T, m E) as m parts (m, T, E)."""
    return product.unflatten(-1, (m, -1)).transpose(0, 1)
