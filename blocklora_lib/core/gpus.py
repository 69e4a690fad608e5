"""GPUs as the machine shows them, without torch: how many this process may use, which is free."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_HELD: list[int] = []  # open files, as long as the process lives, and with it the lock


def visible_gpus(
    environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> list[str]:
    """Return names of the GPUs that CUDA would see: those of CUDA_VISIBLE_DEVICES in order, or all.

    CUDA reads its list up to the first name that is none, such as -1; an empty list hides every
    GPU.
    """
    if (given := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in given.split(",")]
        valid = [bool(re.fullmatch(r"\d+|(GPU|MIG)-[\w./-]+", name)) for name in names]
        return names[: valid.index(False)] if False in valid else names
    numbers = [re.fullmatch(r"nvidia(\d+)", path.name) for path in devices.glob("nvidia*")]
    return [str(number) for number in sorted(int(found[1]) for found in numbers if found)]


def wants_gpu(device: str | None) -> bool:
    """Whether the jobs of a profile that says `device` want a GPU.

    Left out there, they do if this machine has one.
    """
    return device != "cpu" and (device is not None or bool(visible_gpus()))


def claim_gpu(count: int, folder: Path | None = None) -> int:
    """Return the number, below `count`, of a GPU that no other process here claims, and claim it.

    So jobs that run side by side take a GPU each. The claim ends with the process. Where all are
    taken, or no file can be locked, processes spread evenly. Which one it is, is said.
    """
    names = visible_gpus()
    folder = folder or Path(tempfile.gettempdir()) / f"blocklora-gpus-{os.getuid()}"
    why = f"none of {count} GPUs is free"
    try:
        _make_own(folder)
        for number in range(count):
            name = names[number] if number < len(names) else str(number)
            if _lock(folder / re.sub(r"\W", "_", name)):
                told = f"computing on GPU {name}, which no other job has"
                print(told, file=sys.stderr, flush=True)
                return number
    except OSError as error:
        why = f"no GPU can be claimed in {folder} ({error.strerror or error})"
    number = os.getpid() % count
    print(f"{why}: sharing number {number}", file=sys.stderr, flush=True)
    return number


def _make_own(folder: Path) -> None:
    """Make a folder where others may write too, such as /tmp; OSError where it is another's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError("it is another user's, or a link")


def _lock(path: Path) -> bool:
    """Lock a file until the process ends; False where another has it, OSError without locks."""
    # not what a link leads to
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError:
        os.close(handle)
        raise
    _HELD.append(handle)
    return True
