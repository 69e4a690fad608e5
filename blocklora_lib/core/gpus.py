"""GPUs as the machine shows them, without torch: how many this process may use, which is free."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_HELD: list[IO[str]] = []  # open as long as the process lives, and with it the lock


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
    for number in range(count):
        name = names[number] if number < len(names) else str(number)
        try:
            folder.mkdir(exist_ok=True)
            file = (folder / re.sub(r"\W", "_", name)).open("a", encoding="utf-8")
        except OSError:
            break
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has it
            file.close()
            continue
        _HELD.append(file)
        print(f"computing on GPU {name}, which no other job has", file=sys.stderr, flush=True)
        return number
    number = os.getpid() % count
    print(f"none of {count} GPUs is free: sharing number {number}", file=sys.stderr, flush=True)
    return number
