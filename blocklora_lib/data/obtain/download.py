"""Fetch and unpack a dataset where that is allowed and possible; say what is left to do by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ...core.files import write_whole
from ...core.json_data import read_json
from ..decoding import endings
from ..manifest import Archive, Manifest, SplitFile
from ..roots import find_folder, is_fake
from .archives import Limits, place, unpacked
from .fetch import DownloadError, Say, Settings, fetch, git_sha1, is_direct, known_hash

DOWNLOADS = ".downloads"  # under the root: archives, and notes of what was unpacked


class Part(NamedTuple):
    """One file that a set needs: its sources in turn, those that are gone, those for a browser."""

    sources: tuple[Archive, ...]
    dead: tuple[Archive, ...]
    manual: tuple[Archive, ...]


def parts(manifest: Manifest) -> list[Part]:
    """The files that the set needs, each with its mirrors, which name the archive they replace."""
    groups: dict[int, list[Archive]] = {}
    for number, archive in enumerate(manifest.archives):
        groups.setdefault(number if archive.mirror_of is None else archive.mirror_of, []).append(
            archive
        )
    found = []
    for group in groups.values():
        dead = tuple(a for a in group if a.dead)
        manual = tuple(a for a in group if not a.dead and (a.manual or not is_direct(a.url)))
        sources = tuple(a for a in group if a not in dead and a not in manual)
        found.append(Part(sources, dead, manual))
    return found


def file_name(archive: Archive) -> str:
    """The name under which an archive is kept."""
    return archive.name or PurePosixPath(unquote(urlsplit(archive.url).path)).name or "download"


def dataset_folder(manifest: Manifest, root: Path) -> Path:
    """The set's folder under `root`: the one that is there, else CoOp's name."""
    try:
        return find_folder(manifest, root)
    except FileNotFoundError:
        return root / manifest.folders.get("coop", manifest.name)


def has_images(manifest: Manifest, folder: Path) -> bool:
    """Whether each split's image folder holds a folder or an image: a glance before `verify`."""
    return bool(manifest.images) and all(
        any(_holds_images(folder / place) for place in places)
        for places in manifest.images.values()
    )


def _holds_images(place: Path) -> bool:
    if not place.is_dir():
        return False
    entries = (entry for entry in place.iterdir() if not entry.name.startswith("."))
    return any(entry.is_dir() or entry.suffix.lower() in endings() for entry in entries)


def download(
    manifest: Manifest,
    root: Path,
    say: Say = print,
    keep: bool = False,
    settings: Settings | None = None,
    limits: Limits | None = None,
) -> list[str]:
    """Fetch what can be fetched, and return the steps that are left for the user, or none.

    Each file: its sources in turn, dead ones skipped and said; fetched into the root's .downloads
    folder, checked against the manifest's checksum (said where it has none), unpacked into a
    temporary folder beside the set's and renamed into place. keep: do not delete an archive after
    unpacking. What is there is not fetched again. DownloadError: no source of a file answered.
    """
    if manifest.kind != "external":
        raise ValueError(
            f"{manifest.name} is among the images that the project ships; "
            "there is nothing to download"
        )
    folder = dataset_folder(manifest, root)
    if is_fake(folder):
        raise ValueError(
            f"{folder} is a miniature; "
            f"take it away or give another --root to download {manifest.title}"
        )
    store = root / DOWNLOADS / manifest.name
    # a set that the user put there is whole without our notes; one that we began may lack a part
    complete, failures = has_images(manifest, folder) and not any(store.glob("*.done")), []
    for part in parts(manifest):
        if not part.sources or _is_done(part, folder, store):
            continue
        if complete and part.sources[0].unpack:
            say(
                f"{manifest.name}: {file_name(part.sources[0])} is not fetched, "
                f"{folder} has images already"
            )
            continue
        try:
            archive, file = _fetch_any(part, store, folder, say, settings)
        except DownloadError as error:
            failures.append(str(error))
            continue
        if archive.unpack:
            _install(archive, file, folder, store, say, limits)
            if not keep:
                file.unlink()
    failures += _fetch_split_file(manifest, folder, say, settings)
    if failures:
        # leave no empty folder that looks like a dataset
        for place in (folder, store, store.parent):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise DownloadError(
            f"{manifest.name}: {'; '.join(failures)}; try again later: what came is kept"
        )
    return steps(manifest, root)


def steps(manifest: Manifest, root: Path) -> list[str]:
    """What the user has to do by hand, in order, with file names and places; empty if nothing."""
    folder = dataset_folder(manifest, root)
    store = root / DOWNLOADS / manifest.name
    todo: list[str] = []
    split = manifest.split_file
    by_hand = [
        part for part in parts(manifest) if not part.sources and not _is_done(part, folder, store)
    ]
    if by_hand and not has_images(manifest, folder):
        todo.append(f"Make the folder {folder}: it is the dataset's folder in what follows")
        if manifest.terms and not manifest.terms.startswith("none read"):
            todo.append(f"Mind the terms: {manifest.terms}")
        todo += [_in_words(part) for part in by_hand if part.manual]
        if gone := [a.url for part in by_hand if not part.manual for a in part.dead]:
            todo.append(f"These links are gone; find copies of their files: {', '.join(gone)}")
        # the split file has a step of its own, with its link
        todo += [step for step in manifest.steps if not split or split.name not in step]
    if split and not (folder / split.name).is_file() and not _links(split):
        link = f"Open {split.url} in a browser and save" if split.url else "Put"
        todo.append(f"{link} the split file as {folder / split.name}")
    if todo:
        todo.append(f"Check it all with: blocklora data verify {manifest.name} --root {root}")
    return todo


def _in_words(part: Part) -> str:
    """How to get a file for which there are only pages."""
    archive, *others = part.manual
    name = f"{archive.name} from {archive.url}" if archive.name else archive.url
    ending = "unpack it" if archive.unpack else "keep it as it is"
    place = (
        "the dataset's folder" if archive.into == "." else f"{archive.into} of the dataset's folder"
    )
    notes = [f" ({a.note})" if a.note else "" for a in part.manual]
    other = "".join(f"; or {a.url}{note}" for a, note in zip(others, notes[1:], strict=True))
    return f"Get {name} in a browser{notes[0]}{other}; {ending} in {place}"


def _fetch_any(
    part: Part, store: Path, folder: Path, say: Say, settings: Settings | None
) -> tuple[Archive, Path]:
    """(the source that answered, its file): sources in turn."""
    for archive in part.dead:
        say(f"skipped {archive.url}: known to be gone")
    reasons = []
    for archive in part.sources:
        known = known_hash(archive.sha256, archive.md5)
        target = (store if archive.unpack else folder / archive.into) / file_name(archive)
        try:
            say(f"fetching {archive.url}")
            file = fetch(archive.url, target, known, say, settings)
        except DownloadError as error:
            reasons.append(str(error))
            if archive is not part.sources[-1]:
                say(f"{error}; trying the next mirror")
            continue
        if known is None:
            say(f"{file.name}: the manifest has no checksum for it, so only its form is checked")
        return archive, file
    by_hand = "".join(f"; by hand: {archive.url}" for archive in part.manual)
    raise DownloadError("; ".join(reasons) + by_hand)


def _install(
    archive: Archive, file: Path, folder: Path, store: Path, say: Say, limits: Limits | None
) -> None:
    """Unpack an archive, take the part that is wanted, and note what was placed."""
    say(f"unpacking {file.name}")
    target = folder / archive.into
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():  # of an unpacking that was killed
        if old.name.startswith(f".{file.name}.") and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
    try:  # within the target, which may be a link to another disk: a rename stays on one
        with unpacked(file, target, limits) as content:
            if archive.inner:
                with unpacked(_inside(content, archive.inner, file), target, limits) as inner:
                    names = place(_wanted(inner, archive, file), target)
            else:
                names = place(_wanted(content, archive, file), target)
    except BaseException:
        if not any(target.iterdir()):
            target.rmdir()
        raise
    note = {"url": archive.url, "into": archive.into, "names": names}
    write_whole(store / f"{file.name}.done", json.dumps(note))
    say(f"{target}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")


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


def _is_done(part: Part, folder: Path, store: Path) -> bool:
    """Whether one of the part's sources was placed before and still stands there."""
    for archive in (*part.sources, *part.manual, *part.dead):
        if not archive.unpack:
            if (folder / archive.into / file_name(archive)).is_file():
                return True
            continue
        try:
            note = read_json(store / f"{file_name(archive)}.done")
            names: Sequence[str] = note["names"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if names and all((folder / archive.into / name).exists() for name in names):
            return True
    return False


def _links(split: SplitFile) -> list[str]:
    """Where a program can fetch the split file: its link, then its mirrors."""
    return [url for url in (split.url, *split.mirrors) if url and is_direct(url)]


def _fetch_split_file(
    manifest: Manifest, folder: Path, say: Say, settings: Settings | None
) -> list[str]:
    """Fetch the split file if a program can, from its links in turn; returns what went wrong."""
    split = manifest.split_file
    if not split or (folder / split.name).is_file():
        return []
    file, failures = folder / split.name, []
    for url in _links(split):
        try:
            say(f"fetching {url}")
            fetch(url, file, known_hash(split.sha256, split.md5), say, settings)
        except DownloadError as error:
            failures.append(str(error))
            continue
        if split.git_sha1 in (None, git_sha1(file.read_bytes())):
            return []
        file.unlink()
        failures.append(
            f"{split.name} from {url} has a wrong checksum (git's SHA-1); it was removed"
        )
    if failures and split.url and not is_direct(split.url):
        failures.append(f"by hand: {split.url}")
    return failures
