"""Unpack a tar or zip file that nobody vouches for: nothing is written outside a folder of its own.

Python's own filters (PEP 706) leave sizes, counts and zip links unchecked, so every member is
checked here before it is written. Files are unpacked into a temporary folder beside the target and
renamed at the end: a refused, damaged or interrupted archive leaves nothing behind.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_CHUNK = 1 << 20
_TAR_BLOCK = 512  # a tar file ends with a block of zeros
_LONGEST_LINK = 4096
_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


@dataclass(frozen=True)
class Limits:
    """What an archive may become. Images hardly compress: real sets stay far below both.

    members: files, folders and links. ratio: bytes written per byte of archive, above a floor in
    bytes.
    """

    members: int = 3_000_000
    ratio: int = 50
    floor: int = 1 << 30

    def bytes(self, archive: Path) -> int:
        """Most bytes that this archive may be unpacked to."""
        return max(self.floor, self.ratio * archive.stat().st_size)


class UnsafeArchive(ValueError):
    """An archive with a member that would leave its folder, is no file, folder or link, or is too
    much.
    """


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # file, folder, link, hard link, or what else it is
    link: str = ""
    open: Callable[[], BinaryIO] | None = None


@contextmanager
def unpacked(archive: Path, beside: Path, limits: Limits | None = None) -> Iterator[Path]:
    """Unpack into a temporary folder in `beside`, hand it over, and remove what is left of it in
    the end.

    UnsafeArchive: a path or link out of the folder, a device, too many or too large members.
    ValueError: a damaged or unknown archive. Both name the file and the member.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=beside))
    try:
        unpack(archive, work, limits)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack into an existing folder; `unpacked` also removes what a refused archive left."""
    try:
        with archive.open("rb") as file:  # by the start: a tar file may hold a zip file at its end
            is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        members = _zip_members(archive) if is_zip else _tar_members(archive, limits or Limits())
        _write(archive, members, folder, limits or Limits())
    except _DAMAGES as error:
        raise ValueError(
            f"archive {archive} is damaged or no tar or zip file ({error}); delete it and download "
            "it again"
        ) from None
    except NotImplementedError as error:
        raise ValueError(
            f"archive {archive} cannot be read here ({error}); unpack it by hand"
        ) from None


def place(content: Path, target: Path) -> list[str]:
    """Rename everything in `content` into `target` and return the names. Nothing there is
    overwritten.

    Both lie on one file system. A name that the target has already is a FileExistsError, and
    nothing moves.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = sorted(entry.name for entry in content.iterdir())
    if there := [name for name in names if os.path.lexists(target / name)]:
        raise FileExistsError(
            f"{target} has {', '.join(there)} already; move that away to unpack again, or check it "
            "with: blocklora data verify"
        )
    for name in names:
        (content / name).rename(target / name)
    return names


def _write(archive: Path, members: Iterator[_Member], folder: Path, limits: Limits) -> None:
    left, written, links = limits.bytes(archive), set(), []
    for count, member in enumerate(members, 1):
        if count > limits.members:
            raise UnsafeArchive(
                f"archive {archive} has more than {limits.members} members; it was not unpacked"
            )
        parts = _parts(archive, member.name)
        if not parts:
            continue
        path = folder.joinpath(*parts)
        if member.kind == "link":
            links.append((parts, member.link))
            continue
        try:
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.kind == "hard link":
                source = _parts(archive, member.link)
                if source not in written:
                    raise _unsafe(
                        archive,
                        member.name,
                        f"is a link to {member.link!r}, which is no file before it",
                    )
                os.link(folder.joinpath(*source), path)
            elif member.kind == "file":
                with member.open() as source, path.open("xb") as file:
                    left = _copy(archive, source, file, left)
            else:
                raise _unsafe(
                    archive,
                    member.name,
                    f"is a {member.kind}; only files, folders and links are unpacked",
                )
        except (FileExistsError, NotADirectoryError):
            raise _unsafe(archive, member.name, "stands where another member already is") from None
        written.add(parts)
    for parts, link in links:  # last, so that no file is written through a link
        _link(archive, folder, parts, link)
    inside = Path(os.path.realpath(folder))
    for parts, link in links:
        try:
            end = folder.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError):  # a loop is a RuntimeError of pathlib's
            end = None
        if end is None or not end.is_relative_to(inside):
            raise _unsafe(
                archive, "/".join(parts), f"is a link to {link!r}, which is not in the archive"
            )


def _copy(archive: Path, source: BinaryIO, file: BinaryIO, left: int) -> int:
    """Copy, and return how many bytes may still come. Counts what is written, not what a header
    says.
    """
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise UnsafeArchive(
                f"archive {archive} ({archive.stat().st_size} bytes) unpacks to far more than "
                "images do; it was not unpacked; get it from the source that the manifest names"
            )
        file.write(chunk)
    return left


def _parts(archive: Path, name: str) -> tuple[str, ...]:
    """The member's path in pieces, refused unless it stays inside."""
    if name.startswith("/") or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "is not a relative path with /")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise _unsafe(archive, name, "leads out of its folder by '..'")
    return parts


def _link(archive: Path, folder: Path, parts: tuple[str, ...], link: str) -> None:
    """Make a symbolic link that stays inside.

    '..' may stand only at the start of its target: after a folder, which may itself be a link, one
    cannot tell from the names where it leads. The folders that the link lies in are real ones,
    checked here.
    """
    name, target = "/".join(parts), PurePosixPath(link).parts
    up = next((i for i, part in enumerate(target) if part != ".."), len(target))
    if (
        not link
        or link.startswith("/")
        or "\\" in link
        or "\0" in link
        or re.match(r"[A-Za-z]:", link)
    ):
        raise _unsafe(archive, name, f"is a link to {link!r}, not a relative path with /")
    if up > len(parts) - 1 or ".." in target[up:]:
        raise _unsafe(archive, name, f"is a link to {link!r}, out of its folder")
    parent = folder
    for part in parts[:-1]:
        parent = parent / part
        if parent.is_symlink():
            raise _unsafe(archive, name, "lies behind a link")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        os.symlink(link, parent / parts[-1])
    except (FileExistsError, NotADirectoryError):
        raise _unsafe(archive, name, "stands where another member already is") from None


def _unsafe(archive: Path, name: str, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"archive {archive}: member {name!r} {why}; nothing of it was kept")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise ValueError(
                    f"archive {archive}: member {info.filename!r} is encrypted; unpack it by hand"
                )
            # only Unix writers keep a file type in the upper half
            form = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            if info.is_dir():
                yield _Member(info.filename, "folder")
            elif form == stat.S_IFLNK:
                with file.open(info) as source:
                    link = source.read(_LONGEST_LINK).decode("utf-8", "surrogateescape")
                yield _Member(info.filename, "link", link)
            elif form in (0, stat.S_IFREG):
                yield _Member(info.filename, "file", open=lambda info=info: file.open(info))
            else:
                yield _Member(info.filename, "device")


def _tar_members(archive: Path, limits: Limits) -> Iterator[_Member]:
    with archive.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _OPENERS if start.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        recent = _Recent(stream)
        with tarfile.open(fileobj=recent, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                yield _Member(
                    info.name,
                    _tar_kind(info),
                    info.linkname,
                    lambda tar=tar, info=info: tar.extractfile(info),
                )
            # tarfile stops without a word at a broken header, and where a file was cut between two
            # members
            if recent.at(tar.offset, _TAR_BLOCK) != bytes(_TAR_BLOCK):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
        for _ in range(
            limits.bytes(archive) // _CHUNK + 1
        ):  # to the end, so that gzip checks its checksum
            if not recent.read(_CHUNK):
                break


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "folder"
    if info.issym():
        return "link"
    if info.islnk():
        return "hard link"
    return "device"


class _Recent:
    """A stream that remembers what was read last."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.window, self.position = stream, b"", 0

    def read(self, size: int = -1) -> bytes:
        try:
            chunk = self.stream.read(size)
        except OSError as error:  # bz2 says 'Invalid data stream' so
            raise tarfile.ReadError(str(error)) from None
        self.window = (self.window + chunk)[-4 * tarfile.RECORDSIZE :]
        self.position += len(chunk)
        return chunk

    def at(self, offset: int, size: int) -> bytes:
        """The bytes there, as far as they were read and are remembered."""
        start = offset - (self.position - len(self.window))
        return self.window[max(start, 0) : max(start + size, 0)]
