"""One way to name, read and write a file.  No torch.

Writers never leave half a file under its name, readers never wait for a pipe or read without end, and text is
UTF-8 whatever the locale says.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# what says of a file that it is none or not for us; other errors are the machine's
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
NO_FILE = {errno.EISDIR, errno.ENXIO, errno.ENODEV}  # a folder, a socket, a device
FORBIDDEN = {errno.EACCES, errno.EPERM}
TEXT_LIMIT = 64 * 2**20  # bytes of a text file that anyone here reads: records, manifests, lists, indexes


def user_path(name: str | Path) -> Path:
    """Return a path as a person means it: ~ is the home folder, a relative one is of the working folder.

    Raises ValueError where `~name` names no user, or the text is empty, an address or holds a NUL.
    """
    text = os.fspath(name)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no path; give the path of a file or a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ValueError(f"{text!r} is an address; give the path of a file or a folder")
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError:
        raise ValueError(f"{text!r} names the home folder of a user who is not known here") from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; the file gets its name when it is complete.

    On an error nothing is left, and what stood under the name before stands there still.  The temporary name
    is drawn by the operating system, so that processes of several machines never share one.
    """
    given, path = path, Path(os.path.realpath(path))  # a link to a file stays one
    try:
        # a name has at most 255 bytes, and each of these characters may have four
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:20]}.", suffix=f".tmp{path.suffix[:10]}"
        )
    except OSError as error:
        raise _unwritten(given, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of what the caller did, too, if it is about this file or the room for it
        if error.errno in _ROOM or name in (error.filename, str(error.filename)):
            raise _unwritten(given, error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _unwritten(path: str | Path, error: OSError) -> OSError:
    """The sentence for a file that could not be written, of the kind of the error that it stands for."""
    told = f"{path} cannot be written ({error.strerror or error}); what stood there stands there still"
    return type(error)(told)


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; text as UTF-8, its line ends as they are."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises OSError for anything else: a folder, a pipe (which would wait for ever), a device (without end).
    """
    # without O_NONBLOCK, opening a pipe that nobody writes to never returns
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file; put a file in its place")
    with open(descriptor, "rb") as file:
        yield file


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """Return what a regular file of at most `limit` bytes holds; OSError as `regular_file`."""
    with regular_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise OSError(
                f"{path} has {size:,} bytes, one of its kind at most {limit:,}; is it another file?"
            )
        return file.read(size)


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """Return the text of a regular file, UTF-8 (a byte order mark is left out).

    Raises OSError as `read_bytes`, and ValueError with the path and the place where it is not UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None


def _umask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
