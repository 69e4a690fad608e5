"""What a profile's grids are made of: its methods, experiments, and the choice of rates."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from ..adapters.config import AdapterConfig
from ..core.schema import Strict, explain
from ..methods import MethodSpec, get_method
from ..weights.spec import BackboneSpec
from .spec import Task

MOST_SEED = 2**63 - 1  # what tables and other programs can hold
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Shots = Annotated[int, Field(ge=1, le=10**6)]  # images a class
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RATES = "rates"  # the name of the grid by which rates are chosen, beside those of experiments


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

    def over(self, settings: dict[str, Any], training: dict[str, Any]) -> MethodEntry:
        """This entry with these on top; a schedule among them takes the place of its training."""
        own = dict(settings=self.settings | settings, training=self.training | training)
        new = self.model_copy(update=own)
        if self.training and not training and self.method_spec.scheduled:
            new = new if new.method_spec.scheduled else new.model_copy(update={"training": {}})
        return new

    def varied(self, changes: Mapping[str, Any]) -> MethodEntry:
        """This entry with other 'settings.<name>' or 'training.<name>', named after them."""
        parts: dict[str, dict[str, Any]] = {"settings": {}, "training": {}}
        for key, value in changes.items():
            part, _, name = key.partition(".")
            if part not in parts or not name:
                raise ValueError(f"vary names {key!r}; write settings.<name> or training.<name>")
            parts[part][name] = value
        told = {key.partition(".")[2]: _word(value) for key, value in changes.items()}
        label = self.label or get_method(self.registry_name).label
        return MethodEntry(
            # of words and schedules, too, in characters that a name may have
            name=re.sub(
                r"[^A-Za-z0-9_,=+.-]+",
                "-",
                ",".join([self.name, *(f"{name}={value}" for name, value in told.items())]),
            ),
            method=self.registry_name,
            label=", ".join([label, *(f"{name} = {value}" for name, value in told.items())]),
            **self.over(**parts).model_dump(include={*parts}),
        )


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class Experiment(Strict):
    """A grid of runs; what is not given is the profile's.

    `vary` runs each method with other settings instead: a list of grids, each {key: values} with
    keys such as 'settings.n_blocks' or 'training.lr', of which every combination is one method.

    `evaluate_on: targets` is cross-dataset transfer: only the source is trained on, and each run is
    evaluated on the source and on every target, with that set's own class names and template. A
    list names the sets on which every run is evaluated.

    `task` and `backbone` are other ones than the profile's, which classifies; datasets may then be
    any that have a manifest. `settings` and `training` are those of every method that trains here,
    over what the profile says of it.
    """

    datasets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    shots: tuple[Shots, ...] | None = Field(None, min_length=1)
    seeds: tuple[Seed, ...] | None = Field(None, min_length=1)
    evaluate_on: Literal["own", "targets"] | tuple[str, ...] = "own"
    task: Task = "classification"
    backbone: BackboneSpec | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
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
        if get_method(entry.registry_name).trains and (self.settings or self.training):
            entry = entry.over(self.settings, self.training)
        grids = (itertools.product(*grid.values()) for grid in self.vary)
        found = tuple(
            entry.varied(dict(zip(grid, values, strict=True)))
            for grid, combinations in zip(self.vary, grids, strict=True)
            for values in combinations
        )
        named = {varied.name: varied for varied in found}
        if other := next((varied for varied in found if named[varied.name] != varied), None):
            raise ValueError(
                f"vary has two methods of the name {other.name!r}; list values that differ by more "
                "than blanks and signs"
            )
        return found or (entry,)


class Rates(Strict):
    """How the learning rate of every trained method is chosen: by runs on validation images.

    grid: the rates that each method is tried at, one grid for all, from low to high. datasets: sets
    with validation images. until_chosen: the rate of each method until its choice has been made;
    without it a profile whose rates were not chosen is refused.
    """

    grid: tuple[Rate, ...] = Field(min_length=2)
    datasets: tuple[str, ...] = Field(min_length=1)
    shots: tuple[Shots, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(min_length=1)
    until_chosen: Rate | None = None

    @field_validator("grid")
    @classmethod
    def _rising(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if any(high <= low for low, high in itertools.pairwise(grid)):
            raise ValueError(
                f"grid={list(grid)} does not rise; list each rate once, the lowest first"
            )
        return grid

    def experiment(self, trained: tuple[str, ...]) -> Experiment:
        """The runs of the choice: each of these methods at each rate."""
        return Experiment(
            datasets=self.datasets,
            methods=trained,
            shots=self.shots,
            seeds=self.seeds,
            vary=({"training.lr": self.grid},),
        )
