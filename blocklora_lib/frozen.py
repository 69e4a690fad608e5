"""Products with frozen weights: the bulk of a step, so the place where the fastest kernel pays.

On a CPU, float32 products go to oneDNN by the operator that torch's own compiler uses for them: on processors
for which MKL, the library behind `F.linear`, leaves AVX-512 unused, that is twice as fast.  On other devices
and in other number formats the product is `F.linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b.  x: (..., d_in), weight: (d_out, d_in) -> (..., d_out).

    Weights that do want a gradient get it, by `F.linear`.
    """
    if not _all_frozen(weight, bias):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    product = _FrozenLinear.apply(rows, weight, bias) if _wants_grad(x) else _product(rows, weight, bias)
    return product.view(*x.shape[:-1], len(weight))


def frozen_mlp(mlp: nn.Sequential, x: Tensor, quick: bool = False) -> Tensor:
    """Return a transformer's MLP of x, c_proj(GELU(c_fc(x))).  x: (T, E) -> (T, E).

    quick: its GELU is OpenAI's stand-in x σ(1.702 x).
    Frozen, it keeps the GELU's input alone, which is all that its backward needs.
    """
    up, gelu, down = mlp
    plain = type(up) is type(down) is nn.Linear and _all_frozen(up.weight, up.bias, down.weight, down.bias)
    if not plain or not (quick or (type(gelu) is nn.GELU and gelu.approximate == "none")):
        return mlp(x)
    parts = x, up.weight, up.bias, down.weight, down.bias, quick
    if _wants_grad(x):
        return _FrozenMLP.apply(*parts)
    hidden = _gelu(_gelu_input(*parts[:3], quick), quick, inplace=True)
    return _product(hidden, down.weight, down.bias)


class _FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ + b;  ∂L/∂x = g W."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grad, weight.t()), None, None


class _FrozenMLP(torch.autograd.Function):
    """u = x Uᵀ + b, y = gelu(u) Vᵀ + c;  ∂L/∂x = (g V ∘ gelu'(u)) U."""

    @staticmethod
    def forward(ctx, x: Tensor, up: Tensor, b: Tensor, down: Tensor, c: Tensor, quick: bool) -> Tensor:
        u = _gelu_input(x, up, b, quick)
        ctx.save_for_backward(u, up, down)
        ctx.quick = quick
        return _product(_gelu(u, quick), down, c)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, up, down = ctx.saved_tensors
        g = _product(grad, down.t())  # (T, 4 E): the largest tensor of a step, so changed in place
        if ctx.quick:
            torch.ops.aten.silu_backward.grad_input(g, u, grad_input=g)
        else:
            torch.ops.aten.gelu_backward.grad_input(g, u, grad_input=g)
        return _product(g, up.t()), None, None, None, None, None


def _gelu_input(x: Tensor, up: Tensor, b: Tensor, quick: bool) -> Tensor:
    """x Uᵀ + b; for OpenAI's stand-in for GELU, x σ(1.702 x) = silu(1.702 x) / 1.702, times 1.702."""
    u = _product(x, up, b)
    return u.mul_(1.702) if quick else u


def _gelu(u: Tensor, quick: bool, inplace: bool = False) -> Tensor:
    if quick:
        return F.silu(u, inplace=inplace).div_(1.702)
    return torch.ops.aten.gelu_(u) if inplace else F.gelu(u)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if onednn and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _all_frozen(*weights: Tensor | None) -> bool:
    return not any(weight is not None and weight.requires_grad for weight in weights)


def _wants_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
