"""Updates of S runs that go through the frozen layers as one batch, run s's rows after run s-1's.

    [x_1; ..; x_S] Wᵀ + [x_1 ΔW_1ᵀ; ..; x_S ΔW_Sᵀ]

The product with W is one; each update falls on its own run's rows, and its dropout draws what that
run would draw alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.seeding import seeded_torch
from .update import Update


class Draws:
    """Torch's global generator, from which dropout draws, as each of S runs has it.

    Whoever lets runs draw so gives the generator's own state back afterwards.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device) -> None:
        self._device, self._states = device, []
        for seed in seeds:
            with seeded_torch(seed, purpose, device):
                self._states.append(self._state())

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Let this run draw, from where it last left off."""
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._states[run], self._device)
        else:
            torch.set_rng_state(self._states[run])
        yield
        self._states[run] = self._state()

    def _state(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()


class Stacked(Update):
    """The updates of S runs at one place, of one kind and shape: ΔW_s on the s-th part of rows."""

    def __init__(self, runs: Sequence[Any], draws: Draws) -> None:
        super().__init__()
        self.runs, self.draws = nn.ModuleList(runs), draws
        self.dropout, self.alone, self.scale = runs[0].dropout, runs[0].alone, runs[0].scale

    def delta_weight(self) -> Tensor:
        """There is none: RuntimeError."""
        raise RuntimeError(
            f"the weight under a stack of {len(self.runs)} runs is another one for each of them, "
            "and was read; train the runs of this model one by one (stack: 1)"
        )

    def update(self, x: Tensor) -> Tensor:
        return self._each(x, lambda run, rows: run.update(rows))

    def update_on(self, weight: Tensor, x: Tensor) -> Tensor:
        return self._each(x, lambda run, rows: run.update_on(weight, rows))

    def _each(self, x: Tensor, update: Callable[[Any, Tensor], Tensor]) -> Tensor:
        return torch.cat([update(run, rows) for (run,), rows in each_run([self], x)])


def runs_of(updates: Sequence[Any]) -> list[list[Any]]:
    """Each run's own updates of neighbours, None where there is none; without a stack, these."""
    first = next(update for update in updates if update is not None)
    if not isinstance(first, Stacked):
        return [list(updates)]
    return [[u and u.runs[s] for u in updates] for s in range(len(first.runs))]


def each_run(updates: Sequence[Any], x: Tensor) -> Iterable[tuple[list[Any], Tensor]]:
    """Each run's updates and its rows of x, which is looked at while it is that run's turn to draw.

    RuntimeError where the rows of x are no equal parts.
    """
    runs, stack = runs_of(updates), next(update for update in updates if update is not None)
    if not isinstance(stack, Stacked):  # whose number of rows torch.export need not know
        return [(runs[0], x)]
    if len(x) % len(runs):
        raise RuntimeError(f"{len(x)} rows are no equal parts for {len(runs)} runs")
    return _in_turn(stack.draws, runs, x)


def _in_turn(draws: Draws, runs: list[list[Any]], x: Tensor) -> Iterator[tuple[list[Any], Tensor]]:
    for s, (own, rows) in enumerate(zip(runs, x.chunk(len(runs)), strict=True)):
        with draws.of(s):
            yield own, rows
