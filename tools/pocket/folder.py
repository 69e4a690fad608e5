"""A folder of images as one's own would be: pocket/stickers, 32 images of 8 classes of clipart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[2]
CLASSES = (
    "bird",
    "fruit",
    "musical instrument",
    "playing card",
    "road sign",
    "smiley face",
    "tool",
    "vehicle",
)
EACH = 32  # cut 0.5 / 0.2 / 0.3, they leave sixteen shots a class
CREDIT = (
    "## Stickers (`pocket/stickers/`): public-domain\n\nA folder as one's own would be: the first "
    f"{EACH} images of {len(CLASSES)} classes of Clip art, written by tools/pocket/folder.py.\n\n"
    "- debian:openclipart-svg, public-domain: Open Clip Art Library contributors\n"
)


def write_folder(place: Path = ROOT / "pocket" / "stickers") -> None:
    """Write each class's first images, the bytes of the bundle, to <class>/<number>.webp.

    Drawings that the library has twice are left out, so that none is trained on and tested.
    """
    manifest = yaml.safe_load((ROOT / "data_manifests" / "clipart.yaml").read_text())
    table = pq.read_table(ROOT / manifest["file"]).to_pydict()
    times = Counter(table["image"])
    for name in CLASSES:
        label = manifest["classes"].index(name)
        own = [i for i, of in zip(table["image"], table["label"], strict=True) if of == label]
        found = [image for image in own if times[image] == 1]
        if len(found) < EACH:
            raise ValueError(f"{name} has {len(found)} images that are there once, not {EACH}")
        folder = place / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(found[:EACH]):
            (folder / f"{number:02}.webp").write_bytes(image)


if __name__ == "__main__":
    write_folder()
