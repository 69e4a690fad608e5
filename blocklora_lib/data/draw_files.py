"""Files of draws: our own JSON, and those that other code publishes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, StrictInt, StrictStr, ValidationError

from ..core.files import check_replaces, regular_file, write_whole
from ..core.json_data import read_json
from ..core.schema import Strict, explain
from .draw import DRAWN, Draw, Rows
from .layouts import Item


class _File(Draw):
    """What a draw's file holds: the draw, and the checksum that it was written with."""

    stated: str = Field(alias="checksum", pattern=r"^[0-9a-f]{64}$")


class _Datum(Strict):
    impath: StrictStr
    label: StrictInt
    classname: StrictStr


class _Data(Strict):
    data: tuple[_Datum, ...]
    # in some copies, numbers in the split; the paths say the same
    indices: tuple[StrictInt, ...] = ()


class _Published(Strict):
    train: _Data
    val: _Data = _Data(data=())


def export_draw(drawn: Draw, path: Path) -> None:
    """Write the draw's file, whole or not at all; ValueError where another kind of file stands."""
    check_replaces(path, lambda file: _File.model_validate(_read_json(file)), "file of a draw")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, drawn.to_json())


def import_draw(path: Path, split: Mapping[str, Sequence[Item]], dataset: str = "") -> Draw:
    """Read a draw's file, ours or one in CoOp's form, and hold it against the split.

    CoOp's form is {"train": {"data": [{"impath", "label", "classname"}, ...]}, "val": ...}; shots
    and seed come from a name like shot_4-seed_1.json. Its paths start with a folder of the machine
    that wrote them, so a path is found by its longest common ending. The draw returned has the
    split's own paths and class names. ValueError, in one sentence: not JSON, unknown keys, a wrong
    checksum, an image that is not in the split or has another label there, or that stands among
    training and validation images.
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
            f"{path} is not the file of a draw: {explain(error)}; "
            "write one with: blocklora data draw"
        ) from None
    if not published and file.stated != drawn.checksum:
        raise ValueError(
            f"{path} was changed after it was written: "
            f"its images give checksum {drawn.checksum[:12]}, the file says {file.stated[:12]}; "
            "write it again with: blocklora data draw"
        )
    if dataset and drawn.dataset != dataset:
        raise ValueError(
            f"{path} is a draw of {drawn.dataset}, not of {dataset}; give the draw of {dataset}"
        )
    rows = {str(name): _match(path, name, getattr(drawn, name), split) for name in DRAWN}
    both = sorted({row[0] for row in rows["train"]} & {row[0] for row in rows["val"]})
    if both and not split.get("val"):  # of a set that has one, `obtain.verify` looks at its splits
        raise ValueError(
            f"{path} has {len(both)} images both to train on and to choose settings by, such as "
            f"{both[0]!r}; take them out of one of the two"
        )
    return drawn.model_copy(update=rows)


def find_draw(
    files: Sequence[Path], checksum: str, split: Mapping[str, Sequence[Item]], dataset: str
) -> Draw:
    """Return the draw of this checksum from the files; ValueError says what each of them holds."""
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


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; give the file that is to be read") from None
    except ValueError as error:
        with regular_file(path) as file:
            if file.read(1) == b"\x80":  # as CoOp's code keeps its draws, in split_fewshot
                raise ValueError(
                    f"{path} is a pickle, which could run code and is not read; where CoOp's code "
                    'is, write its images as JSON: {"train": {"data": [{"impath": .., "label": .., '
                    '"classname": ..}, ..]}, "val": ..}'
                ) from None
        raise ValueError(f"{error}; get the file again") from None


def _from_published(file: _Published, path: Path, dataset: str) -> Draw:
    rows = {
        split: tuple((d.impath, d.label, d.classname) for d in getattr(file, split).data)
        for split in DRAWN
    }
    named = re.fullmatch(r"shot_(\d+)-seed_(\d+)\.json", path.name)
    drawn = Draw(
        dataset=dataset or path.parent.name,
        draw="published",
        shots=int(named[1]) if named else 0,
        seed=int(named[2]) if named else None,
        **rows,
    )
    return drawn if named else drawn.model_copy(update={"shots": drawn.most})


def _match(path: Path, name: str, rows: Rows, split: Mapping[str, Sequence[Item]]) -> Rows:
    """The split's own items for these rows. val without a val split is looked up in train."""
    pool = split.get(name) or split.get("train", ())
    by_name: dict[str, dict[str, Item]] = {}
    for item in pool:
        by_name.setdefault(PurePosixPath(item.path).name, {})[item.path] = item
    found = []
    for given, label, _ in rows:
        wanted = _slashes(given)
        candidates = by_name.get(PurePosixPath(wanted).name, {})
        known = candidates.get(wanted) or _longest(wanted, candidates.values())
        if known is None:
            raise ValueError(
                f"{path}: image {given!r} is not in the {name} split of the set (or not by one "
                "file only); use the split file that the draw was made from"
            )
        if known.label != label:
            raise ValueError(
                f"{path}: image {given!r} has label {label}, the split says {known.label} "
                f"({known.classname}); use the split file that the draw was made from"
            )
        found.append((*known,))
    return tuple(found)


def _longest(wanted: str, candidates: Iterable[Item]) -> Item | None:
    """The item of which one path is the ending of the other: the longest; None if two are equal."""
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
