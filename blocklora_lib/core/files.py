"""One way to name, read and write a file. No torch.

Writers never leave half a file under its name, readers never wait for a pipe or read without end,
and text is UTF-8 whatever the locale says.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

# what says of a file that it is none or not for us; other errors are the machine's
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
NO_FILE = {errno.EISDIR, errno.ENXIO, errno.ENODEV}  # a folder, a socket, a device
FORBIDDEN = {errno.EACCES, errno.EPERM}
# what passes while what was asked stays the same: a full disk, a server that is away, no handles
# left
_PASSING = (
    "EIO ENOSPC EDQUOT ESTALE EREMOTEIO ETIMEDOUT EHOSTDOWN ENOTCONN ENOLCK EBUSY EAGAIN ENOMEM"
)
OF_THE_MACHINE = {getattr(errno, name) for name in _PASSING.split() if hasattr(errno, name)}
OF_THE_MACHINE |= {errno.EMFILE, errno.ENFILE}
HOST = re.sub(r"\W", "-", platform.node())[:20]  # in the names of temporary files
# bytes of a text file that anyone here reads: records, manifests, lists, indexes
TEXT_LIMIT = 64 * 2**20


def user_path(name: str | Path) -> Path:
    """Return a path as a person means it: ~ is the home folder, else relative to the working one.

    Of a link, .. is the folder that holds what it leads to, as for every program.
    Raises ValueError where `~name` names no user, or the text is empty, an address or holds a NUL;
    ./~name is the file of that name here.
    """
    text = os.fspath(name)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no path; give the path of a file or a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ValueError(f"{text!r} is an address; give the path of a file or a folder")
    try:
        path = Path(text).expanduser() if text[0] == "~" else Path(text)
    except RuntimeError:
        raise ValueError(
            f"{text!r} names the home folder of a user who is not known here; "
            f"write ./{text} if a file or folder of that name is meant"
        ) from None
    try:
        return Path((os.path.realpath if ".." in path.parts else os.path.abspath)(path))
    except FileNotFoundError:
        raise ValueError(
            f"{text!r} is relative to the working folder, which is gone; cd to one that is there"
        ) from None


def printable(text: str) -> str:
    """Return a text in one line that a terminal only shows, whoever wrote it.

    Control characters, line ends, marks that turn the writing around, and bytes of a file's name
    that are no text appear as \\x.. or \\u....
    """

    def shown(found: re.Match[str]) -> str:
        code = ord(found[0])
        code -= 0xDC00 * (0xDC80 <= code <= 0xDCFF)  # how Python keeps a byte that is no text
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _UNSHOWN.sub(shown, text)


_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_there(path: str | Path) -> bool:
    """Whether anything has this name, a link to nowhere too. OSError where that cannot be said.

    `os.path.lexists` takes every error for an absence: a folder that a server lost for a moment is
    empty.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def holds_none(error: OSError) -> bool:
    """Whether an error in reading says that no file of ours stands under the name.

    Every other error, such as one of the disk or of permissions, says nothing of what the file
    holds.
    """
    return error.errno is None or error.errno in ABSENT | NO_FILE


def same_error(error: OSError, text: str) -> OSError:
    """Return an error with this sentence, of the kind and number of the one it stands for."""
    told = type(error)(text)
    told.errno = error.errno
    return told


def remove(path: str | Path) -> None:
    """Delete a file, a link, a pipe or an empty folder, if there; OSError names a full folder."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:  # EISDIR, or EPERM on some systems
        if os.path.islink(path) or not os.path.isdir(path):
            raise
        try:
            os.rmdir(path)
        except OSError as error:
            what = (
                f"{path} is a folder ({error.strerror}) where the suite keeps a file; move it away"
            )
            raise same_error(error, what) from None


def check_writes_over(path: str | Path) -> None:
    """OSError if what stands under this name is no regular file: a folder, a pipe, /dev/null."""
    real = os.path.realpath(path)  # a link to a file stays one
    if is_there(Path(real)) and not stat.S_ISREG(os.lstat(real).st_mode):
        raise OSError(f"{path} is no regular file and is not written over; give the name of a file")


def check_replaces(path: str | Path, read: Callable[[Path], object], what: str) -> None:
    """ValueError where `read` cannot read what stands under this name: a photo, the very input."""
    check_writes_over(path)
    if is_there(Path(path)):
        try:
            read(Path(path))
        except ValueError as error:
            raise ValueError(
                f"{path} is there and no {what} ({error}); it is not written over: move it away, "
                "or give another file"
            ) from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; the file gets its name when it is complete.

    On an error nothing is left, and what stood under the name before stands there still. The
    temporary name says the host and is drawn at random, so that processes of several machines never
    share one. What is there and no regular file is refused, not replaced.
    """
    given, path = path, Path(os.path.realpath(path))  # a link to a file stays one
    try:
        check_writes_over(given)
        # a name has at most 255 bytes, and each of these characters may have four
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:20]}.{HOST}.", suffix=f".tmp{path.suffix[:10]}"
        )
    except OSError as error:
        raise (_unwritten(given, error) if error.errno else error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # of what the caller did, too, if it is about this file or the room for it
        if error.errno in _ROOM or name in (error.filename, str(error.filename)):
            raise _unwritten(given, error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, older: float = 86_400) -> None:
    """Remove what killed writers left below a folder: temporary files and folders at rest for so
    many seconds.

    A younger one may be another process's; what cannot be removed stays.
    """
    for path in [*folder.rglob(".*.????????.tmp*")]:
        with suppress(OSError):
            if time.time() - (now := path.lstat()).st_mtime <= older:
                continue
            if stat.S_ISREG(now.st_mode):
                path.unlink()
            elif stat.S_ISDIR(now.st_mode):
                shutil.rmtree(path)


_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _unwritten(path: str | Path, error: OSError) -> OSError:
    """The sentence for a file that could not be written, of the kind of the error it stands for."""
    told = (
        f"{path} cannot be written ({error.strerror or error}); what stood there stands there still"
    )
    return same_error(error, told)


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; text as UTF-8, its line ends as they are."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def write_between(path: str | Path, markers: tuple[str, str], content: str) -> Path:
    """Replace what stands between two marked lines of a text file; ValueError if it lacks one."""
    text = read_text(path)
    if not all(marker in text for marker in markers):
        raise ValueError(
            f"{path} lacks the lines {markers[0]!r} and {markers[1]!r}; put them where it belongs"
        )
    before, rest = text.split(markers[0], 1)
    after = rest.split(markers[1], 1)[1]
    return write_whole(path, f"{before}{markers[0]}\n{content}{markers[1]}{after}")


@contextmanager
def regular_file(path: str | Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open a regular file for reading; an OSError in that names it, and is raised for anything
    else: a folder, a pipe (which would wait for ever), a device (without end).
    """
    try:
        with open(_regular(path), "rb", buffering=buffering) as file:
            yield file
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a read, it has no path
            error.filename = os.fspath(path)
        raise


def _regular(path: str | Path) -> int:
    """Return a descriptor of a regular file, as `regular_file` opens it."""
    # without O_NONBLOCK, opening a pipe that nobody writes to never returns
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file; put a file in its place")
    return descriptor


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """Return what a regular file of at most `limit` bytes holds; OSError as `regular_file`."""
    with regular_file(path, buffering=0) as file:  # half the time for a small file
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise OSError(
                f"{path} has {size:,} bytes, one of its kind at most {limit:,}; is it another file?"
            )
        return b"".join(iter(lambda: file.read(size), b""))  # Linux gives 2 GiB at a time


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """Return the text of a regular file, UTF-8 (a byte order mark is left out).

    Raises OSError as `read_bytes`, and ValueError with the path and the place where it is not
    UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8: "
            f"byte 0x{content[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None


@cache  # each look reads the package's metadata: most of what a short run took
def package_version(package: str, absent: str = "unknown") -> str:
    """Return the version of a package as it is installed; `absent` where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return absent


def _umask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
