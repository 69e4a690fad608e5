"""Products with frozen weights: the bulk of a step, so the place where the fastest kernel pays.

On a CPU, float32 products go to oneDNN by the operator that torch's own compiler uses for them: on
processors for which MKL, the library behind `F.linear`, leaves AVX-512 unused, that is twice as
fast. On other devices, in other number formats and wherever `plain_eager` says no, the product is
`F.linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from .eager import on_gpu, plain_eager


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b. x: (..., d_in), weight: (d_out, d_in) -> (..., d_out).

    Weights that do want a gradient get it, by `F.linear`.
    """
    if not (_all_frozen(weight, bias) and _onednn_serves(x, weight, bias)):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    product = (
        _FrozenLinear.apply(rows, weight, bias) if _wants_grad(x) else _onednn(rows, weight, bias)
    )
    return product.view(*x.shape[:-1], len(weight))


def frozen_mlp(mlp: nn.Sequential, x: Tensor, quick: bool = False) -> Tensor:
    """Return a transformer's MLP of x, c_proj(GELU(c_fc(x))). x: (T, E) -> (T, E).

    quick: its GELU is OpenAI's stand-in x σ(1.702 x). Frozen, it keeps the GELU's input alone,
    which is all that its backward needs.
    """
    if len(mlp) != 3:
        return mlp(x)
    layers: Any = mlp
    up, gelu, down = layers
    known_gelu = quick or (type(gelu) is nn.GELU and gelu.approximate == "none")
    frozen = type(up) is type(down) is nn.Linear and _all_frozen(
        up.weight, up.bias, down.weight, down.bias
    )
    if not (frozen and known_gelu and plain_eager(x)):
        return mlp(x)
    parts = x, up.weight, up.bias, down.weight, down.bias, quick
    if _wants_grad(x):
        return _FrozenMLP.apply(*parts)[0]
    return _gelu_output(_gelu_input(*parts[:3], quick), down.weight, down.bias, quick, inplace=True)


def frozen_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Return norm(x).

    open_clip norms a half-precision x in float32: the kernel of a GPU does so by itself, if only
    the weights are of x's format, as those of OpenAI's models are without loss.
    """
    if on_gpu(x) and x.dtype != torch.float32 and _all_frozen(norm.weight, norm.bias):
        weight, bias = (
            None if t is None else kept(t, x.dtype, _exactly) for t in (norm.weight, norm.bias)
        )
        if weight is not False and bias is not False:
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
    return norm(x)


def _exactly(t: Tensor, dtype: torch.dtype) -> Tensor | Literal[False]:
    """The tensor in another number format; False where that loses something."""
    there = t.detach().to(dtype)
    return there if torch.equal(there.to(t.dtype), t.detach()) else False


def kept(t: Tensor, how: Any, make: Callable[[Tensor, Any], Any]) -> Any:
    """What is made of a frozen tensor, made again only where it changed or moved.

    A write in place through `.data` counts as no change and moves nothing, so it goes unseen; write
    by `copy_` under `torch.no_grad()`, as `load_state_dict` does.
    """
    version = None if t.is_inference() else t._version  # a tensor of inference mode counts none
    state = version, t.data_ptr(), t.device, t.dtype
    made = _KEPT.setdefault(t, {})
    if made.get(how, (None,))[0] != state:
        with torch.no_grad():
            made[how] = state, make(t, how)
    return made[how][1]


_KEPT: Any = WeakIdKeyDictionary()  # of parameters, while they live


class _FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ + b; ∂L/∂x = g W, again a frozen product, differentiable in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return frozen_linear(grad, weight.t()), None, None


class _FrozenMLP(torch.autograd.Function):
    """u = x Uᵀ + b, y = gelu(u) Vᵀ + c; ∂L/∂x = (g V ∘ gelu'(u)) U.

    u is an output too: what backward reads must be one for backward to be differentiated in turn.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        b: Tensor | None,
        down: Tensor,
        c: Tensor | None,
        quick: bool,
    ) -> tuple[Tensor, Tensor]:
        u = _gelu_input(x, up, b, quick)
        ctx.save_for_backward(u, up, down)
        ctx.quick = quick
        ctx.set_materialize_grads(False)  # of u, unless differentiated twice
        return _gelu_output(u, down, c, quick), u

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_u: Tensor | None) -> tuple[Tensor | None, ...]:
        u, up, down = ctx.saved_tensors
        if grad_u is not None and ctx.quick:
            grad_u = 1.702 * grad_u
        g = grad_u
        if grad is not None:
            g = _gelu_backward(frozen_linear(grad, down.t()), u, ctx.quick)
            g = g if grad_u is None else g + grad_u
        return None if g is None else frozen_linear(g, up.t()), None, None, None, None, None


def _gelu_input(x: Tensor, up: Tensor, b: Tensor | None, quick: bool) -> Tensor:
    """x Uᵀ + b; times 1.702 for OpenAI's x σ(1.702 x) = silu(1.702 x) / 1.702."""
    if quick and b is not None and on_gpu(x):  # within the product, no pass over u
        return torch.addmm(kept(b, 1.702, torch.mul), x, up.t(), alpha=1.702)
    u = frozen_linear(x, up, b)
    return u.mul_(1.702) if quick else u


def _gelu_output(
    u: Tensor, down: Tensor, c: Tensor | None, quick: bool, inplace: bool = False
) -> Tensor:
    """gelu(u) Vᵀ + c, of u as `_gelu_input` gives it. inplace: u is used up."""
    if not quick:
        return frozen_linear(torch.ops.aten.gelu_(u) if inplace else F.gelu(u), down, c)
    hidden = F.silu(u, inplace=inplace)
    if c is not None and on_gpu(u):
        return torch.addmm(c, hidden, down.t(), alpha=1 / 1.702)
    return frozen_linear(hidden.div_(1.702), down, c)


def _gelu_backward(g: Tensor, u: Tensor, quick: bool) -> Tensor:
    """g ∘ gelu'(u). g: (T, 4 E), the largest tensor of a step: changed in place where it can be."""
    if plain_eager(g) and not torch.is_grad_enabled():
        backward = torch.ops.aten.silu_backward if quick else torch.ops.aten.gelu_backward
        return backward.grad_input(g, u, grad_input=g)
    if quick:  # torch cannot differentiate silu_backward
        sigma = u.sigmoid()
        return g * sigma * (1 + u * (1 - sigma))
    return torch.ops.aten.gelu_backward(g.to(u.dtype), u)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn_serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's product is `F.linear`'s; what does not fit together that may refuse."""
    return (
        plain_eager(x)  # first of all: what follows cannot be traced
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and all(t is None or _is_plain_float32(t) for t in (x, weight, bias))
        and x.shape[-1:] == weight.shape[1:]
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
    )


def _is_plain_float32(t: Tensor) -> bool:
    usual = type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not t.is_nested
    return usual and t.dtype == torch.float32 and t.device.type == "cpu"


def _all_frozen(*weights: Tensor | None) -> bool:
    return not any(weight is not None and weight.requires_grad for weight in weights)


def _wants_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
