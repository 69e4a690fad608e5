"""A notebook on other datasets, methods, shots, seeds, rank or blocks than its profile's.

The variant of a profile is a profile: what is not given stays. Its runs are records like all
others, in the folder that all runs share; figures, tables and index get a folder of their own,
named by what was given, so that two variants at a time never write the same file. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..adapters.config import CUT, AdapterConfig
from ..core.schema import UnknownName, explain
from ..methods import get_method
from ..runs.experiment import Experiment, MethodEntry
from ..runs.profile import Profile

NAMES = ("datasets", "methods", "shots", "seeds", "rank", "n_blocks")
FOLDER = "variants"  # of a results folder
PARAMETERS = "parameters.json"  # of a variant: what was given


def vary(profile: Profile, needs: Mapping[str, Any], given: Mapping[str, Any]) -> Profile:
    """Return the profile with the given values in the experiments that a notebook needs.

    needs: as `catalogue.notebook_needs`. given: some of NAMES; empty lists and 0 leave the
    profile's. ValueError names an unknown dataset or method, a value that stands twice, a rank that
    cannot be cut, methods of which none can be shown, an experiment that the profile lacks.
    """
    given, facts = as_given(profile, needs, given), profile.model_dump()
    facts["rates"] = None  # the methods have theirs, and the sets that chose them may be left out
    facts |= {key: given[key] for key in ("shots", "seeds") if key in given}
    if needs["datasets"] == "variants":
        facts["variants"] = given.get("datasets", profile.variants)
    elif needs["datasets"] == "targets":
        facts["targets"] = given.get("datasets", profile.targets)
    methods = _methods(profile, given)
    facts["methods"] = [entry.model_dump() for entry in methods]
    kept, experiments = {entry.name for entry in methods}, {}
    for name in needs["experiments"]:  # the others are another notebook's
        if name not in profile.experiments:
            raise ValueError(
                f"profile {profile.name} has no experiment {name!r}, which this notebook shows; "
                "add it to the profile's experiments, or leave this notebook out"
            )
        experiment = profile.experiment(name)
        changed = facts["experiments"][name] | _changes(profile, experiment, needs, given)
        if changed["methods"] is not None:
            changed["methods"] = [method for method in changed["methods"] if method in kept]
        experiments[name] = changed
    facts["experiments"] = experiments
    try:
        return Profile.model_validate(facts).knowing(profile.waiting, profile._file)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def as_given(
    profile: Profile, needs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was given, checked and in one order, without what is empty."""
    given = {key: given[key] for key in NAMES if given.get(key)}
    role = needs["datasets"]
    known = {
        "datasets": getattr(profile, role if role != "trained" else "datasets"),
        "methods": tuple(entry.name for entry in profile.methods),
    }
    for key in ("datasets", "methods", "shots", "seeds"):
        values = list(given.get(key, ()))
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ValueError(f"{key} lists {twice[0]!r} twice; list each once")
        for value in values if key in known else ():
            if value not in known[key]:
                what = {"targets": "target", "variants": "variant of the source"}.get(
                    role, "dataset"
                )
                what = "method" if key == "methods" else what
                raise UnknownName(f"{what} in profile {profile.name}:", value, known[key])
        if values:
            given[key] = sorted(values, key=known[key].index if key in known else None)
    return given


def is_variant(folder: Path) -> bool:
    """Whether a notebook with other parameters than its profile's has written to this folder."""
    return folder.parent.name == FOLDER and (folder / PARAMETERS).is_file()


def place(
    folder: Path, profile: Profile, needs: Mapping[str, Any], given: Mapping[str, Any]
) -> Path:
    """Return the folder of this variant's figures, tables and index; the profile's own: `folder`.

    Its name says what was given, shortened, and a digest of it.
    """
    given = as_given(profile, needs, given)
    if vary(profile, needs, given) == vary(profile, needs, {}):
        return folder
    short = {
        "datasets": "",
        "methods": "",
        "shots": "shots",
        "seeds": "seeds",
        "rank": "r",
        "n_blocks": "n",
    }
    words = [
        short[key] + ("+".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in given.items()
    ]
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    return folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_+.-]', '_', '-'.join(words))[:80]}-{digest}"


def _changes(
    profile: Profile, experiment: Experiment, needs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What is given, as an experiment says it."""
    changes: dict[str, Any] = {}
    if needs["datasets"] == "trained" and "datasets" in given:
        changes["datasets"] = given["datasets"]
    elif needs["datasets"] == "variants":
        changes["datasets"] = (profile.source,)
    if "methods" in given:
        _check_trained(profile, given["methods"], () if experiment.vary else needs["baselines"])
    if "methods" in given and experiment.vary:
        if len(given["methods"]) > 1:
            raise ValueError(
                f"methods={given['methods']}: one method's settings are varied at a time; name "
                "one, and run the notebook once for each"
            )
        _check_varied(profile, experiment, given["methods"][0])
        changes["methods"] = given["methods"]
    elif "methods" in given:
        wanted = {*needs["baselines"], *given["methods"]}
        changes["methods"] = [entry.name for entry in profile.methods if entry.name in wanted]
    if "shots" in given:
        changes["shots"] = _shots(experiment, given["shots"])
    if "seeds" in given:
        changes["seeds"] = given["seeds"]
    own = {
        "datasets": profile.datasets_of(experiment),
        "methods": experiment.methods or tuple(entry.name for entry in profile.methods),
        "shots": experiment.shots or profile.shots,
        "seeds": experiment.seeds or profile.seeds,
    }
    return {key: value for key, value in changes.items() if tuple(value) != own[key]}


def _check_trained(profile: Profile, given: Sequence[str], baselines: Sequence[str]) -> None:
    """Refuse methods of which none is trained, beside baselines of which none is."""
    trained = [e.name for e in profile.methods if get_method(e.registry_name).trains]
    if not {*given, *baselines} & {*trained}:
        raise ValueError(
            f"methods={list(given)}: none is trained, so there is nothing to show; add one of "
            f"{', '.join(trained)}"
        )


def _check_varied(profile: Profile, experiment: Experiment, name: str) -> None:
    """Refuse a method whose settings cannot be varied as the experiment does."""

    def fits(entry: MethodEntry) -> bool:
        try:
            return all(e.adapter_config() is not None for e in experiment.variations(entry))
        except ValueError:
            return False

    if not fits(profile.entry(name)):
        keys = dict.fromkeys(key for grid in experiment.vary for key in grid)
        others = ", ".join(entry.name for entry in profile.methods if fits(entry))
        raise ValueError(
            f"methods=[{name!r}] cannot be varied in {', '.join(keys)}; these can: {others}"
        )


def _shots(experiment: Experiment, given: Sequence[int]) -> list[int]:
    """The numbers of shots of an experiment; of one with a single number, the nearest one."""
    if experiment.evaluate_on == "targets" and len(given) > 1:
        raise ValueError(
            f"shots={list(given)}: transfer is looked at for one number of shots; give one, and "
            "run the notebook once for each"
        )
    if experiment.shots is None or len(experiment.shots) > 1:
        return list(given)
    (own,) = experiment.shots
    return [min(given, key=lambda shots: abs(math.log(shots / own)))]


def _methods(profile: Profile, given: Mapping[str, Any]) -> list[MethodEntry]:
    """The profile's methods at the given (r, n) of Block-LoRA; its controls keep its width r/n."""
    if not {"rank", "n_blocks"} & given.keys():
        return list(profile.methods)
    own = profile.entry("block_lora").adapter_config()
    assert own is not None
    asked = {key: given[key] for key in ("rank", "n_blocks") if key in given}
    try:
        block = type(own).model_validate(own.model_dump() | asked)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    ranks = {own.block_rank: block.block_rank, own.rank: block.rank}
    methods: list[MethodEntry] = []
    for entry in profile.methods:
        entry = _at(entry, block, ranks, own.block_rank)
        # at n = 1 the LoRA of width r/n is the LoRA of rank r: one run, and one row of a table
        if all(_settings(entry, profile) != _settings(other, profile) for other in methods):
            methods.append(entry)
    return methods


def _settings(entry: MethodEntry, profile: Profile) -> tuple[Any, ...]:
    """All that makes a method of the profile another one; a chosen rate does not."""
    training = {k: v for k, v in entry.training.items() if k != "lr" or profile.rates is None}
    return entry.registry_name, entry.adapter_config(), training, entry.settings


def _at(
    entry: MethodEntry, block: AdapterConfig, ranks: Mapping[int, int], width: int
) -> MethodEntry:
    """A method at Block-LoRA's (r, n): both where it is cut; else the rank that stands for its own.

    One with an alpha of its own has it to keep Block-LoRA's scale, and keeps it.
    """
    config = entry.adapter_config()
    if config is None:
        return entry
    settings = dict(entry.settings)
    if config.kind in (*CUT, "collapsed"):
        settings |= {"rank": block.rank, "n_blocks": block.n_blocks}
    else:
        settings["rank"] = ranks.get(config.rank, config.rank)
        if settings.pop("alpha", 1.0) != 1.0 and settings["rank"] != block.rank:
            settings["alpha"] = block.scale * math.sqrt(settings["rank"])
    label = entry.label
    if label:  # 'LoRA r = 1' names the width
        label = re.sub(rf"\br = {width}\b", f"r = {ranks[width]}", label)
    return entry.model_copy(update={"settings": settings, "label": label})
