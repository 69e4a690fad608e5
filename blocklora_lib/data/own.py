"""One's own images as a dataset: a folder per class, under train/, val/ and test/ where these exist."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from ..manifests import Manifest
from ..strict import explain
from .layouts import HELP, SPLITS, Item, class_images, own_items
from .problems import DataError, MissingData


def own_manifest(path: Path | str, seed: int = 1, template: str = "a photo of a {}.") -> Manifest:
    """Return the manifest of one's own images in `path`: a folder per class, under train/ and test/ if there.

    Class names are the folders' names, with spaces for underscores.  With train/ and test/ (val/ may be left
    out) these are the splits; otherwise each class is cut 0.5 / 0.2 / 0.3 by `seed`, which the manifest keeps
    as `split_seed`.  DataError names a class without images, or with too few to be cut.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise MissingData(folder, "is missing: give a folder that holds a folder of images per class", HELP)
    levels = [split for split in SPLITS if (folder / split).is_dir()]
    if levels and not {"train", "test"} <= set(levels):
        what = f"has {', '.join(levels)} but needs both train and test, or neither"
        raise DataError(folder, what, f"mkdir {folder / ('test' if 'train' in levels else 'train')}")
    classes = _folders(folder / "train" if levels else folder)
    for split in levels:
        if strange := sorted(set(_folders(folder / split)) - set(classes)):
            raise DataError(folder / split / strange[0], "is a class that train does not have", HELP)
    try:
        manifest = Manifest(
            name=re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_") or "own",
            title=folder.name,
            role="target",
            kind="external",
            layout="folder",
            folders={"coop": folder.name, "clip_lora": folder.name},
            images={split: (split if levels else ".",) for split in levels or SPLITS},
            classes=tuple(name.replace("_", " ") for name in classes),
            class_folders=tuple(classes),
            template=template,
            counts={},
            licence="one's own",
            sources=({"package": "own images", "licence": "one's own", "attribution": folder.name},),
            split_seed=None if levels else seed,
        )
    except ValidationError as error:
        raise DataError(folder, f"cannot be a dataset: {explain(error)}", HELP) from None
    found = {split: list(own_items(manifest, folder, split)) for split in manifest.splits}
    counts = {split: len(part) for split, part in found.items()}
    return manifest.model_copy(update={"counts": counts, "sha256": _digest(folder, found)})


def write_own(path: Path | str, place: Path, seed: int = 1) -> Manifest:
    """Write the manifest of one's own images to `place`/<name>.yaml and return it."""
    manifest = own_manifest(path, seed)
    place.mkdir(parents=True, exist_ok=True)
    facts = manifest.model_dump(mode="json", exclude_defaults=True)
    (place / f"{manifest.name}.yaml").write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    return manifest


def _digest(folder: Path, found: dict[str, list[Item]]) -> str:
    """SHA-256 of what the splits hold, by path, label and size: other images are another dataset."""
    rows = [
        [split, item.path, item.label, (folder / item.path).stat().st_size]
        for split, part in found.items()
        for item in part
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _folders(place: Path) -> list[str]:
    """Names of the class folders right under `place`, sorted; each must hold an image."""
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name[0] not in "._")
    if len(names) < 2:
        raise DataError(place, f"holds {len(names)} class folders; a dataset has at least 2", HELP)
    for name in names:
        if not class_images(place / name, HELP):
            raise DataError(place / name, "holds no images; fill the class or take its folder away", HELP)
    return names
