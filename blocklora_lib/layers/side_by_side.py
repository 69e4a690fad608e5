"""Updates of neighbours that one product with frozen weights computes together: q, k, v."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dropped import dropped_projection, sum_blocks
from .eager import is_traced, on_gpu, plain_eager, without_autocast
from .frozen import frozen_linear
from .stacked import each_run, runs_of

# of each neighbour a low-rank `Update` with factors, or such updates of several runs, or None
Updates = Sequence[Any]


def updated_product(x: Tensor, weight: Tensor, bias: Tensor | None, updates: Updates) -> Tensor:
    """Return [x (W_q + ΔW_q)ᵀ, x (W_k + ΔW_k)ᵀ, ..] + bias; None stands for no update.

    x: (..., E); weight: (m E, E), bias: (m E,) -> (..., m E).
    """
    present = [update for update in updates if update is not None]
    if not present:
        return frozen_linear(x, weight, bias)
    # dropout that is on for some of them, too: one is frozen by its eval(), for one
    if any(update.alone or _drops(update) != _drops(present[0]) for update in present):
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
    rows = x.reshape(-1, x.shape[-1])  # (T, E), T = N L tokens
    scale = next(update for update in updates if update is not None).scale
    factored = [_factored(part, run) for run, part in each_run(updates, rows)]
    hidden, up = factored[0]
    total = base.reshape(-1, base.shape[-1]).to(torch.promote_types(base.dtype, up.dtype))
    # in place: autograd needs the result of the frozen product nowhere
    in_place = plain_eager(total)
    if len(factored) == 1:
        add = total.addmm_ if in_place else total.addmm
        total = add(hidden.to(total.dtype), up.to(total.dtype), alpha=scale)
    else:  # of a stack, one product for all runs
        both = (torch.stack(list(t)).to(total.dtype) for t in zip(*factored, strict=True))
        total = total.unflatten(0, (len(factored), -1))
        add = total.baddbmm_ if in_place else total.baddbmm
        total = add(*both, alpha=scale)
    return total.view_as(base).to(base.dtype)


def _factored(rows: Tensor, updates: Updates) -> tuple[Tensor, Tensor]:
    """Return h = x [A_q A_k A_v], (T, m b), and the Σ B_i as a block diagonal, (m b, m E)."""
    present = [update for update in updates if update is not None]
    first = present[0]
    factors = {update: update.factors() for update in present}
    downs = [down for down, _ in factors.values()]
    rows = rows.to(downs[0].dtype)
    if _drops(first):
        hidden = dropped_projection(rows, torch.stack(downs), first.dropout, first.input_blocks)
        hidden = hidden.transpose(0, 1).flatten(1)
    else:
        hidden = F.linear(sum_blocks(rows, first.input_blocks), torch.cat(downs))  # (T, m b)
    if is_traced():  # ONNX knows no block_diag: zeros left and right, the same matrix
        spare, width = len(updates) - 1, first.d_out
        ups = ((i, factors[u][1].T) for i, u in enumerate(updates) if u is not None)
        padded = (F.pad(up, (i * width, (spare - i) * width)) for i, up in ups)
        return hidden, torch.cat(list(padded))
    nothing = hidden.new_empty(0, first.d_out)
    return hidden, torch.block_diag(
        *(nothing if update is None else factors[update][1].T for update in updates)
    )


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
    rows, runs = x.reshape(-1, x.shape[-1]), runs_of(updates)
    first = runs[0][0]
    factors = (_ahead[-1].factors(run) if _ahead else first.stacked(run) for run in runs)
    how = updates, first.scale, first.dropout, first.input_blocks
    product = _UpdatedProduct.apply(rows, weight, bias, how, *chain(*factors))
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
    """y = x Wᵀ + b, and s (x ∘ M_j) A_jᵀ B_jᵀ added to the j-th of its m parts; of each run's rows.

    x: (T, E), W: (m E', E), and of each run A: (m, b, E/n), B: (m, E', b). The masks and
    h_j = Σ_i (x ∘ M_j)_i A_jᵀ are kept; backward forms x ∘ M_j again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any, *factors: Tensor
    ) -> Tensor:
        updates, scale, p, n = how
        m, dtype, runs = len(updates), factors[0].dtype, len(factors) // 2
        total, rows = F.linear(x, weight, bias), x.to(dtype)
        drawn: list[Tensor] = []
        each = zip(each_run(updates, rows), total.chunk(runs), *_pairs(factors), strict=True)
        for (_, own), out, downs, ups in each:
            masked, kept = torch.native_dropout(own.expand(m, *own.shape), p, True)
            hidden = torch.bmm(sum_blocks(masked, n), downs.mT)
            if total.dtype == dtype:
                _parts(out, m).baddbmm_(hidden, ups.mT, alpha=scale)
            else:  # summed in the adapters' precision, and rounded once
                _parts(out, m).add_(_scaled_product(hidden, ups.mT, scale))
            drawn += [kept, hidden]
        ctx.save_for_backward(rows, weight, *factors, *drawn)
        ctx.how = m, runs, scale, 1 / (1 - p), n, x.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *saved = ctx.saved_tensors
        m, runs, scale, spread, n, dtype = ctx.how
        given = rows.chunk(runs), grad.to(rows.dtype).chunk(runs)
        each = zip(*given, *_pairs(saved[: 2 * runs]), *_pairs(saved[2 * runs :]), strict=True)
        grads_x: list[Tensor] = []
        grads: list[Tensor] = []
        for own, out, downs, ups, kept, hidden in each:
            parts = _parts(out, m)
            grad_ups = _scaled_product(parts.mT, hidden, scale)
            below = _scaled_product(parts, ups, scale)
            masked = torch.ops.aten.native_dropout_backward(own.expand(kept.shape), kept, spread)
            grads += [torch.bmm(below.mT, sum_blocks(masked, n)), grad_ups]
            if ctx.needs_input_grad[0]:
                spreads = torch.bmm(below, downs)
                spreads = spreads.repeat(1, 1, n) if n > 1 else spreads
                masked = torch.ops.aten.native_dropout_backward(spreads, kept, spread)
                grads_x.append(masked.sum(0).to(dtype))
        grad_x = None
        if grads_x:
            grad_x = (torch.cat(grads_x) if runs > 1 else grads_x[0]).addmm_(grad, weight)
        return grad_x, None, None, None, *grads


def _pairs(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Of each run the first, and of each run the second."""
    return tensors[::2], tensors[1::2]


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """s a b of matrices side by side, in one kernel."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def _parts(product: Tensor, m: int) -> Tensor:
    """(T, m E) as m parts (m, T, E)."""
    return product.unflatten(-1, (m, -1)).transpose(0, 1)
