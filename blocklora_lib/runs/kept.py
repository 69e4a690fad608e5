"""Trained adapters as files: what a run keeps, and what a file says of the run that made it.

An adapter file of `adapters.files` whose `extra` holds, under 'trained', the spec, the classes, the
template, the view of the images and the digest of the frozen weights, as JSON. No result depends on
whether a run is kept, so nothing of it is in the spec. Imported without torch.
"""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError, model_validator

from ..adapters.config import AdapterConfig
from ..core.files import check_replaces, is_there, same_error, user_path
from ..core.json_data import parse_json
from ..core.schema import AdapterError, Strict, UnknownName, explain
from ..core.writable import check_folder, check_room
from ..data.manifest import Template
from ..learning.count import Count
from ..methods import get_method, method_names
from .spec import RunSpec

if TYPE_CHECKING:
    from ..adapters.files import AdapterFile
    from ..clip.backbone import Backbone
    from ..learning.method import Predictor
    from .record import Result, RunRecord
    from .workbench import Workbench

KEY = "trained"  # of an adapter file's extra


class Trained(Strict):
    """What a kept adapter was trained on, and by what.

    view: how the backbone looks at images, as `data.views.View`, with mean and std of its channels.
    weights: file and SHA-256 of the checkpoint, as a record has them, and the digest of its tensors
    (`weights.loading.tensors_digest`). data_sha256: of the images, '' where a list names none.
    accuracy: of the run that was kept.
    """

    spec: RunSpec
    classes: tuple[str, ...]
    template: Template
    image_loading: Literal["as_clip", "upright"]
    data_sha256: str
    view: dict[str, Any]
    weights: dict[str, str]
    accuracy: dict[str, Count]

    @model_validator(mode="after")
    def _whole(self) -> Trained:
        if not re.fullmatch("[0-9a-f]{64}", self.weights.get("tensors", "")):
            raise ValueError("weights do not give the SHA-256 of their tensors")
        if not self.classes or "" in self.classes:  # ImageNet has two names twice
            raise ValueError("classes are no names")
        from ..data.views import View

        wanted = {field.name for field in fields(View)} | {"mean", "std"}
        if absent := sorted(wanted - self.view.keys()):
            raise ValueError(f"view does not say {', '.join(absent)}")
        if set(self.accuracy) != set(self.spec.evaluate_on):
            raise ValueError("accuracy is not of the sets that the run is evaluated on")
        return self


def has_adapter(spec: RunSpec) -> bool:
    """Whether the spec's method trains an adapter, which can be kept."""
    return _adapts(spec.method.name)


def _adapts(method: str) -> bool:
    return issubclass(get_method(method).Settings, AdapterConfig)


def refuse_without_adapter(spec: RunSpec) -> None:
    """ValueError, before any training, for a method of which nothing can be kept."""
    if has_adapter(spec):
        return
    able = filter(_adapts, method_names())
    what = "trains no adapter" if spec.shots else "trains nothing"
    raise ValueError(
        f"method {spec.method.name} {what}, so there is none to save; leave --save out, or use one "
        f"of {', '.join(able)}"
    )


class Kept:
    """Where runs keep their adapters: a folder, by the keys of their specs, or one file."""

    def __init__(self, folder: Path | str = ".", file: Path | str | None = None) -> None:
        self.folder, self.file = user_path(folder), None if file is None else user_path(file)

    @classmethod
    def of(cls, results: Path) -> Kept:
        """Where the runs of a results folder keep theirs."""
        return cls(results / "adapters")

    def path(self, spec: RunSpec) -> Path:
        """The file of a run."""
        return self.file or self.folder / f"{spec.key}.safetensors"

    def check(self) -> None:
        """OSError or ValueError, before hours of training, where no file can be written."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        check_folder(self.file)
        from ..adapters.files import read

        check_replaces(self.file, read, "adapter file")
        try:
            check_room(self.file.parent)
        except OSError as error:
            told = f"{self.file} cannot be written ({error.strerror or error})"
            raise same_error(error, f"{told}; make room there, or give another file") from None

    def lacks(self, spec: RunSpec) -> bool:
        """Whether the spec trains an adapter that is not there, or not whole, or of another run."""
        if not has_adapter(spec):
            return False
        try:
            return trained(self.path(spec)).spec.key != spec.key
        except (AdapterError, OSError):
            return True

    def remarks(self, record: RunRecord) -> list[str]:
        """What sets a kept run apart from its record, a line each."""
        kept = trained(self.path(record.spec)).accuracy
        before = record.result.accuracy if record.result else {}
        return [
            f"note: the adapter that is kept has {kept[name].correct} of {kept[name].total} images "
            f"of {name} right and the record says {count.correct}: they were trained on other "
            "machines, or by other versions"
            for name, count in before.items()
            if kept[name] != count
        ]

    def keep(self, spec: RunSpec, predictor: Predictor, result: Result, bench: Workbench) -> None:
        """Write the adapter of a finished run. OSError where the file cannot be written."""
        manifest, backbone = bench.dataset(spec.dataset).manifest, bench.backbone(spec.backbone)
        about = Trained(
            spec=spec,
            classes=manifest.classes,
            template=manifest.template,
            # a bundle has no files; one's own images, which may be asked for, are seen upright
            image_loading="upright" if manifest.kind == "bundle" else manifest.image_loading,
            data_sha256=manifest.sha256,
            view=view_of(backbone),
            weights=backbone.weights | {"tensors": weights_digest(backbone)},
            accuracy=result.accuracy,
        )
        from ..layers.trained_on import WEIGHTS, weights_told

        adapters: Any = predictor.adapters  # type: ignore[attr-defined]  # of those with an adapter
        try:
            told = {KEY: about.model_dump_json(), WEIGHTS: weights_told(adapters.sites)}
            adapters.save(self.path(spec), told)
        except AdapterError as error:  # of the disk; the run itself is whole
            raise OSError(str(error)) from error


def keeper_of(spec: RunSpec, file: Path) -> Kept:
    """Return what keeps the run of a spec in this file; ValueError or OSError, before any training,
    where it cannot, or where the file has what another run, or no run at all, has trained.
    """
    refuse_without_adapter(spec)
    keeper = Kept(file=file)
    keeper.check()
    if not is_there(keeper.path(spec)):
        return keeper
    try:
        other = trained(keeper.path(spec)).spec
        whose = (
            f"the adapters of another run ({other}, {other.key})" if other.key != spec.key else ""
        )
    except AdapterError:  # it is whole: `check` has read it
        whose = "adapters that no run here has trained"
    if whose:
        raise ValueError(
            f"{file} has {whose}; they are not written over: move them away, or give another file"
        )
    return keeper


def trained(path: Path | str, file: AdapterFile | None = None) -> Trained:
    """Return what an adapter file says of its run; AdapterError, in a sentence, where it is none.

    file: what was read of it before.
    """
    from ..adapters.files import read

    file = file or read(path)
    if KEY not in file.extra:
        raise AdapterError(
            f"{path} holds adapters and does not say what they were trained on; load them with "
            "AdapterSet.load, or keep a run by `blocklora run --save`"
        )
    try:
        facts = parse_json(file.extra[KEY], KEY)
        # a spec stands as it was written, as that of a record does
        return Trained.model_validate(facts, context="a file")
    except (ValueError, UnknownName) as error:
        why = explain(error) if isinstance(error, ValidationError) else error
        raise AdapterError(
            f"what {path} says of its run is damaged ({why}); train and save it again"
        ) from None


def view_of(backbone: Backbone) -> dict[str, Any]:
    """How a backbone looks at images, as plain data."""
    channels = {"mean": backbone.image_mean, "std": backbone.image_std}
    rows = {name: [round(v, 7) for v in t.flatten().tolist()] for name, t in channels.items()}
    view = asdict(backbone.view)
    return view | {"size": list(view["size"])} | rows


def weights_digest(backbone: Backbone) -> str:
    """The digest of the frozen weights, whatever file they came from; adapters do not count."""
    from ..weights.loading import tensors_digest

    if "tensors" in backbone.weights:
        return backbone.weights["tensors"]
    state = backbone.model.state_dict()
    return tensors_digest({key: t for key, t in state.items() if ".adapters." not in key})
