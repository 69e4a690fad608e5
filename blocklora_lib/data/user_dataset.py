"""One's own images as a dataset: a folder per class, under train/, val/ and test/ if there."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pydantic import ValidationError

from ..core.files import user_path, write_whole
from ..core.schema import explain
from .class_names import class_name
from .content import file_digests
from .decoding import Loading
from .layouts import Item, own_items
from .manifest import Manifest, Split
from .manifest_files import manifest_names, manifest_yaml, read_manifest
from .problems import DataError, again, shell
from .sources import Source
from .user_folder import look
from .user_images import some

LICENCE = "one's own"


def own_manifest(
    path: Path | str,
    seed: int = 1,
    template: str = "a photo of a {}.",
    image_loading: Loading = "upright",
    whole: bool = False,
) -> Manifest:
    """Return the manifest of one's own images in `path`: a folder per class, or split and class.

    Class names are the folders' names, with spaces for underscores. With train/ and test/ (val/ may
    be left out; training, valid, validation, dev, testing are known too) these are the splits;
    otherwise each class is cut 0.5 / 0.2 / 0.3 by `seed`, which the manifest keeps as `split_seed`;
    whole: it is not cut, and all of it is for testing. Images in nested folders are of the class;
    what is no image, `user_folder.look(path).notes` tells. DataError, with a command that helps:
    classes without images or with too few to be cut, names that CLIP reads alike, folders of no
    clear meaning.
    """
    folder = user_path(path).resolve()
    seen = look(folder)
    splits, cut = seen.splits, set(seen.splits.values()) == {"."}
    if cut and whole:
        splits, cut = {"test": "."}, False
    try:
        manifest = Manifest(
            name=own_name(folder),
            title=folder.name,
            role="target",
            kind="external",
            layout="folder",
            folders={"coop": folder.name, "clip_lora": folder.name},
            images={split: (name,) for split, name in splits.items()},
            classes=tuple(map(class_name, seen.classes)),
            class_folders=seen.classes,
            template=template,
            counts={},
            licence=LICENCE,
            sources=(Source(package="own images", licence=LICENCE, attribution=folder.name),),
            notes=f"the images of {shell([str(folder)])}",
            split_seed=seed if cut else None,
            image_loading=image_loading,
        )
    except ValidationError as error:
        raise DataError(folder, f"cannot be a dataset: {explain(error)}", again(folder)) from None
    found = {split: list(own_items(manifest, folder, split)) for split in manifest.splits}
    counts = {split: len(part) for split, part in found.items()}
    return manifest.model_copy(update={"counts": counts, "sha256": _digest(folder, found)})


def own_name(folder: Path) -> str:
    """The folder's name in small letters, digits and _; never that of a set that has a manifest."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_") or "own"
    return f"own_{name}" if name in manifest_names() else name


def write_own(
    path: Path | str, place: Path, seed: int = 1, image_loading: Loading = "upright"
) -> Manifest:
    """Write the manifest of one's own images to `place`/<name>.yaml and return it.

    DataError where another folder's images have that name there: their results would stand side by
    side as one dataset's.
    """
    manifest = own_manifest(path, seed, image_loading=image_loading)
    file = place / f"{manifest.name}.yaml"
    if file.is_file():
        before = read_manifest(file)
        if before.notes not in ("", manifest.notes) and before.sha256 != manifest.sha256:
            folder = user_path(path).resolve()
            what = (
                f"would be {manifest.name} beside {before.notes}, "
                "whose results stand there: rename one of"
            )
            other = folder.with_name(f"{folder.name}_2")
            raise DataError(
                folder,
                f"{what} the folders, or give other --results",
                shell(["mv", str(folder), str(other)]),
            )
    place.mkdir(parents=True, exist_ok=True)
    write_whole(file, manifest_yaml(manifest))
    return manifest


def repeated(manifest: Manifest, folder: Path) -> list[str]:
    """Notes on images that hold, byte for byte, what others hold, where that says something wrong.

    Test images that are among the training images, too, and images of two classes.
    """
    return [*seen_in_training(manifest, folder), *of_two_classes(manifest, folder)]


def of_two_classes(manifest: Manifest, folder: Path) -> list[str]:
    """A note on images that hold what an image of another class holds, byte for byte; or none."""
    parts = (own_items(manifest, folder, split) for split in manifest.splits)
    labels = {item.path: item.label for part in parts for item in part}
    digests = dict(zip(labels, file_digests(folder, list(labels)), strict=True))
    classes: dict[str, set[int]] = {}
    for path, digest in digests.items():
        if len(digest) == 64:  # else a word on why it is none
            classes.setdefault(digest, set()).add(labels[path])
    told = [path for path, digest in digests.items() if len(classes.get(digest, ())) > 1]
    many = "images are in another class, too: what is right of one is wrong of the other"
    return [some(sorted(told), many, many)] if told else []


def seen_in_training(manifest: Manifest, folder: Path) -> list[str]:
    """A note on test images that hold what a training image holds, byte for byte; or none."""
    parts: list[list[str]] = [
        [item.path for item in own_items(manifest, folder, split)] for split in ("train", "test")
    ]
    train, test = (file_digests(folder, paths) for paths in parts)
    known = {digest for digest in train if len(digest) == 64}  # else a word on why it is none
    twice = [path for path, digest in zip(parts[1], test, strict=True) if digest in known]
    one = "test image is among the training images, too: its accuracy flatters"
    many = "test images are among the training images, too: their accuracy flatters"
    return [some(twice, one, many)] if twice else []


def _digest(folder: Path, found: dict[Split, list[Item]]) -> str:
    """SHA-256 of the splits by path, label and content: other images are another dataset."""
    contents = iter(file_digests(folder, [item.path for part in found.values() for item in part]))
    rows = [
        [split, item.path, item.label, next(contents)]
        for split, part in found.items()
        for item in part
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
