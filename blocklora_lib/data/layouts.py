"""From a manifest and a folder to lists of items, by layout: a reader a layout, none a dataset.

split_json     a fixed split in JSON, {"train": [[path, label, class name], ...], "val": ..., ...}
variant_lists  a text file a split, "image class name" a line, and one that lists the classes
class_folders  a folder per class under each split's folder; labels follow class_folders
mat            MATLAB annotations: one vector of labels and one of splits, or a struct array a split
folder         one's own images, a folder per class (see `own_items`)

The order of items is the file's own, so that draws repeat; folders are read in sorted order. (CoOp
and Dassl list ImageNet's folders as the file system gives them, so its ImageNet draws depend on the
machine.)
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..core.files import read_text
from ..core.json_data import parse_json
from ..core.schema import UnknownName, near
from .manifest import SPLITS, Manifest, Split
from .mat_files import read_mat
from .problems import DataError, MissingData, again, remedy

# CoOp cuts a set without official splits 0.5 / 0.2 / 0.3 (datasets/dtd.py); what is left is train
VAL, TEST = 0.2, 0.3


class Item(NamedTuple):
    """One image: its path relative to the dataset's folder (with /), its label, and its class name.

    The class name is the manifest's, whatever the split file's spelling.
    """

    path: str
    label: int
    classname: str


def items(manifest: Manifest, folder: Path, split: Split) -> list[Item]:
    """Return the items of a split in the split file's order (class folders: by class and name).

    `folder` is the dataset's own folder, as `roots.find_folder` returns it. A split that the set
    does not have is an empty list. No image is opened. MissingData (a FileNotFoundError) where a
    file is not there; DataError (a ValueError) where it is damaged, a label is out of range or a
    path leaves the folder.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if manifest.layout is None:
        raise DataError(
            manifest.name,
            "is a bundle, or states no layout: it is not read from a folder",
            "blocklora data list",
        )
    if not folder.is_dir():
        raise MissingData(
            folder, f"is missing: no folder of {manifest.title}", remedy(manifest, folder)
        )
    if split not in manifest.splits:
        return []
    reader = {
        "split_json": _split_json,
        "variant_lists": _variant_lists,
        "class_folders": class_folder_items,
        "mat": _mat,
        "folder": own_items,
    }[manifest.layout]
    return list(reader(manifest, folder, split))


def image_folder(manifest: Manifest, folder: Path, split: Split, listed: bool = False) -> str:
    """Return where a split's images lie, relative to `folder`: the manifest's first that exists.

    ImageNet's differs between CoOp and CLIP-LoRA under one name: DataError if both are there and
    are not the same folder. listed: a split file names the images, so that draws need no images;
    where no folder exists the first name is returned, and `verify` tells of each missing image.
    """
    present: list[str] = []
    for name in manifest.images[split]:
        path = folder / name
        if path.is_dir() and not any(path.samefile(folder / p) for p in present):
            present.append(name)
    if len(present) > 1:
        spare = str(folder / present[1])
        what = f"and {spare} both hold {split} images of {manifest.title}: keep one of the two"
        raise DataError(folder / present[0], what, shlex.join(["mv", spare, f"{spare}.other"]))
    if not present and not listed:
        first, *others = manifest.images[split]
        what = f"is missing: no folder of {split} images" + "".join(
            f", nor {folder / o}" for o in others
        )
        raise MissingData(folder / first, what, remedy(manifest, folder))
    return (present or manifest.images[split])[0]


def load_text(manifest: Manifest, folder: Path, name: str) -> str:
    """Return the text of one of the set's files; MissingData or DataError if it cannot be read."""
    path = folder / name
    # such lists come in one archive with the images
    with_images = None if manifest.split_file else folder
    if not path.is_file():
        what = f"is missing: {manifest.title} is read from it"
        raise MissingData(path, what, remedy(manifest, folder, with_images))
    try:
        return read_text(path)
    except (ValueError, OSError) as error:
        again = remedy(manifest, folder, with_images or path)
        raise DataError(
            path, f"cannot be read: {str(error).replace(str(path), 'it')}", again
        ) from None


def under(base: str, path: str) -> str | None:
    """Return base/path with /, or None for a path that would leave the dataset's folder."""
    inner = PurePosixPath(path)
    unfit = "\\" in path or not path.isprintable()  # no line ends, no lone surrogates
    if not path or inner.is_absolute() or ".." in inner.parts or unfit:
        return None
    return str(PurePosixPath(base) / inner)


def _split_json(manifest: Manifest, folder: Path, split: Split) -> Iterator[Item]:
    assert manifest.split_file
    path = folder / manifest.split_file.name
    again = remedy(manifest, folder, path)
    try:
        content = parse_json(load_text(manifest, folder, manifest.split_file.name), "it")
    except DataError:
        raise
    except ValueError as error:
        raise DataError(path, f"is not JSON: {error}", again) from None
    entries = content.get(split) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(path, f"has no list {split!r}", again)
    base = image_folder(manifest, folder, split, listed=True)
    for number, entry in enumerate(entries):
        where = f"entry {number} of {split}"
        if not (
            isinstance(entry, list)
            and len(entry) == 3
            and [type(value) for value in entry] == [str, int, str]
        ):
            raise DataError(path, f"{where}: {entry!r:.80} is not [path, label, class name]", again)
        yield _item(manifest, path, where, again, base, *entry)


def _item(
    manifest: Manifest,
    file: Path,
    where: str,
    again: str,
    base: str,
    image: str,
    label: int,
    name: str,
) -> Item:
    """The item, checked: label in range, class name as in the manifest, path inside the folder."""
    if not 0 <= label < len(manifest.classes):
        last = len(manifest.classes) - 1
        what = f"{where}: label {label} of {image!r} is out of range; labels are 0 to {last}"
        raise DataError(file, what, again)
    expected = manifest.classes[label]
    spelled = manifest.split_names[label] if manifest.split_names else expected
    if name not in (spelled, expected):
        what = f"{where}: label {label} is named {name!r}, the manifest says {spelled!r}"
        raise DataError(file, what, again)
    path = under(base, image)
    if path is None:
        raise DataError(file, f"{where}: the path {image!r} leaves the dataset's folder", again)
    return Item(path, label, expected)


def _variant_lists(manifest: Manifest, folder: Path, split: Split) -> Iterator[Item]:
    again = remedy(manifest, folder, folder)  # the lists come with the images
    for key in ("classes", split):
        if key not in manifest.annotations:
            raise DataError(manifest.name, f"has no {key} under annotations", "blocklora data list")
    names = load_text(manifest, folder, manifest.annotations["classes"]).splitlines()
    names = [name.strip() for name in names if name.strip()]
    if names != list(manifest.classes):
        differs = next(
            (n for n, c in zip(names, manifest.classes, strict=False) if n != c),
            f"{len(names)} names",
        )
        what = f"lists other classes than the manifest of {manifest.name} (first: {differs!r})"
        raise DataError(folder / manifest.annotations["classes"], what, again)
    labels = {name: label for label, name in enumerate(names)}
    file = folder / manifest.annotations[split]
    base = image_folder(manifest, folder, split, listed=True)
    lines = load_text(manifest, folder, manifest.annotations[split]).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, _, name = line.strip().partition(" ")
        if name not in labels:
            what = f"line {number}: class {name!r} is out of range; {near(name, labels)}"
            raise DataError(file, what[:300], again)
        where = f"line {number}"
        yield _item(manifest, file, where, again, base, f"{image}.jpg", labels[name], name)


def class_folder_items(manifest: Manifest, folder: Path, split: Split) -> Iterator[Item]:
    """Items of a folder per class, by class, then by path; a class without a folder has none."""
    from .user_images import images

    base = image_folder(manifest, folder, split)
    names = zip(manifest.class_folders, manifest.classes, strict=True)
    for label, (name, classname) in enumerate(names):
        place = folder / base / name
        if not place.is_dir() and not place.is_symlink():
            continue  # a class without images is counted, and named, by verify
        for image in images(place).paths:
            yield Item(str(PurePosixPath(base) / name / image), label, classname)


def own_items(manifest: Manifest, folder: Path, split: Split) -> Iterator[Item]:
    """Items of one's own images, by class, then by path; a set without splits is cut by its seed.

    A class is cut by a stream of its own, seeded with the split seed and its folder's name: another
    class more or less does not move its images.
    """
    from .user_images import images

    base = image_folder(manifest, folder, split)
    names = zip(manifest.class_folders, manifest.classes, strict=True)
    for label, (name, classname) in enumerate(names):
        place = folder / base / name
        found = images(place).paths if place.is_dir() else []
        if manifest.split_seed is not None:
            if len(found) < 2:
                count = "1 image" if found else "no images"
                what = (
                    f"has {count}; a class needs at least 2, "
                    "one to train and one to test: add more to it"
                )
                raise DataError(place, what, again(folder))
            random.Random(f"{manifest.split_seed}/{name}").shuffle(found)
            test, val = max(1, round(TEST * len(found))), round(VAL * len(found))
            ends = {"test": (0, test), "val": (test, test + val), "train": (test + val, None)}
            found = sorted(found[slice(*ends[split])])
        yield from (
            Item(str(PurePosixPath(base) / name / image), label, classname) for image in found
        )


def _mat(manifest: Manifest, folder: Path, split: Split) -> Iterator[Item]:
    base = image_folder(manifest, folder, split, listed=True)
    files = manifest.annotations
    # Flowers102: one label an image, and the numbers (from 1) of each split's images
    if "labels" in files:
        file = folder / files["labels"]
        labels = _load_mat(manifest, folder, files["labels"], "labels")
        key = {"train": "trnid", "val": "valid", "test": "tstid"}[split]
        rows = []
        for number in _load_mat(manifest, folder, files["splits"], key):
            if type(number) is not int or not 1 <= number <= len(labels):
                told = repr(number)[:80]
                what = f"{key}: image {told} is out of range; there are {len(labels)} labels"
                ids = folder / files["splits"]
                raise DataError(ids, what, remedy(manifest, folder, ids))
            rows.append((f"image_{number:05d}.jpg", labels[number - 1]))
    else:  # StanfordCars: a struct array a split, with fname and class (from 1)
        file = folder / files[split]
        found = _load_mat(manifest, folder, files[split], "annotations")
        try:
            rows = [(str(entry["fname"]), entry["class"]) for entry in found]
        except (TypeError, LookupError):
            what = "has no fields fname and class in annotations"
            raise DataError(file, what, remedy(manifest, folder, file)) from None
    again = remedy(manifest, folder, file)
    for number, (image, label) in enumerate(rows):
        where = f"entry {number} of {split}"
        index = label - 1 if type(label) is int else -1  # MATLAB counts from 1
        known = manifest.classes[index] if 0 <= index < len(manifest.classes) else ""
        yield _item(manifest, file, where, again, base, image, index, known)


def _load_mat(manifest: Manifest, folder: Path, name: str, key: str) -> list[Any]:
    """Return variable `key` of a MATLAB file, see `read_mat`."""
    path = folder / name
    if not path.is_file():
        what = f"is missing: {manifest.title} is read from it"
        raise MissingData(path, what, remedy(manifest, folder))
    try:
        found = read_mat(path)
        if key not in found:
            raise ValueError(f"has no variable {key!r}")
        return found[key]
    except ValueError as error:
        raise DataError(path, str(error), remedy(manifest, folder, path)) from None
