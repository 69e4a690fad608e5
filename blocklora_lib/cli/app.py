"""`blocklora`: runs, notebooks, claims, the report. Thin: every command calls one function."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.schema import UnknownName
from .data import data_app
from .grid import grid, rates
from .kept import evaluate, merge, predict
from .lines import say
from .options import (
    OneSentence,
    ResultsOption,
    VersionOption,
    given,
    is_given,
    own_folder,
    parameters,
    path,
    refuse_beside,
    there,
)
from .paper import export, paper
from .peft import peft_app
from .progress import outcome
from .records import architectures, diff, records_app, reference
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
from .verified import verify as repeat
from .weights import weights_app

app = typer.Typer(
    cls=OneSentence,
    help="Block-LoRA for few-shot CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would take '[all]', a default in a help text, for a style
)


@app.callback()
def options(version: VersionOption = False) -> None:
    """Block-LoRA for few-shot CLIP."""


app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
app.add_typer(records_app, name="records")
app.add_typer(peft_app, name="peft")
app.command()(architectures)
app.command()(reference)
app.command()(diff)
app.command()(export)
app.command()(paper)
app.command()(grid)
app.command()(rates)
app.command()(predict)
app.command()(evaluate)
app.command()(merge)


@app.command()
def run(
    ctx: typer.Context,
    dataset: Annotated[
        str, typer.Option(help="Dataset to train on, or a folder of your own images.")
    ] = "",
    method: Annotated[str, typer.Option(help="Method, as the profile names it.")] = "",
    shots: Annotated[int, typer.Option(help="Images a class.", min=0)] = 16,
    seed: Annotated[
        int, typer.Option(help="Seed of draw, start, shuffling and dropout.", min=0, max=2**63 - 1)
    ] = 1,
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Train on this draw's images: a file of `blocklora data draw`."
        ),
    ] = None,
    profile: ProfileOption = "pocket",
    results: ResultsOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 1,
    retry_failed: RetryOption = False,
    keep_old: KeepOption = False,
    skip_unreadable: SkipOption = False,
    image_loading: Annotated[
        str | None,
        typer.Option(
            help="How your own images are seen: upright, or as_clip (no EXIF, no alpha) [upright]."
        ),
    ] = None,
    fast: FastOption = False,
    verify: Annotated[
        Path | None,
        typer.Option(parser=path, help="Repeat the run of this record instead, and compare."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", "-s", help="One of the method's settings, as in -s rank=8."),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option("--training", "-t", help="One of the training settings, as in -t lr=1e-3."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Keep the trained adapter in this file, such as pets.safetensors."
        ),
    ] = None,
) -> None:
    """Run one spec, or show its stored record."""
    if image_loading not in (None, *(known := ("upright", "as_clip"))):
        raise UnknownName("choice of --image-loading", image_loading, known)
    how: Any = image_loading  # one of the two, or None
    if verify:
        kept = ("dataset", "image_loading", "profile", "draw", "device", "threads")
        refuse_beside(ctx, "--verify", *kept)
        return repeat(verify, profile, dataset, how, draw, device, threads)
    if not (dataset and method):
        raise ValueError("say which run: --dataset and --method, or --verify RECORD")
    from ..data.manifest_files import manifest_names
    from ..methods import get_method
    from ..runs.grid import make_spec
    from ..runs.store import RunStore

    settings = named_profile(profile, skip_unreadable, fast)
    if setting or training:
        settings = settings.changed(method, given(setting, "-s"), given(training, "-t"))
    folder = own_folder(dataset, settings.datasets, manifest_names())
    if image_loading and not folder:
        raise ValueError(
            f"--image-loading {image_loading} is for a folder of your own images, and {dataset} "
            "has a way of its own; leave it out"
        )
    if not get_method(settings.entry(method).registry_name).trains:
        unused = [
            name for name, n in (("shots", shots), ("seed", seed)) if n and is_given(ctx, name)
        ]
        if unused:
            told = " and ".join(f"--{name}" for name in unused)
            raise ValueError(
                f"method {method} trains on no images and has no use for {told}; leave {told} out"
            )
    store = RunStore((results or settings.results) / "runs")
    if folder:
        from ..runs.own_images import own_images, refuse_within

        refuse_within(store.folder.parent, folder)  # before a folder is made there
    store.check_writable()
    bench = workbench(settings, device, threads)
    if folder:
        own = own_images(settings, folder, store.folder.parent, how or "upright")
        for note in own.notes:
            say(f"note: {note}", err=True)
        settings, bench = own.profile, own.on(bench)
        dataset = own.manifest.name
    spec = make_spec(settings, dataset, method, shots, seed, manifests=bench.manifests)
    from ..runs.execute import run_or_load
    from ..runs.kept import keeper_of
    from ..runs.standing import again, remarks, stored, to_run
    from ..runs.workbench import with_draw

    spec = spec if draw is None else with_draw(spec, draw, bench)
    keeper = None if save is None else keeper_of(spec, save)
    found = stored(store, spec, keep_old, bench.images)
    for line in again([found], store):
        say(line, err=True)
    if not to_run(found, retry_failed, keeper):
        say("note: this run was stored before; its record is shown, nothing is run", err=True)
    elif not found.pending(retry_failed):
        say("note: this run was stored before; it is trained again to be saved", err=True)
    record = run_or_load(
        spec, store, bench, retry_failed=retry_failed, keep_old=keep_old, keeper=keeper
    )
    for line in remarks([record]):
        say(line, err=True)
    say(f"{spec}: {outcome(record)}")
    say(store.path(spec))
    if record.status == "failed":
        raise typer.Exit(1)
    if keeper is not None:
        for line in keeper.remarks(record):
            say(line, err=True)
        say(save)


@app.command()
def claims(
    profile: ProfileOption = "pocket",
    results: ResultsOption = None,
    into: Annotated[
        Path | None,
        typer.Option(parser=path, help="Write the summary between the marks of this file."),
    ] = None,
) -> None:
    """Judge every public claim by a profile's results. Exit code 1 if records are damaged."""
    from ..claims.claim import judge
    from ..claims.evidence import Evidence
    from ..claims.paper_claims import CLAIMS
    from ..claims.scoreboard import caution, write_into
    from ..runs.profile_files import load_profile

    settings = load_profile(profile)
    evidence = Evidence(settings, there(results) or settings.results)
    judged = judge(CLAIMS, evidence)
    for line in evidence.remarks:
        say(f"note: {line}", err=True)
    for j in judged:
        but = f", {j.finding.but}" if j.finding.but else ""
        say(f"{j.claim.id:5}{j.verdict}{but}: {j.claim.statement}\n     {j.finding.told}")
    say(caution(judged))
    if into and not evidence.damaged:
        write_into(into, judged)
    left = f"; {into} is left as it was" if into else ""
    _incomplete(f"{error}{left}" for error in evidence.damaged)


@app.command()
def report(profile: ProfileOption = "pocket", results: ResultsOption = None) -> None:
    """Write the HTML report of a profile's results. Exit code 1 if damaged records are left out."""
    from ..suite.report import write_report

    place, damaged = write_report(profile, there(results) or "")
    say(place)
    _incomplete(map(str, damaged))


@app.command()
def reproduce(
    profile: ProfileOption = "pocket",
    notebooks: Annotated[str, typer.Option(help="Only these, blanks or commas between them.")] = "",
    jobs: Annotated[int, typer.Option(help="Jobs at a time [one a core].", min=0)] = 0,
    results: ResultsOption = None,
    variants: Annotated[
        str,
        typer.Option(help="Also a sweep of notebooks: a YAML file that lists their parameters."),
    ] = "",
) -> None:
    """Run grid, notebooks and report, as `make reproduce` does, from where it stopped before."""
    from ..suite.reproduce import reproduce as start

    raise typer.Exit(start(profile, notebooks, jobs, results or "", variants))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def notebook(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Notebook, such as 08_few_shot.")],
    profile: ProfileOption = "pocket",
    results: ResultsOption = None,
) -> None:
    """Execute a notebook through papermill; give each of its parameters by -p NAME VALUE."""
    from ..suite.execution import run_notebook

    chosen = parameters(ctx.args)
    for key, option in (("profile", "profile"), ("results_dir", "results")):
        if key in chosen and is_given(ctx, option):
            raise ValueError(f"-p {key} and --{option} say the same; give one of them")
    say(run_notebook(name, profile, chosen, results or ""))


def _incomplete(faults: Iterable[str]) -> None:
    """Say what an output lacks, and end with exit code 1 if it lacks anything."""
    for line in (faults := list(faults)):
        say(f"left out: {line}", err=True)
    if faults:
        raise typer.Exit(1)
