"""Each trained method's learning rate: chosen once, on validation images, from one grid. No torch.

The choice is a small file beside the profile, rates/<profile>.yaml, and the records on which it
rests are packed beside it, rates/<profile>.parquet. A profile's methods get their rates from there
when it is read, so that every spec has its method's own rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from ..core.files import write_whole
from ..core.paths import MANIFESTS
from ..core.schema import Strict, explain
from ..core.yaml_data import read_yaml
from .experiment import RATES, MethodEntry, Rate, Rates
from .grid import expand
from .packed import SUFFIX
from .profile import Profile
from .results import MissingResults
from .spec import RunSpec
from .store import RunStore

RULE = (
    "the rate of the highest mean accuracy over the validation images of sets, shots and seeds, "
    "each run counting alike; of equal rates the lowest; no rate at which a run failed"
)


class MethodRate(Strict):
    """A method's choice. accuracy: the mean at each rate of the grid, None where a run failed.

    settings: digest of what the rate is for; runs: digest of the keys of the records.
    """

    lr: Rate
    accuracy: tuple[float | None, ...]
    settings: str = Field(pattern=r"^[0-9a-f]{16}$")
    runs: str = Field(pattern=r"^[0-9a-f]{64}$")


class Choice(Strict):
    """What a file of chosen rates holds, by the profile's names of methods."""

    grid: tuple[Rate, ...]
    methods: dict[str, MethodRate]

    def at_the_edge(self) -> list[str]:
        """The methods whose rate is the lowest or highest of the grid: a better may lie beyond."""
        return [name for name, m in self.methods.items() if m.lr in (self.grid[0], self.grid[-1])]


def best(accuracies: Sequence[Fraction | float | None]) -> int:
    """Return which of the grid's rates is chosen, by RULE; ValueError where none can be."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if not known:
        raise ValueError("runs failed at each rate of the grid; declare lower ones")
    return accuracies.index(max(known))


def declared(profile: Profile) -> Rates:
    """Return how the profile chooses rates; ValueError for one that does not."""
    if profile.rates is None:
        raise ValueError(
            f"profile {profile.name} declares no rates to choose from; give rates: {{grid: ..., "
            "datasets: ..., shots: ..., seeds: ...}"
        )
    return profile.rates


def choose(profile: Profile, store: RunStore, manifests: Path = MANIFESTS) -> Choice:
    """Choose the rate of every trained method by the records of a store.

    Raises MissingResults where one is missing, DamagedRecord where it cannot be read, and
    ValueError where a method's runs failed at each rate.
    """
    grid, methods = declared(profile).grid, {}
    for entry in profile.trained:
        specs = {rate: _runs(profile, entry, rate, manifests) for rate in grid}
        means = [_mean(runs, store, profile.argument) for runs in specs.values()]
        try:
            chosen = best(means)
        except ValueError as error:
            raise ValueError(f"no learning rate for method {entry.name}: {error}") from None
        methods[entry.name] = MethodRate(
            lr=grid[chosen],
            accuracy=tuple(None if mean is None else float(mean) for mean in means),
            settings=settings_digest(profile, entry),
            runs=keys_digest([spec for runs in specs.values() for spec in runs]),
        )
    return Choice(grid=grid, methods=methods)


def _runs(profile: Profile, entry: MethodEntry, rate: float, manifests: Path) -> list[RunSpec]:
    method = entry.varied({"training.lr": rate}).name
    return expand(profile, RATES, method=method, manifests=manifests)


def _mean(specs: Sequence[RunSpec], store: RunStore, profile: str) -> Fraction | None:
    """The mean accuracy of these runs, exactly, so that equal rates tie; None where one failed."""
    total = Fraction(0)
    for spec in specs:
        record = store.load(spec)
        if record is None:
            training: Any = spec.training  # of a method that trains
            raise MissingResults(
                f"run {spec} at lr={training.lr:g} is missing in {store.folder}; make it with "
                f"`blocklora rates --profile {profile}`"
            )
        if record.result is None:
            return None
        (count,) = record.result.accuracy.values()
        total += Fraction(count.correct, count.total)
    return total / len(specs)


def settings_digest(profile: Profile, entry: MethodEntry) -> str:
    """Return 16 hex digits of all that a method's rate is chosen for, but data and the rate."""
    assert profile.rates is not None
    facts = {
        "backbone": profile.backbone.model_dump(mode="json"),
        "draw": profile.draw,
        "method": entry.method_spec.model_dump(mode="json"),
        "training": profile.training_of(entry).model_dump(mode="json", exclude={"lr"}),
        "rates": profile.rates.model_dump(mode="json", exclude={"grid", "until_chosen"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def keys_digest(specs: Sequence[RunSpec]) -> str:
    """Return the SHA-256 of the runs' keys, sorted, a line each."""
    return hashlib.sha256("\n".join(sorted(spec.key for spec in specs)).encode()).hexdigest()


def write_choice(
    profile: Profile, choice: Choice, store: RunStore, file: Path, manifests: Path = MANIFESTS
) -> None:
    """Write the choice, and the records on which it rests beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    store.pack(file.with_suffix(SUFFIX), expand(profile, RATES, manifests=manifests))
    head = f"# Written by `blocklora rates --profile {profile.name}`: "
    head += "every trained method's own rate,\n"
    head += "".join(f"# {line}\n" for line in RULE.split("; "))
    facts = choice.model_dump(mode="json")
    write_whole(file, head + yaml.safe_dump(facts, sort_keys=False, default_flow_style=None))


def read_choice(file: Path) -> Choice:
    """Read a file of chosen rates; ValueError where it is none."""
    try:
        return Choice.model_validate(read_yaml(file))
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error)}") from None


def not_chosen(profile: Profile, file: Path) -> list[str]:
    """The profile's trained methods of which a file of chosen rates, if it is there, has none."""
    chosen = read_choice(file).methods if file.exists() else {}
    return [entry.name for entry in profile.trained if entry.name not in chosen]


def with_rates(profile: Profile, file: Path, command: str) -> Profile:
    """Return the profile whose trained methods have the rates of a file.

    Without the file, or where it lacks a method, they have `rates.until_chosen`, which may be a
    rate of the grid: `Profile.waiting` names them. ValueError, in
    which `command` is the way out, where neither is there, or where the file is of another grid or
    was chosen for other settings of a method.
    """
    rates = profile.rates
    assert rates is not None
    for entry in profile.trained:
        if "lr" in entry.training:
            raise ValueError(
                f"method {entry.name} has training.lr={entry.training['lr']:g}, and the profile "
                "chooses rates; leave the one out, or say rates: null"
            )
    if file.exists():
        found = _checked(profile, read_choice(file), file, command)
    elif rates.until_chosen is not None:
        found = {entry.name: rates.until_chosen for entry in profile.trained}
    else:
        raise ValueError(
            f"the learning rates of profile {profile.name} were not chosen ({file} is missing); "
            f"{command}"
        )
    methods = tuple(
        entry.model_copy(update={"training": entry.training | {"lr": found[entry.name]}})
        if entry.name in found
        else entry
        for entry in profile.methods
    )
    return profile.model_copy(update={"methods": methods}).knowing(not_chosen(profile, file))


def _checked(profile: Profile, choice: Choice, file: Path, command: str) -> dict[str, float]:
    """The rates of the profile's trained methods."""
    assert profile.rates is not None
    if choice.grid != profile.rates.grid:
        raise ValueError(
            f"{file} chooses from the rates {list(choice.grid)}, profile {profile.name} from "
            f"{list(profile.rates.grid)}; {command}"
        )
    for entry in profile.trained:
        if entry.name not in choice.methods:
            if profile.rates.until_chosen is None:
                raise ValueError(f"{file} has no rate of method {entry.name}; {command}")
            continue
        chosen = choice.methods[entry.name]
        if chosen.settings != settings_digest(profile, entry):
            raise ValueError(
                f"{file} has a rate of method {entry.name} for other settings than profile "
                f"{profile.name}'s; {command}"
            )
        if (
            len(chosen.accuracy) != len(choice.grid)
            or choice.grid[best(chosen.accuracy)] != chosen.lr
        ):
            raise ValueError(
                f"{file} has lr={chosen.lr:g} of method {entry.name}, which is not what its "
                f"accuracies choose; restore the file, or {command}"
            )
    until: Any = profile.rates.until_chosen
    return {
        entry.name: choice.methods[entry.name].lr if entry.name in choice.methods else until
        for entry in profile.trained
    }
