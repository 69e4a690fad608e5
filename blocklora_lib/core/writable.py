"""Whether a folder takes files: asked before the hours after which one is written. No torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .files import HOST


def check_room(folder: Path) -> None:
    """OSError where a file of 1 MiB cannot be written in a folder.

    That is more than any record, since a full disk takes a little, and so does a limit of a file's
    size.
    """
    # a name that no process of another machine has
    with tempfile.NamedTemporaryFile(
        dir=folder, prefix=f".writable.{HOST}.", suffix=".tmp"
    ) as probe:
        probe.write(b"0" * 2**20)
        probe.flush()
