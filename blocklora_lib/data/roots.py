"""Where data lie: the root, a dataset's folder under either convention, a miniature's mark."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from ..core.files import user_path
from ..core.json_data import read_json
from ..core.paths import ROOT
from ..core.schema import Strict, explain
from .content import file_digests
from .manifest import Manifest, Split
from .manifest_files import data_checksum
from .problems import MARKER, DataError, MissingData, move, remedy

VARIABLE = "BLOCKLORA_DATA"


class Marker(Strict):
    """What FAKE.json says of a miniature: its images a split, and the SHA-256 of its split file.

    other_counts: the images a split as each of the set's other layouts reads them.
    """

    fake: bool
    dataset: str
    convention: str
    per_class: int
    counts: dict[Split, int]
    other_counts: dict[str, dict[Split, int]] = Field({})
    split_sha256: str | None = None


def data_root(given: Path | str | None = None) -> Path:
    """Return `given`, else the environment variable BLOCKLORA_DATA, else data/ in the repository.

    The folder need not exist yet; ~ is the home folder, and a relative path is of the working
    folder.
    """
    chosen = given if given is not None else os.environ.get(VARIABLE) or ROOT / "data"
    return user_path(chosen)


def find_folder(manifest: Manifest, root: Path | str) -> Path:
    """Return the dataset's folder under `root`, by CoOp's or CLIP-LoRA's name.

    MissingData (a FileNotFoundError) if neither exists; DataError (a ValueError) if both exist and
    differ, if the name is a symbolic link to nowhere, or if the root is a file. Two folders with
    the same files are one dataset.
    """
    root = Path(root)
    if root.is_file():
        what = f"is a file, where datasets lie in a folder, by --root or the variable {VARIABLE}"
        raise DataError(root, what, move(root, root.with_name(f"{root.name}.file")))
    names = list(dict.fromkeys(manifest.folders.values()))
    if not names:
        raise DataError(
            root,
            f"cannot hold {manifest.title}: its manifest gives no folder name; "
            "add `folders: {coop: NAME}`",
            "blocklora data list",
        )
    present: list[Path] = []
    for path in (root / name for name in names):
        if path.is_symlink() and not path.exists():
            what = f"is a symbolic link to nowhere or in a circle (to {os.readlink(path)})"
            raise DataError(path, what, shlex.join(["rm", str(path)]))
        if path.is_dir() and not any(path.samefile(p) for p in present):
            present.append(path)
    if not present:
        what = f"is missing: no folder of {manifest.title}" + (
            f" (nor {names[1]})" if len(names) > 1 else ""
        )
        raise MissingData(root / names[0], what, remedy(manifest, root / names[0]))
    if len(present) == 2 and _listing(present[0]) != _listing(present[1]):
        what = (
            f"and {present[1]} both hold {manifest.title}, "
            f"and they differ: keep one of the two under {root}"
        )
        raise DataError(
            present[0], what, shlex.join(["mv", str(present[1]), f"{present[1]}.other"])
        )
    return present[0]


def read_marker(folder: Path) -> Marker | None:
    """Return what FAKE.json says, or None for a folder without it, that is, a real set."""
    path = folder / MARKER
    if not path.is_file():
        return None
    try:
        return Marker.model_validate(read_json(path))
    except ValidationError as error:
        what = f"is not the mark of a miniature: {explain(error)}"
    except ValueError as error:  # not JSON, not UTF-8
        what = f"is not JSON: {error}"
    raise DataError(path, what, shlex.join(["rm", "-r", str(folder)]))


def is_fake(folder: Path | str) -> bool:
    """Whether `folder` is a miniature that `make_fake` wrote (it holds the marker FAKE.json)."""
    return (Path(folder) / MARKER).exists()


def checksum(manifests: Iterable[Manifest], root: Path | str | None = None) -> str:
    """Return `data_checksum` of the sets, another one for a miniature or a split file of one's own.

    So a result made on a miniature is never taken for one of the real images.
    """
    manifests = list(manifests)
    marks = [mark for m in manifests if m.kind == "external" for mark in _marks(m, data_root(root))]
    digest = data_checksum(manifests)
    return hashlib.sha256("".join([digest, *marks]).encode()).hexdigest() if marks else digest


def _marks(manifest: Manifest, root: Path) -> list[str]:
    """Digests of what sets the folder apart from the set that the manifest describes."""
    try:
        folder = find_folder(manifest, root)
    except (MissingData, DataError):  # told when the images are asked for
        return []
    named = [MARKER, *([manifest.split_file.name] if manifest.split_file else [])]
    named = [name for name in named if (folder / name).is_file()]
    stated = manifest.split_file.sha256 if manifest.split_file else None
    return [digest for digest in file_digests(folder, named) if digest != stated] if named else []


def _listing(folder: Path) -> set[tuple[str, int, str]]:
    """Relative path and size of every file, and the digest of lists; links are not followed."""
    found = set()
    for place, _, files in os.walk(folder):
        for name in set(files) - {MARKER}:
            path = Path(place, name)
            size = path.stat().st_size if path.exists() else -1
            listed = size >= 0 and path.suffix in {".json", ".txt", ".mat"}
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if listed else ""
            found.add((path.relative_to(folder).as_posix(), size, digest))
    return found
