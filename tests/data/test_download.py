"""Whole datasets from a server on 127.0.0.1: mirrors in turn, unpacked; what is left to do."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from conftest import TOYS
from local_server import serve

from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.obtain import download as module
from blocklora_lib.data.obtain.download import download, steps
from blocklora_lib.data.obtain.parts import parts
from blocklora_lib.data.obtain.resuming import DownloadError, Settings

QUICK = Settings(tries=3, wait=0, timeout=5)


@pytest.fixture
def server(monkeypatch):
    with serve(monkeypatch) as server:
        yield server


@pytest.fixture
def said():
    return []


def packed(**files: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def manifest(*archives: dict, **facts) -> Manifest:
    return Manifest.model_validate(
        {**TOYS, "images": {"train": ["images"], "test": ["images"]}, "archives": archives} | facts
    )


@pytest.fixture
def found(monkeypatch):
    """The set's folder, when there: CoOp's name only, so that this test needs no other module."""

    def find(manifest, root):
        if not (root / "toys").is_dir():
            raise FileNotFoundError("toys")
        return root / "toys"

    monkeypatch.setattr(module, "find_folder", find)


@pytest.mark.usefixtures("found")
def test_a_set_is_fetched_from_the_mirror_that_works_and_unpacked(server, tmp_path, said):
    content = packed(toys_v1__images__a_dot_jpg=b"a", toys_v1__README=b"r")
    server.files["/mirror.tgz"], server.files["/labels.mat"] = content, b"labels"
    toys = manifest(
        {"url": f"{server.url}/dead.tgz", "dead": True},
        {"url": f"{server.url}/wrong.tgz", "mirror_of": 0, "md5": "0" * 32},
        {"url": f"{server.url}/gone.tgz", "mirror_of": 0},
        {
            "url": f"{server.url}/mirror.tgz",
            "mirror_of": 0,
            "only": "toys_v1/images",
            "into": "images",
        },
        {
            "url": f"{server.url}/labels.mat",
            "unpack": False,
            "md5": hashlib.md5(b"labels").hexdigest(),
        },
    )
    server.files["/wrong.tgz"] = b"other"
    assert download(toys, tmp_path, said.append, settings=QUICK) == []
    assert (tmp_path / "toys/images/a.jpg").read_bytes() == b"a"
    assert (tmp_path / "toys/labels.mat").read_bytes() == b"labels"
    assert {p.name for p in (tmp_path / "toys").iterdir()} == {"images", "labels.mat"}
    assert f"skipped {server.url}/dead.tgz: known to be gone" in said
    assert any("wrong checksum" in line and "trying the next mirror" in line for line in said)
    assert any("404 Not Found; trying the next mirror" in line for line in said)
    assert any("the manifest has no checksum" in line for line in said)
    assert [p.name for p in (tmp_path / module.DOWNLOADS / "toys").iterdir()] == ["mirror.tgz.done"]
    asked = len(server.asked)
    assert download(toys, tmp_path, said.append, settings=QUICK) == []
    assert len(server.asked) == asked  # nothing is fetched twice


@pytest.mark.usefixtures("found")
def test_a_part_that_failed_is_fetched_later_and_a_killed_unpacking_is_cleared(
    server, tmp_path, said
):
    server.files["/a.tgz"], late = packed(images__a_dot_jpg=b"a"), packed(lists__l_dot_txt=b"l")
    toys = manifest({"url": f"{server.url}/a.tgz"}, {"url": f"{server.url}/late.tgz"})
    with pytest.raises(DownloadError, match=r"toys: late\.tgz .* 404"):
        download(toys, tmp_path, said.append, settings=QUICK)
    server.files["/late.tgz"] = late
    (tmp_path / "toys" / ".late.tgz.abc" / "images").mkdir(parents=True)
    assert download(toys, tmp_path, said.append, settings=QUICK) == []
    assert {p.name for p in (tmp_path / "toys").iterdir()} == {"images", "lists"}
    assert [asked[0] for asked in server.asked] == ["/a.tgz", "/late.tgz", "/late.tgz"]


@pytest.mark.usefixtures("found")
def test_an_archive_inside_an_archive(server, tmp_path, said):
    inner = packed(images__a_dot_jpg=b"a")
    server.files["/outer.tgz"] = packed(toys__inner_dot_tgz=inner, toys__notes=b"n")
    toys = manifest({"url": f"{server.url}/outer.tgz", "inner": "toys/inner.tgz"})
    assert download(toys, tmp_path, said.append, keep=True, settings=QUICK) == []
    assert [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "toys").rglob("*.jpg")] == [
        "toys/images/a.jpg"
    ]
    assert (tmp_path / module.DOWNLOADS / "toys" / "outer.tgz").is_file()


@pytest.mark.usefixtures("found")
def test_no_source_that_answers_is_one_sentence_and_leaves_no_folder(server, tmp_path, said):
    toys = manifest(
        {"url": f"{server.url}/a.tgz"},
        {"url": f"{server.url}/b.tgz", "mirror_of": 0},
        {"url": "https://toys.example/page", "mirror_of": 0, "manual": True},
    )
    says = (
        r"toys: a\.tgz .* 404 .*; b\.tgz .* 404 .*; "
        r"by hand: https://toys\.example/page; try again later"
    )
    with pytest.raises(DownloadError, match=says):
        download(toys, tmp_path, said.append, settings=QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("bad", ["damaged", "evil", "other"])
def test_a_bad_archive_leaves_no_folder(server, tmp_path, said, bad):
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../x"))
    other = packed(else__x=b"")
    server.files["/a.tgz"] = {"damaged": b"not a tar", "evil": evil.getvalue(), "other": other}[bad]
    toys = manifest({"url": f"{server.url}/a.tgz", "only": "images", "into": "images"})
    says = {
        "damaged": "is damaged",
        "evil": "leads out",
        "other": "has no images; it is not the file",
    }[bad]
    with pytest.raises(ValueError, match=says):
        download(toys, tmp_path, said.append, settings=QUICK)
    assert list(tmp_path.rglob("x")) == []
    assert not (tmp_path / "toys" / "images").exists()


@pytest.mark.usefixtures("found")
def test_images_that_are_there_are_not_fetched_again(server, tmp_path, said):
    (tmp_path / "toys" / "images").mkdir(parents=True)
    (tmp_path / "toys" / "images" / "mine.jpg").touch()
    assert (
        download(manifest({"url": f"{server.url}/a.tgz"}), tmp_path, said.append, settings=QUICK)
        == []
    )
    assert server.asked == []
    assert "has images already" in said[-1]


@pytest.mark.usefixtures("found")
def test_what_cannot_be_fetched_is_told_in_steps(server, tmp_path, said):
    toys = manifest(
        {"url": "https://toys.example/download", "name": "toys.tar", "manual": True},
        {"url": "https://drive.google.com/file/d/1", "name": "more.zip", "into": "more"},
        {"url": "https://toys.example/old.tar", "dead": True},
        terms="for research only, https://toys.example/terms",
        steps=["sort the images by class", "put split_toys.json there"],
        split_file={"name": "split_toys.json", "url": "https://drive.google.com/file/d/2"},
    )
    todo = download(toys, tmp_path, said.append, settings=QUICK)
    assert todo == steps(toys, tmp_path)
    folder = tmp_path / "toys"
    for line, holds in zip(
        todo,
        [
            [f"Make the folder {folder}"],
            ["terms", "https://toys.example/terms"],
            [
                "toys.tar from https://toys.example/download in a browser; "
                "unpack it in the dataset's folder"
            ],
            [
                "more.zip from https://drive.google.com/file/d/1",
                "unpack it in more of the dataset's folder",
            ],
            ["These links are gone", "https://toys.example/old.tar"],
            ["sort the images by class"],
            ["https://drive.google.com/file/d/2", f"{folder / 'split_toys.json'}"],
            [f"blocklora data verify toys --root {tmp_path}"],
        ],
        strict=True,
    ):
        assert all(text in line for text in holds), line
    assert server.asked == []


@pytest.mark.usefixtures("found")
def test_a_split_file_with_a_direct_link_is_fetched_and_checked(server, tmp_path, said):
    server.files["/split.json"] = b"{}"
    facts = {"name": "split_toys.json", "url": f"{server.url}/split.json"}
    good = manifest(split_file=facts | {"sha256": hashlib.sha256(b"{}").hexdigest()})
    assert download(good, tmp_path, said.append, settings=QUICK) == []
    assert (tmp_path / "toys" / "split_toys.json").read_bytes() == b"{}"
    (tmp_path / "toys" / "split_toys.json").unlink()
    with pytest.raises(DownloadError, match=r"toys: split_toys\.json from .* wrong checksum"):
        download(
            manifest(split_file=facts | {"sha256": "0" * 64}), tmp_path, said.append, settings=QUICK
        )


def test_mirrors_stand_with_what_they_replace():
    toys = manifest(
        {"url": "https://a.example/1.tar"},
        {"url": "https://a.example/2.tar"},
        {"url": "https://b.example/1.zip", "mirror_of": 0},
    )
    assert [[a.url for a in part.sources] for part in parts(toys)] == [
        ["https://a.example/1.tar", "https://b.example/1.zip"],
        ["https://a.example/2.tar"],
    ]


@pytest.mark.usefixtures("found")
def test_a_miniature_is_not_taken_for_the_set(tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "FAKE.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"toys is a miniature; take it away or give another --root"
    ):
        download(manifest(), tmp_path)


def test_a_bundled_set_is_not_downloaded(tmp_path):
    from blocklora_lib.data.manifest_files import load_manifest

    with pytest.raises(ValueError, match="nothing to download"):
        download(load_manifest("fashion"), Path(tmp_path))


@pytest.mark.usefixtures("found")
def test_a_split_file_is_fetched_from_the_mirror_that_has_it(server, tmp_path, said):
    server.files |= {"/wrong.json": b"[]", "/right.json": b"{}"}
    links = [f"{server.url}/{name}.json" for name in ("gone", "wrong", "right", "never")]
    page = "https://drive.google.com/uc?id=1"
    sha256, blob = hashlib.sha256(b"{}").hexdigest(), hashlib.sha1(b"blob 2\0{}").hexdigest()
    for checksum in ({"sha256": sha256}, {"git_sha1": blob}):
        facts = {"name": "split_toys.json", "url": page, "mirrors": links} | checksum
        asked = len(server.asked)
        assert download(manifest(split_file=facts), tmp_path, said.append, settings=QUICK) == []
        file = tmp_path / "toys" / "split_toys.json"
        assert file.read_bytes() == b"{}"
        assert [path for path, *_ in server.asked[asked:]] == [
            "/gone.json",
            "/wrong.json",
            "/right.json",
        ]
        file.unlink()
    facts["mirrors"] = links[:2]
    says = r"from .*/gone\.json: .*404.*; .*/wrong\.json has a wrong checksum.*; by hand: https://drive"
    with pytest.raises(DownloadError, match=says):
        download(manifest(split_file=facts), tmp_path, said.append, settings=QUICK)
    assert not file.exists()
    assert steps(manifest(split_file=facts | {"mirrors": []}), tmp_path)[0].startswith(
        f"Open {page}"
    )
