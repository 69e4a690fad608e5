"""Where the parts of the repository stand. Nothing else in the library spells a folder's name.

A wheel holds the library alone. Installed from one, the suite takes the other parts from the
working folder, if that is a clone of the repository; `bundled` says so where it is none.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_IN_A_CLONE = (PACKAGE.parent / "data_manifests").is_dir()
ROOT = PACKAGE.parent if _IN_A_CLONE else Path(os.getcwd())
MANIFESTS = ROOT / "data_manifests"
PROFILES = ROOT / "profiles"
NOTEBOOKS = ROOT / "notebooks"
POCKET = ROOT / "pocket"
PUBLISHED = ROOT / "published" / "results.csv"
POCKET_MODEL = POCKET / "model"
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"


def bundled(path: Path) -> Path:
    """Return `path`, a file or folder of the repository, or a caller's own in its place.

    Raises FileNotFoundError, with where such parts come from, if it is missing and the library was
    installed without them.
    """
    if not path.exists() and path.is_relative_to(ROOT) and not MANIFESTS.is_dir():
        raise FileNotFoundError(
            f"{path} is missing: an installed blocklora is the library alone, its profiles, "
            "datasets, notebooks and PocketCLIP are in the repository; work in a clone of it"
        )
    return path
