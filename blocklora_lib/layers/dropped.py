"""Dropout on the input of adapters, with cheap random numbers and one byte of memory a number.

CLIP-LoRA draws one mask for each of q, k, v in every layer. Drawn by `F.dropout`, the three masks
take longer on a CPU than the frozen qkv product beside them, and autograd keeps x ∘ M as floats for
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .eager import plain_eager


def dropped_projection(x: Tensor, downs: Tensor, p: float, input_blocks: int = 1) -> Tensor:
    """Return the one product of `dropped_projections`."""
    return dropped_projections(x, (downs,), p, input_blocks)[0]


def dropped_projections(
    x: Tensor, groups: Sequence[Tensor], p: float, input_blocks: int = 1
) -> list[Tensor]:
    """Return dropout_j(x) A_j for m adapters, each with a mask of its own, for each group of A.

    x: (T, d_in), a group: (m, b, d_in/n) -> (m, T, b); all groups have the same masks. With n =
    input_blocks > 1 the masked x = [x_1 .. x_n] is summed over its blocks first. p is rounded to a
    multiple of 1/256, or 1/65536 where that is not exact; the scale 1/(1 - p) uses the rounded p,
    so the expectation stays exact. The draw uses torch's global generator, which training seeds.
    Where `plain_eager` says no, the masks are `F.dropout`'s.
    """
    if not plain_eager(x):
        masked = sum_blocks(F.dropout(x.expand(len(groups[0]), *x.shape), p), input_blocks)
        return [torch.bmm(masked, downs.mT) for downs in groups]
    noise, threshold, p = draw_noise((len(groups[0]), *x.shape), p, x.device)
    return [
        DroppedProjection.apply(x, downs, noise, threshold, input_blocks) / (1 - p)
        for downs in groups
    ]


def draw_noise(shape: tuple[int, ...], p: float, device: torch.device) -> tuple[Tensor, int, float]:
    """Return integers of 8 or 16 bits, the threshold below which a number drops, and p as rounded.

    One draw of 64 bits serves 8 (or 4) numbers: a Bernoulli draw for each costs 15 times as much on
    a CPU.
    """
    dtype, levels = (torch.int8, 2**8) if (p * 2**8).is_integer() else (torch.int16, 2**16)
    count = torch.Size(shape).numel()
    words = -(-count * dtype.itemsize // 8)
    noise = torch.empty(words, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = min(round(p * levels), levels - 1)
    return noise.view(dtype)[:count].view(shape), dropped - levels // 2, dropped / levels


class DroppedProjection(torch.autograd.Function):
    """h_j = Σ_i (x ∘ M_j)_i A_j over the n input blocks; backward forms x ∘ M_j again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, downs: Tensor, noise: Tensor, threshold: int, n: int
    ) -> Tensor:
        ctx.save_for_backward(x, downs, noise)
        ctx.threshold, ctx.n = threshold, n
        masked = mask(noise, threshold, out=x.new_empty(noise.shape)).mul_(x)
        return torch.bmm(sum_blocks(masked, n), downs.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, downs, noise = ctx.saved_tensors
        in_place = plain_eager(grad) and not torch.is_grad_enabled()
        buffer = x.new_empty(noise.shape) if in_place else None  # one for both products
        times = Tensor.mul_ if in_place else torch.mul
        grad_x = grad_downs = None
        if ctx.needs_input_grad[1]:  # dA_j = Σ_i (x ∘ M_j)_iᵀ dh_j
            masks = mask(noise, ctx.threshold, out=buffer)
            grad_downs = torch.bmm(grad.mT, sum_blocks(times(masks, x), ctx.n))
        if ctx.needs_input_grad[0]:  # dx = Σ_j M_j ∘ [dh_j A_jᵀ, .., dh_j A_jᵀ]
            masks = mask(noise, ctx.threshold, out=buffer).unflatten(-1, (ctx.n, -1))
            # m times as large as x, and let go of before the sum: the largest moment of a step
            masked = times(masks, torch.bmm(grad, downs).unsqueeze(-2))
            grad_x = masked.sum(0).view(x.shape)
        return grad_x, grad_downs, None, None, None


def mask(noise: Tensor, threshold: int, out: Tensor | None = None) -> Tensor:
    """Return True where a number is kept; comparing into the floats of `out` is the fast way."""
    return torch.ge(noise, threshold, out=out)


def sum_blocks(x: Tensor, n: int) -> Tensor:
    """Return Σ x_i of x = [x_1 .. x_n] along the last dimension."""
    return x if n == 1 else x.unflatten(-1, (n, -1)).sum(-2)
