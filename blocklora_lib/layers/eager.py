"""Where kernels and derivatives of our own may stand in for PyTorch's: in plain eager code.

They save time and memory in a training step. Whoever asks PyTorch for more (tracing, compiling, a
transform of torch.func, forward-mode derivatives, autocast) gets PyTorch's own operators, which
know all that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_eager() -> bool:
    """Whether operators compute at once, and are differentiated backward if at all."""
    return not (
        torch.compiler.is_compiling()  # torch.export too
        or is_traced()
        or torch._C._are_functorch_transforms_active()  # torch.func
        or forward_ad._current_level >= 0
    )


def is_traced() -> bool:
    """Whether torch.jit.trace follows, on whose graph the ONNX of `dynamo=False` rests."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def plain_eager(x: Tensor) -> bool:
    """Whether, beyond that, x is one tensor whose products keep its own number format."""
    # batched: of autograd.grad(is_grads_batched=True)
    return is_eager() and not autocasts(x) and not torch._C._functorch.is_legacy_batchedtensor(x)


def on_gpu(x: Tensor) -> bool:
    """Whether x lies on a GPU, which is kept waiting by Python unless it is asked for few kernels.

    The one place where a way to compute is chosen by the device: what a CPU computes is what it
    always was, bit for bit.
    """
    return x.device.type == "cuda" and plain_eager(x)


def autocasts(x: Tensor) -> bool:
    """Whether torch.autocast is on where x lies; "meta", for one, has none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call function(x) with autocast off, so that the adapter's products keep its precision."""
    if not autocasts(x):
        return function(x)
    with torch.autocast(x.device.type, enabled=False):
        return function(x)
