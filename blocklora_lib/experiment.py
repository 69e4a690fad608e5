"""From a spec to a record: load, draw, train, evaluate, measure.  The only way in which a run is made."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .backbones import Backbone, load_backbone, resolve_device
from .data.roots import checksum as data_checksum
from .datasets import Dataset, load_dataset
from .evaluation import Predictor, evaluate, evaluate_images
from .fewshot import draw
from .methods import complete, get_method
from .methods._context import Context
from .paths import MANIFESTS
from .provenance import PeakMemory, provenance
from .runs import Cost, Failure, Result, RunRecord, RunSpec, RunStore
from .specs import BackboneSpec
from .training import TrainingDiverged

OnStep = Callable[[int, int, float], None]


@dataclass
class Workbench:
    """What runs of one process share: the device, and backbones and datasets that are loaded once."""

    device: str | torch.device = "auto"
    manifests: Path = MANIFESTS
    root: Path | None = None  # where external datasets lie; None: $BLOCKLORA_DATA, or data/
    _backbones: dict[BackboneSpec, Backbone] = field(default_factory=dict)
    _datasets: dict[str, Dataset] = field(default_factory=dict)

    def backbone(self, spec: BackboneSpec) -> Backbone:
        if spec not in self._backbones:
            self._backbones[spec] = load_backbone(spec, resolve_device(self.device))
        return self._backbones[spec]

    def dataset(self, name: str) -> Dataset:
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self.manifests, self.root)
        return self._datasets[name]

    def check(self, spec: RunSpec) -> None:
        """Find bad input before any training: method, data, draw, splits.  No image is decoded."""
        complete(spec.method)
        checksum = data_checksum((self.dataset(name).manifest for name in spec.sets), self.root)
        if checksum != spec.data_checksum:
            raise ValueError(
                f"the data of {', '.join(spec.sets)} (checksum {checksum[:12]}) are not those of the spec "
                f"({spec.data_checksum[:12]}); make the spec again from its profile, or restore the data"
            )
        for name in spec.evaluate_on:
            self.dataset(name).labels(spec.split)
        if spec.shots:
            self.draw(spec)

    def draw(self, spec: RunSpec) -> torch.Tensor:
        """Indices of the few-shot images in the train split."""
        dataset = self.dataset(spec.dataset)
        # CLIP-LoRA's code draws validation images first, so they move the draw of the training images
        val = dataset.labels("val") if dataset.manifest.counts.get("val") else ()
        return draw(dataset.labels("train"), spec.shots, spec.seed, spec.draw, dataset.classes, val)


def execute(spec: RunSpec, bench: Workbench | None = None, on_step: OnStep | None = None) -> RunRecord:
    """Run the spec and return its record.  Bad input raises; training that fails gives a failure record."""
    bench = bench or Workbench()
    spec = completed(spec)
    memory, seconds = PeakMemory(resolve_device(bench.device)), {}
    with _timed(seconds, "load"):
        bench.check(spec)
        backbone, dataset = bench.backbone(spec.backbone), bench.dataset(spec.dataset)
        context = _context(spec, bench, backbone, dataset, on_step)
        for name in spec.evaluate_on:
            bench.dataset(name).images(spec.split)
    about = provenance(spec, backbone, dataset)
    result, error, predictor = None, None, None
    try:
        with _deterministic(backbone.device):
            with _timed(seconds, "train"):
                method = get_method(spec.method.name)
                predictor = method(method.Settings.model_validate(dict(spec.method.settings))).fit(context)
            with _timed(seconds, "evaluate"):
                result = _evaluate(spec, bench, backbone, dataset, context, predictor)
    except Exception as failure:  # the run failed, not the program: keep why, go on with the next
        error = _failure(failure)
    finally:
        if predictor is not None:
            predictor.close()
    return RunRecord(
        key=spec.key,
        spec=spec,
        status="failed" if error else "done",
        result=result,
        error=error,
        cost=Cost(seconds=seconds, peak_memory_bytes=memory.bytes()),
        provenance=about,
    )


def completed(spec: RunSpec) -> RunSpec:
    """Return the spec with every default of its method written out, so that equal runs have one key."""
    method = complete(spec.method)
    if get_method(method.name).trains != (spec.shots > 0):
        needs = "at least 1 shot" if spec.shots == 0 else "shots=0: it does not train"
        raise ValueError(f"shots={spec.shots} with method {method.name}, which needs {needs}")
    return spec if method == spec.method else spec.model_copy(update={"method": method})


def run_or_load(
    spec: RunSpec,
    store: RunStore,
    bench: Workbench | None = None,
    retry_failed: bool = False,
    on_step: OnStep | None = None,
) -> RunRecord:
    """Return the stored record of the spec, or run it and store it.

    A failure record is returned as it is (status 'failed', no result) and only run again with retry_failed.
    """
    spec = completed(spec)
    record = store.load(spec)
    if record is not None and (record.status == "done" or not retry_failed):
        return record
    store.check_writable()
    record = execute(spec, bench, on_step)
    store.save(record)
    return record


def run_grid(
    specs: Sequence[RunSpec], store: RunStore, bench: Workbench | None = None, retry_failed: bool = False
) -> Iterator[RunRecord]:
    """Yield the record of every spec in turn, running what the store does not have.

    Bad input of any spec is found before the first one trains.
    """
    bench = bench or Workbench()
    store.check_writable()
    specs = [completed(spec) for spec in specs]
    for spec in specs:
        if pending(store.load(spec), retry_failed):
            bench.check(spec)
    for spec in specs:
        yield run_or_load(spec, store, bench, retry_failed)


def pending(record: RunRecord | None, retry_failed: bool = False) -> bool:
    """Whether a spec with this record has still to be run."""
    return record is None or (record.status == "failed" and retry_failed)


def _context(
    spec: RunSpec, bench: Workbench, backbone: Backbone, dataset: Dataset, on_step: OnStep | None
) -> Context:
    images = labels = None
    if spec.shots:
        index = bench.draw(spec)
        images = backbone.resize(dataset.images("train")[index])
        labels = dataset.labels("train")[index].to(backbone.device)
    return Context(
        backbone=backbone,
        tokens=backbone.tokenize(dataset.prompts),
        images=images,
        labels=labels,
        training=spec.training,
        shots=spec.shots,
        seed=spec.seed,
        on_step=on_step,
    )


def _evaluate(
    spec: RunSpec,
    bench: Workbench,
    backbone: Backbone,
    dataset: Dataset,
    context: Context,
    predictor: Predictor,
) -> Result:
    train = None
    if context.images is not None:
        train = evaluate_images(predictor, backbone, dataset, context.images, context.labels)
    sets = [bench.dataset(name) for name in spec.evaluate_on]
    return Result(
        accuracy=evaluate(predictor, backbone, sets, spec.split),
        train=train,
        loss=predictor.loss,
        trainable_parameters=predictor.trainable_parameters,
    )


def _failure(error: Exception) -> Failure:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TrainingDiverged):
        return Failure(
            kind="diverged",
            message=message,
            retry=error.retry,
            step=error.step,
            loss=repr(error.loss),
            lr=error.lr,
        )
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Failure(
            kind="out_of_memory",
            message=message,
            retry="use a smaller training.batch_size, a bf16 backbone or a larger machine",
        )
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return Failure(
        kind=type(error).__name__,
        message=message,
        where=where,
        retry="mend the cause, then run again with --retry-failed",
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, ask for kernels that give the same bits each time, where there are such."""
    if device.type == "cpu":
        yield
        return
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
