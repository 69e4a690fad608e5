"""The manifest of a set as it lies on this machine: its own, a miniature's, one's own folder's."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import ValidationError

from ..core.json_data import read_json
from ..core.paths import MANIFESTS
from ..core.schema import explain
from .manifest import Manifest
from .manifest_files import load_manifest
from .problems import DataError
from .roots import data_root, find_folder

FACTS = "FAKE_manifest.json"  # the miniature's own manifest: its classes and counts


def local_manifest(name: str, folder: Path = MANIFESTS, root: Path | str | None = None) -> Manifest:
    """Return the manifest of dataset `name` as it lies under root (see `data_root`).

    A miniature brings its own, with its counts and classes; any other set has the one in `folder`.
    """
    manifest = load_manifest(name, folder)
    if manifest.kind != "external":
        return manifest
    try:
        own = find_folder(manifest, data_root(root)) / FACTS
    except DataError:  # missing, or two that differ: told when the images are asked for
        return manifest
    if not own.is_file():
        return manifest
    try:
        return Manifest.model_validate(read_json(own))
    except ValidationError as error:
        what = explain(error)
    except ValueError as error:  # not JSON, not UTF-8
        what = str(error)
    again = shlex.join(["rm", "-r", str(own.parent)])
    raise DataError(own, f"is not the manifest of a miniature: {what}", again)
