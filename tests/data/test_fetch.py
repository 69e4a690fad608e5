"""One file from a server on 127.0.0.1: resumed, checked, and what is said when it does not come."""

from __future__ import annotations

import hashlib

import pytest
from local_server import serve

from blocklora_lib.data.obtain import resuming
from blocklora_lib.data.obtain.fetch import fetch, is_direct, known_hash
from blocklora_lib.data.obtain.resuming import DownloadError, Settings

QUICK = Settings(tries=3, wait=0, timeout=5)
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server(monkeypatch):
    with serve(monkeypatch) as server:
        server.files["/set.bin"] = CONTENT
        yield server


@pytest.fixture
def said():
    return []


HASHES = [
    known_hash(hashlib.sha256(CONTENT).hexdigest(), None),
    known_hash(None, hashlib.md5(CONTENT).hexdigest()),
    known_hash(None, None),
]


@pytest.mark.parametrize("known", HASHES, ids=["sha256", "md5", "none"])
def test_a_file_is_fetched_once(server, tmp_path, said, known):
    for _ in range(2):
        file = fetch(
            f"{server.url}/set.bin", tmp_path / "new" / "set.bin", known, said.append, QUICK
        )
        assert file.read_bytes() == CONTENT
    assert server.asked == [("/set.bin", None, None)]
    assert [p.name for p in file.parent.iterdir()] == ["set.bin"]


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path, said):
    server.break_after = [50_000, 20_000]
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, QUICK)
    assert file.read_bytes() == CONTENT
    assert server.asked == [
        ("/set.bin", None, None),
        ("/set.bin", "bytes=50000-", '"one"'),
        ("/set.bin", "bytes=70000-", '"one"'),
    ]
    assert "set.bin: going on after 70000 bytes" in said


def test_a_later_call_goes_on_too(server, tmp_path, said):
    server.break_after = [50_000] + [0] * 2
    with pytest.raises(DownloadError, match=r"set\.bin from http://127"):
        fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, QUICK)
    assert (tmp_path / "set.bin.part").stat().st_size == 50_000
    assert not (tmp_path / "set.bin").exists()
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, QUICK)
    assert file.read_bytes() == CONTENT
    assert server.asked[-1] == ("/set.bin", "bytes=50000-", '"one"')


def test_a_server_without_ranges_starts_over_and_it_is_said(server, tmp_path, said):
    server.ranges, server.break_after = False, [50_000]
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, QUICK)
    assert file.read_bytes() == CONTENT
    assert any("sends the whole file again; starting over" in line for line in said)


@pytest.mark.parametrize("etag", ['"two"', 'W/"two"', ""])
def test_a_file_that_changed_meanwhile_is_not_mixed(server, tmp_path, said, etag):
    """If-Range with a strong ETag; without one and without a checksum nothing is resumed."""
    server.break_after = [50_000]
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, Settings(1, 0, 5))
    server.etag, server.files["/set.bin"] = etag, CONTENT[::-1]
    server.break_after = [40_000]
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, QUICK)
    assert file.read_bytes() == CONTENT[::-1]


def test_a_resumed_file_with_a_wrong_checksum_is_fetched_once_more_from_the_start(
    server, tmp_path, said
):
    server.etag, server.break_after = "", [50_000]  # only the checksum vouches for the part
    with pytest.raises(DownloadError):
        fetch(
            f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, Settings(1, 0, 5)
        )
    (tmp_path / "set.bin.part").write_bytes(bytes(50_000))
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, QUICK)
    assert file.read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == [None, "bytes=50000-", None]


def test_a_whole_part_needs_no_byte_more(server, tmp_path, said):
    server.break_after = [50_000]
    with pytest.raises(DownloadError):
        fetch(
            f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, Settings(1, 0, 5)
        )
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    file = fetch(f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, QUICK)
    assert file.read_bytes() == CONTENT
    (tmp_path / "set.bin").unlink()


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, tmp_path, said):
    wrong = known_hash("0" * 64, None)
    with pytest.raises(
        DownloadError, match=r"wrong checksum \(\w{12} instead of 0{12}\); it was removed"
    ):
        fetch(f"{server.url}/set.bin", tmp_path / "set.bin", wrong, said.append, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path, said):
    server.errors["/set.bin"] = [503, 429]
    fetch(f"{server.url}/set.bin", tmp_path / "set.bin", HASHES[0], said.append, QUICK)
    assert "set.bin: 503 Service Unavailable; try 2 of 3" in said
    with pytest.raises(DownloadError, match=r"gone\.bin from .*: 404 Not Found"):
        fetch(f"{server.url}/gone.bin", tmp_path / "gone.bin", None, said.append, QUICK)
    assert len(server.asked) == 4


def test_a_web_page_in_the_files_place_is_no_file(server, tmp_path, said):
    server.html = True
    with pytest.raises(DownloadError, match="answers with a web page"):
        fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, QUICK)


def test_a_full_disk_is_said_before_it_is_full(server, tmp_path, said, monkeypatch):
    monkeypatch.setattr(resuming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DownloadError, match=r"needs 102400 more bytes, .* has 10 free"):
        fetch(f"{server.url}/set.bin", tmp_path / "set.bin", None, said.append, QUICK)


def test_no_server_is_one_sentence(tmp_path, said):
    with pytest.raises(DownloadError, match="connection refused"):
        fetch(
            "http://127.0.0.1:9/set.bin", tmp_path / "set.bin", None, said.append, Settings(1, 0, 5)
        )


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("https://example.org/a.tar", True),
        ("http://example.org/a.tar", True),
        ("https://drive.google.com/file/d/x", False),  # asks before large files
        ("file:///etc/passwd", False),
        ("a.tar", False),
        (None, False),
    ],
)
def test_what_a_program_can_fetch(url, direct, tmp_path):
    assert is_direct(url) is direct
    if not direct:
        with pytest.raises(DownloadError, match="cannot be fetched by a program"):
            fetch(str(url), tmp_path / "x", None)
