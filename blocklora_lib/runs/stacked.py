"""Runs of a grid that differ in their seed alone, trained at once; each has a record of its own."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

import torch

from ..adapters.config import AdapterConfig
from ..core.locks import Taken
from ..learning.contract import Context
from ..learning.loop import TrainingDiverged
from ..learning.method import Predictor
from ..learning.stacked import Trained, can_stack, fit_stack
from ..methods import get_method
from .contexts import run_context
from .spec import RunSpec
from .workbench import Inputs, Workbench

# Keeps other processes from a run: Taken where one is at it, or has made it.
Hold = Callable[[RunSpec], AbstractContextManager[object]]


@dataclass
class Batch:
    """Runs that were trained at once: their keys, and what falls on each, of seconds and passes.

    peak: of memory, that of all together.
    """

    keys: list[str]
    seconds: float
    passes: Counter[str]
    peak: int = 0

    def highest(self, peak: int) -> int:
        """The peak of memory of a run, which is its batch's if that is higher."""
        self.peak = max(self.peak, peak)
        return self.peak


class Stack:
    """Runs that wait for their turn: when one of them is to be trained, others are with it.

    most: how many at once. hold(spec): entered before a run is trained ahead of its turn.
    """

    def __init__(self, waiting: Mapping[RunSpec, Inputs], most: int, hold: Hold) -> None:
        self._waiting, self._most, self._hold = dict(waiting), most, hold
        self._held: dict[RunSpec, ExitStack] = {}
        self._trained: dict[RunSpec, Trained | TrainingDiverged] = {}
        self._batches: dict[RunSpec, Batch] = {}

    def batch_of(self, spec: RunSpec) -> Batch | None:
        """With what a run was trained, None where it was trained alone."""
        return self._batches.get(spec)

    def release(self, spec: RunSpec) -> None:
        """It is this run's turn: it waits no more, and whoever is about to store it may."""
        self._waiting.pop(spec, None)
        self._held.pop(spec, ExitStack()).close()

    def close(self) -> None:
        """Let go of all."""
        for spec in [*self._held]:
            self.release(spec)

    def fit(self, spec: RunSpec, context: Context, bench: Workbench) -> Predictor:
        """Return what the run trained, with or before this; as the method's own `fit`.

        Where memory has no room for several, this run and those after it are trained alone; the
        seconds and the peak of this one hold the attempt.
        """
        if spec not in self._trained:
            method = spec.method.load()
            config = AdapterConfig(**method.settings.model_dump())
            start, before = time.perf_counter(), context.backbone.passes.copy()
            contexts = {spec: context} | self._others(context, config, bench)
            found = self._at_once(list(contexts.values()), config) if len(contexts) > 1 else None
            if found is None:
                context.backbone.passes = before
                self.close()
                return method.fit(context)
            self._trained |= zip(contexts, found, strict=True)
            passes, context.backbone.passes = context.backbone.passes - before, before
            shares = Counter({tower: n // len(contexts) for tower, n in passes.items()})
            seconds = (time.perf_counter() - start) / len(contexts)
            batch = Batch([run.key for run in contexts], seconds, shares)
            self._batches |= dict.fromkeys(contexts, batch)
        trained = self._trained.pop(spec)
        context.backbone.passes += self._batches[spec].passes
        if isinstance(trained, TrainingDiverged):
            raise trained
        return trained.predictor(context)

    def _at_once(
        self, contexts: list[Context], config: AdapterConfig
    ) -> list[Trained | TrainingDiverged] | None:
        """What each trained; None where there is no room for them, which is not tried again."""
        try:
            return fit_stack(contexts, config)
        except (MemoryError, torch.OutOfMemoryError) as error:
            told = " ".join(str(error).split())
            warnings.warn(
                f"memory has no room for {len(contexts)} runs at once ({told}): they are trained "
                "alone; say a smaller stack in the profile",
                stacklevel=2,
            )
            self._most = 1
            return None

    def _others(
        self, context: Context, config: AdapterConfig, bench: Workbench
    ) -> dict[RunSpec, Context]:
        """Runs that wait and can be trained with this one; they are held until their turn."""
        found: dict[RunSpec, Context] = {}
        for spec, inputs in [*self._waiting.items()]:
            with suppress(Taken, ValueError, OSError), ExitStack() as held:
                if len(found) + 1 < self._most:
                    held.enter_context(self._hold(spec))
                    other = run_context(spec, bench, inputs)
                    if can_stack(context, other, config):
                        found[spec], self._held[spec] = other, held.pop_all()
        for spec in found:
            del self._waiting[spec]
        return found


def stacks(runs: Mapping[RunSpec, Inputs], most: int, hold: Hold) -> dict[RunSpec, Stack]:
    """Return the stack of each run that has one, most > 1: of adapters, and of one `stack_key`.

    Of runs that train the same, the first.
    """
    groups: dict[str, dict[str, RunSpec]] = {}
    for spec in runs:
        if (
            most > 1
            and spec.shots
            and issubclass(get_method(spec.method.name).Settings, AdapterConfig)
        ):
            groups.setdefault(spec.stack_key, {}).setdefault(spec.fit_key, spec)
    found: dict[RunSpec, Stack] = {}
    for group in groups.values():
        if len(group) > 1:
            stack = Stack({spec: runs[spec] for spec in group.values()}, most, hold)
            found |= dict.fromkeys(group.values(), stack)
    return found
