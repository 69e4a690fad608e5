"""`blocklora export` and `blocklora paper`: results as a paper takes them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .lines import say
from .options import path
from .run_options import ProfileOption

FolderArgument = Annotated[
    Path, typer.Argument(parser=path, help="Results folder, such as results/pocket.")
]


def export(
    venue: Annotated[str, typer.Option(help="icml, neurips or cvpr.")],
    to: Annotated[Path, typer.Option(help="Folder to write to, as the paper will name it.")],
    figures: Annotated[
        list[str] | None, typer.Option(help="NOTEBOOK/NAME, NOTEBOOK or all; again for more.")
    ] = None,
    tables: Annotated[
        list[str] | None, typer.Option(help="NOTEBOOK/NAME, NOTEBOOK or all; again for more.")
    ] = None,
    profile: ProfileOption = "pocket",
    results: Annotated[
        Path | None, typer.Option(parser=path, help="Results folder [results/<profile>].")
    ] = None,
) -> None:
    """Write figures and tables as floats of a venue's widths, with captions, ready for \\input."""
    from ..runs.profile_files import load_profile
    from ..suite.export import export as write

    folder = results or load_profile(profile).results
    for written in write(folder, venue, to, figures or (), tables or ()):
        say(written)


def paper(
    results: FolderArgument,
    to: Annotated[Path, typer.Argument(parser=path, help="Folder to write to.")] = Path(
        "build/paper"
    ),
) -> None:
    """Write the reproduction report's LaTeX of a results folder, as `make paper` does.

    Exit code 1 if damaged records are left out.
    """
    from ..suite.paper import write_inputs

    damaged = write_inputs(results, to)
    say(to / "report.tex")
    for line in damaged:
        say(f"left out: {line}", err=True)
    if damaged:
        raise typer.Exit(1)
