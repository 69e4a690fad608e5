"""Format-exact miniatures of the sets: true folders, lists and names, and a few tiny images.

A miniature may have few of the classes too; `local_manifest` is the manifest of what lies on this
machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..local import FACTS
from ..manifest import Manifest, Split
from ..manifest_files import all_manifests, load_manifest
from ..problems import MARKER, DataError
from ..roots import Marker, is_fake

SIZE = 32  # pixels a side
MOST = 1_000_000  # images: a number beyond is a slip, and would fill the disk
Row = tuple[str, int]  # path relative to the split's image folder, label


def make_fake(
    manifest: Manifest,
    root: Path | str,
    convention: Literal["coop", "clip_lora"] = "coop",
    per_class: int = 2,
    classes: int | None = None,
) -> Path:
    """Write a miniature of the set under `root`, per_class images a class; return its folder.

    classes: only so many, see `with_classes`.

    The folder holds FAKE.json (counts, checksum of the split file), so that it is never taken for
    the set, and the manifest of the miniature. Images are tiny, valid and the same in every run; a
    class has its own colour, so that training on them is more than noise. The set's other
    annotation files are written too. The folder appears when it is whole. An earlier miniature is
    replaced; DataError if anything else stands there.
    """
    root = Path(root).expanduser()
    if manifest.layout in (None, "folder"):
        raise ValueError(
            f"{manifest.name} states no layout that can be imitated; choose one of the paper's sets"
        )
    if convention not in manifest.folders:
        known = ", ".join(manifest.folders)
        raise ValueError(
            f"convention={convention!r}; the manifest of {manifest.name} knows {known}"
        )
    if per_class < 1:
        raise ValueError(f"per_class={per_class}; a miniature has at least 1 image a class")
    manifest = manifest if classes is None else with_classes(manifest, classes)
    if (asked := per_class * manifest.num_classes * len(manifest.splits)) > MOST:
        raise ValueError(
            f"per_class={per_class} makes {asked:,} images of {manifest.name}, "
            f"a miniature has at most {MOST:,}; give fewer images a class, or fewer classes"
        )
    target = root / manifest.folders[convention]
    if os.path.lexists(target) and not is_fake(target):
        what = (
            f"is there and is no miniature: a miniature of {manifest.title} is not written over it"
        )
        raise DataError(target, what, shlex.join(["mv", str(target), f"{target}.other"]))
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{manifest.name}-fake-", dir=root))
    try:
        rows = {split: _rows(manifest, split, per_class) for split in manifest.splits}
        for split, found in rows.items():
            base = work / _image_folder(manifest, split, convention)
            for number, (path, label) in enumerate(found):
                _write_image(base / path, label, f"{manifest.name}/{split}/{number}")
        _write_lists(manifest, work, rows)
        _write_companions(manifest, work)
        marker = Marker(
            fake=True,
            dataset=manifest.name,
            convention=convention,
            per_class=per_class,
            counts={split: len(found) for split, found in rows.items()},
            other_counts={
                a.layout: _official(rows, "val" in a.counts) for a in manifest.alternatives
            },
            split_sha256=_sha256(work / manifest.split_file.name) if manifest.split_file else None,
        )
        facts = manifest.model_copy(update={"counts": marker.counts, "counts_unverified": {}})
        (work / FACTS).write_text(facts.model_dump_json(exclude_defaults=True), encoding="utf-8")
        (work / MARKER).write_text(marker.model_dump_json(indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)  # a temporary folder is the owner's alone
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def with_classes(manifest: Manifest, classes: int) -> Manifest:
    """Return the manifest with its first `classes` classes alone, or all where it has no more.

    ImageNet keeps those of each of its variants too: A and R have 200 of its 1,000 classes, and
    stay parts of it. Variants with all of its classes go on having all.
    """
    if classes < 2:
        raise ValueError(f"classes={classes}; a set has at least 2 classes")
    chosen = [*range(manifest.num_classes)[:classes]]
    indices: tuple[int, ...] = ()
    if manifest.role != "target":
        source = manifest.variant_of or manifest.name
        parts = [m.class_indices for m in all_manifests().values() if m.variant_of == source]
        of_source = sorted({*range(classes), *(i for part in parts for i in part[:classes])})
        indices = tuple(of_source.index(i) for i in manifest.class_indices[:classes])
        chosen = chosen if indices else [i for i in of_source if i < manifest.num_classes]
    lists = {
        key: tuple(getattr(manifest, key)[i] for i in chosen)
        for key in ("classes", "class_folders", "split_names")
        if getattr(manifest, key)
    }
    return manifest.model_copy(update=lists | {"class_indices": indices})


def _image_folder(manifest: Manifest, split: Split, convention: str) -> str:
    """CoOp's folder of a split stands first in the manifest, CLIP-LoRA's or the archive's last."""
    return manifest.images[split][0 if convention == "coop" else -1]


def _rows(manifest: Manifest, split: Split, per_class: int) -> list[Row]:
    """(path under the split's image folder, label) of each image, by class, with real names.

    number runs on over the whole set, so that no two images share a name; index counts within a
    class.
    """
    splits = manifest.splits
    before = splits.index(split) * per_class
    pattern = manifest.image_names[split]
    rows = []
    for label in range(len(manifest.classes)):
        folder = manifest.class_folders[label] if manifest.class_folders else ""
        for i in range(per_class):
            index = before + i + 1
            number = label * per_class * len(splits) + index
            compact = PurePosixPath(folder).name.replace("_", "")
            name = pattern.format(folder=folder, index=index, number=number, compact=compact)
            rows.append((name, label))
    return rows


def _official(rows: dict[Split, list[Row]], val: bool) -> dict[Split, int]:
    """Images a split in the official lists; a val that these lack is part of train."""
    counts = {split: len(found) for split, found in rows.items()}
    return counts if val else {"train": counts["train"] + counts["val"], "test": counts["test"]}


def _write_image(path: Path, label: int, seed: str) -> None:
    """A coloured square with noise; the colour is the class's."""
    from PIL import Image

    colour, noise = random.Random(f"class {label}"), random.Random(seed)
    base = [colour.randrange(40, 216) for _ in range(3)]
    image = Image.new("RGB", (4, 4))
    image.putdata([tuple(value + noise.randrange(-40, 40) for value in base) for _ in range(16)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(
        path, "PNG" if path.suffix.lower() == ".png" else "JPEG"
    )


def _write_lists(manifest: Manifest, work: Path, rows: dict[Split, list[Row]]) -> None:
    """The files that the set is read from, by its layout and by its alternatives."""
    if manifest.layout == "split_json" and manifest.split_file:
        names = manifest.split_names or manifest.classes
        listed = {
            key: [[path, label, names[label]] for path, label in found]
            for key, found in rows.items()
        }
        _write_text(
            work / manifest.split_file.name, json.dumps(listed, indent=4, separators=(",", ": "))
        )
    if manifest.layout == "variant_lists":
        _write_text(
            work / manifest.annotations["classes"],
            "".join(f"{name}\n" for name in manifest.classes),
        )
        for split, found in rows.items():
            lines = [
                f"{PurePosixPath(path).stem} {manifest.classes[label]}\n" for path, label in found
            ]
            _write_text(work / manifest.annotations[split], "".join(lines))
    for other in manifest.alternatives:
        if other.layout == "mat":
            _write_mat(other.annotations, work, rows)


def _write_mat(files: dict[str, str], work: Path, rows: Mapping[Any, list[Row]]) -> None:
    """MATLAB annotations of the miniature's images, as the real files have them: counted from 1."""
    import numpy as np
    from scipy.io import savemat

    for name in files.values():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
    if "labels" in files:  # image_00012.jpg is image 12
        numbered = {
            split: [
                (int(PurePosixPath(path).stem.rpartition("_")[2]), label) for path, label in found
            ]
            for split, found in rows.items()
        }
        labels = dict(pair for found in numbered.values() for pair in found)
        vector = np.array([[labels[number] + 1 for number in sorted(labels)]], dtype=np.uint8)
        savemat(work / files["labels"], {"labels": vector})
        keys = {"train": "trnid", "val": "valid", "test": "tstid"}
        ids = {keys[split]: np.array([[n for n, _ in found]]) for split, found in numbered.items()}
        savemat(work / files["splits"], ids)
        return
    for split, name in files.items():  # val's images are part of the official training list
        found = rows[split] + (rows.get("val", []) if split == "train" else [])
        table = np.zeros((1, len(found)), dtype=[("class", object), ("fname", object)])
        for place, (path, label) in zip(table[0], sorted(found), strict=True):
            place["class"], place["fname"] = label + 1, PurePosixPath(path).name
        savemat(work / name, {"annotations": table})


def _write_companions(manifest: Manifest, work: Path) -> None:
    """Files that CoOp's own code reads beside the images, so that it can read the miniature too."""
    for name in manifest.companions:
        path = work / name
        if name == "classnames.txt":
            _write_text(
                path, "".join(f"{folder} {title}\n" for folder, title in _imagenet_names(manifest))
            )
        elif name == "cat_to_name.json":
            _write_text(path, json.dumps({str(i + 1): c for i, c in enumerate(manifest.classes)}))
        elif name.endswith("cars_meta.mat"):
            import numpy as np
            from scipy.io import savemat

            # CoOp moves the year from the end to the front; here it goes back
            original = [" ".join([*c.split(" ")[1:], c.split(" ")[0]]) for c in manifest.classes]
            path.parent.mkdir(parents=True, exist_ok=True)
            savemat(path, {"class_names": np.array(original, dtype=object)[None]})
        else:
            raise ValueError(f"{manifest.name}: no way to write {name}; take it off companions")


def _imagenet_names(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """All 1,000 folders and names: CoOp copies ImageNet's classnames.txt into its variants."""
    source = load_manifest(manifest.variant_of or manifest.name)
    yield from zip(source.class_folders, source.classes, strict=True)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
