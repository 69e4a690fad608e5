"""From a spec to a record: train, evaluate, measure. The only way in which a run is made."""

from __future__ import annotations

import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial

import torch

from ..core.devices import check_repeatable, repeatable
from ..core.locks import Taken, locked
from ..core.schema import AdapterError
from ..data.dataset import Dataset
from ..learning.contract import Context
from ..learning.evaluation import NotFinite, evaluate, evaluate_images, first_finds, recalls
from ..learning.feature_cache import Features
from ..learning.loop import TrainingDiverged
from ..learning.method import Predictor
from ..methods import get_method
from .code_digest import code_of
from .provenance import PeakMemory, provenance
from .record import Budget, Cost, Failure, MachineFailure, Result, RunRecord
from .spec import RunSpec
from .standing import Keeper, stored, to_run
from .store import RunStore
from .workbench import Inputs, Workbench

# what ends a run wherever it is run; every other error says nothing of the spec
OF_THE_SPEC = (TrainingDiverged, AdapterError, NotFinite)
OnStep = Callable[[int, int, float], None]
POLL = 1.0  # seconds between two looks at runs that other processes are at


def execute(
    spec: RunSpec,
    bench: Workbench | None = None,
    on_step: OnStep | None = None,
    inputs: Inputs | None = None,
    keeper: Keeper | None = None,
) -> RunRecord:
    """Run the spec and return its record.

    inputs: what `Workbench.check` found; None: they are checked first. Bad input raises. What
    follows from the spec wherever it is run, that training diverges or that an adapter refuses its
    settings, is a failure record. Everything else that ends a run is MachineFailure.
    """
    bench = bench or Workbench()
    if spec.deterministic:
        check_repeatable(bench.place)
    memory, start = PeakMemory(bench.place), _now()
    seconds: dict[str, float] = {}
    with (
        _timed(seconds, "load"),
        _machine(spec, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError),
    ):
        inputs = inputs or bench.check(spec)
        images = bench.images(spec)
        context = run_context(spec, bench, inputs, on_step)
        backbone = context.backbone
        for other in inputs.evaluated:
            bench.keep_views(other, spec.split)
        features = None
        if "image" not in get_method(spec.method.name).towers:
            features = partial(_features, spec, bench)
            with repeatable(backbone.device, spec.deterministic):
                if context.source:
                    context.features()
                list(map(features, inputs.evaluated))
    about = provenance(spec, backbone, bench.dataset(spec.dataset), inputs.evaluated)
    if one_prompt := {name: found for name in spec.sets if (found := bench.one_prompt(spec, name))}:
        about["one_prompt"] = one_prompt
    result, error, predictor, budget = None, None, None, None
    try:
        with _machine(spec, Exception), repeatable(backbone.device, spec.deterministic):
            with _timed(seconds, "train"):
                before = backbone.passes.copy()
                predictor = spec.method.load().fit(context)
                budget = _budget(predictor, backbone.passes - before)
            with _timed(seconds, "evaluate"):
                train, few = None, context.features() if context.source else context.images
                if few is not None and context.labels is not None:
                    data = bench.dataset(spec.dataset)
                    train = evaluate_images(predictor, backbone, data, few, context.labels)
                asked = predictor, backbone, inputs.evaluated, spec.split
                recall = recalls(*asked) if spec.task == "retrieval" else None
                result = Result(
                    accuracy=first_finds(recall) if recall else evaluate(*asked, features),
                    train=train,
                    loss=predictor.loss,
                    trainable_parameters=predictor.trainable_parameters,
                    draw_checksum=inputs.draw_checksum,
                    unreadable=inputs.unreadable,
                    overflows=predictor.overflows,
                    choice=predictor.choice,
                    recall=recall,
                )
            if keeper is not None and keeper.lacks(spec):
                keeper.keep(spec, predictor, result, bench)
    except OF_THE_SPEC as failure:
        error = _failure(failure)
    finally:
        if predictor is not None:
            predictor.close()
    bench.check_unchanged(spec)
    about |= {"host": platform.node(), "start": start, "end": _now()}
    return RunRecord(
        key=spec.key,
        spec=spec,
        status="failed" if error else "done",
        result=result,
        error=error,
        cost=Cost(seconds=seconds, peak_memory_bytes=memory.bytes(), budget=budget),
        provenance=about,
        code=code_of(spec.method.name),
        images=images or "",
    )


def run_context(
    spec: RunSpec, bench: Workbench, inputs: Inputs, on_step: OnStep | None = None
) -> Context:
    """Return what the spec's method is given."""
    backbone, dataset = bench.backbone(spec.backbone, spec.task), bench.dataset(spec.dataset)
    images = labels = source = validation = None
    if inputs.index is not None:
        labels = dataset.labels("train")[inputs.index].to(backbone.device)
        method = get_method(spec.method.name)
        if "image" not in method.towers:
            source = bench.source(dataset, "train", inputs.index)
        if not method.on_features:
            images = backbone.resize(dataset.images("train")[inputs.index])
    if inputs.validation is not None:
        split, rows = inputs.validation
        truth = dataset.labels(split)[rows].to(backbone.device)
        validation = bench.source(dataset, split, rows), truth
    return Context(
        backbone=backbone,
        tokens=backbone.tokenize(dataset.prompts),
        images=images,
        labels=labels,
        training=spec.training,
        shots=spec.shots,
        seed=spec.seed,
        on_step=on_step,
        source=source,
        validation=validation,
        cache=bench.features,
        names=dataset.classes,
    )


def _features(spec: RunSpec, bench: Workbench, dataset: Dataset) -> Features:
    """A set's evaluated images, as kept."""
    backbone = bench.backbone(spec.backbone, spec.task)
    return bench.features.features(backbone, bench.source(dataset, spec.split))


def _budget(predictor: Predictor, passes: Counter[str]) -> Budget:
    return Budget(
        updates=predictor.updates,
        images_seen=predictor.images_seen,
        image_passes=passes["image"],
        text_passes=passes["text"],
    )


def run_or_load(
    spec: RunSpec,
    store: RunStore,
    bench: Workbench | None = None,
    retry_failed: bool = False,
    on_step: OnStep | None = None,
    keep_old: bool = False,
    inputs: Inputs | None = None,
    wait: bool = True,
    keeper: Keeper | None = None,
) -> RunRecord:
    """Return the stored record of the spec, or run it and store it.

    A record that no longer stands (see `standing`) is run again; a damaged file is set aside. A
    failure record is returned as it is (status 'failed', no result) and only run again with
    retry_failed. A finished run whose adapter `keeper` lacks is trained again for that alone: its
    record stands. inputs: as `execute` takes them. A run that another process is at is waited for,
    or, without `wait`, Taken is raised: no run is made twice.
    """
    bench = bench or Workbench()
    found = stored(store, spec, keep_old, bench.images)
    if found.record is not None and not to_run(found, retry_failed, keeper):
        return found.record
    store.check_writable()
    with locked(store.lock(spec), _tell, wait):
        found = stored(store, spec, keep_old, bench.images)  # another process may have made it
        if found.record is not None and not to_run(found, retry_failed, keeper):
            return found.record
        if found.standing == "damaged":  # before hours of training, not after them
            store.set_aside(spec)
        record = execute(spec, bench, on_step, inputs, keeper)
        if found.record is not None and not found.pending(retry_failed):
            return found.record
        with _machine(spec, OSError):
            store.save(record)
    return record


def run_grid(
    specs: Sequence[RunSpec],
    store: RunStore,
    bench: Workbench | None = None,
    retry_failed: bool = False,
    keep_old: bool = False,
    keeper: Keeper | None = None,
) -> Iterator[RunRecord]:
    """Yield the record of every spec, running what the store does not have.

    Bad input of any spec is found before the first one trains. MachineFailure ends it: what was
    finished is kept, and the next call goes on from there. A run that another process is at comes
    last: two grids over the same specs share the work.
    """
    bench = bench or Workbench()
    store.check_writable()
    checked: dict[RunSpec, Inputs] = {}
    for spec in specs:
        if to_run(stored(store, spec, keep_old, bench.images), retry_failed, keeper):
            checked[spec] = bench.check(spec)
    left = list(specs)
    while left:
        taken = []
        for spec in left:
            inputs = checked.get(spec)
            try:
                record = run_or_load(
                    spec, store, bench, retry_failed, None, keep_old, inputs, False, keeper
                )
            except Taken:
                taken.append(spec)
            else:
                checked.pop(spec, None)
                yield record
        if len(taken) == len(left):
            _tell(f"other processes are at {len(taken)} of the runs, such as {taken[0]}; waiting")
            time.sleep(POLL)
        left = taken


@cache  # each line once
def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
def _machine(spec: RunSpec, *kinds: type[Exception]) -> Iterator[None]:
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


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
