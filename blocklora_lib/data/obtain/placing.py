"""Put what an archive holds into the set's folder, every file counted, whatever is killed when.

NAME.done says what was placed: names and how many files. While the names are moved, NAME.placing
says the same: whoever finds it goes on with the moving, since the rest lies unpacked beside.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import NonNegativeInt

from ...core.files import printable, remove, write_whole
from ...core.json_data import read_json
from ...core.schema import Strict
from ..plain_paths import RelativePath
from ..sources import Archive
from .archives import Limits, count, unpacked
from .resuming import Say

_DAY = 86_400.0  # seconds after which what nobody touched is nobody's


class Note(Strict):
    """What an archive brought: names in the folder `into`, and files in all of them.

    source: while they are moved, the folder below `into` where the rest lies. files: None of an
    earlier version, which did not count.
    """

    url: str
    into: RelativePath
    names: tuple[str, ...]
    files: NonNegativeInt | None = None
    source: RelativePath = "."


def install(
    archive: Archive,
    folder: Path,
    store: Path,
    say: Say,
    limits: Limits | None,
    keep: bool,
    alone: bool,
) -> None:
    """Unpack an archive of `store`, place the part that is wanted, and note what was placed.

    keep: do not delete the archive then. alone: no other process can be at it, so that what lies
    here half unpacked is of one that was killed.
    """
    file, target = store / archive.file_name, folder / archive.into
    say(f"unpacking {file.name}")
    target.mkdir(parents=True, exist_ok=True)
    _clear(target, file.name, 0.0 if alone else _DAY)
    try:  # within the target, which may be a link to another disk: a rename stays on one
        with unpacked(file, target, limits) as content:
            if archive.inner:
                packed, given = _inside(content, archive.inner, file), limits or Limits()
                # what is packed twice becomes no more than what is packed once
                rest = replace(given, ratio=0, floor=given.bytes(file))
                with unpacked(packed, target, rest) as inner:
                    note = _place(archive, _wanted(inner, archive, file), folder, store)
            else:
                note = _place(archive, _wanted(content, archive, file), folder, store)
    except BaseException:
        if not any(target.iterdir()):
            target.rmdir()
        raise
    _finish(archive, note, folder, store, keep)
    names = [printable(name) for name in note.names]
    more = " ..." if len(names) > 5 else ""
    say(f"{target}: {', '.join(names[:5])}{more}, {note.files:,} files")


def go_on(archive: Archive, folder: Path, store: Path, keep: bool) -> None:
    """Finish the placing of an archive in which a process was killed; nothing where none was."""
    path = store / f"{archive.file_name}.placing"
    note = _read(path)
    if note is not None:
        target = folder / archive.into
        content = target / note.source
        if all(os.path.lexists(content / n) or os.path.lexists(target / n) for n in note.names):
            _move(content, target, note.names)
            _finish(archive, note, folder, store, keep)
    remove(path)


def placed(archive: Archive, folder: Path, store: Path) -> Note | None:
    """Return what was placed of this archive before and still stands there."""
    note = _read(store / f"{archive.file_name}.done")
    target = folder / archive.into
    whole = note and note.names and all(os.path.lexists(target / name) for name in note.names)
    return note if whole else None


def check_count(archive: Archive, note: Note, folder: Path) -> None:
    """Raise ValueError where there are fewer files than an archive brought."""
    target = folder / archive.into
    if (found := count(target, note.names)) < (note.files or 0):
        names = ", ".join(map(printable, note.names[:3])) + (" ..." if note.names[3:] else "")
        raise ValueError(
            f"{target} has {found:,} of the {note.files:,} files that {archive.file_name} brought; "
            f"move {names} away and download again"
        )


def place(content: Path, target: Path) -> list[str]:
    """Rename everything in `content` into `target`, return the names, and overwrite nothing.

    Both lie on one file system. A name that the target has already is a FileExistsError, and
    nothing moves.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = _free_names(content, target)
    _move(content, target, names)
    return names


def _place(archive: Archive, content: Path, folder: Path, store: Path) -> Note:
    target = folder / archive.into
    names = _free_names(content, target)
    note = Note(
        url=archive.url,
        into=archive.into,
        names=tuple(names),
        files=count(content, names),
        source=content.relative_to(target).as_posix(),
    )
    path = store / f"{archive.file_name}.placing"
    write_whole(path, note.model_dump_json())
    try:
        _move(content, target, names)
    except BaseException:
        _move(target, content, names)
        remove(path)
        raise
    return note


def _finish(archive: Archive, note: Note, folder: Path, store: Path, keep: bool) -> None:
    check_count(archive, note, folder)
    done = note.model_copy(update={"source": "."})
    write_whole(store / f"{archive.file_name}.done", done.model_dump_json())
    if note.source != ".":
        first = PurePosixPath(note.source).parts[0]
        shutil.rmtree(folder / archive.into / first, ignore_errors=True)
    if not keep:
        (store / archive.file_name).unlink(missing_ok=True)
    remove(store / f"{archive.file_name}.placing")


def _free_names(content: Path, target: Path) -> list[str]:
    names = sorted(entry.name for entry in content.iterdir())
    if there := [name for name in names if os.path.lexists(target / name)]:
        raise FileExistsError(
            f"{target} has {', '.join(map(printable, there))} already; "
            "move that away to unpack again, or check it with: blocklora data verify"
        )
    return names


def _move(content: Path, target: Path, names: Iterable[str]) -> None:
    """Rename what is still in `content`."""
    for name in names:
        if os.path.lexists(content / name):
            (content / name).rename(target / name)


def _clear(target: Path, name: str, older: float) -> None:
    """Remove what processes that were killed had unpacked of an archive in `target`."""
    for old in target.iterdir():
        ours = old.name.startswith(f".{name}.") and old.is_dir() and not old.is_symlink()
        if ours and time.time() - old.stat().st_mtime >= older:
            shutil.rmtree(old)


def _read(path: Path) -> Note | None:
    try:
        return Note.model_validate(read_json(path))
    except (OSError, ValueError):
        return None


def _wanted(content: Path, archive: Archive, file: Path) -> Path:
    return _inside(content, archive.only, file) if archive.only else content


def _inside(content: Path, name: str, file: Path) -> Path:
    """The named part of an unpacked archive; never through a link."""
    path = content
    for piece in PurePosixPath(name).parts:
        path = path / piece
        if path.is_symlink() or not path.exists():
            raise ValueError(
                f"archive {file} has no {name}; it is not the file that the manifest describes"
            )
    return path
