"""Image files that decode, remembered by what they hold: whoever asks next decodes none of them.

Kept in the user's cache folder, a file for each folder of images. Files that cannot be read are not
remembered: they are few, and what is said of them is said anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from PIL import features

from ..core.files import package_version
from ..core.user_cache import recall, remember
from .content import file_digests
from .image_files import ImageFiles
from .kept_views import CODECS


def thorough_faults(files: ImageFiles, folder: Path, code: str) -> list[str]:
    """As `files.faults(thorough=True)`, of files in this folder.

    code: names what decodes. What it found whole before, here or in another process, is not decoded
    again.
    """
    decoders = [code, package_version("pillow"), *map(features.version, CODECS)]
    name = f"whole/{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]}.json"
    known = _read(name, decoders)
    held = _contents(files, folder)
    new = [i for i, content in enumerate(held) if content not in known]
    paths = [files.paths[i] for i in new]
    faults = dict(zip(new, ImageFiles(paths).faults(thorough=True), strict=True))
    after = _contents(ImageFiles(paths), folder)  # a file that changed meanwhile is not known
    whole = {held[i] for i, now in zip(new, after, strict=True) if held[i] == now and not faults[i]}
    if whole:  # with what another process has found meanwhile
        found = sorted(_read(name, decoders) | whole)
        remember(name, json.dumps({"decoders": decoders, "whole": found}, separators=(",", ":")))
    return [faults.get(i, "") for i in range(len(held))]


def _contents(files: ImageFiles, folder: Path) -> list[str]:
    """Digests of what files hold, with the endings of their names, by which some are refused."""
    paths = [path.relative_to(folder).as_posix() for path in files.paths]
    digests = file_digests(folder, paths)
    return [f"{d} {p.suffix.lower()}" for d, p in zip(digests, files.paths, strict=True)]


def _read(name: str, decoders: list[str | None]) -> set[str]:
    """What these decoders found whole; nothing where that is not known, or damaged."""
    try:
        facts = json.loads(recall(name) or "{}")
        return set(facts["whole"]) if facts["decoders"] == decoders else set()
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()
