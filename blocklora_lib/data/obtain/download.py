"""Fetch and unpack a dataset where that is allowed and possible; say what is left to do by hand."""

from __future__ import annotations

from pathlib import Path

from ...core.files import sweep
from ...core.locks import locked
from ..decoding import endings
from ..manifest import Manifest
from ..manifest_files import all_manifests
from ..roots import find_folder, is_fake
from ..sources import Archive, SplitFile
from .archives import Limits
from .fetch import fetch, git_sha1, is_direct, known_hash
from .parts import Part, parts
from .placing import check_count, go_on, install, placed
from .resuming import DownloadError, Say, Settings

DOWNLOADS = ".downloads"  # under the root: archives, and notes of what was unpacked


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
    unpacking. What is there is not fetched again. A process that finds another at the same set
    waits, and takes over what that one leaves. DownloadError: no source of a file answered.
    """
    if manifest.kind != "external":
        raise ValueError(
            f"{manifest.name} is among the images that the project ships; "
            "there is nothing to download"
        )
    _check_own(manifest)
    folder = dataset_folder(manifest, root)
    if is_fake(folder):
        raise ValueError(
            f"{folder} is a miniature; "
            f"take it away or give another --root to download {manifest.title}"
        )
    split = manifest.split_file
    if not any(part.sources for part in parts(manifest)) and not (split and _links(split)):
        return steps(manifest, root)  # nothing that a program can fetch
    store = root / DOWNLOADS / manifest.name
    store.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{manifest.name}.download", say) as alone:
        sweep(store)
        failures = _download(manifest, folder, store, say, keep, alone, settings, limits)
        # leave no empty folder that looks like a dataset
        for place in (folder, store, store.parent):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
    if failures:
        raise DownloadError(
            f"{manifest.name}: {'; '.join(failures)}; try again later: what came is kept"
        )
    return steps(manifest, root)


def _check_own(manifest: Manifest) -> None:
    """ValueError where another set's folder has the name of this one's: each would fill both."""
    for other in all_manifests().values():
        shared = {*manifest.folders.values()} & {*other.folders.values()}
        if shared and other.name != manifest.name:
            raise ValueError(
                f"{min(shared)!r} is the folder of {other.title}; give {manifest.name} one of its "
                "own, under `folders` of its manifest"
            )


def _download(
    manifest: Manifest,
    folder: Path,
    store: Path,
    say: Say,
    keep: bool,
    alone: bool,
    settings: Settings | None,
    limits: Limits | None,
) -> list[str]:
    """Fetch and place what is not there; return which files did not come, and why."""
    # a set that the user put there is whole without our notes; one that we began may lack a part
    began = any(store.glob("*.done")) or any(store.glob("*.placing"))
    complete, failures = has_images(manifest, folder) and not began, []
    for part in parts(manifest):
        _go_on(part, folder, store, keep)
        if not part.sources or _is_done(part, folder, store):
            continue
        if complete and part.sources[0].unpack:
            say(
                f"{manifest.name}: {part.sources[0].file_name} is not fetched, "
                f"{folder} has images already"
            )
            continue
        try:
            archive = _fetch_any(part, store, folder, say, settings)
        except DownloadError as error:
            failures.append(str(error))
            continue
        if archive.unpack:
            install(archive, folder, store, say, limits, keep, alone)
    return failures + _fetch_split_file(manifest, folder, say, settings)


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
) -> Archive:
    """Return the source whose file came: sources in turn."""
    for archive in part.dead:
        say(f"skipped {archive.url}: known to be gone")
    reasons = []
    for archive in part.sources:
        known = known_hash(archive.sha256, archive.md5)
        target = (store if archive.unpack else folder / archive.into) / archive.file_name
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
        return archive
    by_hand = "".join(f"; by hand: {archive.url}" for archive in part.manual)
    raise DownloadError("; ".join(reasons) + by_hand)


def _is_done(part: Part, folder: Path, store: Path) -> bool:
    """Whether one of the part's sources was placed before and still stands there."""
    return any(
        (folder / archive.into / archive.file_name).is_file()
        if not archive.unpack
        else placed(archive, folder, store)
        for archive in (*part.sources, *part.manual, *part.dead)
    )


def _go_on(part: Part, folder: Path, store: Path, keep: bool) -> None:
    """Finish what a killed process left half placed; ValueError where placed files are gone."""
    for archive in part.sources:
        if archive.unpack:
            go_on(archive, folder, store, keep)
            if note := placed(archive, folder, store):
                check_count(archive, note, folder)


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
