"""Whether a stored record still stands for its spec: whole, of the present code, of the present
images. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ..core.files import holds_none, package_version, read_text
from ..weights.spec import BackboneSpec
from .code_digest import code_of
from .record import Result, RunRecord
from .sealed import is_whole
from .spec import RunSpec
from .store import DamagedRecord, EarlierRecord, RunStore

if TYPE_CHECKING:
    from ..learning.method import Predictor
    from .workbench import Workbench

# Where a record, as it is written, has its method's name.
_METHOD = re.compile(r'\n  "method": \{\n   "name": "([^"]+)"')
ROUNDING = {  # what moves the last bits of a result: its name in a record's provenance, in prose
    "device": "devices",
    "instructions": "vector instructions",
    "threads": "numbers of threads",
}
COMPARED = ("torch", "torchvision", "open_clip_torch", "pillow")
Standing = Literal["done", "failed", "missing", "old", "moved", "damaged"]
AGAIN: dict[Standing, str] = {  # why a run that has a file is computed again, of one and of several
    "old": "{} run{s} {is} of an earlier state of the library and {is} computed again "
    "(or say --keep-old)",
    "moved": "{} run{s} {is} of images that have changed since and {is} computed again",
    "damaged": "{} record{s} {is} damaged, {is} set aside in {folder} and computed again: {first}",
}


@dataclass(frozen=True)
class Stored:
    """What a store holds of a spec. record: None where nothing can be read; why: what is wrong with
    it.
    """

    spec: RunSpec
    standing: Standing
    record: RunRecord | None = None
    why: str = ""

    def pending(self, retry_failed: bool = False) -> bool:
        """Whether the spec has still to be run."""
        return self.standing != "done" and (retry_failed or self.standing != "failed")


class Keeper(Protocol):
    """Who keeps what a run has trained, see `kept`; it changes nothing of the result."""

    def lacks(self, spec: RunSpec) -> bool:
        """Whether there is something of this run to keep that is not kept yet."""

    def keep(self, spec: RunSpec, predictor: Predictor, result: Result, bench: Workbench) -> None:
        """Keep it; called once the run has its result, before the predictor is closed."""


def to_run(found: Stored, retry_failed: bool, keeper: Keeper | None) -> bool:
    """Whether a spec is to be run: it has no record that stands, or what it trains is not kept."""
    lacking = found.standing == "done" and keeper is not None and keeper.lacks(found.spec)
    return lacking or found.pending(retry_failed)


def stored(
    store: RunStore,
    spec: RunSpec,
    keep_old: bool = False,
    images: Callable[[RunSpec], str | None] | None = None,
) -> Stored:
    """Look a spec up.

    keep_old: a record of another state of the library stands. images: returns the digest of the
    image files that the spec would read now (see RunImages.digest), None where they are not at
    hand.
    """
    try:
        record = store.load(spec)
    except EarlierRecord as error:
        return Stored(spec, "old", None, str(error))
    except DamagedRecord as error:
        return Stored(spec, "damaged", None, str(error))
    if record is None:
        return Stored(spec, "missing")
    if record.code != code_of(spec.method.name) and not keep_old:
        return Stored(spec, "old", record, "made by an earlier state of the library")
    if images and images(spec) not in (None, record.images):
        return Stored(spec, "moved", record, "made of images that have changed since")
    return Stored(spec, record.status, record)


def again(found: Iterable[Stored], store: RunStore) -> list[str]:
    """Say, a line a reason, which runs have a file and are computed again all the same."""
    found, lines = list(found), []
    for standing, text in AGAIN.items():
        whys = [s.why for s in found if s.standing == standing]
        if whys:
            words = {"s": "s" * (len(whys) > 1), "is": "are" if len(whys) > 1 else "is"}
            first = whys[0].rpartition("; ")[0]  # without its way out: it is taken here
            lines.append(
                text.format(len(whys), folder=store.folder / "damaged", first=first, **words)
            )
    return lines


def remarks(records: Iterable[RunRecord], where: str = "these runs") -> list[str]:
    """Say, a line each, what else than their specs sets records apart from each other, or from this
    place.

    Library code, versions of packages, devices, vector instructions and numbers of threads move the
    last bits of a result, or more, and a tag may have come to mean other weights; records that
    differ in them are counted all the same.
    """
    records, lines = list(records), []
    if earlier := sum(r.code != code_of(r.spec.method.name) for r in records):
        lines.append(
            f"{earlier} of {len(records)} of {where} were made by another state of the library"
        )
    for what, name in ROUNDING.items():
        seen = sorted({str(r.provenance[what]) for r in records if what in r.provenance})
        if len(seen) > 1:
            lines.append(f"{where} mix {name} ({', '.join(seen)}): they differ by rounding, too")
    weights: dict[BackboneSpec, set[str]] = {}  # of a tag its file alone says which they were
    for r in records:
        digest = r.provenance.get("weights", {}).get("tensors", "")
        weights.setdefault(r.spec.backbone, set()).add(digest[:12])
    for backbone, digests in weights.items():
        if len(digests - {""}) > 1:
            lines.append(
                f"{where} mix weights of {backbone.name} ({', '.join(sorted(digests - {''}))}): "
                "they are of other models"
            )
    for package in COMPARED:
        here = package_version(package, "none")
        used = {r.provenance.get("versions", {}).get(package) for r in records} - {None, here}
        if used:
            made = f"{package} {', '.join(sorted(map(str, used)))}"
            lines.append(f"{where} were made with {made}; here is {here}")
    return lines


def stands(
    path: Path, keep_old: bool = False, images: Callable[[], str | None] = lambda: None
) -> bool:
    """Whether a record is whole, of the present code and of the present images, by a glance at its
    text: what the grid looks at closely it has looked at when it wrote the index.

    images: returns the digest of the image files that the run would read, None where nothing can be
    said. OSError where the machine does not let record or images be read.
    """
    try:
        text = read_text(path)
    except ValueError:
        return False
    except OSError as error:
        if not holds_none(error):
            raise
        return False
    if not (f'\n "key": "{path.stem}",\n' in text and is_whole(text)):
        return False
    method = _METHOD.search(text)
    if not (keep_old or (method and f'\n "code": "{code_of(method[1])}",\n' in text)):
        return False
    try:
        found = images()
    except ValueError:  # faults of a set, which the grid will tell
        return False
    return found is None or f'\n "images": "{found}",\n' in text
