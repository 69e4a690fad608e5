"""Which image files a run reads, and what they hold: so that a record of other images is known.

No torch, but for draws that are made with its random numbers ('nested'): the engine looks before it
starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..core.paths import MANIFESTS
from ..data.content import file_digests
from ..data.draw import Draw, make_draw, split_items, validation_rows
from ..data.draw_files import find_draw
from ..data.layouts import Item, items
from ..data.local import local_manifest
from ..data.manifest import Manifest, Split
from ..data.problems import MissingData
from ..data.roots import data_root, find_folder
from ..data.sampling import refuse_empty_classes
from .spec import RunSpec


class RunImages:
    """The image files of runs, each by what it held when it was first looked at.

    manifests, root: where manifests and external sets lie (see `data_root`). draws: files of draws
    that specs may name by their checksum.
    """

    def __init__(
        self, manifests: Path = MANIFESTS, root: Path | None = None, draws: Sequence[Path] = ()
    ) -> None:
        self.draws = draws
        self._held: dict[Path, dict[str, str]] = {}  # folder -> path in it -> digest
        self._manifest = cache(lambda name: local_manifest(name, manifests, root))
        self._folder = cache(lambda name: find_folder(self._manifest(name), data_root(root)))
        self._items = cache(self._read_items)
        self._listing = cache(lambda name: split_items(self._manifest(name), self._folder(name)))
        self._split_digest = cache(lambda name, split: self._digest(name, self._items(name, split)))
        self._lying = cache(self._where_they_lie)
        self._drawn: dict[tuple[object, ...], Any] = {}  # methods share them

    def digest(self, spec: RunSpec) -> str | None:
        """Return a digest of the files that a run reads, with their labels; '' where all are in
        bundles.

        None where they are not at hand: then nothing can be said of a record's. Other faults of the
        data are a DataError.
        """
        if not any(map(self._in_files, spec.sets)):
            return ""
        if spec.draw == "imported" and not self.draws:
            return None
        try:
            seen = [[name, self._split_digest(name, spec.split)] for name in spec.evaluate_on]
            if spec.shots and self._in_files(spec.dataset):
                seen.append(["few-shot", self._digest(spec.dataset, self._few_shot(spec))])
                if spec.method.chooses:
                    seen.append(["validation", self._digest(spec.dataset, self._validation(spec))])
        except MissingData:
            return None
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def changed(self, spec: RunSpec) -> Path | None:
        """Return the first file of a run that holds now what it did not hold when it was first
        looked at.
        """
        read = ((name, [item.path for item in wanted]) for name, wanted in self._read(spec))
        return next(filter(None, (self.other(name, paths) for name, paths in read)), None)

    def other(self, name: str, paths: Sequence[str]) -> Path | None:
        """Return the first of a set's files that holds now what it did not hold at first."""
        folder, paths = self._folder(name), list(dict.fromkeys(paths))
        before = self._contents(folder, paths)
        for path, digest in zip(paths, file_digests(folder, paths), strict=True):
            if digest != before[path]:
                return folder / path
        return None

    def _in_files(self, name: str) -> bool:
        return self._manifest(name).kind == "external"

    def _read(self, spec: RunSpec) -> Iterator[tuple[str, list[Item]]]:
        """(set, items) of all that a run reads from files."""
        for name in filter(self._in_files, spec.evaluate_on):
            yield name, self._items(name, spec.split)
        if spec.shots and self._in_files(spec.dataset):
            yield spec.dataset, self._few_shot(spec)
            if spec.method.chooses:
                yield spec.dataset, self._validation(spec)

    def contents(self, name: str, paths: Sequence[str]) -> list[str]:
        """Digests of image files by their paths in a set's folder, of when they were first looked
        at.
        """
        held = self._contents(self._folder(name), paths)
        return [held[path] for path in paths]

    def _read_items(self, name: str, split: Split) -> list[Item]:
        manifest: Manifest = self._manifest(name)
        return items(manifest, self._folder(name), split) if manifest.kind == "external" else []

    def _few_shot(self, spec: RunSpec) -> list[Item]:
        """The images that a spec trains on, in the order drawn, by the paths where they lie."""
        lying = self._lying(spec.dataset)
        drawn: list[Item] = self._once(
            "few-shot", spec, lambda: [lying[Item(*row)] for row in self._draw(spec).train]
        )
        return drawn

    def _validation(self, spec: RunSpec) -> list[Item]:
        """The validation images beside them."""

        def items() -> list[Item]:
            split, rows = validation_rows(self._draw(spec), self._listing(spec.dataset), spec.seed)
            return [self._items(spec.dataset, split)[row] for row in rows]

        drawn: list[Item] = self._once("validation", spec, items)
        return drawn

    def _draw(self, spec: RunSpec) -> Draw:
        classes, listing = self._manifest(spec.dataset).classes, self._listing(spec.dataset)
        drawn: Draw = self._once("draw", spec, lambda: draw_of(spec, listing, classes, self.draws))
        return drawn

    def _once(self, what: str, spec: RunSpec, make: Callable[[], Any]) -> Any:
        key = (what, spec.dataset, spec.shots, spec.seed, spec.draw, spec.draw_checksum)
        if key not in self._drawn:
            self._drawn[key] = make()
        return self._drawn[key]

    def _where_they_lie(self, name: str) -> dict[Item, Item]:
        """Training images as draws name them, by a manifest's first folder, and as they lie on this
        disk.
        """
        return dict(zip(self._listing(name)["train"], self._items(name, "train"), strict=True))

    def _digest(self, name: str, wanted: Sequence[Item]) -> str:
        if not self._in_files(name):
            return ""
        held = self._contents(self._folder(name), [item.path for item in wanted])
        rows = [[item.path, item.label, held[item.path]] for item in wanted]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _contents(self, folder: Path, paths: Sequence[str]) -> dict[str, str]:
        """Digests by path, at least of these: of a file that was looked at, the one of then."""
        held = self._held.setdefault(folder, {})
        if new := [path for path in dict.fromkeys(paths) if path not in held]:
            held.update(zip(new, file_digests(folder, new), strict=True))
        return held


def draw_of(
    spec: RunSpec,
    split: Mapping[str, Sequence[Item]],
    classes: Sequence[str],
    files: Sequence[Path] = (),
) -> Draw:
    """Return the draw of a spec that trains: made from the items of its set, or found in one of the
    files.

    Errors as `make_draw` and `find_draw`, and if a class has no image, or a file's shots are not
    the spec's.
    """
    if spec.draw == "imported":
        drawn = find_draw(files, spec.draw_checksum, split, spec.dataset)
        check_shots(drawn, spec)
    else:
        refuse_empty_classes([item.label for item in split["train"]], classes)
        drawn = make_draw(spec.dataset, split, spec.shots, spec.seed, str(spec.draw))
    refuse_empty_classes([label for _, label, _ in drawn.train], classes)
    return drawn


def check_shots(drawn: Draw, spec: RunSpec) -> None:
    """ValueError if a run asks for other shots than the draw has, or its file says others."""
    if drawn.shots != spec.shots:
        raise ValueError(
            f"the draw {drawn.checksum[:12]} of {drawn.dataset} has {drawn.shots} shots, the run "
            f"{spec.shots}; say --shots {drawn.shots}, or give another draw"
        )
    if drawn.most != drawn.shots:  # of what a file says, its checksum covers the images alone
        raise ValueError(
            f"the draw {drawn.checksum[:12]} of {drawn.dataset} says {drawn.shots} shots, and the "
            f"largest of its classes has {drawn.most} training images: get its file again"
        )
