"""`blocklora records`: run records as one Parquet file, and back; stores joined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.writable import check_folder
from .lines import say
from .options import ResultsOption, path
from .run_options import ProfileOption

records_app = typer.Typer(help="Run records as one file that travels.", no_args_is_help=True)


@records_app.command()
def pack(
    folder: Annotated[Path, typer.Argument(parser=path, help="Such as results/pocket/runs.")],
    file: Annotated[
        Path | None, typer.Argument(parser=path, help="The Parquet [FOLDER.parquet].")
    ] = None,
) -> None:
    """Write all records of a folder into one Parquet, each as it is, checksum included."""
    from ..runs.packed import RECORDS
    from ..runs.store import RunStore

    store = RunStore(folder)
    if not any(folder.glob(RECORDS)):
        raise FileNotFoundError(f"no folder of records {folder}; give one, as {folder}/runs")
    file = file or store.file
    say(f"{store.pack(file)} records packed into {file}")


@records_app.command()
def unpack(
    file: Annotated[Path, typer.Argument(parser=path, help="A Parquet of `records pack`.")],
    folder: Annotated[
        Path | None, typer.Argument(parser=path, help="Where to [FILE without its ending].")
    ] = None,
) -> None:
    """Write the records of a Parquet as files again, to the byte what they were."""
    from ..runs.store import RunStore

    folder = folder or file.with_suffix("")
    if folder == file:
        raise ValueError(f"{file} has no ending to leave out; say which folder to unpack into")
    say(f"{RunStore(folder).unpack(file)} records unpacked into {folder}")


@records_app.command()
def merge(
    stores: Annotated[
        list[Path],
        typer.Argument(parser=path, help="Folders of records, or Parquets of `records pack`."),
    ],
    into: Annotated[Path, typer.Option(parser=path, help="The folder that gets them all.")],
) -> None:
    """Join the records of several machines: each as it is, done before failed, then those of the
    present state of the library before earlier ones.

    Runs that two of them have with different results are told, and end with exit code 1; the one
    that is there, or of the store named first, stands. So do damaged records, which are left out.
    """
    from ..runs.packed import RECORDS, SUFFIX
    from ..runs.store import RunStore

    if into.suffix == SUFFIX:  # of which a folder would be made
        raise ValueError(
            f"{into} is the name of one file, and a folder gets the records; give its name, and "
            "make one file of it by `blocklora records pack`"
        )
    others = [RunStore(store) for store in stores]
    for store, given in zip(others, stores, strict=True):
        if not (any(store.folder.glob(RECORDS)) or store.file.is_file()):
            raise FileNotFoundError(
                f"no records in {given}; give a folder of them, as {given}/runs, or a Parquet"
            )
    merged = RunStore(into).merge(others)
    say(f"{len(merged.taken)} records merged into {into}")
    for record, store in merged.differing:
        say(
            f"{record.spec}: {store.folder} has another result of {record.key} than {into}, which "
            "stands; `blocklora run --verify` repeats a run",
            err=True,
        )
    for error in merged.damaged:
        say(f"left out: {error}", err=True)
    if merged.differing or merged.damaged:
        raise typer.Exit(1)


def reference(profile: ProfileOption = "pocket", results: ResultsOption = None) -> None:
    """Keep a profile's results as its reference run, as `make reference` does. For maintainers."""
    from ..suite.reference import keep

    say(keep(profile, results or ""))


def architectures(
    record: Annotated[
        Path | None, typer.Option(parser=path, help="Write a record: a JSON file.")
    ] = None,
) -> None:
    """Attach to a small model of each family that open_clip lists; say where, and what is right.

    Exit code 1 if something is not right.
    """
    from ..measure.architectures import architecture_table, tell, write_record

    if record:
        check_folder(record)
    frame = architecture_table(on_row=lambda row: say(tell(row)))
    if record:
        write_record(frame, record)
    if not frame["right"].eq(True).all():
        raise typer.Exit(1)


def diff(
    a: Annotated[Path, typer.Argument(parser=path, help="Results folder, or Parquet of records.")],
    b: Annotated[Path, typer.Argument(parser=path, help="The one to hold against it.")],
) -> None:
    """Tell two results folders apart: settings, versions, accuracies, and whether by chance.

    Exit code 1 if damaged records are left out.
    """
    from ..suite.difference import difference

    text, damaged = difference(a, b)
    say(text.rstrip("\n"))
    for line in damaged:
        say(f"left out: {line}", err=True)
    if damaged:
        raise typer.Exit(1)
