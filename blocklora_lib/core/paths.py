"""Where the parts of the repository stand. Nothing else in the library spells a folder's name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "data_manifests"
PROFILES = ROOT / "profiles"
NOTEBOOKS = ROOT / "notebooks"
POCKET = ROOT / "pocket"
PUBLISHED = ROOT / "published" / "results.csv"
POCKET_MODEL = POCKET / "model"
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
