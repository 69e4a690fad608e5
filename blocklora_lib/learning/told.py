"""Numbers that training steps leave on the device, and when they are read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WINDOW = 20  # steps


class Told:
    """What each of so many steps tells, looked at in order: look(step, *numbers), from 1.

    A GPU computes while Python asks for more, and stands still where a number is read: there steps
    are looked at 20 together, and the last ones at the end. On a CPU each is at once.
    """

    def __init__(self, device: torch.device, steps: int, look: Callable[..., None]) -> None:
        self.steps, self._look = steps, look
        self._every = WINDOW if device.type == "cuda" else 1
        self._kept: list[tuple[Tensor, ...]] = []
        self._read = 0

    def tell(self, *numbers: Tensor) -> None:
        """Keep the numbers of a step, each a tensor without dimensions, of one format a place."""
        self._kept.append(numbers)
        if len(self._kept) == self._every or self._read + len(self._kept) == self.steps:
            rows = [torch.stack(row).tolist() for row in zip(*self._kept, strict=True)]
            self._kept = []
            for values in zip(*rows, strict=True):
                self._read += 1
                self._look(self._read, *values)
