"""Lists in MATLAB's files, read by scipy in a process of its own: of one wrong byte in a file, its
reader has ended the process by SIGSEGV. No torch.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

MOST = 2**31  # bytes of memory: the lists of ours unpack to a few million


def read_mat(path: Path) -> dict[str, list[Any]]:
    """Return each variable: its numbers, or of a struct array a dict an entry. Whole numbers are
    ints.

    Raises ValueError for a file that is damaged or of another format, OSError where there is none.
    """
    now = path.stat()
    return _read(path, (now.st_size, now.st_mtime_ns, now.st_ino))


@lru_cache(4)  # a process takes half a second, and each split asks for the same labels
def _read(path: Path, _: tuple[int, ...]) -> dict[str, list[Any]]:
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # numpy's warnings of what it reads
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        ended = f"code {done.returncode}"
        if done.returncode < 0:
            ended = signal.Signals(-done.returncode).name
        raise ValueError(f"is not a MATLAB file that can be read: the reader ended by {ended}")
    found = json.loads(done.stdout)
    if isinstance(found, str):
        raise ValueError(f"is not a MATLAB file that can be read: {found}")
    return dict(found)


def _found(path: str) -> dict[str, list[Any]] | str:
    """The variables, or what is wrong."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
        return {key: _entries(content[key]) for key in content if not key.startswith("__")}
    except Exception as error:  # scipy raises many kinds on damaged files
        return " ".join(str(error).split())[:200]


def _entries(variable: Any) -> list[Any]:
    import numpy as np

    values = np.atleast_1d(variable)
    names = values.dtype.names
    rows = [dict(zip(names, row, strict=True)) for row in values] if names else values
    return [_plain(row) for row in rows]


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is none of its kinds as text."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float) and value.is_integer():
        return int(value)  # MATLAB's numbers are floats unless they are said to be none
    return value if isinstance(value, int | float | str) else str(value)


if __name__ == "__main__":
    with suppress(OSError, ValueError):  # a system may refuse, as macOS does
        resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    json.dump(_found(*sys.argv[1:]), sys.stdout)
