"""Runs that train the same: trained once, and evaluated on the sets of all of them."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import torch

from ..core.devices import check_arithmetic, repeatable
from ..core.schema import AdapterError
from ..data.dataset import Dataset
from ..learning.contract import Context
from ..learning.count import Count
from ..learning.evaluation import NotFinite, evaluate, evaluate_images, first_finds, recalls
from ..learning.feature_cache import Features
from ..learning.loop import TrainingDiverged
from ..learning.method import Predictor
from ..methods import get_method
from .code_digest import code_of
from .contexts import OnStep, run_context
from .cost import Budget, Cost
from .provenance import PeakMemory, provenance
from .record import Failure, MachineFailure, NotKept, Result, RunRecord
from .spec import RunSpec
from .stacked import Stack
from .standing import Keeper
from .workbench import Inputs, Workbench

# what ends a run wherever it is run; every other error says nothing of the spec
OF_THE_SPEC = (TrainingDiverged, AdapterError, NotFinite)


def execute_alike(
    wanted: Mapping[RunSpec, Inputs | None],
    bench: Workbench,
    on_step: OnStep | None = None,
    keeper: Keeper | None = None,
    stack: Stack | None = None,
) -> Generator[RunRecord]:
    """Yield the records of these specs, in order, which all have one `RunSpec.fit_key`.

    wanted: what `Workbench.check` found of each; None: it is checked first. Training is done once,
    for the first; a set that two are evaluated on is evaluated once. A record that shares says with
    which keys (provenance.trained_with); its seconds are those of the load and the training that
    are shared, and of the sets that were evaluated for it.
    stack: what trains the first, with other runs where it can; records say with which
    (provenance.stacked_with).
    Bad input raises. What follows from a spec wherever it is run, that training diverges or that an
    adapter refuses its settings, is a failure record. Everything else that ends a run is
    MachineFailure.
    """
    first = next(iter(wanted))
    check_arithmetic(bench.place, first.deterministic, first.backbone.tf32)
    memory, start = PeakMemory(bench.place), _now()
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"), _loading(first):
        checked = {spec: inputs or bench.check(spec) for spec, inputs in wanted.items()}
        images = {spec: bench.images(spec) for spec in wanted}
        context = run_context(first, bench, checked[first], on_step)
    shared = _Fit(first, bench, context, stack, memory)
    try:
        for spec, inputs in checked.items():
            with _timed(seconds, "load"), _loading(spec):
                features = _ready(spec, bench, context, inputs)
            about = provenance(
                spec, context.backbone, bench.dataset(spec.dataset), inputs.evaluated
            )
            named = ((name, bench.one_prompt(spec, name)) for name in spec.sets)
            if one_prompt := {name: found for name, found in named if found}:
                about["one_prompt"] = one_prompt
            if others := [other.key for other in wanted if other is not spec]:
                about["trained_with"] = others
            result, error, lost = None, None, None
            try:
                with (
                    machine(spec, Exception),
                    repeatable(context.backbone.device, spec.deterministic, spec.backbone.tf32),
                ):
                    result = shared.result(spec, inputs, features, seconds)
                    if keeper is not None and keeper.lacks(spec):
                        lost = _not_kept(keeper, spec, shared.fitted(seconds), result, bench)
            except OF_THE_SPEC as failure:
                error = _failure(failure)
            bench.check_unchanged(spec)
            about |= {"host": platform.node(), "start": start, "end": _now()}
            peak, fit = memory.bytes(), shared.bytes if shared.budget else None
            if stack and (batch := stack.batch_of(first)):
                about["stacked_with"] = [key for key in batch.keys if key != first.key]
                peak, seconds["train"], fit = batch.highest(peak), batch.seconds, None
            cost = Cost(
                seconds=dict(seconds), peak_memory_bytes=peak, fit_bytes=fit, budget=shared.budget
            )
            yield RunRecord(
                key=spec.key,
                spec=spec,
                status="failed" if error else "done",
                result=result,
                error=error,
                cost=cost,
                provenance=about,
                code=code_of(spec.method.name),
                images=images[spec] or "",
            )
            if lost:  # the record comes first: a file's disk may be another
                raise lost
            seconds["evaluate"] = 0.0
    finally:
        shared.close()


class _Fit:
    """What specs share that train the same: the predictor, and what it was evaluated on."""

    def __init__(
        self,
        spec: RunSpec,
        bench: Workbench,
        context: Context,
        stack: Stack | None,
        memory: PeakMemory,
    ) -> None:
        self.spec, self.bench, self.context, self.stack = spec, bench, context, stack
        self.memory, self.bytes = memory, 0
        self.budget: Budget | None = None
        self._predictor: Predictor | None = None
        self._failed: BaseException | None = None
        self._train: Count | None = None
        self._found: dict[str, Any] = {}  # of a set: its count, or those of retrieval

    def fitted(self, seconds: dict[str, float]) -> Predictor:
        """The predictor, trained when it is first asked for; again the error that ended that."""
        if self._failed is not None:
            raise self._failed
        if self._predictor is None:
            backbone, context = self.context.backbone, self.context
            owed = context.cache.owed
            context.cache.around = self.memory.apart
            self.memory.begin()
            try:
                with _timed(seconds, "train"):
                    before = backbone.passes.copy()
                    self._predictor = self._trained()
                    self.budget = _budget(self._predictor, backbone.passes - before)
                self.bytes = self.memory.above()
                context.cache.around = nullcontext
                seconds["train"] += context.cache.owed - owed
                with _timed(seconds, "evaluate"):
                    few = context.features() if context.source else context.images
                    if few is not None and context.labels is not None:
                        data = self.bench.dataset(self.spec.dataset)
                        self._train = evaluate_images(
                            self._predictor, backbone, data, few, context.labels
                        )
            except OF_THE_SPEC as error:
                self._failed = error
                raise
        return self._predictor

    def _trained(self) -> Predictor:
        if self.stack:
            return self.stack.fit(self.spec, self.context, self.bench)
        return self.spec.method.load().fit(self.context)

    def result(
        self,
        spec: RunSpec,
        inputs: Inputs,
        features: Callable[[Dataset], Features] | None,
        seconds: dict[str, float],
    ) -> Result:
        """The result of a spec, for which its sets are evaluated that were not before."""
        predictor, backbone = self.fitted(seconds), self.context.backbone
        new = [other for other in inputs.evaluated if other.name not in self._found]
        retrieval = spec.task == "retrieval"
        with _timed(seconds, "evaluate"):
            if retrieval:
                self._found |= recalls(predictor, backbone, new, spec.split)
            else:
                self._found |= evaluate(predictor, backbone, new, spec.split, features)
        mine = {other.name: self._found[other.name] for other in inputs.evaluated}
        return Result(
            accuracy=first_finds(mine) if retrieval else mine,
            train=self._train,
            loss=predictor.loss,
            trainable_parameters=predictor.trainable_parameters,
            draw_checksum=inputs.draw_checksum,
            unreadable=inputs.unreadable,
            overflows=predictor.overflows,
            choice=predictor.choice,
            recall=mine if retrieval else None,
        )

    def close(self) -> None:
        """Leave the backbone as it was."""
        if self._predictor is not None:
            self._predictor.close()


def _ready(
    spec: RunSpec, bench: Workbench, context: Context, inputs: Inputs
) -> Callable[[Dataset], Features] | None:
    """Decode and encode what can be before the clock of evaluation runs; return where a set's
    features are found, None where the method has an image tower of its own.
    """
    for other in inputs.evaluated:
        bench.keep_views(other, spec.split)
    if "image" in get_method(spec.method.name).towers:
        for other in inputs.evaluated:
            other.images(spec.split)
        return None
    backbone = context.backbone

    def features(dataset: Dataset) -> Features:
        return bench.features.features(backbone, bench.source(dataset, spec.split))

    with repeatable(backbone.device, spec.deterministic, spec.backbone.tf32):
        if context.source:
            context.cache.features(backbone, context.source)  # the context counts what a fit asks
        for other in inputs.evaluated:
            features(other)
    return features


def _budget(predictor: Predictor, passes: Counter[str]) -> Budget:
    return Budget(
        updates=predictor.updates,
        images_seen=predictor.images_seen,
        image_passes=passes["image"],
        text_passes=passes["text"],
    )


def _not_kept(
    keeper: Keeper, spec: RunSpec, predictor: Predictor, result: Result, bench: Workbench
) -> NotKept | None:
    """Keep the adapter; where it cannot be written, return what to raise once the record is out."""
    try:
        keeper.keep(spec, predictor, result, bench)
    except (OSError, ValueError) as error:
        return NotKept(
            f"run {spec} is whole, and its adapter is not kept: {error}; once that is mended, the "
            "same command trains it again for its adapter alone"
        )
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _failure(error: TrainingDiverged | AdapterError | NotFinite) -> Failure:
    message = " ".join(str(error).split())
    if isinstance(error, NotFinite):
        return Failure(kind="diverged", message=message, retry="use fp32, or a lower lr")
    if isinstance(error, AdapterError):
        retry = "correct the method's settings in the profile"
        return Failure(kind="refused", message=message, retry=retry)
    return Failure(
        kind="diverged",
        message=message,
        retry=error.retry,
        step=error.step,
        loss=repr(error.loss),
        lr=error.lr,
    )


@contextmanager
def machine(spec: RunSpec, *kinds: type[Exception]) -> Iterator[None]:
    """Turn these errors, but for those that follow from the spec, into MachineFailure."""
    try:
        yield
    except OF_THE_SPEC:
        raise
    except kinds as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise MachineFailure(
            f"run {spec} ended with {what}; nothing is stored of it, what was finished before is "
            "kept, and the same command goes on from there (BLOCKLORA_TRACEBACK=1 shows where it "
            "was)"
        ) from error


def _loading(spec: RunSpec) -> Any:
    return machine(spec, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
