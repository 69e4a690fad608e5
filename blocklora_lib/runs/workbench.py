"""What the runs of one process share: device, backbones, datasets and draws, each loaded once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..clip.backbone import Backbone, load_backbone
from ..core.devices import resolve_device
from ..core.paths import MANIFESTS
from ..core.user_cache import cache_folder
from ..data.dataset import Dataset, load_dataset
from ..data.draw import Draw, validation_rows
from ..data.draw_files import import_draw
from ..data.roots import checksum as data_checksum
from ..learning.evaluation import same_prompts
from ..learning.feature_cache import FeatureCache, Source
from ..learning.texts import TextBackbone
from ..methods import get_method
from ..weights.spec import BackboneSpec
from .code_digest import code_digest, views_digest
from .images import RunImages, check_shots, draw_of
from .record import MachineFailure
from .sources import keep_views, source_of
from .spec import RunSpec, Task, refuse_other_content


@dataclass
class Workbench:
    """What runs of one process share: the device, and backbones, datasets and features, made once.

    device: as `resolve_device` reads it, once; a profile says its own. features: the cache of all
    runs, by default in the user's cache folder. keeps_views: whether evaluated images are kept
    there, too, as the backbone sees them. cuda_graphs: whether a GPU repeats training steps by
    them.
    """

    device: str | torch.device = "auto"
    manifests: Path = MANIFESTS
    root: Path | None = None  # where external datasets lie; None: $BLOCKLORA_DATA, or data/
    draws: Sequence[Path] = ()  # files of draws that specs may name by their checksum
    features: FeatureCache = field(
        default_factory=lambda: FeatureCache(cache_folder() / "features", code_digest())
    )
    keeps_views: bool = True
    cuda_graphs: bool = True
    _backbones: dict[BackboneSpec, Backbone] = field(default_factory=dict)
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _drawn: dict[tuple[object, ...], Draw] = field(default_factory=dict)
    _one_prompt: dict[tuple[object, ...], list[list[str]]] = field(default_factory=dict)
    _files: RunImages = field(init=False)

    def __post_init__(self) -> None:
        self.draws = list(self.draws)  # `with_draw` adds to them
        self._files = RunImages(self.manifests, self.root, self.draws)

    @property
    def place(self) -> torch.device:
        """The device that `device` names."""
        return resolve_device(self.device)

    def backbone(self, spec: BackboneSpec, task: Task = "classification") -> Backbone:
        """The loaded model; of texts, as their encoder."""
        if spec not in self._backbones:
            self._backbones[spec] = load_backbone(spec, self.device)
        found = self._backbones[spec]
        return TextBackbone.of(found) if task == "texts" else found

    def dataset(self, name: str) -> Dataset:
        """Return the set of this name, read once; errors are those of `load_dataset`."""
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self.manifests, self.root)
        return self._datasets[name]

    def check(self, spec: RunSpec) -> Inputs:
        """Return the images that a run reads; find bad input before any training.

        Looked at are method, data, draw, splits, and images that cannot be read: they are left out
        with spec.skip_unreadable, which decodes every image once; otherwise only files that look
        damaged are decoded, and a DataError names them.
        """
        checksum = data_checksum((self.dataset(name).manifest for name in spec.sets), self.root)
        if checksum != spec.data_checksum:
            raise ValueError(
                f"the data of {', '.join(spec.sets)} (checksum {checksum[:12]}) are not those of "
                f"the spec ({spec.data_checksum[:12]}); make the spec again from its profile, or "
                "restore the data"
            )
        self._refuse_other_classes(spec)
        for name in spec.sets:
            refuse_other_content(self.dataset(name).manifest, spec.task)
        method = spec.method.load()
        for name in spec.sets:
            method.check(self.backbone(spec.backbone), self.dataset(name).classes)
        self.images(spec)  # before any is read: from here on a change is noticed
        for name in spec.sets:
            self._tell_apart(spec, self.dataset(name))
        for name in spec.evaluate_on:
            self.dataset(name).labels(spec.split)
        return self._inputs(spec)

    def one_prompt(self, spec: RunSpec, name: str) -> list[list[str]]:
        """The classes of a set that the spec's backbone cannot tell apart, as `same_prompts` groups
        them.
        """
        key = (spec.backbone, name, self.dataset(name).prompts)
        if key not in self._one_prompt:
            self._one_prompt[key] = same_prompts(self.backbone(spec.backbone), self.dataset(name))
        return self._one_prompt[key]

    def _tell_apart(self, spec: RunSpec, dataset: Dataset) -> None:
        """Refuse one's own classes of one prompt; of a published set, whose names stand, warn."""
        for names in self.one_prompt(spec, dataset.name):
            told = " and ".join(map(repr, names))
            if len(names) == 1:
                what = (
                    f"class {told} of {dataset.name} is no word to {spec.backbone.name}'s tokenizer"
                )
            else:
                what = f"classes {told} of {dataset.name} have one prompt: "
                what += "only one of them is ever predicted"
            if dataset.manifest.layout == "folder":
                raise ValueError(f"{what}; give the class's folder another name")
            warnings.warn(f"{what}; the record says so (provenance.one_prompt)", stacklevel=2)

    def images(self, spec: RunSpec) -> str | None:
        """Return a digest of the image files that a run reads, see `RunImages.digest`."""
        return self._files.digest(spec)

    def check_unchanged(self, spec: RunSpec) -> None:
        """MachineFailure if data that a run reads are not what they were when this bench looked
        first.
        """
        try:
            manifests = [self.dataset(name).manifest for name in spec.sets]
            same = data_checksum(manifests, self.root) == spec.data_checksum
            path = self._files.changed(spec) if same else f"a list of {', '.join(spec.sets)}"
        except OSError as error:
            path = str(error)
        if path:
            raise MachineFailure(
                f"the data of run {spec} changed while it ran ({path}): nothing is stored of it; "
                "once they stay as they are, the same command goes on from there"
            )

    def drawn(self, spec: RunSpec) -> Draw:
        """The few-shot images of a spec that trains; methods share them."""
        key = (spec.dataset, spec.shots, spec.seed, spec.draw, spec.draw_checksum)
        if key not in self._drawn:
            dataset = self.dataset(spec.dataset)
            self._drawn[key] = draw_of(spec, dataset.listing, dataset.classes, self.draws)
        return self._drawn[key]

    def source(self, dataset: Dataset, split: str, index: torch.Tensor | None = None) -> Source:
        """Return a split's images, or those at `index`, see `source_of`."""
        return source_of(dataset, split, self._files, index)

    def keep_views(self, dataset: Dataset, split: str) -> None:
        """Let a split's images be decoded once for all, if the bench keeps views."""
        if self.keeps_views:
            keep_views(dataset, split, self._files, cache_folder() / "views")

    def _refuse_other_classes(self, spec: RunSpec) -> None:
        """Of a method that tells its own classes alone, refuse sets of other ones."""
        own = self.dataset(spec.dataset).classes
        for other in map(self.dataset, spec.evaluate_on):
            if get_method(spec.method.name).own_classes and other.classes != own:
                raise ValueError(
                    f"method {spec.method.name} learns a classifier of the classes of "
                    f"{spec.dataset} and cannot tell those of {other.name}; leave it out of "
                    "experiments with evaluate_on: targets"
                )

    def _validation(self, spec: RunSpec) -> tuple[str, torch.Tensor] | None:
        """Split and rows of the images by which the spec's method chooses settings."""
        if not spec.method.chooses:
            return None
        dataset = self.dataset(spec.dataset)
        split, rows = validation_rows(self.drawn(spec), dataset.listing, spec.seed)
        return split, torch.tensor(rows)

    def _index(self, spec: RunSpec) -> torch.Tensor:
        """Where the few-shot images stand in the train split, in the order drawn."""
        rows: tuple[Any, ...] = self.drawn(spec).train
        wanted = set(rows)
        listed = enumerate(self.dataset(spec.dataset).listing["train"])
        number = {row: i for i, row in listed if row in wanted}
        return torch.tensor([number[row] for row in rows])

    def _inputs(self, spec: RunSpec) -> Inputs:
        drawn, index, gone, validation = None, None, {}, None
        dataset = self.dataset(spec.dataset)
        if spec.shots:
            drawn, index = self.drawn(spec), self._index(spec)
            faults = self._unreadable(spec, dataset, "train", index)
            gone[dataset.name] = [dataset.path("train", i) for i in faults]
            kept = index[[i not in faults for i in index.tolist()]]
            labels = dataset.labels("train")
            dataset.refuse_empty("train", labels[index], labels[kept])
            index, validation = kept, self._validation(spec)
            if validation is not None:
                split, rows = validation
                faults = self._unreadable(spec, dataset, split, rows)
                gone[dataset.name] += [dataset.path(split, i) for i in faults]
                validation = split, rows[[i not in faults for i in rows.tolist()]]
                if not len(validation[1]):
                    raise ValueError(
                        f"none of the {len(rows)} validation images of {dataset.name} can be read "
                        f"by which method {spec.method.name} chooses its settings; restore them, "
                        "or give it one value of each"
                    )
        evaluated = []
        for other in map(self.dataset, spec.evaluate_on):
            faults = self._unreadable(spec, other, spec.split, None)
            gone.setdefault(other.name, []).extend(other.path(spec.split, i) for i in faults)
            evaluated.append(other.without(spec.split, faults))
        unreadable = {name: tuple(sorted({*paths})) for name, paths in gone.items() if paths}
        checksum = drawn.checksum if drawn else ""
        return Inputs(index, checksum, tuple(evaluated), unreadable, validation)

    def _unreadable(
        self, spec: RunSpec, dataset: Dataset, split: str, index: torch.Tensor | None
    ) -> dict[int, str]:
        faults = dataset.unreadable(split, index, spec.skip_unreadable, views_digest())
        if not spec.skip_unreadable:
            dataset.refuse(split, faults)
        return faults


@dataclass(frozen=True)
class Inputs:
    """What a run reads: `index` of the few-shot images in the train split, and the sets as
    evaluated.

    unreadable: images left out of either, by set, as paths in its folder. validation: split and
    rows of the images by which settings are chosen, None for a method without a grid.
    """

    index: torch.Tensor | None
    draw_checksum: str
    evaluated: tuple[Dataset, ...]
    unreadable: dict[str, tuple[str, ...]]
    validation: tuple[str, torch.Tensor] | None = None


def with_draw(spec: RunSpec, file: Path, bench: Workbench) -> RunSpec:
    """Return the spec that trains on the images of a draw's file; the bench remembers the file.

    The seed seeds the rest as before. Errors as `draw_files.import_draw`, and if the shots are not
    the file's.
    """
    if not spec.shots:
        raise ValueError(
            f"method {spec.method.name} does not train: it takes no draw; leave {file} out"
        )
    dataset = bench.dataset(spec.dataset)
    drawn = import_draw(file, dataset.listing, dataset.name)
    check_shots(drawn, spec)
    assert isinstance(bench.draws, list)  # as `__post_init__` makes it
    bench.draws.append(file)
    return RunSpec.model_validate(
        spec.model_dump() | {"draw": "imported", "draw_checksum": drawn.checksum}
    )
