"""What lies in a folder of one's own: its splits and its classes. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from .class_names import as_read, check_name, class_name, distinct
from .manifest import Split
from .problems import DataError, MissingData, again, move, move_away, shell
from .user_images import (
    class_folders,
    entries_of,
    hidden,
    images,
    is_dir,
    listed,
    some,
    told,
    with_parents,
)

# what a split's folder is called, in any case
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
UNCLEAR = ("eval", "evaluation")  # validation to some, test to others
# what names add to it: test1, train_set, seg_test, val-images
ADDED = frozenset("set sets split data dataset image images img imgs pics folder seg".split())


class Folder(NamedTuple):
    """One's own images. splits: each split's folder ('.' without any). classes: their folders."""

    place: Path
    splits: dict[Split, str]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def look(folder: Path) -> Folder:
    """Return what lies in a folder of class folders, under split folders where these exist.

    DataError names what cannot be a dataset, MissingData a folder that is not there; each with a
    command that leads on.
    """
    if not folder.is_dir():
        what = "is missing: give" if not os.path.lexists(folder) else "is no folder: give"
        what += " a folder that holds a folder of images per class"
        raise MissingData(folder, what, shell(["ls", str(folder.parent)]))
    check_name(folder.parent, folder.name)
    tops, left = class_folders(folder)
    splits = _splits(folder, tops)
    if not splits:
        classes, notes = _classes(folder, tops, left)
        notes += _exchanged(folder, tops)
        distinct(folder, ["."], classes)
        return Folder(folder, dict.fromkeys(SPLIT_NAMES, "."), classes, tuple(notes))
    found, notes = {}, list(told(left))
    for split, name in splits.items():
        inner, strays = class_folders(folder / name)
        needed = split == "train"
        found[split], more = _classes(folder / name, inner, strays, f"{name}/", needed)
        notes += more
    classes = found["train"]
    distinct(folder, list(splits.values()), classes)
    for split, names in found.items():
        _spelled_as_in_train(folder, splits, split, names, classes)
    if not found["test"]:
        what = (
            "holds no images of any class: fill it, "
            "or give the training images alone, which are then cut"
        )
        raise DataError(folder / splits["test"], what, again(folder / splits["train"]))
    missing = [name for name in classes if name not in set(found["test"])]
    if missing:
        one, many = (
            "class has no test images: no accuracy tells of it",
            "classes have no test images: no accuracy",
        )
        notes.append(some(missing, one, f"{many} tells of them"))
    return Folder(folder, splits, classes, tuple(notes))


def _splits(folder: Path, tops: list[str]) -> dict[Split, str]:
    """The folder of each split; none where folders are classes, even if called train or test."""
    known = {name: split for name in tops if (split := split_of(name)) is not None}
    named = list(known)
    holding = [name for name in named if _folders(folder / name)]
    if not holding:
        if named and len(named) == len(tops):
            moves = " && ".join(move(folder / name, folder / f"{name}_") for name in named)
            what = (
                f"holds images right in {', '.join(named)}: "
                "put them into a folder per class there; if these"
            )
            raise DataError(
                folder, f"{what} are the classes themselves, add a _ to their names", moves
            )
        return {}
    flat = [name for name in tops if name not in holding and images(folder / name).paths]
    if unsorted := [name for name in flat if name in named]:
        what = (
            "holds images right in it, of no class: "
            "put them into a folder per class, or take it away"
        )
        raise DataError(folder / unsorted[0], what, move_away(folder, folder / unsorted[0]))
    if flat:
        one = len(holding) == 1
        like = "looks like a split" if one else "look like splits"
        names = "its name" if one else "their names"
        what = (
            f"holds {listed(holding)}, which {like}, beside {listed(flat)}: if all are classes, "
            f"say so by a _ at the end of {names}, else take the others away"
        )
        if one or len({known[name] for name in holding}) < len(holding):  # test 1, test 2
            mends = [move(folder / name, folder / f"{name}_") for name in holding]
        else:
            mends = [move_away(folder, folder / name) for name in flat]
        raise DataError(folder, what, " && ".join(mends))
    splits: dict[Split, str] = {}
    for name in holding:
        split = known[name]
        if not split:
            taken = {known[n] for n in holding}
            free = [split for split in ("test", "val") if split not in taken]
            what = "may hold images to validate or to test with: " + (
                f"call it {free[0]}" if free else "take it away"
            )
            mend = (
                move(folder / name, folder / free[0]) if free else move_away(folder, folder / name)
            )
            raise DataError(folder / name, what, mend)
        if split in splits:
            what = f"and {folder / splits[split]} are both the {split} split: keep one of the two"
            raise DataError(folder / name, what, move_away(folder, folder / name))
        splits[split] = name
    if {"train", "test"} <= set(splits):
        return {split: splits[split] for split in SPLIT_NAMES if split in splits}
    has = ", ".join(holding)
    if set(splits) == {"train", "val"}:
        what = (
            f"has {has} but needs both train and test, "
            f"or neither: to test on {splits['val']}, call it test"
        )
        raise DataError(folder, what, move(folder / splits["val"], folder / "test"))
    alone = folder / next(iter(splits.values()))
    what = (
        f"has {has} but needs both train and test, or neither: "
        f"give {alone.name} alone, which is then cut"
    )
    raise DataError(folder, what, again(alone))


def split_of(name: str) -> Split | Literal[""] | None:
    """Return the split that a folder's name says, "" where it is unclear which; else None."""
    if name.endswith("_"):  # as a class that is called so is told apart
        return None
    known: dict[str, Split | Literal[""]] = dict.fromkeys(UNCLEAR, "")
    known |= {word: split for split, words in SPLIT_NAMES.items() for word in words}
    said = [word for word in re.findall("[^\\W\\d_]+", name.lower()) if word not in ADDED]
    if len(said) != 1:
        return None
    plain = (said[0].removesuffix(end) for end in ("", *ADDED))  # trainset
    return next((known[word] for word in plain if word in known), None)


def _exchanged(folder: Path, tops: list[str]) -> list[str]:
    """Note folders that all hold the same ones, which may be the classes; refuse splits in one."""
    inner = {name: _folders(folder / name) for name in tops}
    both = [name for name in tops if {"train", "test"} <= {split_of(n) for n in inner[name]}]
    if both:
        found = sorted({n for name in both for n in inner[name] if split_of(n)})
        names = shell(found)
        raise DataError(
            folder,
            f"holds {listed(found)} in {listed(both)}: put the splits above the classes",
            f"{shell(['cd', str(folder)])} && mkdir {names} && for split in {names}; do "
            'for old in */"$split"; do mv -n "$old" "$split/${old%/*}"; done; done',
        )
    same = inner[tops[0]]
    if len(same) < 2 or any(names != same for names in inner.values()):
        return []
    return [
        f"{listed(tops)} hold the same folders, {listed(same)}: if these are the classes, give "
        f"{tops[0]} alone, which is then cut"
    ]


def _folders(place: Path) -> list[str]:
    return [e.name for e in entries_of(place) if is_dir(e) and not hidden(e.name)]


def _classes(
    place: Path, names: list[str], left: dict[str, list[str]], above: str = "", needed: bool = True
) -> tuple[tuple[str, ...], list[str]]:
    """(classes, notes) of the class folders under `place`; needed: each must hold an image."""
    if len(names) < 2 and needed:
        what = f"holds {len(names)} class folder{'s' * (len(names) != 1)}; a dataset has at least 2"
        if len(class_folders(inner := _unwrapped(place))[0]) > 1:
            meant = inner.relative_to(place)
            raise DataError(place, f"{what}: is {meant} in it meant?", again(inner))
        new = [name for name in ("one_class", "another_class") if name not in names][
            : 2 - len(names)
        ]
        what += ": put the images of each class into a folder with the class's name"
        raise DataError(place, what, shell(["mkdir", *(str(place / name) for name in new)]))
    left, filled = {kind: [above + name for name in found] for kind, found in left.items()}, []
    for name in names:
        paths, more = images(place / name)
        for kind, found in more.items():
            left.setdefault(kind, []).extend(f"{above}{name}/{path}" for path in found)
        if paths:
            filled.append(name)
        elif needed:
            empty = not os.listdir(place / name) and not (place / name).is_symlink()
            folder = place.parent if above else place
            mend = shell(["rmdir", str(place / name)]) if empty else move_away(folder, place / name)
            raise DataError(
                place / name, "holds no images; fill the class or take its folder away", mend
            )
        else:
            left.setdefault("empty", []).append(f"{above}{name}")
    return tuple(filled), list(told(left))


def _unwrapped(place: Path) -> Path:
    """The folder in the only folder in the only folder ..., as archives are unpacked."""
    while len(names := class_folders(place)[0]) == 1:
        inner = place / names[0]
        if os.path.realpath(inner) in with_parents(place):
            break
        place = inner
    return place


def _spelled_as_in_train(
    folder: Path,
    splits: dict[Split, str],
    split: Split,
    names: tuple[str, ...],
    classes: tuple[str, ...],
) -> None:
    for name in sorted(set(names) - set(classes)):
        path, alike = (
            folder / splits[split] / name,
            [c for c in classes if as_read(class_name(c)) == as_read(class_name(name))],
        )
        if alike:
            what = (
                f"is written otherwise than {alike[0]!r} in {splits['train']}: "
                "one class has one name"
            )
            raise DataError(path, what, move(path, path.with_name(alike[0])))
        raise DataError(
            path, "is a class that train does not have: take it away", move_away(folder, path)
        )
