"""Images and class folders in a folder of one's own, and what is neither. No torch.

Nothing is left out in silence: a file is an image by its ending or by what it holds; whatever else
is there is in `Folder.notes`, or refused with a command that helps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.files import printable
from .class_names import check_name
from .problems import DataError, move, shell

# folders and files of operating systems and tools
JUNK = frozenset(
    "__MACOSX __pycache__ @eaDir $RECYCLE.BIN lost+found Thumbs.db desktop.ini".split()
)
NAMED = 3  # so many examples in a note


class Images(NamedTuple):
    """The images of a class folder, relative to it with /, sorted; and what else is there."""

    paths: list[str]
    left: dict[str, list[str]]


def images(place: Path) -> Images:
    """Return the images under a class folder, in nested folders too; hidden ones are left out."""
    from .decoding import endings

    paths: list[str] = []
    left: dict[str, list[str]] = {}
    known = endings()
    todo: list[tuple[str, tuple[str, ...]]] = [("", with_parents(place))]
    read: set[str] = set()  # real paths
    while todo:
        inner, above = todo.pop()
        if above[0] in read:
            left.setdefault("again", []).append(inner.rstrip("/"))
            continue
        read.add(above[0])
        for entry in entries_of(place / inner):
            path = f"{inner}{entry.name}"
            if hidden(entry.name):
                left.setdefault("hidden", []).append(path)
            elif is_dir(entry):
                real = os.path.realpath(entry.path)
                if real in above:
                    left.setdefault("loop", []).append(path)
                else:  # links last: what they lead to may lie here, too
                    where = 0 if entry.is_symlink() else len(todo)
                    todo.insert(where, (f"{path}/", (real, *above)))
            elif _is_image(entry, known):
                paths.append(path)
            else:
                left.setdefault("no image", []).append(path)
    for path in paths:
        check_name(place, path)
    if nested := sorted(path for path in paths if "/" in path):
        left["nested"] = nested
    return Images(sorted(paths), left)


def with_parents(place: Path) -> tuple[str, ...]:
    """The real paths of a folder and of all that hold it: a link to one of them leads in a loop."""
    own = Path(os.path.realpath(place))
    return (str(own), *map(str, own.parents))


def of_classes(place: Path, classes: Sequence[str]) -> list[str]:
    """Notes on class folders whose names a manifest gives: what is left out, one line a kind."""
    if not place.is_dir():
        return []
    folders, left = class_folders(place)
    known = {name.split("/")[0] for name in classes}
    left["unlisted"] = [name for name in folders if name not in known]
    for name in classes:
        for kind, found in (images(place / name).left if (place / name).is_dir() else {}).items():
            left.setdefault(kind, []).extend(f"{name}/{path}" for path in found)
    return list(told(left))


def entries_of(place: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name; DataError where it cannot be read."""
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(place, what, shell(["ls", "-ld", str(place)])) from None


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link in a circle is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over: a dot in front, or a system's own."""
    return name.startswith(".") or name in JUNK


def _is_image(entry: os.DirEntry[str], known: frozenset[str]) -> bool:
    """By its ending, of a link to nowhere too, which is then missed by name; or by its content."""
    from .decoding import is_image

    if os.path.splitext(entry.name)[1].lower() in known:  # of ten thousands, pathlib's is slow
        return True
    return is_image(Path(entry.path))


def class_folders(place: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the folders right under `place`, and what else lies there."""
    from .decoding import endings

    folders: list[str] = []
    left: dict[str, list[str]] = {}
    real: dict[str, str] = {}  # of each folder its name
    for entry in sorted(entries_of(place), key=os.DirEntry.is_symlink):
        if is_dir(entry) and not hidden(entry.name):
            check_name(place, entry.name)
            folders.append(entry.name)
            first = real.setdefault(os.path.realpath(entry.path), entry.name)
            if first != entry.name:
                what = f"is a link to what {first!r} holds, whose images would count twice: remove"
                raise DataError(place / entry.name, f"{what} it", shell(["rm", entry.path]))
        elif is_dir(entry):
            left.setdefault("hidden", []).append(entry.name)
            tool = entry.name in JUNK or entry.name in (
                ".git",
                ".ipynb_checkpoints",
                ".thumbnails",
                ".cache",
            )
            if not tool and any(
                Path(name).suffix.lower() in endings() for name in os.listdir(entry.path)
            ):
                shown = entry.name.lstrip(".") or "class"
                what = (
                    "is a hidden folder that holds images: "
                    "give it a name without the dot, or take it away"
                )
                raise DataError(place / entry.name, what, move(place / entry.name, place / shown))
        elif hidden(entry.name):
            left.setdefault("hidden", []).append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            to = os.readlink(entry.path)
            what = f"is a link to nowhere or in a circle (to {to}): it may have been a class"
            raise DataError(place / entry.name, what, shell(["rm", entry.path]))
        else:
            kind = "stray" if _is_image(entry, endings()) else "no image"
            left.setdefault(kind, []).append(entry.name)
    return sorted(folders), left


def told(left: dict[str, list[str]]) -> Iterator[str]:
    """One sentence for each kind of thing that is not simply an image of its class."""
    say = {
        "no image": ("file is no image and is left out", "files are no images and are left out"),
        "hidden": (
            "hidden or system file or folder is left out",
            "hidden or system files or folders are left out",
        ),
        "stray": (
            "image lies beside the class folders, belongs to no class and is left out",
            "images lie beside the class folders, belong to no class and are left out",
        ),
        "nested": (
            "image lies in a folder of its class's folder and is taken as one of the class",
            "images lie in folders of their class's folder and are taken as ones of the class",
        ),
        "loop": (
            "link leads back to a folder that it stands in and is left out",
            "links lead back to folders that they stand in and are left out",
        ),
        "again": (
            "link leads to a folder of the class that is read already and is left out",
            "links lead to folders of the class that are read already and are left out",
        ),
        "unlisted": (
            "folder is of no class of the manifest",
            "folders are of no class of the manifest",
        ),
        "empty": ("class folder holds no images", "class folders hold no images"),
    }
    for kind, (one, many) in say.items():
        if found := left.get(kind):
            yield some(found, one, many)


def some(names: list[str], one: str, many: str) -> str:
    """Count, and name some: '2 files are ...: a, b'."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"{len(names)} {one if len(names) == 1 else many}: "
        f"{', '.join(map(printable, names[:NAMED]))}{more}"
    )


def listed(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (
        f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )
