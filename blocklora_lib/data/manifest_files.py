"""Manifests as files: read, listed, and their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.files import read_text
from ..core.paths import MANIFESTS, bundled
from ..core.schema import UnknownName, explain
from ..core.yaml_data import mapping_of, to_yaml
from .manifest import LIST, Manifest


def read_manifest(path: Path) -> Manifest:
    """Read and validate one manifest file."""
    try:
        manifest = _manifest_of(read_text(path), str(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}; correct the file, then run: {LIST}") from None
    except ValueError as error:
        raise ValueError(f"{error}; correct the file, then run: {LIST}") from None
    if manifest.name != path.stem:
        raise ValueError(
            f"{path}: name={manifest.name!r} differs from the file's name; rename one of the two"
        )
    return manifest


@lru_cache(64)  # a thousand class names take long, and a listing asks for a set many times
def _manifest_of(text: str, where: str) -> Manifest:
    return Manifest.model_validate(mapping_of(text, where))


def manifest_yaml(manifest: Manifest) -> str:
    """Return the text of a manifest file; what stands at its default is left out."""
    facts = manifest.model_dump(mode="json", exclude_defaults=True)
    return to_yaml(facts)


def manifest_names(folder: Path = MANIFESTS) -> tuple[str, ...]:
    """Names of all datasets that have a manifest. A folder without one is an error."""
    names = tuple(sorted(p.stem for p in bundled(folder).glob("[!.]*.yaml")))
    if not names:
        raise FileNotFoundError(
            f"no manifest (*.yaml) in {folder}; restore the folder or name the right one"
        )
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
    """Digest of what a run sees of these sets, in order: image file, names, template, reading.

    What lies in that folder is not covered: a manifest is there before its images are (see
    data.content).
    """
    seen = [[m.name, m.sha256, list(m.classes), m.template, *_reading(m)] for m in manifests]
    return hashlib.sha256(json.dumps(seen, separators=(",", ":")).encode()).hexdigest()


def _reading(manifest: Manifest) -> list[dict[str, Any]]:
    """What decides which file of an external set is of which class and split, and how seen."""
    if manifest.kind == "bundle":
        return []
    decides = {
        "layout",
        "images",
        "annotations",
        "class_folders",
        "split_names",
        "class_indices",
        "split_seed",
    }
    if manifest.image_loading != "as_clip":  # CLIP's own way leaves keys as they were
        decides.add("image_loading")
    return [manifest.model_dump(mode="json", include=decides)]
