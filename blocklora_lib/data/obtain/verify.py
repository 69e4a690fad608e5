"""Check a dataset on disk, and change nothing: files, checksums, counts, labels, images."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from ...core.files import read_bytes
from ..layouts import Item, image_folder, items
from ..manifest import Manifest, Split
from ..problems import MARKER, DataError, MissingData, Problem, move_away, remedy
from ..roots import Marker, find_folder, read_marker
from ..user_images import with_parents
from .fetch import git_sha1

NAMED = 20  # at most so many damaged images are named one by one


def verify(
    manifest: Manifest, folder: Path, decode: Literal["sample", "all", "none"] = "sample"
) -> list[Problem]:
    """Return what is wrong with the dataset in `folder`; an empty list is a clean bill.

    Every listed image must exist. decode: 'all' decodes each one; 'sample' decodes the first and
    the last of each class and split, reads the head of all, and decodes those that do not end as a
    JPEG or PNG must, which finds files cut short; 'none' looks at no pixels. A miniature
    (FAKE.json) is held against the counts that it states.
    """
    if decode not in ("sample", "all", "none"):
        raise ValueError(f"decode={decode!r}; use 'sample', 'all' or 'none'")
    folder = Path(folder)
    problems: list[Problem] = []
    try:
        if folder.name in manifest.folders.values():
            find_folder(manifest, folder.parent)  # both conventions present and different
        if not folder.is_dir():
            raise MissingData(
                folder, f"is missing: no folder of {manifest.title}", remedy(manifest, folder)
            )
        marker = read_marker(folder)
    except DataError as error:
        return [error.problem]
    problems += _links(folder)
    if marker and marker.dataset != manifest.name:
        what = f"says that this is a miniature of {marker.dataset}, not of {manifest.name}"
        return [*problems, Problem(str(folder / MARKER), what, remedy(manifest, folder))]
    problems += other_split_file(manifest, folder, marker)
    seen: dict[str, str] = {}
    for split in manifest.splits:
        try:
            found = items(manifest, folder, split)
        except DataError as error:
            problems.append(error.problem)
            continue
        problems += _counts(manifest, folder, split, found, marker)
        problems += _twice(manifest, folder, split, found, seen, marker)
        problems += _images(manifest, folder, split, found, decode, marker)
    return list(dict.fromkeys(problems))  # a missing split file is one problem, not one a split


def notes(manifest: Manifest, folder: Path) -> list[str]:
    """What is no fault and yet should be known: classes of one prompt, images left out or there
    twice, frames.
    """
    told = [
        f"classes {' and '.join(alike)} have one prompt, so that only one of them is ever predicted"
        for alike in manifest.alike
    ]
    try:
        return told + _left_out(manifest, folder)
    except DataError:  # a problem, which `verify` names
        return told


def _left_out(manifest: Manifest, folder: Path) -> list[str]:
    from ..decoding import frames
    from ..user_dataset import repeated
    from ..user_folder import look
    from ..user_images import of_classes, some

    if manifest.layout == "class_folders":
        bases = dict.fromkeys(image_folder(manifest, folder, split) for split in manifest.splits)
        return [
            note for base in bases for note in of_classes(folder / base, manifest.class_folders)
        ]
    if manifest.layout != "folder":
        return []
    listed = [item.path for split in manifest.splits for item in items(manifest, folder, split)]
    moving = [path for path in listed if _is_file(folder / path) and frames(folder / path) > 1]
    one, many = (
        "file holds several frames: its first",
        "files hold several frames: the first of each",
    )
    told = [some(moving, f"{one} is shown", f"{many} is shown")] if moving else []
    return [*look(folder).notes, *told, *repeated(manifest, folder)]


def other_split_file(
    manifest: Manifest, folder: Path, marker: Marker | None = None
) -> Iterator[Problem]:
    """A split file that is not the manifest's, or the miniature's own."""
    split_file = manifest.split_file
    if split_file is None or not (folder / split_file.name).is_file():
        return  # `items` names a missing file
    content = read_bytes(folder / split_file.name)
    if marker:
        expected = {"sha256": marker.split_sha256}
    else:
        expected = {key: getattr(split_file, key) for key in ("sha256", "md5", "git_sha1")}
    found = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "git_sha1": git_sha1(content),
    }
    for key, value in expected.items():
        if value and found[key] != value:
            whose = "its FAKE.json" if marker else f"the manifest of {manifest.name}"
            what = (
                f"has another checksum: its {key} starts {found[key][:12]}, "
                f"{whose} says {value[:12]}"
            )
            spoiled = folder / split_file.name
            yield Problem(str(spoiled), what, _mend(manifest, folder, spoiled, marker))
            return


def _counts(
    manifest: Manifest, folder: Path, split: Split, found: list[Item], marker: Marker | None
) -> Iterator[Problem]:
    again = _mend(manifest, folder, _listed_in(manifest, folder, split), marker)
    stated = (
        marker.other_counts.get(str(manifest.layout), marker.counts) if marker else manifest.counts
    )
    declared = stated.get(split)
    if declared is not None and len(found) != declared:
        whose = "its FAKE.json" if marker else "the manifest"
        yield Problem(
            str(folder), f"has {len(found)} {split} images, {whose} says {declared}", again
        )
    present = {item.label for item in found}
    empty = [name for label, name in enumerate(manifest.classes) if label not in present]
    if empty and split != "val":  # CoOp's val has every class, a user's own may not
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        names = ", ".join(map(repr, empty[:3])) + more
        yield Problem(str(folder), f"has no {split} image of class {names}", again)


def _twice(
    manifest: Manifest,
    folder: Path,
    split: Split,
    found: list[Item],
    seen: dict[str, str],
    marker: Marker | None,
) -> Iterator[Problem]:
    """Images listed twice, in one split or in two; `seen`, path to split, is filled."""
    double = [item.path for item in found if item.path in seen]
    within = [path for path, times in Counter(item.path for item in found).items() if times > 1]
    for path in (double or within)[:1]:
        where = f"{seen[path]} and {split}" if path in seen else f"{split} twice"
        more = f", and so are {len(double or within) - 1} more" if len(double or within) > 1 else ""
        again = _mend(manifest, folder, _listed_in(manifest, folder, split), marker)
        yield Problem(str(folder / path), f"is listed in {where}{more}", again)
    seen.update((item.path, split) for item in found)


def _images(
    manifest: Manifest,
    folder: Path,
    split: Split,
    found: list[Item],
    decode: str,
    marker: Marker | None,
) -> Iterator[Problem]:
    images = folder / image_folder(manifest, folder, split, listed=True)
    again = _mend(manifest, folder, images if images.exists() else None, marker)

    def mend(path: str) -> str:
        return move_away(folder, folder / path) if manifest.layout == "folder" else again

    missing = [item.path for item in found if not _is_file(folder / item.path)]
    if missing:
        more = (
            f", and so are {len(missing) - 1} more of {len(found)} {split} images"
            if len(missing) > 1
            else ""
        )
        yield Problem(str(folder / missing[0]), f"is missing{more}", mend(missing[0]))
    if decode == "none":
        return
    from ..decoding import fault

    gone, damaged = set(missing), 0
    sample = {i for places in _by_label(found).values() for i in (places[0], places[-1])}
    for index, item in enumerate(found):
        path = folder / item.path
        if item.path in gone:
            continue
        if why := fault(path, thorough=decode == "all" or index in sample):
            damaged += 1
            if damaged <= NAMED:
                yield Problem(str(path), why, mend(item.path))
    if damaged > NAMED:
        what = f"holds {damaged - NAMED} more {split} images that cannot be read"
        yield Problem(str(folder), what, again)


def _by_label(found: Iterable[Item]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(found):
        groups.setdefault(item.label, []).append(index)
    return groups


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _links(folder: Path) -> Iterator[Problem]:
    """Symbolic links that lead nowhere, in a circle, or back to a folder that they stand in."""
    todo: list[tuple[Path, tuple[str, ...]]] = [(folder, with_parents(folder))]
    while todo:
        place, above = todo.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            yield Problem(
                str(place),
                f"cannot be read: {error.strerror}",
                shlex.join(["ls", "-ld", str(place)]),
            )
            continue
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_symlink():
                if entry.is_dir():
                    todo.append((path, (*above, os.path.realpath(path))))
                continue
            remove = shlex.join(["rm", str(path)])
            target = os.path.realpath(path)
            if not path.exists():
                yield Problem(
                    entry.path,
                    f"is a symbolic link to nowhere or in a loop ({os.readlink(path)})",
                    remove,
                )
            elif target in above:
                yield Problem(
                    entry.path, f"is a symbolic link in a loop: it leads back to {target}", remove
                )
            elif path.is_dir():
                todo.append((path, (*above, target)))


def _listed_in(manifest: Manifest, folder: Path, split: Split) -> Path:
    """Where the list of a split's images comes from: split file, or folder of class folders."""
    if manifest.layout == "split_json" and manifest.split_file:
        return folder / manifest.split_file.name
    if manifest.layout == "class_folders":
        return folder / image_folder(manifest, folder, split)
    return folder


def _mend(manifest: Manifest, folder: Path, spoiled: Path | None, marker: Marker | None) -> str:
    return remedy(manifest, folder, spoiled, marker.convention if marker else "")
