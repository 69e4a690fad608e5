"""The members of a tar or zip file, read under a budget: bytes are counted where they are read.

What a header says is never believed: neither how long a member is, nor how long a name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20
_TAR_BLOCK = 512  # a tar file ends with a block of zeros
_LONGEST_LINK = 4096
_LONGEST_HEADER = 1 << 18  # bytes of a GNU or PAX header: names, times, attributes of one member
_GLOBAL_HEADERS = 1 << 16  # of all PAX headers that stand for every member, which gets a copy
_LONGEST_LIST = 1 << 24  # bytes; each member of a zip file takes ten times as many of memory
_HEADERS = 8  # in a row, before the member that they are about; each is read by a call of its own
_XZ_MEMORY = 1 << 28  # of its dictionary; `xz -9` takes a quarter of that
DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    struct.error,
    OverflowError,
    UnicodeError,
)
# what a member is, and what opens its content
Member = tuple[tarfile.TarInfo, Callable[[], Any]]


class UnsafeArchive(ValueError):
    """An archive whose member leaves its folder, is no file, folder or link, or is too much."""


class Budget:
    """Bytes that may still be read of an archive, and written of it."""

    def __init__(self, archive: Path, most: int) -> None:
        self.archive, self.most = archive, most
        self.left = {"read": most, "written": most}

    def take(self, what: str, number: int) -> None:
        """Count bytes; UnsafeArchive where they are too many."""
        self.left[what] -= number
        if self.left[what] < 0:
            raise self.too_much()

    def too_much(self) -> UnsafeArchive:
        """What to say of an archive that becomes too much."""
        size = self.archive.stat().st_size
        return UnsafeArchive(
            f"archive {self.archive} ({size} bytes) unpacks to far more than images do; "
            "it was not unpacked; get it from the source that the manifest names"
        )

    def copy(self, source: BinaryIO, file: BinaryIO) -> None:
        """Copy all of a member's content, counted."""
        while chunk := source.read(CHUNK):
            self.take("written", len(chunk))
            file.write(chunk)


def members_of(archive: Path, budget: Budget) -> Iterator[Member]:
    """Yield the members of an archive, whose content is to be read before the next one is asked
    for. Raises one of DAMAGES, UnsafeArchive, NotImplementedError.
    """
    with archive.open("rb") as file:  # by the start: a tar file may hold a zip file at its end
        start = file.read(6)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(archive)
    return _tar_members(archive, start, budget)


class _Sparing(io.FileIO):
    """A zip file whose list of members, which zipfile reads at once, is not a long one."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _LONGEST_LIST:
            raise UnsafeArchive(
                f"archive {self.name} lists its members in {size:,} bytes; it was not unpacked; "
                "get it from the source that the manifest names, or unpack it by hand"
            )
        return super().read(size) or b""


def _zip_members(archive: Path) -> Iterator[Member]:
    with _Sparing(archive) as read, zipfile.ZipFile(read) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise UnsafeArchive(
                    f"archive {archive}: member {info.filename!r} is encrypted; unpack it by hand"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # of the others, zipfile unpacks as much at once as there is
                raise NotImplementedError(f"compression {info.compress_type} of {info.filename!r}")
            # only Unix writers keep a file type in the upper half
            form = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            member = tarfile.TarInfo(info.filename)
            if not info.filename:
                raise zipfile.BadZipFile("it has a member without a name")
            if info.is_dir():
                member.type = tarfile.DIRTYPE
            elif form == stat.S_IFLNK:
                member.type = tarfile.SYMTYPE
                with file.open(info) as source:
                    member.linkname = source.read(_LONGEST_LINK).decode("utf-8", "surrogateescape")
            elif form not in (0, stat.S_IFREG):
                member.type = tarfile.CHRTYPE
            yield member, partial(file.open, info)


def _tar_members(archive: Path, start: bytes, budget: Budget) -> Iterator[Member]:
    openers: tuple[tuple[bytes, Any], ...] = (
        (b"\x1f\x8b", gzip.open),
        (b"BZh", bz2.open),
        (b"\xfd7zXZ\x00", _Xz),
        (b"", open),
    )
    opener = next(opener for magic, opener in openers if start.startswith(magic))
    with opener(archive, "rb") as stream:
        recent = _Recent(stream, budget)
        with tarfile.open(fileobj=recent, mode="r|", tarinfo=_headers(budget)) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members = []  # it would keep them all
                yield info, partial(tar.extractfile, info)
            # tarfile stops without a word at a broken header, and where a file was cut in between
            if recent.at(tar.offset, _TAR_BLOCK) != bytes(_TAR_BLOCK):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
        while recent.read(CHUNK):  # to the end, so that gzip checks its checksum
            pass


def _headers(budget: Budget) -> type[tarfile.TarInfo]:
    """Return how headers of one archive are read: none that is long, in a long row or sparse.

    tarfile takes a GNU or PAX header into memory by the size that it states, calls itself for the
    one after it, and reads on beyond the end of a file for a member that states to be longer.
    """
    in_a_row, of_all = 0, 0

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            nonlocal in_a_row, of_all
            header = super().frombuf(buf, encoding, errors)
            about = header.type in (
                *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
                *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
            )
            in_a_row = in_a_row + 1 if about else 0
            of_all += header.size if header.type == tarfile.XGLTYPE else 0
            if (about and header.size > _LONGEST_HEADER) or of_all > _GLOBAL_HEADERS:
                raise UnsafeArchive(
                    f"archive {budget.archive} has a header of {header.size:,} bytes; "
                    "it was not unpacked; get it from the source that the manifest names"
                )
            if in_a_row > _HEADERS:
                raise UnsafeArchive(
                    f"archive {budget.archive} has more than {_HEADERS} headers in a row; "
                    "it was not unpacked; get it from the source that the manifest names"
                )
            if header.size > budget.most:
                raise budget.too_much()
            return header

        def _refuse(self, *_: Any) -> Any:
            raise NotImplementedError("it holds sparse files")

        _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse

    return Header


class _Recent:
    """A stream that counts, and remembers what was read last."""

    def __init__(self, stream: Any, budget: Budget) -> None:
        self.stream, self.budget, self.window, self.position = stream, budget, b"", 0

    def read(self, size: int = -1) -> bytes:
        try:
            chunk = self.stream.read(size)
        except OSError as error:  # bz2 says 'Invalid data stream' so
            if error.errno:  # of the disk
                raise
            raise tarfile.ReadError(str(error)) from None
        self.budget.take("read", len(chunk))
        self.window = (self.window + chunk)[-4 * tarfile.RECORDSIZE :]
        self.position += len(chunk)
        return chunk

    def at(self, offset: int, size: int) -> bytes:
        """The bytes there, as far as they were read and are remembered."""
        start = offset - (self.position - len(self.window))
        return self.window[max(start, 0) : max(start + size, 0)]


class _Xz:
    """An xz file that is read in little memory; LZMAFile takes as much as the file asks for."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file, self.decoder, self.rest = path.open(mode), self._new(), b""

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def __enter__(self) -> _Xz:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end. A file may hold several streams."""
        while True:
            if self.decoder.eof:
                self.rest = self.decoder.unused_data.lstrip(b"\0")  # padding
                while not self.rest and (more := self.file.read(CHUNK)):
                    self.rest = more.lstrip(b"\0")
                if not self.rest:
                    return b""
                self.decoder = self._new()
            elif self.decoder.needs_input:
                self.rest = self.file.read(CHUNK)
                if not self.rest:
                    raise EOFError("it ends before its end mark")
            chunk = self.decoder.decompress(self.rest, size)
            self.rest = b""
            if chunk:
                return chunk
