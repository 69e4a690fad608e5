"""Hand-made evil archives: nothing leaves the folder, nothing of a refused archive is kept."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora_lib.data.obtain.archives import Limits, UnsafeArchive, unpacked
from blocklora_lib.data.obtain.placing import place

SMALL = Limits(members=10, ratio=2, floor=5000)


def tar_of(path: Path, *members, mode: str = "w:gz") -> Path:
    """members: (name, bytes) or (name, type, target of a link)."""
    with tarfile.open(path, mode) as file:
        for name, *rest in members:
            info = tarfile.TarInfo(name)
            if isinstance(rest[0], bytes) and len(rest) == 1 and rest[0] not in (tarfile.DIRTYPE,):
                info.size = len(rest[0])
                file.addfile(info, io.BytesIO(rest[0]))
            else:
                info.type = rest[0]
                info.linkname = rest[1] if len(rest) > 1 else ""
                file.addfile(info)
    return path


def zip_of(path: Path, *members) -> Path:
    """members: (name, bytes) or (name, bytes, Unix file type)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, *form in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = ((form[0] if form else stat.S_IFREG) | 0o777) << 16
            file.writestr(info, content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_files_unpack_whole(tmp_path, mode):
    archive = tar_of(
        tmp_path / "set.tar",
        ("./images", tarfile.DIRTYPE, ""),
        ("./images/a.jpg", b"a" * 3000),
        ("images/b.jpg", b""),
        ("images/copy.jpg", tarfile.LNKTYPE, "images/a.jpg"),
        ("list/latest.jpg", tarfile.SYMTYPE, "../images/a.jpg"),
        mode=mode,
    )
    with unpacked(archive, tmp_path) as folder:
        assert names(folder) == [
            "images/a.jpg",
            "images/b.jpg",
            "images/copy.jpg",
            "list/latest.jpg",
        ]
        assert (folder / "images/copy.jpg").read_bytes() == b"a" * 3000
        assert (folder / "list/latest.jpg").read_bytes() == b"a" * 3000
    assert names(tmp_path) == ["set.tar"]


def test_zip_files_unpack_whole(tmp_path):
    archive = zip_of(
        tmp_path / "set.zip",
        ("images/", b""),
        ("images/a.jpg", b"a"),
        ("b", b"images/a.jpg", stat.S_IFLNK),
    )
    with unpacked(archive, tmp_path) as folder:
        assert names(folder) == ["b", "images/a.jpg"]
        assert os.readlink(folder / "b") == "images/a.jpg"


EVIL_TAR = {
    "absolute": [("/etc/x", b"")],
    "up": [("images/../../x", b"")],
    "only up": [("..", tarfile.DIRTYPE, "")],
    "backslash": [("..\\x", b"")],
    "drive": [("C:/x", b"")],
    "absolute link": [("x", tarfile.SYMTYPE, "/etc/passwd")],
    "link up": [("a/x", tarfile.SYMTYPE, "../../x")],
    "link up after a folder": [("d", tarfile.SYMTYPE, "e"), ("x", tarfile.SYMTYPE, "d/../../x")],
    "empty link": [("x", tarfile.SYMTYPE, "")],
    "link to a folder, then a file through it": [("d", tarfile.SYMTYPE, "e"), ("d/x", b"")],
    "link behind a link": [("d", tarfile.SYMTYPE, "."), ("d/x", tarfile.SYMTYPE, "..")],
    "hard link out": [("x", tarfile.LNKTYPE, "../x")],
    "hard link to what is not there": [("x", tarfile.LNKTYPE, "y")],
    "loop of links": [("a", tarfile.SYMTYPE, "b"), ("b", tarfile.SYMTYPE, "a")],
    "link to what is not there": [("x", tarfile.SYMTYPE, "y")],
    "pipe": [("x", tarfile.FIFOTYPE, "")],
    "character device": [("x", tarfile.CHRTYPE, "")],
    "block device": [("x", tarfile.BLKTYPE, "")],
    "one name twice": [("x", b"1"), ("x", b"2")],
    "file as folder": [("x", b"1"), ("x/y", b"2")],
    "link over a file": [("x", b"1"), ("x", tarfile.SYMTYPE, "y")],
}


@pytest.mark.parametrize("members", EVIL_TAR.values(), ids=EVIL_TAR)
def test_evil_tar_files_are_refused_and_leave_nothing(tmp_path, members):
    archive = tar_of(tmp_path / "evil.tar.gz", ("good.jpg", b"good"), *members)
    beside = tmp_path / "root"
    beside.mkdir()
    with pytest.raises(UnsafeArchive, match=r"evil\.tar\.gz: member"), unpacked(archive, beside):
        pass
    assert names(tmp_path) == ["evil.tar.gz"]
    assert list(beside.iterdir()) == []


EVIL_ZIP = {
    "absolute": ("/etc/x", b""),
    "up": ("../x", b""),
    "backslash": ("..\\x", b""),
    "link out": ("x", b"../y", stat.S_IFLNK),
    "pipe": ("x", b"", stat.S_IFIFO),
    "device": ("x", b"", stat.S_IFCHR),
}


@pytest.mark.parametrize("member", EVIL_ZIP.values(), ids=EVIL_ZIP)
def test_evil_zip_files_are_refused_and_leave_nothing(tmp_path, member):
    archive = zip_of(tmp_path / "evil.zip", ("good.jpg", b"good"), member)
    with pytest.raises(UnsafeArchive, match=r"evil\.zip: member"), unpacked(archive, tmp_path):
        pass
    assert names(tmp_path) == ["evil.zip"]


def test_a_bomb_is_stopped_by_what_it_writes(tmp_path):
    for archive in (
        tar_of(tmp_path / "bomb.tar.gz", ("zeros", bytes(100_000))),
        zip_of(tmp_path / "bomb.zip", ("zeros", bytes(100_000))),
    ):
        with (
            pytest.raises(UnsafeArchive, match="far more than images"),
            unpacked(archive, tmp_path, SMALL),
        ):
            pass
        with unpacked(archive, tmp_path) as folder:  # a real limit lets so little pass
            assert names(folder) == ["zeros"]
    many = tar_of(tmp_path / "many.tar", *((f"f{i}", b"") for i in range(11)), mode="w")
    with (
        pytest.raises(UnsafeArchive, match="more than 10 members"),
        unpacked(many, tmp_path, SMALL),
    ):
        pass


def test_a_zip_that_lies_about_its_sizes_is_damaged_not_trusted(tmp_path):
    archive = zip_of(tmp_path / "lie.zip", ("a.txt", b"x" * 4000))
    content = archive.read_bytes().replace((4000).to_bytes(4, "little"), (40).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"lie\.zip is damaged"), unpacked(archive, tmp_path):
        pass


def damaged(archive: Path, content: bytes, tmp_path: Path):
    archive.write_bytes(content)
    with (
        pytest.raises(
            ValueError, match=f"archive .*{archive.name} is damaged or no tar or zip file"
        ),
        unpacked(archive, tmp_path),
    ):
        pass
    assert names(tmp_path) == [archive.name]


def test_damaged_archives_are_named(tmp_path):
    plain = tar_of(
        tmp_path / "a.tar", ("one", b"1" * 700), ("two", b"2" * 20_000), ("three", b""), mode="w"
    )
    whole = plain.read_bytes()
    # between two members: tarfile itself finds nothing wrong
    damaged(plain, whole[:1536], tmp_path)
    damaged(plain, whole[:2500], tmp_path)  # inside one
    damaged(plain, whole[:1536] + b"\x07" * 512 + whole[2048:], tmp_path)  # a broken header
    damaged(plain, b"<html>404</html>", tmp_path)
    damaged(plain, b"", tmp_path)
    packed = gzip.compress(whole, mtime=0)
    damaged(plain, packed[: len(packed) // 2], tmp_path)
    damaged(plain, packed[:-8] + b"\0" * 8, tmp_path)  # gzip's own checksum
    zipped = zip_of(tmp_path / "a.tar", ("one", os.urandom(700))).read_bytes()
    damaged(plain, zipped[:300] + b"\xff" * 4 + zipped[304:], tmp_path)
    damaged(plain, zipped[:-30], tmp_path)


def test_an_encrypted_zip_says_so(tmp_path):
    archive = zip_of(tmp_path / "secret.zip", ("a.txt", b"x"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(content))
    with (
        pytest.raises(ValueError, match="encrypted; unpack it by hand"),
        unpacked(archive, tmp_path),
    ):
        pass


def test_place_overwrites_nothing(tmp_path):
    for folder, files in (("new", "ab"), ("old", "bc")):
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_text(folder)
    with pytest.raises(FileExistsError, match=r"has b already; move that away"):
        place(tmp_path / "new", tmp_path / "old")
    assert [(tmp_path / "old" / n).exists() for n in "abc"] == [False, True, True]
    (tmp_path / "old" / "b").unlink()
    assert place(tmp_path / "new", tmp_path / "old") == ["a", "b"]
    assert place(tmp_path / "old", tmp_path / "third" / "place") == ["a", "b", "c"]


pieces = st.sampled_from(["..", ".", "a", "b", "c", "", "..."])
paths = st.lists(pieces, min_size=1, max_size=4).map("/".join)
members = st.lists(
    st.tuples(
        paths,
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
        paths,
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(members=members)
def test_no_mixture_of_names_and_links_leaves_the_folder(members, tmp_path_factory):
    """Whatever is unpacked, every path in it, followed through all links, ends inside."""
    base = tmp_path_factory.mktemp("mix")
    archive = tar_of(
        base / "mix.tar",
        *((n, t, "" if t == tarfile.REGTYPE else x) for n, t, x in members),
        mode="w",
    )
    inside = base / "inside"
    inside.mkdir()
    try:
        with unpacked(archive, inside) as folder:
            for path in folder.rglob("*"):
                real = os.path.realpath(path)
                assert (real + "/").startswith(os.path.realpath(folder) + "/")
    except ValueError:
        pass
    assert names(base) == ["mix.tar"]
    assert list(inside.iterdir()) == []
