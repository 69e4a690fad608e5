"""What `blocklora data list` says of a set: its facts, where it is, and a line of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.manifest import SPLITS, Manifest
from ..data.obtain.download import dataset_folder, has_images
from ..data.obtain.parts import parts
from ..data.problems import DataError, MissingData
from ..data.roots import find_folder, is_fake


def facts_of(manifest: Manifest, root: Path) -> dict[str, Any]:
    """What `list` shows of a set."""
    sizes = [
        next((a.size for a in part.sources if a.size), None)
        for part in parts(manifest)
        if part.sources
    ]
    by_hand = any(not part.sources for part in parts(manifest))
    facts: dict[str, Any] = {
        "name": manifest.name,
        "title": manifest.title,
        "kind": manifest.kind,
        "role": manifest.role,
        "state": "shipped",
        "folder": None,
        "missing": [],
        "problem": "",
        "classes": manifest.num_classes,
        "counts": manifest.counts,
        "counts_unverified": manifest.counts_unverified,
        "download_bytes": sum(size or 0 for size in sizes) or None,
        "download_bytes_complete": bool(sizes) and all(sizes) and not by_hand,
        "by_hand": by_hand,
        "licence": manifest.licence,
        "terms": manifest.terms,
        "citation": manifest.citation,
    }
    return facts if manifest.kind == "bundle" else facts | _state(manifest, root)


def _state(manifest: Manifest, root: Path) -> dict[str, Any]:
    """Where the set is and which of its files are not; a glance, `verify` looks closer."""
    try:
        folder = find_folder(manifest, root)
    except MissingData:
        return {"state": "missing", "folder": str(dataset_folder(manifest, root))}
    except DataError as error:
        return {"state": "unclear", "problem": str(error)}
    needed = [
        *([manifest.split_file.name] if manifest.split_file else []),
        *manifest.annotations.values(),
    ]
    missing = [name for name in needed if not (folder / name).is_file()]
    missing += [] if has_images(manifest, folder) else ["images"]
    whole = "miniature" if is_fake(folder) else "here"
    return {
        "state": "incomplete" if missing else whole,
        "folder": str(folder),
        "missing": missing,
    } | ({"problem": f"{folder} lacks {', '.join(missing)}"} if missing else {})


def row(facts: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    stated, unverified = facts["counts"], facts["counts_unverified"]
    counts = [
        str(stated[split])
        if split in stated
        else f"~{unverified[split]}"
        if split in unverified
        else ""
        for split in SPLITS
    ]
    size, shown = facts["download_bytes"], "?"
    if facts["by_hand"]:
        shown = "by hand"
    elif size:
        shown = "" if facts["download_bytes_complete"] else "~"
        shown += f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return (facts["name"], facts["state"], str(facts["classes"]), *counts, shown, facts["licence"])
