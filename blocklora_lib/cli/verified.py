"""`blocklora run --verify`: a record's run again, and what is the same."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

from .lines import say
from .options import own_folder
from .run_options import named_profile, workbench

if TYPE_CHECKING:
    from ..data.decoding import Loading
    from ..runs.own_images import OwnImages
    from ..runs.profile import Profile


def verify(
    path: Path,
    profile: str,
    dataset: str,
    image_loading: Loading | None,
    draw: Path | None,
    device: str | None,
    threads: int,
) -> None:
    """Repeat the run of a record, storing nothing; exit code 1 where the outcome is another one.

    path: of a record's file, or of a packed one, runs.parquet/<key>.json. dataset, image_loading:
    of a record of one's own images, their folder and, if no manifest lies beside the record, how
    they are seen; else '' and None.
    """
    from ..runs.store import RunStore

    record = RunStore(path.parent).load_key(path.stem)
    if record is None:
        raise FileNotFoundError(
            f"no record {path}; give the path of one, such as results/pocket/runs/<key>.json, or "
            "runs.parquet/<key>.json of a packed one"
        )
    settings = named_profile(profile, False, False)
    with TemporaryDirectory() as place:
        own = _own(path, record.spec.dataset, settings, dataset, image_loading, Path(place))
        bench = workbench(settings, device, threads)
        bench = own.on(bench) if own else bench
        from ..runs.execute import execute
        from ..runs.verify import circumstances, differences
        from ..runs.workbench import with_draw

        if draw and with_draw(record.spec, draw, bench) != record.spec:
            raise ValueError(f"{path} was trained on other images than those of the draw {draw}")
        again = execute(record.spec, bench)
    found = differences(record, again)
    for line in circumstances(record, again):
        say(f"note: {line}", err=True)
    for line in found:
        say(line)
    what = f"{len(found)} differences to" if found else "the same bits as"
    say(f"{record.spec}: {what} {path}")
    if found:
        raise typer.Exit(1)


def _own(
    path: Path,
    name: str,
    profile: Profile,
    dataset: str,
    image_loading: Loading | None,
    place: Path,
) -> OwnImages | None:
    """One's own images of a record of them, their manifest in `place`; None for a named set."""
    from ..data.manifest_files import manifest_names, read_manifest
    from ..runs.own_images import own_images

    if name in manifest_names():
        if dataset or image_loading:
            raise ValueError(
                f"{path} is of {name}; --dataset and --image-loading go with the record of a "
                "folder of your own images: leave them out"
            )
        return None
    beside = path.parent.with_name("manifests") / f"{name}.yaml"
    written = read_manifest(beside) if beside.is_file() else None
    folder = own_folder(dataset, ()) if dataset else None
    if folder is None:
        where = f" ({written.notes})" if written and written.notes else ""
        raise ValueError(
            f"{path} is of {name}{where}, which is no set of the suite: if it is a folder of your "
            "own images, say where it lies with --dataset FOLDER"
        )
    how = image_loading or (written.image_loading if written else "upright")
    own = own_images(profile, folder, place, how)
    if own.manifest.name != name:
        raise ValueError(
            f"{path} is of {name}, and the images of {folder} would be {own.manifest.name}; give "
            "the folder that the run was of, under the name that it had"
        )
    return own
