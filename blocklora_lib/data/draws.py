"""Few-shot draws that others can check: made from a split file alone, written and read as plain JSON.

The file of a draw, UTF-8:

    {"dataset": "dtd", "draw": "coop", "shots": 1, "seed": 1,
     "train": [["images/banded/banded_0117.jpg", 0, "banded"], ...],
     "val":   [...],
     "checksum": "<64 hexadecimal digits>"}

A path is relative to the dataset's folder and written with /.  `checksum` is the SHA-256 of the canonical
JSON of {"train": ..., "val": ...}: keys sorted, no spaces, ASCII with \\u escapes, that is Python's
json.dumps(..., sort_keys=True, separators=(",", ":")).  `fewshot` states what each draw takes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import Field, StrictInt, StrictStr, ValidationError

from ..files import write_whole
from ..manifests import Manifest
from ..plain_data import read_json
from ..strict import Strict, UnknownName, explain
from .layouts import Item, items

if TYPE_CHECKING:
    from ..specs import RunSpec

DRAWS = ("coop", "clip_lora", "nested")
SPLITS = ("train", "val")
Rows = tuple[tuple[StrictStr, StrictInt, StrictStr], ...]


class Draw(Strict):
    """The images that a few-shot run sees, in the order drawn; an image drawn twice stands twice.

    draw: coop, clip_lora, nested, or 'published' for a file in CoOp's form, which does not name its maker.
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

    def to_json(self) -> str:
        """The draw's file: one image a line, a newline at the end."""
        facts = {"dataset": self.dataset, "draw": self.draw, "shots": self.shots, "seed": self.seed}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
        for split in SPLITS:
            rows = ",\n".join(f"  {json.dumps(list(row))}" for row in getattr(self, split))
            lines.append(f' "{split}": [\n{rows}\n ]' if rows else f' "{split}": []')
        lines.append(f' "checksum": "{self.checksum}"')
        return "{\n" + ",\n".join(lines) + "\n}\n"


class _File(Draw):
    """What a draw's file holds: the draw, and the checksum that it was written with."""

    stated: str = Field(alias="checksum", pattern=r"^[0-9a-f]{64}$")


class _Datum(Strict):
    impath: StrictStr
    label: StrictInt
    classname: StrictStr


class _Data(Strict):
    data: tuple[_Datum, ...]
    indices: tuple[StrictInt, ...] = ()  # in some copies, numbers in the split; the paths say the same


class _Published(Strict):
    train: _Data
    val: _Data = _Data(data=())


def rows_checksum(train: Iterable[Sequence], val: Iterable[Sequence]) -> str:
    """SHA-256 of the canonical JSON of {"train": [[path, label, classname], ...], "val": ...}."""
    seen = {"train": [list(row) for row in train], "val": [list(row) for row in val]}
    return hashlib.sha256(json.dumps(seen, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_draw(
    dataset: str, split: Mapping[str, Sequence[Item]], shots: int, seed: int, how: str = "coop"
) -> Draw:
    """Draw from the items of a set.  split: {"train": items, "val": items}, in the split file's order.

    coop, clip_lora: train and val as `fewshot.draw_coop` and `fewshot.draw_clip_lora` take them; clip_lora of
    a set without a val split takes both from train, as CLIP-LoRA does for ImageNet.  nested: train only, our
    runs with it read no validation images.  A class without training images is a ValueError.
    """
    from ..fewshot import draw, draw_clip_lora, draw_clip_lora_imagenet, draw_coop

    if how not in DRAWS:
        raise UnknownName("draw", how, DRAWS)
    train, val = list(split.get("train", ())), list(split.get("val", ()))
    labels, val_labels = [item.label for item in train], [item.label for item in val]
    val_from = val
    if not train:
        raise ValueError(f"{dataset} has no training images to draw from; a test-only set has no draws")
    for item in (*train, *val):  # every class has an image, so labels stay below the number of images
        if not 0 <= item.label < len(train):
            raise ValueError(
                f"{dataset}: label {item.label} of {item.path!r} is out of range; labels count the classes "
                "from 0"
            )
    if shots < 1 and how != "clip_lora":
        raise ValueError(f"shots={shots}; a draw takes at least 1 image a class")
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
        train=tuple(tuple(train[int(i)]) for i in chosen[0]),
        val=tuple(tuple(val_from[int(i)]) for i in chosen[1]),
    )


def export_draw(drawn: Draw, path: Path) -> None:
    """Write the draw's file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, drawn.to_json())


def import_draw(path: Path, split: Mapping[str, Sequence[Item]], dataset: str = "") -> Draw:
    """Read a draw's file, ours or one in CoOp's form, and hold it against the split.

    CoOp's form is {"train": {"data": [{"impath", "label", "classname"}, ...]}, "val": ...}; shots and seed
    come from a name like shot_4-seed_1.json.  Its paths start with a folder of the machine that wrote them,
    so a path is found by its longest common ending.  The draw returned has the split's own paths and class
    names. ValueError, in one sentence: not JSON, unknown keys, a wrong checksum, an image that is not in the
    split or has another label there.
    """
    facts = _read_json(path)
    published = isinstance(facts, dict) and isinstance(facts.get("train"), dict)
    try:
        if published:
            drawn = _from_published(_Published.model_validate(facts), path, dataset)
        else:
            file = _File.model_validate(facts)
            drawn = Draw.model_validate(file.model_dump(exclude={"stated"}))
    except ValidationError as error:
        raise ValueError(
            f"{path} is not the file of a draw: {explain(error)}; write one with: blocklora data draw"
        ) from None
    if not published and file.stated != drawn.checksum:
        raise ValueError(
            f"{path} was changed after it was written: its images give checksum {drawn.checksum[:12]}, the "
            "file "
            f"says {file.stated[:12]}; write it again with: blocklora data draw"
        )
    if dataset and drawn.dataset != dataset:
        raise ValueError(f"{path} is a draw of {drawn.dataset}, not of {dataset}; give the draw of {dataset}")
    return drawn.model_copy(update={name: _match(path, name, getattr(drawn, name), split) for name in SPLITS})


def find_draw(
    files: Sequence[Path], checksum: str, split: Mapping[str, Sequence[Item]], dataset: str
) -> Draw:
    """Return the draw of this checksum, which one of the files holds; ValueError says what each holds."""
    others = []
    for file in files:
        try:
            drawn = import_draw(file, split, dataset)
        except ValueError as error:  # the draw of another set, for one
            others.append(str(error))
            continue
        if drawn.checksum == checksum:
            return drawn
        others.append(f"{file} holds {drawn.checksum[:12]}")
    raise ValueError(
        f"the draw {checksum[:12]} of {dataset} is in no file that was given "
        f"({'; '.join(others) or 'none was'}); give its file with --draw"
    )


def draw_of(
    spec: RunSpec, split: Mapping[str, Sequence[Item]], classes: Sequence[str], files: Sequence[Path] = ()
) -> Draw:
    """Return the draw of a spec that trains: made from the items of its set, or found in one of the files.

    Errors as `make_draw` and `find_draw`, and if a class has no image, or a file's shots are not the spec's.
    """
    from ..fewshot import refuse_empty_classes

    if spec.draw == "imported":
        drawn = find_draw(files, spec.draw_checksum, split, spec.dataset)
        check_shots(drawn, spec)
    else:
        refuse_empty_classes([item.label for item in split["train"]], classes)
        drawn = make_draw(spec.dataset, split, spec.shots, spec.seed, str(spec.draw))
    refuse_empty_classes([label for _, label, _ in drawn.train], classes)
    return drawn


def check_shots(drawn: Draw, spec: RunSpec) -> None:
    """ValueError if a run asks for other shots than the draw has."""
    if drawn.shots != spec.shots:
        raise ValueError(
            f"the draw {drawn.checksum[:12]} of {drawn.dataset} has {drawn.shots} shots, the run "
            f"{spec.shots}; say --shots {drawn.shots}, or give another draw"
        )


def bundle_items(labels: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[str, list[Item]]:
    """Return items of images that lie in one file, named by split and number.  labels: of each split."""
    return {
        split: [Item(f"{split}/{i:05d}", label, classes[label]) for i, label in enumerate(labels[split])]
        for split in SPLITS
        if split in labels
    }


def split_items(manifest: Manifest, folder: Path, split_file: Path | None = None) -> dict[str, list[Item]]:
    """Return the train and val items of a set as draws need them, from its split or annotation files alone.

    No image need be there, unless the folders of images are the only list (ImageNet, one's own images).
    split_file: read this one in place of the set's own.  A path starts with the first of the folders that the
    manifest names for the images.  Errors as `layouts.items`.
    """
    if split_file is not None:
        if manifest.layout != "split_json" or not manifest.split_file:
            raise ValueError(f"{manifest.name} is not read from a split file; leave --split-file away")
        if not split_file.is_file():
            raise FileNotFoundError(
                f"split file {split_file} is missing; give the path of {manifest.split_file.name}"
            )
        named = manifest.split_file.model_copy(update={"name": split_file.name})
        manifest, folder = manifest.model_copy(update={"split_file": named}), split_file.parent
    if manifest.layout in ("class_folders", "folder"):
        return {split: items(manifest, folder, split) for split in SPLITS}
    # read as if the images lay in the folder itself, which exists; their own folder goes before the paths
    bare = manifest.model_copy(update={"images": dict.fromkeys(manifest.images, (".",))})
    return {
        split: [
            item._replace(path=str(PurePosixPath(manifest.images[split][0]) / item.path))
            for item in items(bare, folder, split)
        ]
        for split in SPLITS
    }


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; give the file that is to be read") from None
    except ValueError as error:
        raise ValueError(f"{error}; get the file again") from None


def _from_published(file: _Published, path: Path, dataset: str) -> Draw:
    rows = {
        split: tuple((d.impath, d.label, d.classname) for d in getattr(file, split).data) for split in SPLITS
    }
    named = re.fullmatch(r"shot_(\d+)-seed_(\d+)\.json", path.name)
    counts = {label: 0 for _, label, _ in rows["train"]}
    for _, label, _ in rows["train"]:
        counts[label] += 1
    return Draw(
        dataset=dataset or path.parent.name,
        draw="published",
        shots=int(named[1]) if named else max(counts.values(), default=0),
        seed=int(named[2]) if named else None,
        **rows,
    )


def _match(path: Path, name: str, rows: Rows, split: Mapping[str, Sequence[Item]]) -> Rows:
    """The split's own items for these rows.  val of a set without a val split is looked up in train."""
    pool = split.get(name) or split.get("train", ())
    by_name: dict[str, dict[str, Item]] = {}
    for item in pool:
        by_name.setdefault(PurePosixPath(item.path).name, {})[item.path] = item
    found = []
    for given, label, _ in rows:
        wanted = _slashes(given)
        candidates = by_name.get(PurePosixPath(wanted).name, {})
        item = candidates.get(wanted) or _longest(wanted, candidates.values())
        if item is None:
            raise ValueError(
                f"{path}: image {given!r} is not in the {name} split of the set (or not by one file only); "
                "use the "
                "split file that the draw was made from"
            )
        if item.label != label:
            raise ValueError(
                f"{path}: image {given!r} has label {label}, the split says {item.label} ({item.classname}); "
                "use the split file that the draw was made from"
            )
        found.append(tuple(item))
    return tuple(found)


def _longest(wanted: str, candidates: Iterable[Item]) -> Item | None:
    """The item of which one path is the ending of the other: the longest of several, None of two equal."""
    parts = PurePosixPath(wanted).parts
    endings: list[tuple[int, Item]] = []
    for item in candidates:
        theirs = PurePosixPath(item.path).parts
        common = min(len(parts), len(theirs))
        if parts[-common:] == theirs[-common:]:
            endings.append((common, item))
    endings.sort(key=lambda pair: -pair[0])
    if not endings or (len(endings) > 1 and endings[0][0] == endings[1][0]):
        return None
    return endings[0][1]


def _slashes(path: str) -> str:
    return str(PurePosixPath(path.replace("\\", "/")))


def _names(items: Sequence[Item]) -> list[str]:
    """Class names by label, for messages; a label without items has a name of its own."""
    names = {item.label: item.classname for item in items}
    return [names.get(label, f"class {label}") for label in range(max(names) + 1)]
