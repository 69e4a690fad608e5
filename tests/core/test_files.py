"""Files are named, read and written in one way: whole or not at all, bounded, UTF-8."""

import errno
import io
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.core import files
from blocklora_lib.core.files import (
    printable,
    read_bytes,
    read_text,
    regular_file,
    user_path,
    whole_file,
    write_whole,
)


def test_a_home_folder_is_expanded_and_a_relative_path_is_of_the_working_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/results") == tmp_path / "home" / "results"
    assert user_path("results/../mine") == tmp_path / "mine"
    assert user_path(tmp_path / "a b") == tmp_path / "a b"
    assert user_path("./~mine") == tmp_path / "~mine"
    assert user_path("a/~b") == tmp_path / "a" / "~b"


def test_above_a_link_is_what_holds_the_folder_that_it_leads_to(tmp_path, monkeypatch):
    """As for `ls`: results and images were looked for beside the link."""
    (tmp_path / "disk/pets").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/pets")
    monkeypatch.chdir(tmp_path)
    assert user_path("link/../cars") == tmp_path / "disk/cars"
    assert user_path("link") == tmp_path / "link"


def test_an_error_of_the_disk_in_reading_names_the_file(tmp_path):
    path = write_whole(tmp_path / "photo.png", "")
    with pytest.raises(OSError, match=r"photo\.png") as error, regular_file(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert error.value.errno == errno.EIO
    with pytest.raises(OSError, match=r"^no image$"), regular_file(path):
        raise OSError("no image")


def test_a_working_folder_that_is_gone_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert user_path(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="'results' is relative to the working folder, which is"):
        user_path("results")


@pytest.mark.parametrize(
    "name", ["", "a\0b", "~nobody-of-this-name/x", "file:///etc", "s3://bucket/x"]
)
def test_what_is_no_path_is_refused_in_a_sentence(name):
    with pytest.raises(ValueError, match=r"no path|not known here|is an address"):
        user_path(name)


def test_a_file_is_read_whole_where_the_system_gives_a_part_at_a_time(tmp_path, monkeypatch):
    """Linux gives at most 2 GiB: kept features beyond were 'damaged', and encoded for each run."""

    class Parts(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    write_whole(tmp_path / "a", "0123456789")
    monkeypatch.setattr(files, "open", lambda place, *_, **__: Parts(place), raising=False)
    assert read_bytes(tmp_path / "a") == b"0123456789"


def test_a_written_file_is_whole_readable_by_others_and_alone(tmp_path):
    path = write_whole(tmp_path / "a.json", "é\n")
    assert path.read_bytes() == "é\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_whole(tmp_path / "a.csv", "old")

    def write_half():
        with whole_file(path) as temporary:
            temporary.write_text("new, but not all of it")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_name_never_collide(tmp_path):
    path, errors = tmp_path / "index.json", []

    def write(number):
        try:
            for _ in range(50):
                write_whole(path, str(number) * 1000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert len(set(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(OSError, match=r"regular file|[Dd]irectory"):
            read_bytes(tmp_path / name)


def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path):
    path = write_whole(tmp_path / "big", b"x" * 11)
    assert read_bytes(path, limit=11) == b"x" * 11
    with pytest.raises(OSError, match=r"11 bytes.*at most 10"):
        read_bytes(path, limit=10)


def test_text_is_utf8_whatever_the_locale_and_anything_else_is_named_by_line(tmp_path):
    path = write_whole(tmp_path / "list.txt", "\ufeffeins\nzwei é\n")
    assert read_text(path) == "eins\nzwei é\n"
    latin = Path(write_whole(tmp_path / "latin.txt", "eins\nzwei é\n".encode("latin-1")))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0xe9 in line 2"):
        read_text(latin)


@pytest.mark.slow
@given(st.text(min_size=1, max_size=40))
def test_a_path_is_absolute_and_means_the_same_when_it_is_read_again(name):
    try:
        path = user_path(name)
    except ValueError:
        return
    assert path.is_absolute()
    assert user_path(path) == path


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.json", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.json cannot be written \(No space left on device\)"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_said_with_the_files_own_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone/a\.json cannot be written"):
        write_whole(tmp_path / "gone" / "a.json", "x")


def test_a_link_stays_a_link_and_a_long_name_is_written(tmp_path):
    real = write_whole(tmp_path / "real.txt", "old")
    (tmp_path / "link.txt").symlink_to(real)
    write_whole(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert real.read_text() == "new"
    assert write_whole(tmp_path / ("é" * 125 + ".json"), "x").read_text() == "x"


def test_a_temporary_name_is_never_one_that_is_there(tmp_path, monkeypatch):
    """A link that someone put under the name was followed, and what it led to written over."""
    mine = Path(write_whole(tmp_path / "mine", "mine"))
    real, made = os.open, []

    def planting(path, flags, *rest, **more):
        if len(made) < 3:  # whatever name was drawn, a link is there first
            made.append(path)
            os.symlink(mine, path)
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", planting)
        write_whole(tmp_path / "report.html", "new")
    assert len(made) == 3
    assert mine.read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "new"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é ∑ 🙂", "plain é ∑ 🙂"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\nb\r\u2028", r"a\x0ab\x0d\u2028"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\udcff\ud800", r"\xff\ud800"),
    ],
)
def test_what_others_wrote_is_only_shown(text, shown):
    assert printable(text) == shown
