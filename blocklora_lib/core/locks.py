"""Locks on names of files, which the operating system drops with their process, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Taken(RuntimeError):
    """Another process has the lock, here or on another machine that shares the folder."""


@contextmanager
def locked(path: Path, say: Callable[[str], None], wait: bool = True) -> Iterator[bool]:
    """Hold the only lock of this name; wait, and say so, while another process has it.

    Without `wait`, Taken is raised instead. The file is there as long as someone holds or waits for
    it. A file system without locks (ENOSYS, ENOLCK, EOPNOTSUPP) is said, and False yielded: only a
    lock that is taken makes one wait. OSError where the file cannot be made, a link in its place
    among it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            held = _take(handle, path, say, wait)
            # whoever had it before removed the file: what is held then is a lock of no name
            if _number(path) != os.fstat(handle).st_ino:
                continue
            try:
                yield held
            finally:
                with suppress(OSError):
                    os.unlink(path)
            return
        finally:
            os.close(handle)


def _take(handle: int, path: Path, say: Callable[[str], None], wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if not wait:
            raise Taken(f"another process holds {path}") from None
        say(f"another process holds {path}; waiting for it")
    except OSError as error:
        say(
            f"the file system of {path.parent} has no locks ({error.strerror}): start one at a time"
        )
        return False
    fcntl.flock(handle, fcntl.LOCK_EX)
    return True


def _number(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None
