"""Keep what goes in, and compute again backwards with the same random numbers, on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[[T], Tensor], argument: T, device: torch.device) -> Tensor:
    """Return function(argument), which draws on `device`; backward calls it with the same draws.

    torch keeps the state of a GPU's generator only if it finds a tensor of that GPU among the
    arguments, and looks for none inside of other objects: without one, dropout would draw other
    masks in the backward pass, and gradients would be wrong without a word. So it is handed an
    empty one.
    """
    return checkpoint(
        lambda _, x: function(x), torch.empty(0, device=device), argument, use_reentrant=False
    )
