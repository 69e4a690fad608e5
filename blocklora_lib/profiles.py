"""Profiles: one YAML file says which datasets, methods, shots, seeds and training settings a reproduction
uses.

Profiles differ only in size; `expand` turns an experiment of a profile into the run specs that it asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from .adapter_config import AdapterConfig
from .data.roots import checksum as data_checksum
from .manifests import Manifest, load_manifest, manifest_names
from .methods import complete, get_method
from .paths import MANIFESTS, PROFILES, RESULTS
from .specs import BackboneSpec, MethodSpec, RunSpec, TrainingSpec
from .strict import Strict, UnknownName, explain, near
from .weights import with_checksum


class MethodEntry(Strict):
    """A method as a profile lists it.

    `name` is unique in the profile; `method` is the name in the registry, so that one method can stand in a
    profile with several settings; `label` is what figures and tables call it.
    """

    name: str
    method: str = ""
    label: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(
        default_factory=dict
    )  # what differs from the profile's training settings

    @property
    def registry_name(self) -> str:
        """The method's name in the registry."""
        return self.method or self.name

    def adapter_config(self) -> AdapterConfig | None:
        """The adapter of this method; None for a method without one."""
        settings = get_method(self.registry_name).Settings(**self.settings)
        return settings if isinstance(settings, AdapterConfig) else None

    def varied(self, changes: Mapping[str, Any]) -> MethodEntry:
        """This entry with other settings, keys 'settings.<name>' or 'training.<name>', named after them."""
        parts: dict[str, dict[str, Any]] = {"settings": dict(self.settings), "training": dict(self.training)}
        for key, value in changes.items():
            part, _, name = key.partition(".")
            if part not in parts or not name:
                raise ValueError(f"vary names {key!r}; write settings.<name> or training.<name>")
            parts[part][name] = value
        told = {key.partition(".")[2]: _word(value) for key, value in changes.items()}
        label = self.label or get_method(self.registry_name).label
        return MethodEntry(
            name=",".join([self.name, *(f"{name}={value}" for name, value in told.items())]),
            method=self.registry_name,
            label=", ".join([label, *(f"{name} = {value}" for name, value in told.items())]),
            **parts,
        )


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class Experiment(Strict):
    """A grid of runs; what is not given is the profile's.

    `vary` runs each method with other settings instead: a list of grids, each {key: values} with keys such as
    'settings.n_blocks' or 'training.lr', of which every combination is one method.

    `evaluate_on: targets` is cross-dataset transfer: only the source is trained on, and each run is evaluated
    on the source and on every target, with that set's own class names and template.
    """

    datasets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    shots: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    evaluate_on: Literal["own", "targets"] = "own"
    vary: tuple[dict[str, tuple[Any, ...]], ...] = ()

    def variations(self, entry: MethodEntry) -> tuple[MethodEntry, ...]:
        """The entries that stand for `entry` in this experiment: itself, or one for each combination."""
        grids = (itertools.product(*grid.values()) for grid in self.vary)
        return tuple(
            entry.varied(dict(zip(grid, values, strict=True)))
            for grid, combinations in zip(self.vary, grids, strict=True)
            for values in combinations
        ) or (entry,)


class Profile(Strict):
    """What a reproduction runs on.  The source set is evaluated on its domain-shifted variants as well."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    description: str
    backbone: BackboneSpec
    source: str | None = None
    variants: tuple[str, ...] = ()
    targets: tuple[str, ...] = Field(min_length=1)
    shots: tuple[int, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    draw: Literal["nested", "coop", "clip_lora"] = "nested"
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    training: TrainingSpec = TrainingSpec()
    experiments: dict[str, Experiment] = Field(min_length=1)
    # samples of each function in a paired timing
    rounds: int = Field(11, ge=3)
    # what one process of the engine runs: one method on a dataset, or, where runs are short, all of them
    job: Literal["dataset", "method"] = "method"

    @field_validator("methods")
    @classmethod
    def _unique_methods(cls, methods: tuple[MethodEntry, ...]) -> tuple[MethodEntry, ...]:
        names = [m.name for m in methods]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"{', '.join(twice)} stands twice; give each entry its own name and say method: ..."
            )
        return methods

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.variants and self.source is None:
            raise ValueError(
                f"variants={list(self.variants)} need the source set that they vary; give source: ..."
            )
        for number, what in ((self.shots, "shots"), (self.seeds, "seeds")):
            if min(number) < (1 if what == "shots" else 0) or len(set(number)) != len(number):
                raise ValueError(
                    f"{what}={list(number)} must be different whole numbers, shots from 1, seeds from 0"
                )
        for key, experiment in self.experiments.items():
            for name in experiment.datasets or ():
                if name not in self.datasets:
                    raise ValueError(
                        f"experiments.{key}: unknown dataset {name!r}; {near(name, self.datasets)}"
                    )
            for name in experiment.methods or ():
                self.entry(name)
            for shots in experiment.shots or ():
                if shots < 1:
                    raise ValueError(
                        f"experiments.{key}: shots={shots}; a run trains on at least 1 image a class"
                    )
            if experiment.evaluate_on == "targets" and self.source is None:
                raise ValueError(
                    f"experiments.{key}: evaluate_on=targets needs a source set to train on; give source: ..."
                )
            if experiment.evaluate_on == "targets" and self.datasets_of(experiment) != (self.source,):
                raise ValueError(
                    f"experiments.{key}: evaluate_on=targets trains on the source {self.source!r} alone, not "
                    f"on datasets={list(experiment.datasets)}; leave datasets out"
                )
            for entry in self.methods_of(experiment):
                self.training_of(entry)
        return self

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets that can be trained on: the source, then the targets."""
        return (*((self.source,) if self.source else ()), *self.targets)

    @property
    def results(self) -> Path:
        """Default folder of this profile's results."""
        return RESULTS / self.name

    def entry(self, name: str) -> MethodEntry:
        """The method entry of this name."""
        for entry in self.methods:
            if entry.name == name:
                return entry
        raise UnknownName(f"method in profile {self.name}:", name, [m.name for m in self.methods])

    def methods_of(self, experiment: Experiment) -> tuple[MethodEntry, ...]:
        """The methods of an experiment, with its variations of their settings."""
        chosen = [self.entry(name) for name in experiment.methods] if experiment.methods else self.methods
        return tuple(varied for entry in chosen for varied in experiment.variations(entry))

    def training_of(self, entry: MethodEntry) -> TrainingSpec:
        """The profile's training settings with the entry's own on top."""
        try:
            return TrainingSpec(**(self.training.model_dump() | entry.training))
        except ValidationError as error:
            raise ValueError(f"training of method {entry.name}: {explain(error)}") from None

    def datasets_of(self, experiment: Experiment) -> tuple[str, ...]:
        """The sets that an experiment trains on."""
        transfer = experiment.evaluate_on == "targets" and self.source is not None
        return experiment.datasets or ((self.source,) if transfer else self.datasets)

    def evaluated(self, dataset: str, on: Literal["own", "targets"] = "own") -> tuple[str, ...]:
        """The sets on which a run of `dataset` is evaluated."""
        others = self.targets if on == "targets" else self.variants
        return (dataset, *others) if dataset == self.source else (dataset,)

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name."""
        if name not in self.experiments:
            raise UnknownName("experiment", name, self.experiments)
        return self.experiments[name]


def profile_path(name: str | Path, folder: Path = PROFILES) -> Path:
    """The file of profile `name`: one of the profiles folder, or a path that ends in .yaml or .yml."""
    return Path(name) if str(name).endswith((".yaml", ".yml")) else folder / f"{name}.yaml"


def load_profile(name: str | Path, folder: Path = PROFILES) -> Profile:
    """Read the profile `name` of the profiles folder, or the YAML file at a path."""
    path = profile_path(name, folder)
    if not path.is_file():
        raise UnknownName("profile", name, [p.stem for p in folder.glob("*.yaml")])
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def check_manifests(profile: Profile, names: tuple[str, ...], manifests: Path = MANIFESTS) -> None:
    """Say in one sentence which of these sets have no manifest."""
    known = manifest_names(manifests)
    if missing := [n for n in names if n not in known]:
        raise FileNotFoundError(
            f"profile {profile.name} names datasets without a manifest: {', '.join(missing)}; add "
            f"data_manifests/<name>.yaml for each, or leave them out of the profile "
            f"(bundled: {', '.join(known)})"
        )


def make_spec(
    profile: Profile,
    dataset: str,
    method: str,
    shots: int,
    seed: int,
    split: Literal["test", "val"] = "test",
    manifests: Path = MANIFESTS,
) -> RunSpec:
    """The complete spec of one run: every default of the method written out, data and backbone by checksum.

    A method that needs no training ignores shots and seed: it is one run.
    """
    if dataset not in profile.datasets:
        raise UnknownName("dataset", dataset, profile.datasets)
    evaluated = {dataset: profile.evaluated(dataset)}
    entry = profile.entry(method)
    ((spec, _),) = _make_specs(profile, evaluated, (entry,), (shots,), (seed,), split, manifests).values()
    return spec


def entries(
    profile: Profile, experiment: str = "few_shot", manifests: Path = MANIFESTS
) -> dict[str, MethodEntry]:
    """Return the method entry of every run of an experiment, by the key of the run's spec."""
    return {key: entry for key, (_, entry) in _planned(profile, experiment, manifests=manifests).items()}


def expand(
    profile: Profile,
    experiment: str = "few_shot",
    dataset: str | None = None,
    method: str | None = None,
    split: Literal["test", "val"] = "test",
    manifests: Path = MANIFESTS,
) -> list[RunSpec]:
    """All run specs of an experiment, each once, by dataset and method; filters keep one of them."""
    return [spec for spec, _ in _planned(profile, experiment, dataset, method, split, manifests).values()]


def _planned(
    profile: Profile,
    experiment: str,
    dataset: str | None = None,
    method: str | None = None,
    split: Literal["test", "val"] = "test",
    manifests: Path = MANIFESTS,
) -> dict[str, tuple[RunSpec, MethodEntry]]:
    chosen = profile.experiment(experiment)
    datasets = profile.datasets_of(chosen)
    methods = {entry.name: entry for entry in profile.methods_of(chosen)}
    for value, known, what in ((dataset, datasets, "dataset"), (method, list(methods), "method")):
        if value is not None and value not in known:
            raise UnknownName(what, value, known)
    evaluated = {d: profile.evaluated(d, chosen.evaluate_on) for d in ((dataset,) if dataset else datasets)}
    shots, seeds = chosen.shots or profile.shots, chosen.seeds or profile.seeds
    wanted = [methods[method]] if method else list(methods.values())
    return _make_specs(profile, evaluated, wanted, shots, seeds, split, manifests)


def _make_specs(
    profile: Profile,
    evaluated: Mapping[str, tuple[str, ...]],  # training set -> itself and what else it is evaluated on
    methods: Sequence[MethodEntry],
    shots: tuple[int, ...],
    seeds: tuple[int, ...],
    split: Literal["test", "val"],
    folder: Path,
) -> dict[str, tuple[RunSpec, MethodEntry]]:
    check_manifests(profile, tuple(dict.fromkeys(itertools.chain(*evaluated.values()))), folder)
    backbone = with_checksum(profile.backbone)
    # by key: a method without training is one run, not shots x seeds
    specs: dict[str, tuple[RunSpec, MethodEntry]] = {}
    for dataset, names in evaluated.items():
        manifests = [load_manifest(name, folder) for name in names]
        _check_variants([m for m in manifests if m.name == dataset or m.name in profile.variants])
        checksum = data_checksum(manifests)
        for entry in methods:
            trains = get_method(entry.registry_name).trains
            try:
                method = complete(MethodSpec(name=entry.registry_name, settings=entry.settings))
            except ValidationError as error:
                raise ValueError(f"settings of method {entry.name}: {explain(error)}") from None
            for k in shots if trains else (0,):
                for seed in seeds if trains else (0,):
                    spec = RunSpec(
                        dataset=dataset,
                        data_checksum=checksum,
                        shots=k,
                        seed=seed,
                        draw=profile.draw if trains else None,
                        split=split,
                        backbone=backbone,
                        method=method,
                        training=profile.training_of(entry) if trains else None,
                        evaluate_on=tuple(m.name for m in manifests),
                    )
                    specs[spec.key] = spec, entry
    return specs


def _check_variants(manifests: list[Manifest]) -> None:
    source, *variants = manifests
    for variant in variants:
        if not variant.varies(source):
            raise ValueError(
                f"{variant.name} is no variant of {source.name} (variant_of={variant.variant_of!r}, "
                f"{len(variant.classes)} classes against {len(source.classes)}); "
                "variants share the classes, in order"
            )
