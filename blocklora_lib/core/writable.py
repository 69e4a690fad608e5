"""Whether a folder takes files: asked before the hours after which one is written. No torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .files import HOST


def check_folder(file: Path) -> None:
    """OSError where the folder of a file that is to be written is none, or takes no files."""
    if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise OSError(
            f"{file} cannot be written: {file.parent} is no folder that can be written to; "
            "make it one, or give another file"
        )


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
