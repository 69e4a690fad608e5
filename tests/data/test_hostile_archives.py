"""Archives that are small and become large, in memory, on disk or in time: nothing stays."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from test_archives import SMALL, names, tar_of

from blocklora_lib.core.machine import peak_memory, resident_memory, restart_peak
from blocklora_lib.data.obtain.archives import DEEPEST, Limits, UnsafeArchive, count, unpacked

GIB = 1 << 30


def header(type_: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = type_, size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_header(type_: bytes, content: bytes) -> bytes:
    return header(type_, len(content)) + content + bytes(-len(content) % 512)


def refused(tmp_path: Path, content: bytes, says: str, limits: Limits | None = None) -> None:
    """Unpack it: a sentence, quickly, in little memory, and nothing left."""
    archive, beside = tmp_path / "evil.tar", tmp_path / "root"
    archive.write_bytes(content)
    beside.mkdir(exist_ok=True)
    restart_peak()
    before, start = resident_memory(), time.process_time()
    with pytest.raises(ValueError, match=says) as told, unpacked(archive, beside, limits):
        pass
    assert peak_memory() - before < 50e6
    assert time.process_time() - start < 10
    assert "evil.tar" in str(told.value)
    assert list(beside.iterdir()) == []


@pytest.mark.parametrize(
    "type_",
    [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE],
)
def test_a_header_that_says_it_is_long_is_not_read_into_memory(tmp_path, type_):
    content = header(type_, GIB) + bytes(100_000)
    refused(tmp_path, gzip.compress(content), r"a header of 1,073,741,824 bytes")


def test_headers_in_a_long_row_are_refused(tmp_path):
    name = long_header(tarfile.GNUTYPE_LONGNAME, b"x" * 200 + b"\0")
    refused(tmp_path, gzip.compress(name * 3000), "more than 8 headers in a row")


def test_headers_of_every_member_do_not_add_up(tmp_path):
    whole = b"".join(
        long_header(tarfile.XGLTYPE, b"%d k%06d=%s\n" % (30_000, i, b"v" * 29_985))
        + header(tarfile.REGTYPE, 0, f"f{i}")
        for i in range(4)
    )
    refused(tmp_path, gzip.compress(whole), "a header of 30,000 bytes")


@pytest.mark.parametrize("name", [".", "./", "x/.."])
def test_a_file_named_as_the_folder_itself_is_counted_and_refused(tmp_path, name):
    """Such a member was skipped, so that its 64 GiB were in no count."""
    stated = header(tarfile.REGTYPE, 64 * GIB, name) + bytes(100_000)
    refused(tmp_path, bz2.compress(stated), "unpacks to far more than images do")
    true = header(tarfile.REGTYPE, 9000, name) + bytes(9216 + 10_240)
    refused(tmp_path, bz2.compress(true), r"member .* stands where another member already is")


def test_what_stands_behind_the_end_is_counted_too(tmp_path):
    content = header(tarfile.REGTYPE, 0) + bytes(10_240 + 200_000)
    refused(tmp_path, gzip.compress(content), "far more than images", SMALL)


def test_a_member_that_says_it_is_longer_than_all_that_is_read_ends_at_once(tmp_path):
    """tarfile reads on beyond the end of a file, block by block, for as long as the header says."""
    refused(tmp_path, header(tarfile.REGTYPE, 1 << 62) + bytes(512), "far more than images")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_folders_in_folders_end_somewhere(tmp_path, kind):
    for deep in (DEEPEST + 1, 1500):
        archive = tar_of(tmp_path / "deep.tar", ("a/" * deep + "x", kind, ""), mode="w")
        refused(tmp_path, archive.read_bytes(), r"lies in more than 64 folders")
    archive = tar_of(tmp_path / "deep.tar", ("a/" * DEEPEST + "x", b"fine"), mode="w")
    with unpacked(archive, tmp_path) as folder:
        assert count(folder, ["a"]) == 1


@pytest.mark.parametrize("name", ["n" * 300, "é" * 200, "/".join(["n" * 250] * 20)], ids=range(3))
def test_a_name_that_no_file_can_have_is_a_sentence(tmp_path, name):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    refused(tmp_path, content.getvalue(), r"evil\.tar")


def test_sparse_files_are_left_to_a_person(tmp_path):
    sparse = header(tarfile.GNUTYPE_SPARSE, 512)
    refused(tmp_path, sparse + bytes(20_000), "cannot be read here .it holds sparse files")
    facts = b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n" + b"21 GNU.sparse.name=x\n"
    content = long_header(tarfile.XHDTYPE, facts) + header(tarfile.REGTYPE, 512)
    refused(tmp_path, content + b"9999999999\n" + bytes(20_000), "it holds sparse files")


@pytest.mark.slow
def test_many_members_of_few_bytes_are_refused(tmp_path):
    whole = b"".join(header(tarfile.DIRTYPE, 0, "d") for _ in range(5_001))
    refused(tmp_path, gzip.compress(whole + bytes(10_240)), "more than 5000 members")


def test_an_xz_file_asks_for_no_more_memory_than_it_needs(tmp_path):
    whole = tar_of(tmp_path / "a.tar", ("images/a.jpg", os.urandom(3000)), mode="w").read_bytes()
    packed = bytearray(lzma.compress(whole))
    with_padding = bytes(packed) + bytes(8) + lzma.compress(bytes(10_240)) + bytes(4)
    (tmp_path / "two.tar.xz").write_bytes(with_padding)
    with unpacked(tmp_path / "two.tar.xz", tmp_path) as folder:
        assert names(folder) == ["images/a.jpg"]
    size = 4 * (packed[12] + 1)  # of the block's header, whose last four bytes are its checksum
    assert packed[14:16] == b"\x21\x01"
    packed[16] = 40  # a dictionary of 4 GiB
    packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    refused(tmp_path, bytes(packed), "Memory usage limit")


@pytest.mark.parametrize("form", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_unpacked_piece_by_piece_or_not_at_all(tmp_path, form):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", form) as file:
        file.writestr("zeros", bytes(1000))
    refused(tmp_path, content.getvalue(), "cannot be read here .compression")


def test_a_refused_archive_of_any_kind_is_unsafe(tmp_path):
    archive = tar_of(tmp_path / "a.tar.xz", ("zeros", bytes(100_000)), mode="w:xz")
    with pytest.raises(UnsafeArchive, match="far more"), unpacked(archive, tmp_path, SMALL):
        pass
    assert names(tmp_path) == ["a.tar.xz"]


def test_an_archive_in_an_archive_becomes_no_more_than_one_does(tmp_path):
    """Each alone stays below its limit: 50 times the first would be 2,500 times the second."""
    from test_download import manifest

    from blocklora_lib.data.obtain.placing import install

    inner = gzip.compress(tar_of(tmp_path / "i.tar", ("x", bytes(11_000)), mode="w").read_bytes())
    tar_of(tmp_path / "a.tar", ("inner.tgz", inner), mode="w")
    (archive,) = manifest({"url": "https://a.example/a.tar", "inner": "inner.tgz"}).archives
    size, root = (tmp_path / "a.tar").stat().st_size, tmp_path / "set"

    def put(floor: int) -> None:
        limits = Limits(members=10, ratio=0, floor=floor)
        install(archive, root, tmp_path, lambda _: None, limits, keep=True, alone=True)

    with pytest.raises(UnsafeArchive, match="far more than images"):
        put(size)
    assert not root.exists()
    put(30_000)
    assert [path.name for path in root.iterdir()] == ["x"]
    (root / "x").unlink()
    wide = Limits(members=10, ratio=2, floor=0)  # of the inner one alone: too little for it
    install(archive, root, tmp_path, lambda _: None, wide, keep=True, alone=True)
    assert (root / "x").stat().st_size == 11_000


def test_a_zip_that_lists_more_than_it_holds_is_not_read_into_memory(tmp_path):
    entry = b"PK\x01\x02" + struct.pack("<6H3I5H2I", 20, 20, *[0] * 7, 1, *[0] * 6) + b"a"
    listed = entry * 400_000  # as objects, 250 MB
    ends = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(listed), 30, 0)
    content = b"PK\x03\x04" + bytes(26) + listed + ends
    refused(tmp_path, content, r"lists its members in 18,800,000 bytes")


def test_a_member_of_a_zip_without_a_name_is_damage(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("x", b"1")
    refused(tmp_path, content.getvalue().replace(b"x", b"\0"), r"is damaged .*without a name")
