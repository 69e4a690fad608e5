"""From a spec to a record: load, draw, train, evaluate, measure.  The only way in which a run is made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .adapter_config import AdapterError
from .backbones import Backbone, load_backbone
from .code_digest import code_digest
from .data.draws import Draw, check_shots, draw_of, import_draw
from .data.roots import checksum as data_checksum
from .data.run_images import RunImages
from .datasets import Dataset, load_dataset
from .devices import check_repeatable, repeatable, resolve_device
from .evaluation import NotFinite, Predictor, evaluate, evaluate_images, same_prompts
from .methods import complete, get_method
from .methods._context import Context
from .paths import MANIFESTS
from .provenance import PeakMemory, provenance
from .runs import Cost, Failure, MachineFailure, Result, RunRecord, RunSpec, RunStore
from .specs import BackboneSpec
from .standing import stored
from .training import TrainingDiverged

# what ends a run wherever it is run; every other error says nothing of the spec
OF_THE_SPEC = (TrainingDiverged, AdapterError, NotFinite)
OnStep = Callable[[int, int, float], None]


@dataclass
class Workbench:
    """What runs of one process share: the device, and backbones and datasets that are loaded once.

    device: as `resolve_device` reads it, once; a profile says its own.
    """

    device: str | torch.device = "auto"
    manifests: Path = MANIFESTS
    root: Path | None = None  # where external datasets lie; None: $BLOCKLORA_DATA, or data/
    draws: Sequence[Path] = ()  # files of draws that specs may name by their checksum
    _backbones: dict[BackboneSpec, Backbone] = field(default_factory=dict)
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _drawn: dict[tuple, Draw] = field(default_factory=dict)
    _one_prompt: dict[tuple, list[list[str]]] = field(default_factory=dict)
    _files: RunImages = field(init=False)

    def __post_init__(self) -> None:
        self.draws = list(self.draws)  # `with_draw` adds to them
        self._files = RunImages(self.manifests, self.root, self.draws)

    @property
    def place(self) -> torch.device:
        """The device that `device` names."""
        return resolve_device(self.device)

    def backbone(self, spec: BackboneSpec) -> Backbone:
        if spec not in self._backbones:
            self._backbones[spec] = load_backbone(spec, self.device)
        return self._backbones[spec]

    def dataset(self, name: str) -> Dataset:
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self.manifests, self.root)
        return self._datasets[name]

    def check(self, spec: RunSpec) -> Inputs:
        """Return the images that a run reads; find bad input before any training.

        Looked at are method, data, draw, splits, and images that cannot be read: they are left out with
        spec.skip_unreadable, which decodes every image; otherwise only files that look damaged are decoded,
        and a DataError names them.
        """
        complete(spec.method)
        checksum = data_checksum((self.dataset(name).manifest for name in spec.sets), self.root)
        if checksum != spec.data_checksum:
            raise ValueError(
                f"the data of {', '.join(spec.sets)} (checksum {checksum[:12]}) are not those of the spec "
                f"({spec.data_checksum[:12]}); make the spec again from its profile, or restore the data"
            )
        self.images(spec)  # before any is read: from here on a change is noticed
        for name in spec.sets:
            self._tell_apart(spec, self.dataset(name))
        for name in spec.evaluate_on:
            self.dataset(name).labels(spec.split)
        return self._inputs(spec)

    def one_prompt(self, spec: RunSpec, name: str) -> list[list[str]]:
        """The classes of a set that the spec's backbone cannot tell apart, as `same_prompts` groups them."""
        key = (spec.backbone, name, self.dataset(name).prompts)
        if key not in self._one_prompt:
            self._one_prompt[key] = same_prompts(self.backbone(spec.backbone), self.dataset(name))
        return self._one_prompt[key]

    def _tell_apart(self, spec: RunSpec, dataset: Dataset) -> None:
        """Refuse one's own classes of one prompt; of a published set, whose names are given, warn."""
        for names in self.one_prompt(spec, dataset.name):
            told = " and ".join(map(repr, names))
            if len(names) == 1:
                what = f"class {told} of {dataset.name} is no word to {spec.backbone.name}'s tokenizer"
            else:
                what = f"classes {told} of {dataset.name} have one prompt: only one of them is ever predicted"
            if dataset.manifest.layout == "folder":
                raise ValueError(f"{what}; give the class's folder another name")
            warnings.warn(f"{what}; the record says so (provenance.one_prompt)", stacklevel=2)

    def images(self, spec: RunSpec) -> str | None:
        """Return a digest of the image files that a run reads, see `RunImages.digest`."""
        return self._files.digest(spec)

    def check_unchanged(self, spec: RunSpec) -> None:
        """MachineFailure if data that a run reads are not what they were when this bench looked first."""
        try:
            manifests = [self.dataset(name).manifest for name in spec.sets]
            same = data_checksum(manifests, self.root) == spec.data_checksum
            path = self._files.changed(spec) if same else f"a list of {', '.join(spec.sets)}"
        except OSError as error:
            path = str(error)
        if path:
            raise MachineFailure(
                f"the data of run {spec} changed while it ran ({path}): nothing is stored of it; once they "
                "stay as they are, the same command goes on from there"
            )

    def drawn(self, spec: RunSpec) -> Draw:
        """The few-shot images of a spec that trains; methods share them."""
        key = (spec.dataset, spec.shots, spec.seed, spec.draw, spec.draw_checksum)
        if key not in self._drawn:
            dataset = self.dataset(spec.dataset)
            self._drawn[key] = draw_of(spec, dataset.listing, dataset.classes, self.draws)
        return self._drawn[key]

    def _index(self, spec: RunSpec) -> torch.Tensor:
        """Where the few-shot images stand in the train split, in the order drawn."""
        rows = self.drawn(spec).train
        wanted = set(rows)
        listed = enumerate(self.dataset(spec.dataset).listing["train"])
        number = {row: i for i, row in listed if row in wanted}
        return torch.tensor([number[row] for row in rows])

    def _inputs(self, spec: RunSpec) -> Inputs:
        drawn, index, gone = None, None, {}
        dataset = self.dataset(spec.dataset)
        if spec.shots:
            drawn, index = self.drawn(spec), self._index(spec)
            faults = self._unreadable(spec, dataset, "train", index)
            gone[dataset.name] = [dataset.path("train", i) for i in faults]
            kept = index[[i not in faults for i in index.tolist()]]
            labels = dataset.labels("train")
            dataset.refuse_empty("train", labels[index], labels[kept])
            index = kept
        evaluated = []
        for other in map(self.dataset, spec.evaluate_on):
            faults = self._unreadable(spec, other, spec.split, None)
            gone.setdefault(other.name, []).extend(other.path(spec.split, i) for i in faults)
            evaluated.append(other.without(spec.split, faults))
        unreadable = {name: tuple(sorted(paths)) for name, paths in gone.items() if paths}
        return Inputs(index, drawn.checksum if drawn else "", tuple(evaluated), unreadable)

    def _unreadable(
        self, spec: RunSpec, dataset: Dataset, split: str, index: torch.Tensor | None
    ) -> dict[int, str]:
        faults = dataset.unreadable(split, index, thorough=spec.skip_unreadable)
        if not spec.skip_unreadable:
            dataset.refuse(split, faults)
        return faults


@dataclass(frozen=True)
class Inputs:
    """What a run reads: `index` of the few-shot images in the train split, and the sets as evaluated.

    unreadable: images left out of either, by set, as paths in its folder.
    """

    index: torch.Tensor | None
    draw_checksum: str
    evaluated: tuple[Dataset, ...]
    unreadable: dict[str, tuple[str, ...]]


def with_draw(spec: RunSpec, file: Path, bench: Workbench) -> RunSpec:
    """Return the spec that trains on the images of a draw's file; the bench remembers the file.

    The seed seeds the rest as before.  Errors as `data.draws.import_draw`, and if the shots are not the
    file's.
    """
    if not spec.shots:
        raise ValueError(f"method {spec.method.name} does not train: it takes no draw; leave {file} out")
    dataset = bench.dataset(spec.dataset)
    drawn = import_draw(file, dataset.listing, dataset.name)
    check_shots(drawn, spec)
    bench.draws.append(file)
    return RunSpec.model_validate(spec.model_dump() | {"draw": "imported", "draw_checksum": drawn.checksum})


def execute(spec: RunSpec, bench: Workbench | None = None, on_step: OnStep | None = None) -> RunRecord:
    """Run the spec and return its record.

    Bad input raises.  What follows from the spec wherever it is run, that training diverges or that an
    adapter refuses its settings, is a failure record.  Everything else that ends a run is MachineFailure.
    """
    bench = bench or Workbench()
    spec = completed(spec)
    if spec.deterministic:
        check_repeatable(bench.place)
    memory, seconds = PeakMemory(bench.place), {}
    with _timed(seconds, "load"), _machine(spec, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        inputs, overflows = bench.check(spec), []
        images = bench.images(spec)
        backbone, dataset = bench.backbone(spec.backbone), bench.dataset(spec.dataset)
        context = _context(spec, backbone, dataset, inputs.index, on_step, overflows.append)
        for other in inputs.evaluated:
            other.images(spec.split)
    about = provenance(spec, backbone, dataset, inputs.evaluated)
    if one_prompt := {name: found for name in spec.sets if (found := bench.one_prompt(spec, name))}:
        about["one_prompt"] = one_prompt
    result, error, predictor = None, None, None
    try:
        with _machine(spec, Exception), repeatable(backbone.device, spec.deterministic):
            with _timed(seconds, "train"):
                method = get_method(spec.method.name)
                predictor = method(method.Settings.model_validate(dict(spec.method.settings))).fit(context)
            with _timed(seconds, "evaluate"):
                result = _evaluate(spec, backbone, dataset, inputs, context, predictor, overflows)
    except OF_THE_SPEC as failure:
        error = _failure(failure)
    finally:
        if predictor is not None:
            predictor.close()
    bench.check_unchanged(spec)
    return RunRecord(
        key=spec.key,
        spec=spec,
        status="failed" if error else "done",
        result=result,
        error=error,
        cost=Cost(seconds=seconds, peak_memory_bytes=memory.bytes()),
        provenance=about,
        code=code_digest(),
        images=images or "",
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
    keep_old: bool = False,
) -> RunRecord:
    """Return the stored record of the spec, or run it and store it.

    A record that no longer stands (see `standing`) is run again; a damaged file is set aside.  A failure
    record is returned as it is (status 'failed', no result) and only run again with retry_failed.
    """
    spec, bench = completed(spec), bench or Workbench()
    found = stored(store, spec, keep_old, bench.images)
    if not found.pending(retry_failed):
        return found.record
    store.check_writable()
    if found.standing == "damaged":  # before hours of training, not after them
        store.set_aside(spec)
    record = execute(spec, bench, on_step)
    with _machine(spec, OSError):
        store.save(record)
    return record


def run_grid(
    specs: Sequence[RunSpec],
    store: RunStore,
    bench: Workbench | None = None,
    retry_failed: bool = False,
    keep_old: bool = False,
) -> Iterator[RunRecord]:
    """Yield the record of every spec in turn, running what the store does not have.

    Bad input of any spec is found before the first one trains.  MachineFailure ends it: what was finished is
    kept, and the next call goes on from there.
    """
    bench = bench or Workbench()
    store.check_writable()
    specs = [completed(spec) for spec in specs]
    for spec in specs:
        if stored(store, spec, keep_old, bench.images).pending(retry_failed):
            bench.check(spec)
    for spec in specs:
        yield run_or_load(spec, store, bench, retry_failed, keep_old=keep_old)


def _context(
    spec: RunSpec,
    backbone: Backbone,
    dataset: Dataset,
    index: torch.Tensor | None,
    on_step: OnStep | None = None,
    on_skip: Callable[[int], None] | None = None,
) -> Context:
    images = labels = None
    if index is not None:
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
        on_skip=on_skip,
    )


def _evaluate(
    spec: RunSpec,
    backbone: Backbone,
    dataset: Dataset,
    inputs: Inputs,
    context: Context,
    predictor: Predictor,
    overflows: Sequence[int],
) -> Result:
    train = None
    if context.images is not None:
        train = evaluate_images(predictor, backbone, dataset, context.images, context.labels)
    return Result(
        accuracy=evaluate(predictor, backbone, inputs.evaluated, spec.split),
        train=train,
        loss=predictor.loss,
        trainable_parameters=predictor.trainable_parameters,
        draw_checksum=inputs.draw_checksum,
        unreadable=inputs.unreadable,
        overflows=tuple(overflows),
    )


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
            f"run {spec} ended with {what}; nothing is stored of it, what was finished before is kept, and "
            "the same command goes on from there (BLOCKLORA_TRACEBACK=1 shows where it was)"
        ) from error


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
