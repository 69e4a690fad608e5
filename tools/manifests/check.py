"""Hold the manifests of the paper's sets against their sources. For maintainers; needs no network.

    git clone https://github.com/linzhiqiu/cross_modal_adaptation CLONE
    python tools/manifests/check.py CLONE

CLONE holds CoOp's split files (splits/) and few-shot draws with class names (indices/),
MIT-licensed.
Compared: class names, their order and spelling, folders, image counts and checksums where the split
file is there; class names and folders, by a draw, where it is not. The 200 folders of ImageNet-A
and -R are compared with timm's where timm is installed. Prints one line a set; exit code 1 if
anything differs.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from blocklora_lib.data.layouts import items
from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.manifest_files import all_manifests


def differences(manifest: Manifest, clone: Path) -> Iterator[str]:
    """What the manifest says otherwise than its sources."""
    split_file = manifest.split_file
    if split_file and (clone / "splits" / split_file.name).is_file():
        yield from against_split_file(manifest, clone / "splits" / split_file.name)
    draw = clone / "indices" / manifest.folders["coop"].replace("-", "") / "shot_1-seed_1.json"
    if draw.is_file():
        yield from against_draw(manifest, draw)
    if manifest.name in ("imagenet_a", "imagenet_r") and importlib.util.find_spec("timm"):
        lists = importlib.resources.files("timm") / "data" / "_info"
        if (
            list(manifest.class_folders)
            != (lists / f"{manifest.name}_synsets.txt").read_text().split()
        ):
            yield "class_folders differ from timm's list"


def against_split_file(manifest: Manifest, path: Path) -> Iterator[str]:
    assert manifest.split_file
    content = path.read_bytes()
    blob = b"blob %d\0" % len(content)
    for key, found in {
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content).hexdigest(),
        "git_sha1": hashlib.sha1(blob + content).hexdigest(),
    }.items():
        if (stated := getattr(manifest.split_file, key)) != found:
            yield f"split_file.{key} is {stated}, the file's is {found}"
    split = json.loads(content)
    counts = {key: len(entries) for key, entries in split.items()}
    if counts != manifest.counts:
        yield f"counts are {manifest.counts}, the file's {counts}"
    spelled = manifest.split_names or manifest.classes
    for key, entries in split.items():
        for image, label, name in entries:
            folder = manifest.class_folders[label] if manifest.class_folders else ""
            if spelled[label] != name or not image.startswith(folder):
                known = f"{spelled[label]!r} in {folder!r}"
                yield f"{key}: {image}, {label}, {name!r}; the manifest has {known}"
                return
    for key in split:  # and the reader gives the same, with only the file at hand
        read = items(manifest, path.parent, key)
        base = PurePosixPath(manifest.images[key][0])
        if [(item.path, item.label) for item in read] != [
            (str(base / p), n) for p, n, _ in split[key]
        ]:
            yield f"{key}: layouts.items reads the file otherwise"


def against_draw(manifest: Manifest, path: Path) -> Iterator[str]:
    spelled = manifest.split_names or manifest.classes
    drawn = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for part in drawn.values() for row in part["data"]]
    if {row["label"] for row in rows} != set(range(len(manifest.classes))):
        yield f"{path} has other labels than 0 to {len(manifest.classes) - 1}"
        return
    for row in rows:
        folder = manifest.class_folders[row["label"]] if manifest.class_folders else ""
        if spelled[row["label"]] != row["classname"] or f"/{folder}" not in row["impath"]:
            yield f"{path}: {row}; the manifest has {spelled[row['label']]!r} in {folder!r}"
            return


def main(clone: Path) -> int:
    """Print a line a set; return the number of sets that differ."""
    wrong = 0
    for name, manifest in all_manifests().items():
        if manifest.kind == "external":
            found = list(differences(manifest, clone))
            wrong += bool(found)
            print(f"{name}: {'; '.join(found) or 'agrees'}")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "indices").is_dir():
        sys.exit(
            f"usage: {sys.argv[0]} CLONE, a clone of linzhiqiu/cross_modal_adaptation (it holds "
            "indices/)"
        )
    sys.exit(min(main(Path(sys.argv[1])), 1))
