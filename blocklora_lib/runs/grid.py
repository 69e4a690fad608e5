"""From a profile to the specs of its runs: one pass over an experiment's sets, methods, shots and
seeds.

No image is opened and no torch is imported: a grid is listed, counted and priced before anything is
there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..core.paths import MANIFESTS
from ..core.schema import UnknownName
from ..data.local import local_manifest
from ..data.manifest import Manifest
from ..data.manifest_files import manifest_names
from ..data.roots import checksum as data_checksum
from ..methods import get_method
from ..weights.files import with_checksum
from .experiment import RATES, Experiment, MethodEntry
from .profile import Profile
from .spec import RunSpec, refuse_other_content


def check_manifests(profile: Profile, names: tuple[str, ...], manifests: Path = MANIFESTS) -> None:
    """Say in one sentence which of these sets have no manifest."""
    known = manifest_names(manifests)
    if missing := [n for n in names if n not in known]:
        raise FileNotFoundError(
            f"profile {profile.name} names datasets without a manifest: {', '.join(missing)}; add "
            "data_manifests/<name>.yaml for each, or leave them out of the profile (bundled: "
            f"{', '.join(known)})"
        )


def make_spec(
    profile: Profile,
    dataset: str,
    method: str,
    shots: int,
    seed: int,
    manifests: Path = MANIFESTS,
) -> RunSpec:
    """The complete spec of one run: every default of the method written out, data and backbone by
    checksum.

    A method that needs no training ignores shots and seed: it is one run.
    """
    if dataset not in profile.datasets:
        raise UnknownName("dataset", dataset, profile.datasets)
    evaluated = {dataset: profile.evaluated(dataset)}
    entry = profile.entry(method)
    if shots < 1 and get_method(entry.registry_name).trains:
        raise ValueError(
            f"shots={shots}: {method} is trained on images; give 1 or more, or method zero_shot"
        )
    ((_, spec),) = _make_specs(
        profile, Experiment(), evaluated, (entry,), (shots,), (seed,), "test", manifests
    )
    return spec


def entries(
    profile: Profile, experiment: str = "few_shot", manifests: Path = MANIFESTS
) -> dict[str, MethodEntry]:
    """Return the method entry of every run of an experiment, by the key of the run's spec."""
    return {spec.key: entry for entry, spec in planned(profile, experiment, manifests=manifests)}


def expand(
    profile: Profile,
    experiment: str = "few_shot",
    dataset: str | None = None,
    method: str | None = None,
    manifests: Path = MANIFESTS,
) -> list[RunSpec]:
    """All run specs of an experiment, each once, by dataset and method; filters keep one of them.

    'rates' are the runs by which rates are chosen: each is evaluated on its own set's validation
    images, and never opens a test image.
    """
    found = planned(profile, experiment, dataset, method, manifests)
    return list({spec.key: spec for _, spec in found}.values())


def experiments_with(profile: Profile, dataset: str | None, method: str | None) -> list[str]:
    """Return the experiments that have this dataset and this method (None: any); UnknownName where
    none has.
    """
    found = dict.fromkeys(profile.experiments)
    for value, what, of in (
        (dataset, "dataset", profile.datasets_of),
        (method, "method", lambda chosen: [entry.name for entry in profile.methods_of(chosen)]),
    ):
        known = {name: of(profile.experiment(name)) for name in found}
        if value is not None:
            found = {name: None for name in found if value in known[name]}
            if not found:
                raise UnknownName(what, value, sorted({*itertools.chain(*known.values())}))
    return list(found)


def planned(
    profile: Profile,
    experiment: str,
    dataset: str | None = None,
    method: str | None = None,
    manifests: Path = MANIFESTS,
) -> Iterator[tuple[MethodEntry, RunSpec]]:
    """Yield the runs of an experiment in `expand`'s order, each with the entry of its method.

    A run that two methods share comes twice.
    """
    choice = experiment == RATES
    chosen = profile.experiment(experiment)
    datasets = profile.datasets_of(chosen)
    methods = {entry.name: entry for entry in profile.methods_of(chosen)}
    for value, known, what in ((dataset, datasets, "dataset"), (method, list(methods), "method")):
        if value is not None and value not in known:
            raise UnknownName(what, value, known)
    evaluated = {
        d: (d,) if choice else profile.evaluated(d, chosen.evaluate_on)
        for d in ((dataset,) if dataset else datasets)
    }
    shots, seeds = chosen.shots or profile.shots, chosen.seeds or profile.seeds
    wanted = [methods[method]] if method else list(methods.values())
    split: Literal["test", "val"] = "val" if choice else "test"
    return _make_specs(profile, chosen, evaluated, wanted, shots, seeds, split, manifests)


def _make_specs(
    profile: Profile,
    experiment: Experiment,
    # training set -> what it is evaluated on, itself first where nothing else is said
    evaluated: Mapping[str, tuple[str, ...]],
    methods: Sequence[MethodEntry],
    shots: tuple[int, ...],
    seeds: tuple[int, ...],
    split: Literal["test", "val"],
    folder: Path,
) -> Iterator[tuple[MethodEntry, RunSpec]]:
    wanted = (*evaluated, *itertools.chain(*evaluated.values()))
    check_manifests(profile, tuple(dict.fromkeys(wanted)), folder)
    backbone = with_checksum(experiment.backbone or profile.backbone)
    settings = [
        (
            entry,
            get_method(entry.registry_name),
            (method := entry.method_spec),
            profile.training_of(entry) if method.scheduled else None,
        )
        for entry in methods
    ]
    for dataset, names in evaluated.items():
        read = [local_manifest(name, folder) for name in dict.fromkeys((dataset, *names))]
        for manifest in read:
            refuse_other_content(manifest, experiment.task)
        manifests = [manifest for manifest in read if manifest.name in names]
        if split == "val" and "val" not in read[0].splits:
            raise ValueError(f"rates: {dataset} has no validation images; choose on other datasets")
        _check_variants(read[0], [m for m in manifests if m.name in profile.variants])
        every = read, data_checksum(read)
        known = [m for m in read if m.name not in profile.variants or m.classes == read[0].classes]
        alike = every if known == read else (known, data_checksum(known))
        for entry, kind, method, training in settings:
            trains = kind.trains
            # of a variant with some of the classes, what tells all of its own has no accuracy
            seen, checksum = alike if kind.own_classes else every
            # a method without training is one run, not shots x seeds
            for k in shots if trains else (0,):
                for seed in seeds if trains else (0,):
                    yield (
                        entry,
                        RunSpec(
                            dataset=dataset,
                            data_checksum=checksum,
                            shots=k,
                            seed=seed,
                            draw=profile.draw if trains else None,
                            split=split,
                            backbone=backbone,
                            method=method,
                            training=training,
                            evaluate_on=tuple(m.name for m in seen if m.name in names),
                            skip_unreadable=profile.skip_unreadable,
                            deterministic=profile.deterministic,
                            task=experiment.task,
                        ),
                    )


def _check_variants(source: Manifest, variants: list[Manifest]) -> None:
    for variant in variants:
        if variant.name != source.name and not variant.varies(source):
            raise ValueError(
                f"{variant.name} is no variant of {source.name} "
                f"(variant_of={variant.variant_of!r}, {len(variant.classes)} classes against "
                f"{len(source.classes)}); variants share the classes, in order; miniatures are "
                "made with the same --classes"
            )
