"""Small facts that take long to find out, kept in the user's cache folder. No torch.

Nothing depends on it: what is missing, damaged or cannot be written is found out again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .files import read_text, write_whole


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/blocklora, or ~/.cache/blocklora."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # XDG: a relative path is to be ignored
    return (
        Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    ) / "blocklora"


def recall(name: str) -> str:
    """Return what was kept under this name, or ''."""
    try:
        return read_text(cache_folder() / name)
    except (OSError, ValueError):
        return ""


def remember(name: str, text: str) -> None:
    """Keep a text under this name, where that is possible."""
    path = cache_folder() / name
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
