r"""Few-shot draws that others can check: made from a split file alone.

The file of a draw, UTF-8:

    {"dataset": "dtd", "draw": "coop", "shots": 1, "seed": 1,
     "train": [["images/banded/banded_0117.jpg", 0, "banded"], ...],
     "val":   [...],
     "checksum": "<64 hexadecimal digits>"}

A path is relative to the dataset's folder and written with /. `checksum` is the SHA-256 of the
canonical JSON of {"train": ..., "val": ...}: keys sorted, no spaces, ASCII with \u escapes, that is
Python's json.dumps(..., sort_keys=True, separators=(",", ":")). `data.sampling` states what each
draw takes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import StrictInt, StrictStr

from ..core.schema import Strict, UnknownName
from .layouts import Item, items
from .manifest import Manifest, Split

DRAWS = ("coop", "clip_lora", "nested")
DRAWN: tuple[Split, ...] = ("train", "val")  # the splits of which images are drawn
Rows = tuple[tuple[StrictStr, StrictInt, StrictStr], ...]


class Draw(Strict):
    """The images that a few-shot run sees, in the order drawn; an image drawn twice stands twice.

    draw: coop, clip_lora, nested, or 'published' for a file in CoOp's form, which does not name its
    maker.
    An image of a set that ships as one file is named by split and number: train/00012.
    seed: None where a published file does not tell it.
    """

    dataset: str
    draw: str
    shots: StrictInt
    seed: StrictInt | None
    train: Rows
    val: Rows = ()

    @property
    def checksum(self) -> str:
        """SHA-256 of train and val, as the module describes it: 64 hexadecimal digits."""
        return rows_checksum(self.train, self.val)

    @property
    def most(self) -> int:
        """Training images of the class that has most: the shots, whatever a file says."""
        return max(Counter(label for _, label, _ in self.train).values(), default=0)

    def to_json(self) -> str:
        """The draw's file: one image a line, a newline at the end."""
        facts = {"dataset": self.dataset, "draw": self.draw, "shots": self.shots, "seed": self.seed}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
        for split in DRAWN:
            rows = ",\n".join(f"  {json.dumps(list(row))}" for row in getattr(self, split))
            lines.append(f' "{split}": [\n{rows}\n ]' if rows else f' "{split}": []')
        lines.append(f' "checksum": "{self.checksum}"')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def rows_checksum(train: Iterable[Sequence[object]], val: Iterable[Sequence[object]]) -> str:
    """SHA-256 of the canonical JSON of {"train": [[path, label, classname], ...], "val": ...}."""
    seen = {"train": [list(row) for row in train], "val": [list(row) for row in val]}
    return hashlib.sha256(
        json.dumps(seen, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def make_draw(
    dataset: str, split: Mapping[str, Sequence[Item]], shots: int, seed: int, how: str = "coop"
) -> Draw:
    """Draw from the items of a set. split: {"train": items, "val": items}, in their file's order.

    coop, clip_lora: train and val as `sampling.draw_coop` and `sampling.draw_clip_lora` take them;
    clip_lora of a set without a val split takes both from train, as CLIP-LoRA does for ImageNet.
    nested: train only, our runs with it read no validation images. A class without training images
    is a ValueError.
    """
    from .sampling import draw, draw_clip_lora, draw_clip_lora_imagenet, draw_coop

    if how not in DRAWS:
        raise UnknownName("draw", how, DRAWS)
    train, val = list(split.get("train", ())), list(split.get("val", ()))
    labels, val_labels = [item.label for item in train], [item.label for item in val]
    val_from = val
    if not train:
        raise ValueError(
            f"{dataset} has no training images to draw from; a test-only set has no draws"
        )
    # every class has an image, so labels stay below the number of images
    for item in (*train, *val):
        if not 0 <= item.label < len(train):
            raise ValueError(
                f"{dataset}: label {item.label} of {item.path!r} is out of range; "
                "labels count the classes from 0"
            )
    if shots < 1 and how != "clip_lora":
        raise ValueError(f"shots={shots}; a draw takes at least 1 image a class")
    chosen: Sequence[Any]  # of numbers in train, and in val_from
    if how == "coop":
        chosen = draw_coop(labels, val_labels, shots, seed)
    elif how == "nested":
        chosen = draw(labels, shots, seed, "nested", _names(train)), ()
    elif val:
        chosen = draw_clip_lora(labels, val_labels, shots, seed)
    else:
        chosen, val_from = draw_clip_lora_imagenet(labels, shots, seed), train
    return Draw(
        dataset=dataset,
        draw=how,
        shots=shots,
        seed=seed,
        train=tuple((*train[int(i)],) for i in chosen[0]),
        val=tuple((*val_from[int(i)],) for i in chosen[1]),
    )


def validation_rows(
    drawn: Draw, split: Mapping[str, Sequence[Item]], seed: int
) -> tuple[str, list[int]]:
    """Return where the validation images beside a draw stand: a split and indices into its items.

    They are min(shots, 4) a class: those that the draw names, else `sampling.draw_validation` of
    the val split, or, of a set without one, of the training images that were not drawn. ValueError
    if there are less than half as many.
    """
    from .sampling import VAL_SHOTS, draw_validation

    name = "val" if split.get("val") else "train"
    items = list(split[name])
    if drawn.val:
        places = {tuple(item): i for i, item in enumerate(items)}
        found = [places[row] for row in drawn.val]
    else:
        taken = set(drawn.train) if name == "train" else set()
        left = [i for i, item in enumerate(items) if tuple(item) not in taken]
        chosen = draw_validation([items[i].label for i in left], drawn.shots, seed)
        found = [left[i] for i in chosen]
    few = min(drawn.shots, VAL_SHOTS)
    wanted = few * len({label for _, label, _ in drawn.train})
    if 2 * len(found) < wanted:
        where = "its val split has" if name == "val" else "it has no val split, and train has left"
        raise ValueError(
            f"{drawn.dataset} has too few validation images to choose settings by: of {wanted} "
            f"({few} a class) {where} {len(found)}; use fewer shots, give it more, or give the "
            "method one value of each setting"
        )
    return name, found


def bundle_items(
    labels: Mapping[str, Sequence[int]], classes: Sequence[str]
) -> dict[str, list[Item]]:
    """Return items of images that lie in one file, named by split and number. labels: per split."""
    return {
        split: [
            Item(f"{split}/{i:05d}", label, classes[label]) for i, label in enumerate(labels[split])
        ]
        for split in DRAWN
        if split in labels
    }


def split_items(
    manifest: Manifest, folder: Path, split_file: Path | None = None
) -> dict[str, list[Item]]:
    """Return a set's train and val items as draws need them, from split or annotation files alone.

    No image need be there, unless the folders of images are the only list (ImageNet, one's own
    images).
    split_file: read this one in place of the set's own. A path starts with the first of the folders
    that the manifest names for the images. Errors as `layouts.items`.
    """
    if split_file is not None:
        if manifest.layout != "split_json" or not manifest.split_file:
            raise ValueError(
                f"{manifest.name} is not read from a split file; leave --split-file away"
            )
        if not split_file.is_file():
            raise FileNotFoundError(
                f"split file {split_file} is missing; give the path of {manifest.split_file.name}"
            )
        named = manifest.split_file.model_copy(update={"name": split_file.name})
        manifest, folder = manifest.model_copy(update={"split_file": named}), split_file.parent
    if manifest.layout in ("class_folders", "folder"):
        return {split: items(manifest, folder, split) for split in DRAWN}
    # read as if the images lay in the folder itself, which exists; their own folder goes before the
    # paths
    bare = manifest.model_copy(update={"images": dict.fromkeys(manifest.images, (".",))})
    return {
        split: [
            item._replace(path=str(PurePosixPath(manifest.images[split][0]) / item.path))
            for item in items(bare, folder, split)
        ]
        for split in DRAWN
    }


def _names(items: Sequence[Item]) -> list[str]:
    """Class names by label, for messages; a label without items has a name of its own."""
    names = {item.label: item.classname for item in items}
    return [names.get(label, f"class {label}") for label in range(max(names) + 1)]
