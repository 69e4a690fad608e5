"""`blocklora grid` and `blocklora rates`: many runs, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.collection import no_collection
from .lines import say
from .options import ResultsOption, path
from .progress import Progress, forecast, outcome
from .run_options import (
    DeviceOption,
    FastOption,
    KeepOption,
    ProfileOption,
    RetryOption,
    SkipOption,
    ThreadsOption,
    named_profile,
    workbench,
)

if TYPE_CHECKING:
    from ..runs.experiment import MethodEntry
    from ..runs.kept import Kept
    from ..runs.profile import Profile
    from ..runs.record import RunRecord
    from ..runs.spec import RunSpec
    from ..runs.standing import Stored
    from ..runs.store import RunStore


def grid(
    profile: ProfileOption = "pocket",
    experiment: Annotated[
        str,
        typer.Option(
            help="Experiment of the profile, or all; rates are the runs that choose rates."
        ),
    ] = "few_shot",
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    list_only: Annotated[
        bool,
        typer.Option(
            "--list", help="Only say which runs are done, missing, failed, and what they will cost."
        ),
    ] = False,
    tflops: Annotated[float, typer.Option(help="TFLOP/s that --list assumes.")] = 20.0,
    retry_failed: RetryOption = False,
    keep_old: KeepOption = False,
    index: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Write the runs' keys here once each has a record.", hidden=True
        ),
    ] = None,
    beside: Annotated[
        list[str],
        typer.Option(
            help="An experiment whose runs are made, too, that train what these do.", hidden=True
        ),
    ] = [],  # noqa: B006  as typer has lists
    results: ResultsOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 1,
    skip_unreadable: SkipOption = False,
    fast: FastOption = False,
    save_adapters: Annotated[
        bool,
        typer.Option(
            "--save-adapters",
            help="Keep trained adapters in RESULTS/adapters, a file a run [as the profile says].",
        ),
    ] = False,
) -> None:
    """Run all specs of an experiment that have no record yet, one after another, in this process.

    Of `--experiment all` each run counts once, though two experiments may share it; an experiment
    without the dataset or method that is asked for is left out.
    """
    from ..runs.experiment import RATES
    from ..runs.grid import expand, experiments_with, planned
    from ..runs.rates import declared
    from ..runs.standing import to_run
    from ..runs.store import RunStore
    from ..suite.engine import write_index

    if not 0 < tflops < float("inf"):
        raise ValueError(f"--tflops {tflops:g} is no rate; give what a device sustains, such as 20")
    settings = named_profile(profile, skip_unreadable, fast, chosen=experiment != RATES)
    if experiment == RATES:
        declared(settings)
    store = RunStore((results or settings.results) / "runs")
    everything = experiment == "all"
    wanted = experiments_with(settings, dataset, method) if everything else [experiment]
    with no_collection():  # specs and records by the thousand, which stay
        runs: dict[str, RunSpec] = {}
        named: dict[str, str] = {}
        for name in wanted:
            for entry, spec in planned(settings, name, dataset, method):
                runs[spec.key] = spec
                named.setdefault(spec.key, _named(entry, spec))
        specs = list(runs.values())
        found = _look_up(specs, store, keep_old)
    keeper = None
    if save_adapters or settings.save_adapters:
        from ..runs.kept import Kept

        keeper = Kept.of(store.folder.parent)
    if list_only:
        lines = (f"{one.standing:8}{one.spec.key}  {named[one.spec.key]}" for one in found)
        say("\n".join(lines))
        states = [one.standing for one in found]
        todo = [one.spec for one in found if to_run(one, retry_failed, keeper)]
        if todo:
            say(forecast(todo, tflops, settings))
        known = ("done", "missing", "failed", *sorted({*states} - {"done", "missing", "failed"}))
        say(", ".join(f"{states.count(state)} {state}" for state in known))
        return
    others = [
        spec
        for name in beside
        if dataset is None or dataset in settings.datasets_of(settings.experiment(name))
        for spec in expand(settings, name, dataset)
    ]
    records = _complete(
        settings, found, store, device, threads, retry_failed, keep_old, keeper, others, named
    )
    if index:
        write_index(index, experiment, dataset, method, specs)
    if failed := [record for record in records if record.status == "failed"]:
        say(
            f"{len(failed)} of {len(specs)} runs failed (run them again with --retry-failed):",
            err=True,
        )
        for record in failed:
            error: Any = record.error  # a failed run has one
            say(f"  {named[record.key]}: {error.message}", err=True)
        raise typer.Exit(1)


def rates(
    profile: ProfileOption = "pocket",
    retry_failed: RetryOption = False,
    keep_old: KeepOption = False,
    results: ResultsOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Choose every trained method's learning rate on validation images, from the profile's grid.

    The choice is written beside the profile, which uses it from then on; test images are not
    opened. `blocklora grid --experiment rates` lists, prices and makes the same runs in parts.
    """
    from ..runs.experiment import RATES
    from ..runs.grid import expand
    from ..runs.profile_files import rates_file
    from ..runs.rates import choose, declared, write_choice
    from ..runs.store import RunStore

    settings = named_profile(profile, False, False, chosen=False)
    declared(settings)
    file = rates_file(profile, own=True)
    store = RunStore((results or settings.results) / "runs")
    found = _look_up(expand(settings, RATES), store, keep_old)
    _complete(settings, found, store, device, threads, retry_failed, keep_old)
    choice = choose(settings, store)
    write_choice(settings, choice, store, file)
    for name, chosen in choice.methods.items():
        means = (
            f"{lr:g}: " + ("failed" if mean is None else f"{100 * mean:.1f}%")
            for lr, mean in zip(choice.grid, chosen.accuracy, strict=True)
        )
        say(f"{name} {chosen.lr:g} ({', '.join(means)})")
    if edge := choice.at_the_edge():
        say(
            f"note: the rate of {', '.join(edge)} is at the edge of the grid, and a better one may "
            "lie beyond; declare a wider grid",
            err=True,
        )
    say(file)


def _named(entry: MethodEntry, spec: RunSpec) -> str:
    """What a run is, by the name that the profile gives its method where that is one of its own."""
    if entry.name == entry.registry_name:
        return str(spec)
    shots = f" shots={spec.shots} seed={spec.seed}" if spec.shots else ""
    return f"{spec.dataset} {entry.name}{shots}"


def _look_up(specs: Sequence[RunSpec], store: RunStore, keep_old: bool) -> list[Stored]:
    """What the store holds of each spec."""
    from ..runs.images import RunImages
    from ..runs.standing import stored

    images = RunImages()
    return [stored(store, spec, keep_old, images.digest) for spec in specs]


def _complete(
    settings: Profile,
    found: Sequence[Stored],
    store: RunStore,
    device: str | None,
    threads: int,
    retry_failed: bool,
    keep_old: bool,
    keeper: Kept | None = None,
    beside: Sequence[RunSpec] = (),
    named: Mapping[str, str] = MappingProxyType({}),
) -> list[RunRecord]:
    """Run what the store lacks, saying how far it is; return every spec's record.

    named: what each run is called, by its key.
    """
    from ..runs.standing import again, remarks, to_run

    store.check_writable()
    if keeper is not None:
        keeper.check()
    todo = [entry.spec for entry in found if to_run(entry, retry_failed, keeper)]
    for line in again(found, store):
        say(line, err=True)
    waiting = set(todo)
    kept = [entry.record for entry in found if entry.spec not in waiting]
    records = [record for record in kept if record is not None]
    progress = Progress(len(found), len(found) - len(todo))
    if todo:
        bench = workbench(settings, device, threads)
        from ..runs.execute import run_grid

        records_made = run_grid(
            todo, store, bench, retry_failed, keep_old, keeper, beside, settings.stack
        )
        for record in records_made:
            training: Any = record.spec.training
            rate = f"lr={training.lr:g}, " if record.spec.split == "val" else ""
            told = named.get(record.key) or f"{rate}{record.spec}"
            progress.report(f"{told}: {outcome(record)}")
            records.append(record)
    progress.close()
    for line in remarks(records):
        say(line, err=True)
    return records
