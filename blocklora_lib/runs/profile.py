"""Profiles: which datasets, methods, shots, seeds and training settings a reproduction uses.

Profiles differ only in size. `profile_files` reads them; `grid` turns an experiment of a profile
into the run specs that it asks for.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from ..core.paths import RESULTS
from ..core.schema import Strict, UnknownName, Whole, explain, near
from ..learning.spec import TrainingSpec
from ..methods import get_method
from ..weights.spec import BackboneSpec
from .experiment import RATES, Experiment, MethodEntry, Rates, Seed, Shots

MOST_RUNS = 100_000  # of an experiment; a grid is counted before it is written out


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
    rates: Rates | None = None  # every trained method has a rate of its own (see `runs.rates`)
    experiments: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Experiment] = Field(
        min_length=1
    )
    # Keep what each run trains in results/<profile>/adapters (`kept`); runs that were made before
    # are trained again for it. No part of what names a run
    save_adapters: bool = False
    # Keep evaluated images as the backbone sees them in the user's cache folder, so that each file
    # is decoded once: 0.15 MB an image at 224 x 224. No part of what names a run
    keep_views: bool = True
    # Let a GPU repeat training steps by CUDA graphs (see `learning.replayed`): the same bits, in
    # less time. No part of what names a run
    cuda_graphs: bool = True
    # Train up to so many runs of adapters at once that differ in their seed alone (see
    # `learning.stacked`), which takes as many times the memory. A result is the run's alone but for
    # rounding: no part of what names a run; its record says with which (provenance.stacked_with)
    stack: Whole = 1
    rounds: int = Field(11, ge=3, le=10_000)  # samples of each function in a paired timing
    processes: int = Field(6, ge=1, le=1000)  # that it is spread over; 6 have an interval at 95%
    # what one process of the engine runs: one method on a dataset, or all where runs are short
    job: Literal["dataset", "method"] = "method"
    _waiting: tuple[str, ...] = PrivateAttr(())
    _file: str = PrivateAttr("")

    @property
    def waiting(self) -> tuple[str, ...]:
        """Methods whose own rate waits to be chosen: they have `rates.until_chosen`."""
        return self._waiting

    @property
    def argument(self) -> str:
        """What names it on a shell's command line: the file that it was read of, or its name."""
        return shlex.quote(self._file or self.name)

    def knowing(self, waiting: Iterable[str] = (), file: str = "") -> Profile:
        """Return the profile that knows what no fact of it says: which methods are `waiting`, and
        the file that it was read of, as that was given. What is left out stays.
        """
        new = self.model_copy()
        new._waiting, new._file = tuple(waiting) or self._waiting, file or self._file
        return new

    def rounds_each(self, factor: int = 1) -> int:
        """Return how many rounds of a timing fall to each of its processes, at least 3."""
        return max(3, math.ceil(factor * self.rounds / self.processes))

    @property
    def of_bench(self) -> dict[str, Any]:
        """What it says to a workbench."""
        return {"keeps_views": self.keep_views, "cuda_graphs": self.cuda_graphs}

    @field_validator("methods", "experiments")
    @classmethod
    def _none_is_called_all(cls, named: Any) -> Any:
        names = named if isinstance(named, dict) else [entry.name for entry in named]
        if "all" in names:
            raise ValueError(
                "'all' means every one of them on the command line; choose another name"
            )
        if isinstance(named, dict) and RATES in named:
            raise ValueError(f"{RATES!r} are the runs that choose rates; choose another name")
        return named

    @field_validator("methods")
    @classmethod
    def _unique_methods(cls, methods: tuple[MethodEntry, ...]) -> tuple[MethodEntry, ...]:
        """Two of one name are refused; of one label, as of one method, figures tell the names."""
        names = [m.name for m in methods]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"{', '.join(twice)} stands twice; give each entry its own name and say method: ..."
            )
        called = [m.label or get_method(m.registry_name).label for m in methods]
        return tuple(
            m if called.count(label) == 1 else m.model_copy(update={"label": f"{label} ({m.name})"})
            for m, label in zip(methods, called, strict=True)
        )

    @field_validator("name")
    @classmethod
    def _is_not_the_reference(cls, name: str) -> str:
        if name == "reference":
            raise ValueError("results/reference holds the reference runs; choose another name")
        return name

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.variants and self.source is None:
            raise ValueError(
                f"variants={list(self.variants)} need the source set that they vary; give source: "
                "..."
            )
        self._check_numbers("", self)
        grids = {f"experiments.{key}": experiment for key, experiment in self.experiments.items()}
        if self.rates:
            grids[RATES] = self.experiment(RATES)
        for key, experiment in grids.items():
            for name in experiment.datasets or ():
                if experiment.task == "classification" and name not in self.datasets:
                    raise ValueError(
                        f"{key}: unknown dataset {name!r}; {near(name, self.datasets)}"
                    )
            for name in experiment.methods or ():
                if name not in (names := [entry.name for entry in self.methods]):
                    raise ValueError(f"{key}: unknown method {name!r}; {near(name, names)}")
            self._check_numbers(f"{key}: ", experiment)
            self._check_runs(key, experiment)
            if experiment.evaluate_on == "targets" and self.source is None:
                raise ValueError(
                    f"{key}: evaluate_on=targets needs a source set to train on; give source: ..."
                )
            if experiment.evaluate_on == "targets" and self.datasets_of(experiment) != (
                self.source,
            ):
                raise ValueError(
                    f"{key}: evaluate_on=targets trains on the source {self.source!r} "
                    f"alone, not on datasets={list(experiment.datasets or ())}; leave datasets out"
                )
            self._check_methods(key, experiment)
        for entry in self.methods:
            self.training_of(entry)
        return self

    def _check_methods(self, key: str, experiment: Experiment) -> None:
        """Refuse wrong settings, and two methods of one spec: tables would show the last alone."""
        seen: dict[str, str] = {}
        for name in experiment.methods or [entry.name for entry in self.methods]:
            for entry in experiment.variations(self.entry(name)):
                method, training = entry.method_spec, self.training_of(entry)
                spec = method.canonical + (training.canonical if method.scheduled else "")
                if (other := seen.setdefault(spec, name)) != name:
                    raise ValueError(
                        f"{key}: methods {other} and {name} are one here, of the same settings and "
                        "training; list one of them, or give them different ones"
                    )

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
                f"{key}: {product} are {runs:,} runs, at most {MOST_RUNS:,} can be "
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

    def changed(self, name: str, settings: dict[str, Any], training: dict[str, Any]) -> Profile:
        """The profile in which a method has these settings, and trains by these, above its own.

        ValueError, with the near names, for what the method does not have; and for training
        settings of a method that has a way of its own.
        """
        old = self.entry(name)
        own = get_method(old.registry_name).Settings.model_fields
        for given, here, there, way in (
            (settings, own, TrainingSpec.model_fields, "training setting: say -t"),
            (training, TrainingSpec.model_fields, own, f"setting of method {name}: say -s"),
        ):
            for key in given:
                if key in there and key not in here:
                    raise ValueError(f"{key} is a {way} {key}={given[key]}")
        new = old.over(settings, training)
        if training and not new.method_spec.scheduled:
            says = "says" if len(training) == 1 else "say"
            raise ValueError(
                f"{', '.join(training)} {says} nothing to method {name}, which has a way of its "
                f"own to train; its settings are {', '.join(own) or 'none'} (-s)"
            )
        self.training_of(new)
        methods = tuple(new if entry.name == name else entry for entry in self.methods)
        return self.model_copy(update={"methods": methods})

    def methods_of(self, experiment: Experiment) -> tuple[MethodEntry, ...]:
        """The methods of an experiment, with its variations of their settings."""
        chosen = map(self.entry, experiment.methods or [entry.name for entry in self.methods])
        return tuple(varied for entry in chosen for varied in experiment.variations(entry))

    def training_of(self, entry: MethodEntry) -> TrainingSpec:
        """The profile's training settings with the entry's own on top.

        ValueError for settings that are not right, or of an entry that learns by none of them.
        """
        if entry.training and not entry.method_spec.scheduled:
            raise ValueError(
                f"method {entry.name} has training settings ({', '.join(entry.training)}), but a "
                "way of its own, which its settings say; give them there, and leave training out"
            )
        try:
            return TrainingSpec(**(self.training.model_dump() | entry.training))
        except ValidationError as error:
            raise ValueError(f"training of method {entry.name}: {explain(error)}") from None

    def datasets_of(self, experiment: Experiment) -> tuple[str, ...]:
        """The sets that an experiment trains on."""
        alone: tuple[str, ...] = ()
        if experiment.evaluate_on == "targets" and self.source is not None:
            alone = (self.source,)
        return experiment.datasets or alone or self.datasets

    def evaluated(
        self, dataset: str, on: Literal["own", "targets"] | tuple[str, ...] = "own"
    ) -> tuple[str, ...]:
        """The sets on which a run of `dataset` is evaluated."""
        if isinstance(on, tuple):
            return on
        others = self.targets if on == "targets" else self.variants
        return (dataset, *others) if dataset == self.source else (dataset,)

    @property
    def trained(self) -> tuple[MethodEntry, ...]:
        """The methods that learn by these training settings, each at a rate of its own."""
        return tuple(entry for entry in self.methods if entry.method_spec.scheduled)

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name; 'rates' are the runs by which rates are chosen."""
        if name == RATES and self.rates:
            return self.rates.experiment(tuple(entry.name for entry in self.trained))
        if name not in self.experiments:
            raise UnknownName("experiment", name, self.experiments)
        return self.experiments[name]
