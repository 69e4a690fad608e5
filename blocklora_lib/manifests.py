"""Data manifests: one YAML file a dataset, with its facts, licence, classes, template and checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from .paths import MANIFESTS, ROOT
from .strict import Strict, UnknownName, explain


class Source(Strict):
    """Where images come from, under which licence, and the line that the licence asks for."""

    package: str
    licence: str
    attribution: str
    url: str | None = None


class Manifest(Strict):
    """A dataset.

    kind 'bundle': the images are in one Parquet file of the repository, `file`, with checksum `sha256`.
    kind 'external': facts of a set that the project does not ship.  Where its class names are not listed,
    `class_count` says how many there are; a count that no source states is left out.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    role: Literal["source", "variant", "target"]
    kind: Literal["bundle", "external"]
    file: str = ""  # relative to the repository root
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    classes: tuple[str, ...] = ()
    class_count: int | None = Field(None, ge=2)
    template: str
    counts: dict[Literal["train", "val", "test"], int]
    licence: str
    sources: tuple[Source, ...] = Field(min_length=1)
    notes: str = ""
    variant_of: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r} must contain {{}} once, where the class name goes")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            raise ValueError(
                f"classes lists {', '.join(map(repr, twice))} more than once; class names are unique"
            )
        if (self.role == "variant") != (self.variant_of is not None):
            raise ValueError(
                f"role={self.role!r} with variant_of={self.variant_of!r}: a variant, and only a variant, "
                "names the source set whose classes it shares"
            )
        if self.class_count is not None and self.classes:
            raise ValueError("give classes or class_count, not both: the number follows from the names")
        if self.num_classes < 2:
            raise ValueError(f"{self.num_classes} classes; list at least two under classes")
        if self.kind == "external":
            return self
        if not (self.file and self.sha256 and self.classes):
            raise ValueError("a bundle needs file, sha256 and classes; or say kind: external")
        if self.counts.get("test", 0) < 1:
            raise ValueError("counts must give at least one test image")
        if self.role != "variant" and self.counts.get("train", 0) < 1:
            raise ValueError(
                f"counts must give train images for a {self.role} set; only variants are test-only"
            )
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes, named here or only counted."""
        return len(self.classes) or self.class_count or 0

    @property
    def path(self) -> Path:
        """The bundle's place on disk."""
        return ROOT / self.file

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt a class, in class order."""
        return tuple(self.template.format(name) for name in self.classes)


def read_manifest(path: Path) -> Manifest:
    """Read and validate one manifest file."""
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if manifest.name != path.stem:
        raise ValueError(
            f"{path}: name={manifest.name!r} differs from the file's name; rename one of the two"
        )
    return manifest


def manifest_names(folder: Path = MANIFESTS) -> tuple[str, ...]:
    """Names of all datasets that have a manifest.  A folder without one is an error, not an empty list."""
    names = tuple(sorted(p.stem for p in folder.glob("*.yaml")))
    if not names:
        raise FileNotFoundError(f"no manifest (*.yaml) in {folder}; restore the folder or name the right one")
    return names


def load_manifest(name: str, folder: Path = MANIFESTS) -> Manifest:
    """Return the manifest of dataset `name`."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName("dataset", name, manifest_names(folder))
    return read_manifest(path)


def all_manifests(folder: Path = MANIFESTS) -> dict[str, Manifest]:
    """All manifests by name."""
    return {name: read_manifest(folder / f"{name}.yaml") for name in manifest_names(folder)}


def data_checksum(manifests: Iterable[Manifest]) -> str:
    """Digest of what a run sees of these sets: image file, class names and template, in this order."""
    seen = [[m.name, m.sha256, list(m.classes), m.template] for m in manifests]
    return hashlib.sha256(json.dumps(seen, separators=(",", ":")).encode()).hexdigest()
