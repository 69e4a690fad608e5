"""Manifests, servers and processes that mean no good, or end at any moment: what comes is whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import threading
import time

import pytest
from local_server import serve
from test_download import QUICK, manifest, packed

from blocklora_lib.core.locks import locked
from blocklora_lib.data.obtain import placing
from blocklora_lib.data.obtain.download import DOWNLOADS, download
from blocklora_lib.data.obtain.fetch import fetch
from blocklora_lib.data.obtain.parts import parts
from blocklora_lib.data.obtain.resuming import DownloadError, Settings

IMAGES = {f"images__{i}_dot_jpg": b"%d" % i for i in range(60)}


@pytest.fixture
def server(monkeypatch):
    with serve(monkeypatch) as server:
        yield server


def stands(root) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "../x.tar",
        "/tmp/x.tar",
        "a/b.tar",
        "..",
        ".lock",
        "a\\b",
        "C:x",
        "a\nb",
        "-x",
        "n" * 201,
        "",
    ],
)
def test_an_archives_name_is_a_plain_one(name):
    with pytest.raises(ValueError, match=r"must be a plain file name: no folder"):
        manifest({"url": "https://a.example/x", "name": name})


def test_a_set_is_not_installed_into_the_folder_of_another(tmp_path):
    theirs = manifest({"url": "https://a.example/x.tar"}, folders={"coop": "eurosat"})
    with pytest.raises(ValueError, match="'eurosat' is the folder of EuroSAT; give toys one of"):
        download(theirs, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("path", ["..", "%2e%2e", "..%2Fx", ".hidden", "a%00b", "", "a%0Ab"])
def test_a_name_that_an_address_ends_in_is_a_plain_one_too(path):
    (archive,) = manifest({"url": f"https://a.example/d/{path}"}).archives
    assert archive.file_name in ("x", "d", "download")


@pytest.mark.parametrize("url", ["http://[", "https://a.example/\x1b[2J", "http://a\n.example"])
def test_an_address_is_one(url):
    with pytest.raises(ValueError, match="is no address"):
        manifest({"url": url})


def test_two_files_of_a_set_never_share_a_name():
    """The second would be taken for the first, which is there."""
    with pytest.raises(ValueError, match=r"archives 0 and 1 are both kept as 'x\.tar'; give one"):
        manifest({"url": "https://a.example/x.tar"}, {"url": "https://b.example/x.tar"})
    with pytest.raises(ValueError, match=r"mirror_of: 5, but there are 1 archives"):
        manifest({"url": "https://a.example/x.tar", "mirror_of": 5})


@pytest.mark.parametrize("vouched", [True, False])
def test_what_is_checked_is_never_replaced_by_what_is_not(server, tmp_path, vouched):
    evil = server.files["/x.tar"] = server.files["/y.tar"] = packed(images__a_dot_jpg=b"evil")
    checked = {"sha256": "0" * 64} if vouched else {}
    toys = manifest(
        {"url": f"{server.url}/gone.tar", **checked},
        {"url": f"{server.url}/y.tar", "mirror_of": 0},  # another name: another form of the set
    )
    if not vouched:  # where nothing is checked, it is said
        said: list[str] = []
        download(toys, tmp_path, said.append, settings=QUICK)
        assert any("no checksum for it" in line for line in said)
        return
    with pytest.raises(DownloadError, match=rf"404 Not Found; by hand: {server.url}/y\.tar"):
        download(toys, tmp_path, settings=QUICK)
    assert [path for path, *_ in server.asked] == ["/gone.tar"]
    same = manifest(
        {"url": f"{server.url}/no/x.tar", **checked}, {"url": f"{server.url}/x.tar", "mirror_of": 0}
    )
    with pytest.raises(DownloadError, match="wrong checksum"):
        download(same, tmp_path, settings=QUICK)
    good = {"sha256": hashlib.sha256(evil).hexdigest()}
    same = manifest(
        {"url": f"{server.url}/no/x.tar", **good}, {"url": f"{server.url}/x.tar", "mirror_of": 0}
    )
    assert [a.sha256 for a in parts(same)[0].sources] == [good["sha256"]] * 2
    assert download(same, tmp_path, settings=QUICK) == []


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(server, tmp_path):
    server.files["/x.bin"], server.drip = bytes(10_000), 0.05
    slow, start = Settings(tries=1, wait=0, timeout=0.3), time.monotonic()
    with pytest.raises(DownloadError, match=r"x\.bin from .*: only \d+ bytes came in 1 s"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, print, slow)
    assert time.monotonic() - start < 60  # the whole answer would take 500 s
    endless = Settings(tries=9, wait=0, timeout=5, slowest=0, longest=0.3)
    with pytest.raises(DownloadError, match=r"took longer than 0.3 s; the same command goes on"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, print, endless)
    server.drip = 0.0
    assert fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None).read_bytes() == bytes(10_000)


def test_an_answer_without_a_length_does_not_fill_the_disk(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("blocklora_lib.data.obtain.resuming.shutil.disk_usage", lambda _: usage)
    server.files["/x.bin"], server.length = bytes(400_000), False
    with pytest.raises(DownloadError, match="has no stated length and would fill the disk"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, print, QUICK)


def test_what_a_server_says_of_itself_is_only_shown(server, tmp_path):
    server.reason = "\x1b]0;owned\x07\x1b[2J\x9b1m gone"
    with pytest.raises(DownloadError, match="404") as told:
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, print, QUICK)
    assert str(told.value).isprintable()
    assert r"\x1b]0;owned\x07" in str(told.value)


@pytest.mark.slow
def test_what_came_from_elsewhere_is_not_the_beginning_of_a_file(server, tmp_path):
    """A kill after NAME.part.json was written anew left another file's bytes to go on from."""
    server.files["/x.bin"], target = b"right" * 9, tmp_path / "x.bin"
    (tmp_path / "x.bin.part").write_bytes(b"wrong")
    dies = tmp_path / "x.bin.part.json"
    if not (child := os.fork()):
        from blocklora_lib.data.obtain.resuming import Resuming

        Resuming._write = lambda *_: os._exit(9)
        fetch(f"{server.url}/x.bin", target, None, print, QUICK)
    assert os.waitpid(child, 0)[1] >> 8 == 9
    assert dies.exists()
    assert fetch(f"{server.url}/x.bin", target, None, print, QUICK).read_bytes() == b"right" * 9


def test_a_part_that_is_a_link_is_not_written_through(server, tmp_path):
    server.files["/x.bin"], mine = b"theirs", tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "x.bin.part").symlink_to(mine)
    assert fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None).read_bytes() == b"theirs"
    assert mine.read_text() == "mine"


def answer(status: int = 200, body: bytes = b"", **headers: str) -> tuple:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Length": str(len(body))} | said, body


@pytest.mark.parametrize("known", [True, False])
def test_a_part_that_is_sent_for_the_whole_is_not_taken_for_it(server, tmp_path, known):
    """A server may send less than was asked for: what Content-Range says of the whole counts."""
    whole, url = b"0123456789", f"{server.url}/x.bin"
    one = dict(ETag='"one"')
    server.given["/x.bin"] = [
        answer(206, b"0123", Content_Range="bytes 0-3/10", **one),
        answer(206, b"45", Content_Range="bytes 4-5/10", **one),
        answer(206, b"6789", Content_Range="bytes 6-9/10", **one),
    ]
    checksum = f"sha256:{hashlib.sha256(whole).hexdigest()}" if known else None
    fetch(url, tmp_path / "x.bin", checksum, lambda _: None, QUICK)
    assert (tmp_path / "x.bin").read_bytes() == whole
    assert [wanted for _, wanted, _ in server.asked] == [None, "bytes=4-", "bytes=6-"]


@pytest.mark.parametrize("status", [201, 202, 203, 204, 226, 300, 304, 305])
def test_an_answer_that_is_no_file_is_none(server, tmp_path, status):
    server.given["/x.bin"] = [answer(status, b"" if status in (204, 304) else b"what?")]
    with pytest.raises(DownloadError, match=rf"answers {status} .*instead of x\.bin"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, print, QUICK)
    assert not (tmp_path / "x.bin").exists()


def test_what_comes_packed_is_no_file_of_its_name(server, tmp_path):
    import gzip

    sent = gzip.compress(b"{}")
    server.given = {
        f"/{name}": [answer(200, sent, Content_Encoding="gzip")] for name in ("x.json", "x.tar.gz")
    }
    with pytest.raises(DownloadError, match=r"sends x\.json packed \(gzip\), which was not asked"):
        fetch(f"{server.url}/x.json", tmp_path / "x.json", None, print, QUICK)
    file = fetch(f"{server.url}/x.tar.gz", tmp_path / "x.tar.gz", None, print, QUICK)
    assert file.read_bytes() == sent  # packed itself, which some servers tell so


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://a.example/x", "data:,x", "//[", ""])
def test_a_redirect_leads_to_no_other_kind_of_address(server, tmp_path, to):
    server.given["/x.bin"] = [answer(302, Location=to)] * 9
    with pytest.raises(DownloadError, match=r"x\.bin"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, lambda _: None, QUICK)
    assert not (tmp_path / "x.bin").exists()


def test_no_step_of_a_way_is_open_where_nothing_is_checked(tmp_path, monkeypatch):
    """https, http, https: whoever sits at the middle one chooses the last."""
    import requests

    def get(url, **_):
        last, middle = requests.Response(), requests.Response()
        middle.url, last.url, last.status_code = "http://m.example/x", "https://c.example/x", 200
        last.history, last.raw = [middle], io.BytesIO(b"theirs")
        return last

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(
        DownloadError, match=r"leads to http://m\.example/x, which is not encrypted"
    ):
        fetch("https://a.example/x.bin", tmp_path / "x.bin", None, print, QUICK)


@pytest.mark.parametrize("length", ["-5", "1e9", "99999999999999999999", "x", "0x10", "٣"])
def test_a_length_that_is_none_is_not_believed(server, tmp_path, length):
    value = length.encode().decode("latin-1")
    server.given["/x.bin"] = [(200, {"Content-Length": value, "Connection": "close"}, b"body")] * 9
    for _ in range(2):
        try:
            fetch(f"{server.url}/x.bin", tmp_path / "x.bin", None, lambda _: None, QUICK)
        except DownloadError as error:
            said = str(error)
            continue
        said = "x.bin is there"
        assert (tmp_path / "x.bin").read_bytes() == b"body"
    assert "x.bin" in said


# two at once


def test_of_two_downloads_at_once_one_waits_and_every_file_is_there(server, tmp_path):
    server.files["/a.tgz"] = packed(**IMAGES)
    toys, said, errors = manifest({"url": f"{server.url}/a.tgz"}), [], []

    def run():
        try:
            assert download(toys, tmp_path, said.append, settings=QUICK) == []
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert len(server.asked) == 1
    assert len(list((tmp_path / "toys/images").iterdir())) == 60
    note = json.loads((tmp_path / DOWNLOADS / "toys/a.tgz.done").read_text())
    assert note["files"] == 60
    assert stands(tmp_path) - {f"toys/images/{i}.jpg" for i in range(60)} == {
        f"{DOWNLOADS}/toys/a.tgz.done"
    }


STEPS = {  # where a process is killed: what is called there, and how often before
    "fetched": ("install", 0),
    "unpacked": ("_place", 0),
    "noted": ("_move", 0),
    "half moved": ("os.rename", 1),
    "moved": ("check_count", 0),
    "done": ("shutil.rmtree", 0),
    "archive deleted": ("remove", 0),
}


@pytest.mark.parametrize("step", STEPS)
def test_whoever_comes_after_a_killed_download_takes_over(server, tmp_path, step, monkeypatch):
    server.files["/a.tgz"] = packed(**IMAGES, labels_dot_txt=b"l", x__y__z=b"z")
    toys = manifest({"url": f"{server.url}/a.tgz"})
    name, before = STEPS[step]
    if not (child := os.fork()):
        left = [before]

        def dying(real):
            def die(*args, **kwargs):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(*args, **kwargs)

            return die

        holder = {"os.rename": placing.Path, "shutil.rmtree": placing.shutil}.get(name, placing)
        last = name.rpartition(".")[2]
        setattr(holder, last, dying(getattr(holder, last)))
        if name == "install":
            from blocklora_lib.data.obtain import download as module

            module.install = dying(module.install)
        download(toys, tmp_path, lambda _: None, settings=QUICK)
        os._exit(0)
    assert os.waitpid(child, 0)[1] >> 8 == 9
    assert download(toys, tmp_path, settings=QUICK) == []
    whole = {f"images/{i}.jpg" for i in range(60)} | {"labels.txt", "x/y/z"}
    assert stands(tmp_path / "toys") == whole
    assert stands(tmp_path / DOWNLOADS) == {"toys/a.tgz.done"}
    assert not [p for p in (tmp_path / "toys").iterdir() if p.name.startswith(".")]
    assert len(server.asked) == 1


def test_files_that_went_are_told_by_their_number(server, tmp_path):
    server.files["/a.tgz"] = packed(**IMAGES)
    toys = manifest({"url": f"{server.url}/a.tgz"})
    download(toys, tmp_path, settings=QUICK)
    for i in range(36):
        (tmp_path / f"toys/images/{i}.jpg").unlink()
    with pytest.raises(ValueError, match=r"24 of the 60 files that a\.tgz brought; move images"):
        download(toys, tmp_path, settings=QUICK)


def test_files_that_go_while_they_are_placed_are_no_success(server, tmp_path, monkeypatch):
    server.files["/a.tgz"] = packed(**IMAGES)
    real = placing._move

    def losing(content, target, names):
        real(content, target, names)
        (target / "images" / "7.jpg").unlink()

    monkeypatch.setattr(placing, "_move", losing)
    with pytest.raises(ValueError, match="has 59 of the 60 files"):
        download(manifest({"url": f"{server.url}/a.tgz"}), tmp_path, settings=QUICK)
    assert not list((tmp_path / DOWNLOADS / "toys").glob("*.done"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_no_hindrance(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    with locked(tmp_path / "lock", said.append) as held:
        assert not held
    assert "has no locks" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process_and_is_no_link(tmp_path):
    path = tmp_path / "lock"
    if not (child := os.fork()):
        with locked(path, print):
            os._exit(9)
    os.waitpid(child, 0)
    assert path.exists()  # stale: nobody holds it
    said: list[str] = []
    with locked(path, said.append) as held:
        assert held
        assert not said
    assert not path.exists()
    (tmp_path / "mine").write_text("mine")
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="lock"), locked(path, print):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
