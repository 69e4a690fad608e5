"""Profiles: which datasets, methods, shots, seeds and training settings a reproduction uses.

Profiles differ only in size. `profile_files` reads them; `grid` turns an experiment of a profile
into the run specs that it asks for.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ..adapters.config import AdapterConfig
from ..core.paths import RESULTS
from ..core.schema import Strict, UnknownName, explain, near
from ..learning.spec import TrainingSpec
from ..methods import MethodSpec, get_method
from ..weights.spec import BackboneSpec

MOST_RUNS = 100_000  # of an experiment; a grid is counted before it is written out
MOST_SEED = 2**63 - 1  # what tables and other programs can hold
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Shots = Annotated[int, Field(ge=1, le=10**6)]  # images a class


class MethodEntry(Strict):
    """A method as a profile lists it.

    `name` is unique in the profile; `method` is the name in the registry, so that one method can
    stand in a profile with several settings; `label` is what figures and tables call it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_,=+.-]*$")  # a part of files' names
    method: str = ""
    label: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)  # what differs from the profile's

    @property
    def registry_name(self) -> str:
        """The method's name in the registry."""
        return self.method or self.name

    @property
    def method_spec(self) -> MethodSpec:
        """The method with all its settings; ValueError names this entry where they are wrong."""
        try:
            return MethodSpec(name=self.registry_name, settings=self.settings)
        except ValidationError as error:
            wrong = re.sub(r"(^|; )settings(: |\.)", r"\1", explain(error))
            raise ValueError(f"settings of method {self.name}: {wrong}") from None

    def adapter_config(self) -> AdapterConfig | None:
        """The adapter of this method; None for a method without one."""
        settings = self.method_spec.load().settings
        return settings if isinstance(settings, AdapterConfig) else None

    def varied(self, changes: Mapping[str, Any]) -> MethodEntry:
        """This entry with other 'settings.<name>' or 'training.<name>', named after them."""
        parts = {"settings": dict(self.settings), "training": dict(self.training)}
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

    `vary` runs each method with other settings instead: a list of grids, each {key: values} with
    keys such as 'settings.n_blocks' or 'training.lr', of which every combination is one method.

    `evaluate_on: targets` is cross-dataset transfer: only the source is trained on, and each run is
    evaluated on the source and on every target, with that set's own class names and template.
    """

    datasets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    shots: tuple[Shots, ...] | None = Field(None, min_length=1)
    seeds: tuple[Seed, ...] | None = Field(None, min_length=1)
    evaluate_on: Literal["own", "targets"] = "own"
    vary: tuple[dict[str, tuple[Any, ...]], ...] = ()

    @field_validator("vary")
    @classmethod
    def _something_to_vary(cls, vary: tuple[dict[str, tuple[Any, ...]], ...]) -> Any:
        for grid in vary:
            for key, values in grid.items() or {"": ()}.items():
                if not values:
                    raise ValueError(
                        f"vary lists no values{f' of {key}' if key else ''}; list one or more"
                    )
                if any(value in values[:i] for i, value in enumerate(values[:1000])):
                    raise ValueError(
                        f"vary lists a value of {key} twice: {list(values)}; list each once"
                    )
        return vary

    @property
    def combinations(self) -> int:
        """How many entries stand for one, counted without writing them out."""
        return sum(math.prod(map(len, grid.values())) for grid in self.vary) or 1

    def variations(self, entry: MethodEntry) -> tuple[MethodEntry, ...]:
        """The entries that stand for `entry` here: itself, or one for each combination."""
        grids = (itertools.product(*grid.values()) for grid in self.vary)
        return tuple(
            entry.varied(dict(zip(grid, values, strict=True)))
            for grid, combinations in zip(self.vary, grids, strict=True)
            for values in combinations
        ) or (entry,)


class Profile(Strict):
    """What a reproduction runs on; the source is evaluated on its domain-shifted variants too."""

    name: str = Field(pattern=r"^[a-z0-9_]+(-[a-z0-9_]+)*$")
    description: str
    # whether its numbers may stand beside published ones: checkpoint, data, protocol are theirs
    published: bool = False
    backbone: BackboneSpec
    source: str | None = None
    variants: tuple[str, ...] = ()
    targets: tuple[str, ...] = Field(min_length=1)
    shots: tuple[Shots, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(min_length=1)
    draw: Literal["nested", "coop", "clip_lora"] = "nested"
    skip_unreadable: bool = False  # leave out images that do not decode; records name them
    # where runs compute: 'cpu'; 'cuda', 'cuda:0', ..; or 'auto', the GPU, refused where there is
    # none. Left out: the GPU if there is one. No part of what names a run: its record says it
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    deterministic: bool = True  # false: faster kernels of a GPU, which do not repeat bit for bit
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    training: TrainingSpec = TrainingSpec()
    experiments: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Experiment] = Field(
        min_length=1
    )
    rounds: int = Field(11, ge=3, le=10_000)  # samples of each function in a paired timing
    # what one process of the engine runs: one method on a dataset, or all where runs are short
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

    @field_validator("methods", "experiments")
    @classmethod
    def _none_is_called_all(cls, named: Any) -> Any:
        names = named if isinstance(named, dict) else [entry.name for entry in named]
        if "all" in names:
            raise ValueError(
                "'all' means every one of them on the command line; choose another name"
            )
        return named

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.variants and self.source is None:
            raise ValueError(
                f"variants={list(self.variants)} need the source set that they vary; give source: "
                "..."
            )
        self._check_numbers("", self)
        for key, experiment in self.experiments.items():
            for name in experiment.datasets or ():
                if name not in self.datasets:
                    raise ValueError(
                        f"experiments.{key}: unknown dataset {name!r}; {near(name, self.datasets)}"
                    )
            for name in experiment.methods or ():
                self.entry(name)
            self._check_numbers(f"experiments.{key}: ", experiment)
            self._check_runs(key, experiment)
            if experiment.evaluate_on == "targets" and self.source is None:
                raise ValueError(
                    f"experiments.{key}: evaluate_on=targets needs a source set to train on; give "
                    "source: ..."
                )
            if experiment.evaluate_on == "targets" and self.datasets_of(experiment) != (
                self.source,
            ):
                raise ValueError(
                    f"experiments.{key}: evaluate_on=targets trains on the source {self.source!r} "
                    f"alone, not on datasets={list(experiment.datasets)}; leave datasets out"
                )
            for entry in self.methods_of(experiment):
                self.training_of(entry)
        return self

    @staticmethod
    def _check_numbers(where: str, given: Profile | Experiment) -> None:
        for what, number in (("shots", given.shots), ("seeds", given.seeds)):
            if number and len(set(number)) != len(number):
                twice = next(n for i, n in enumerate(number) if n in number[:i])
                raise ValueError(
                    f"{where}{what} lists {twice} twice; {what} are different whole numbers"
                )

    def _check_runs(self, key: str, experiment: Experiment) -> None:
        """Count the runs of an experiment before any list of them is made."""
        counts = {
            "datasets": len(self.datasets_of(experiment)),
            "methods": len(experiment.methods or self.methods),
            "variations": experiment.combinations,
            "shots": len(experiment.shots or self.shots),
            "seeds": len(experiment.seeds or self.seeds),
        }
        if (runs := math.prod(counts.values())) > MOST_RUNS:
            product = " x ".join(f"{number:,} {what}" for what, number in counts.items())
            raise ValueError(
                f"experiments.{key}: {product} are {runs:,} runs, at most {MOST_RUNS:,} can be "
                "asked for; list fewer values, or make several experiments"
            )

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
        chosen = (
            [self.entry(name) for name in experiment.methods]
            if experiment.methods
            else self.methods
        )
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
