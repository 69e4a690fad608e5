"""Unpack a tar or zip file that nobody vouches for: nothing is written outside a folder of its own.

Python's filter for tar files (PEP 706) keeps members inside, those of zip files too; what it leaves
unchecked is checked here: sizes, counts, names of other systems, links to nothing. Files are
unpacked into a temporary folder beside the target and renamed at the end: a refused, damaged or
interrupted archive leaves nothing behind.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_TAR_BLOCK = 512  # a tar file ends with a block of zeros
_LONGEST_LINK = 4096
_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
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
    """An archive whose member leaves its folder, is no file, folder or link, or is too much."""


# what a member is, and how its content is opened
_Member = tuple[tarfile.TarInfo, Callable[[], Any]]  # what it is, and what opens it


@contextmanager
def unpacked(archive: Path, beside: Path, limits: Limits | None = None) -> Iterator[Path]:
    """Unpack into a temporary folder in `beside`, hand it over, and remove what is left in the end.

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
        if not hasattr(tarfile, "data_filter"):
            raise NotImplementedError("it takes Python 3.11.4 or later")
        with archive.open("rb") as file:  # by the start: a tar file may hold a zip file at its end
            is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        members = _zip_members(archive) if is_zip else _tar_members(archive, limits or Limits())
        _write(archive, members, folder, limits or Limits())
    except _DAMAGES as error:
        raise ValueError(
            f"archive {archive} is damaged or no tar or zip file ({error}); "
            "delete it and download it again"
        ) from None
    except NotImplementedError as error:
        raise ValueError(
            f"archive {archive} cannot be read here ({error}); unpack it by hand"
        ) from None


def _write(archive: Path, members: Iterable[_Member], folder: Path, limits: Limits) -> None:
    left, written, links = limits.bytes(archive), set(), []
    for count, (info, content) in enumerate(members, 1):
        if count > limits.members:
            raise UnsafeArchive(
                f"archive {archive} has more than {limits.members} members; it was not unpacked"
            )
        name, link = _inside(archive, info, folder)
        if name == ".":
            continue
        if info.issym():
            links.append(info)
            continue
        path = folder / name
        with _in_its_place(archive, info):
            path.parent.mkdir(parents=True, exist_ok=True)
            if info.isdir():
                path.mkdir(exist_ok=True)
                continue
            if not info.islnk():
                with content() as source, path.open("xb") as file:
                    left = _copy(archive, source, file, left)
            elif link in written:
                os.link(folder / link, path)
            else:
                raise _unsafe(archive, info, f"is a link to {link!r}, which is no file before it")
        written.add(name)
    for info in links:  # last, so that no file is written through a link
        name, link = _inside(archive, info, folder)  # again, now that some links are there
        with _in_its_place(archive, info):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(link, folder / name)
    root = folder.resolve()
    for info in links:
        try:
            inside = (folder / info.name).resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):  # a loop is a RuntimeError of pathlib's
            inside = False
        if not inside:
            raise _unsafe(archive, info, f"is a link to {info.linkname!r}, not in the archive")


def _inside(archive: Path, info: tarfile.TarInfo, folder: Path) -> tuple[str, str]:
    """(path, target of a link) of a member that stays inside, as far as the links go that exist."""
    texts = [info.name, info.linkname] if info.issym() or info.islnk() else [info.name]
    if info.issym() and not info.linkname:
        raise _unsafe(archive, info, "is a link to nothing")
    for text in texts:
        if re.match(r"/|[A-Za-z]:|.*[\\\0]", text, re.DOTALL):
            raise _unsafe(archive, info, f"has {text!r}, which is not a relative path with /")
    try:
        safe = tarfile.data_filter(info, str(folder))
    except tarfile.SpecialFileError:
        why = "is a device; only files, folders and links are unpacked"
        raise _unsafe(archive, info, why) from None
    except (tarfile.FilterError, OSError) as error:
        raise _unsafe(archive, info, f"leads out of its folder ({error})") from None
    return os.path.normpath(safe.name), os.path.normpath(safe.linkname)


@contextmanager
def _in_its_place(archive: Path, info: tarfile.TarInfo) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise _unsafe(archive, info, "stands where another member already is") from None


def _copy(archive: Path, source: BinaryIO, file: BinaryIO, left: int) -> int:
    """Copy; return how many bytes may still come, by what is written, whatever headers say."""
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise UnsafeArchive(
                f"archive {archive} ({archive.stat().st_size} bytes) unpacks to far more than "
                "images do; it was not unpacked; get it from the source that the manifest names"
            )
        file.write(chunk)
    return left


def _unsafe(archive: Path, info: tarfile.TarInfo, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"archive {archive}: member {info.name!r} {why}; nothing of it was kept")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise ValueError(
                    f"archive {archive}: member {info.filename!r} is encrypted; unpack it by hand"
                )
            # only Unix writers keep a file type in the upper half
            form = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            member = tarfile.TarInfo(info.filename)
            if info.is_dir():
                member.type = tarfile.DIRTYPE
            elif form == stat.S_IFLNK:
                member.type = tarfile.SYMTYPE
                with file.open(info) as source:
                    member.linkname = source.read(_LONGEST_LINK).decode("utf-8", "surrogateescape")
            elif form not in (0, stat.S_IFREG):
                member.type = tarfile.CHRTYPE
            yield member, partial(file.open, info)


def _tar_members(archive: Path, limits: Limits) -> Iterator[_Member]:
    with archive.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _OPENERS if start.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        recent = _Recent(stream)
        with tarfile.open(fileobj=recent, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                yield info, partial(tar.extractfile, info)
            # tarfile stops without a word at a broken header, and where a file was cut in between
            if recent.at(tar.offset, _TAR_BLOCK) != bytes(_TAR_BLOCK):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
        # to the end, so that gzip checks its checksum
        for _ in range(limits.bytes(archive) // _CHUNK + 1):
            if not recent.read(_CHUNK):
                break


class _Recent:
    """A stream that remembers what was read last."""

    def __init__(self, stream: Any) -> None:
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
