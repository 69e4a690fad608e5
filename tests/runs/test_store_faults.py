"""Faults of disks, servers and hands under the run store: each is a sentence, nothing is lost, the
next start goes on.
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from engine_runs import PROFILE, record, runs, snakemake
from one_run import make_record, make_spec
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.cli.exits import exit_code, sentence
from blocklora_lib.core import files
from blocklora_lib.core.files import read_text, remove, write_whole
from blocklora_lib.core.paths import MANIFESTS
from blocklora_lib.data.manifest_files import manifest_names
from blocklora_lib.runs.code_digest import PACKAGE, code_digest
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.standing import stands
from blocklora_lib.runs.store import DamagedRecord, RunStore
from blocklora_lib.suite.catalogue import drop_damaged_indexes
from blocklora_lib.suite.engine import drop_stale_indexes, only_one
from blocklora_lib.suite.monitor import Monitor

PASSING = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ETIMEDOUT]
CODES = dict.fromkeys(PASSING, 75) | {errno.EACCES: 2, errno.EPERM: 2}
named = pytest.mark.parametrize("number", CODES, ids=errno.errorcode.get)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def fail(monkeypatch, module, name, number, path):
    """Let a function of the operating system fail for one path."""
    real = getattr(module, name)

    def failing(given, *args, **kwargs):
        if isinstance(given, str | os.PathLike) and os.fspath(given) == str(path):
            raise OSError(number, os.strerror(number), os.fspath(given))
        return real(given, *args, **kwargs)

    monkeypatch.setattr(module, name, failing)


# writing

STEPS = {
    "before": "tempfile.mkstemp = die",
    "opened": "os.close = die",
    "half written": "Path.write_bytes = lambda path, content: "
    "(path.open('wb').write(content[:9]), die())",
    "written": "Path.chmod = die",
    "unsynced": "os.fsync = die",
    "synced": "os.replace = die",
    "renamed": "os.replace = lambda a, b, real=os.replace: (real(a, b), die())",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_the_old_record_or_the_new_one(store, step):
    path = store.save(make_record(correct=3))
    new = make_record(correct=8).to_json()
    code = (
        "import os, signal, sys, tempfile\nfrom pathlib import Path\nfrom blocklora_lib.core.files "
        "import write_whole\ndie = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{STEPS[step]}\nwrite_whole(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), new], check=False)
    assert done.returncode == -signal.SIGKILL
    assert store.load(make_spec()) == make_record(correct=8 if step == "renamed" else 3)
    assert len(store.records()) == 1  # what the killed writer left is no record
    store.save(make_record(correct=8))
    assert store.load(make_spec()) == make_record(correct=8)


@pytest.mark.parametrize("place", ["mkstemp", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_fails_while_a_record_is_written_keeps_the_old_one(
    store, monkeypatch, place, number
):
    path = store.save(make_record(correct=3))

    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile if place == "mkstemp" else os, place, failing)
        with pytest.raises(OSError, match=rf"{path.name} cannot be written \(") as caught:
            store.save(make_record(correct=8))
    assert exit_code(caught.value) == 75
    assert store.load(make_spec()) == make_record(correct=3)
    assert os.listdir(store.folder) == [path.name]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get
)
def test_a_folder_that_takes_nothing_is_said_before_training(store, monkeypatch, number):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", failing)
    with pytest.raises(OSError, match=r"runs cannot be written \(.*--results") as caught:
        store.check_writable()
    assert exit_code(caught.value) == (75 if number == errno.ENOSPC else 2)


def test_a_process_of_the_same_number_on_another_machine_is_no_fault(store):
    """The probe was named by the process alone: one machine took away what another had made."""
    (store.folder / f".writable-{os.getpid()}").mkdir(parents=True)
    store.check_writable()
    assert len(list(store.folder.iterdir())) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/null")])
def test_what_is_no_file_is_not_written_over(tmp_path, make):
    """A file was renamed over /dev/null itself by whoever might do that."""
    path = tmp_path / "index.json"
    make(path)
    before = os.stat(path)
    with pytest.raises(OSError, match=r"index\.json is no regular file and is not written over"):
        write_whole(path, "x")
    assert (os.stat(path).st_mode, os.stat(path).st_rdev) == (before.st_mode, before.st_rdev)
    assert list(tmp_path.iterdir()) == [path]


# reading


@named
@pytest.mark.parametrize("where", ["lstat", "open"])
def test_a_record_that_cannot_be_read_now_is_neither_missing_nor_damaged(
    store, monkeypatch, number, where
):
    path = store.save(make_record())
    fail(monkeypatch, os, where, number, path)
    readers = [lambda: store.load(make_spec())]
    readers += [store.read, lambda: stands(path)] if where == "open" else []
    for read in readers:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            read()
        assert not isinstance(caught.value, DamagedRecord)
        assert exit_code(caught.value) == CODES[number]
        assert str(path) in sentence(caught.value)
    monkeypatch.undo()
    assert store.load(make_spec()) == make_record()


def test_a_disk_that_fails_in_the_middle_of_a_file_names_it(store, monkeypatch):
    path, real = store.save(make_record()), builtins.open

    def opened(descriptor, mode, **how):
        file = real(descriptor, mode, **how)

        class Failing:
            fileno, close = file.fileno, file.close

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def read(self, size):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        return Failing()

    monkeypatch.setattr(files, "open", opened, raising=False)
    with pytest.raises(OSError, match=path.name) as caught:
        store.load(make_spec())
    assert exit_code(caught.value) == 75
    assert "the same command goes on" in sentence(caught.value)


@named
def test_the_line_ends_with_a_sentence_and_the_code_of_whose_fault_it_is(
    tmp_path, monkeypatch, number
):
    store = RunStore(tmp_path / "runs")
    path = store.path(expand(load_profile(PROFILE), "few_shot", "chess")[0])
    fail(monkeypatch, os, "lstat", number, path)
    done = CliRunner().invoke(app, ["grid", "-P", PROFILE, "--list", "--results", str(tmp_path)])
    assert done.exit_code == CODES[number]
    assert done.stderr.startswith(f"error: {path}: {os.strerror(number)}; ")
    assert done.stderr.count("\n") == 1
    assert "missing" not in done.stdout


def test_two_records_renamed_into_each_other_are_both_named_and_kept(store):
    specs = [make_spec(seed=seed) for seed in (1, 2)]
    first, second = (store.save(make_record(spec)) for spec in specs)
    texts = first.read_text(), second.read_text()
    os.rename(first, store.folder / "other")
    os.rename(second, first)
    os.rename(store.folder / "other", second)
    for spec, path in zip(specs, (first, second), strict=True):
        assert not stands(path)
        with pytest.raises(DamagedRecord, match="the file's name is not its key"):
            store.load(spec)
    kept = [store.set_aside(spec).read_text() for spec in specs]
    assert kept == [texts[1], texts[0]]
    assert store.records() == []


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text(""), os.mkfifo, lambda p: p.symlink_to("gone")]
)
def test_a_record_that_cannot_be_set_aside_stays_where_it_is(store, make):
    path = store.save(make_record())
    path.write_text("{")
    make(store.folder / "damaged")
    with pytest.raises(
        OSError, match=rf"{path.name} is damaged and cannot be moved to .*; move it away"
    ):
        store.set_aside(make_spec())
    assert path.read_text() == "{"


# what the engine looks at


@named
def test_an_index_is_not_dropped_because_a_record_cannot_be_read_now(tmp_path, monkeypatch, number):
    (tmp_path / "runs").mkdir()
    path, index = tmp_path / "runs" / "aa.json", tmp_path / "chess-lora.json"
    path.write_text(record("aa"))
    index.write_text('{"keys": ["aa"]}')
    for unreadable in (path, index):
        with monkeypatch.context() as patch:
            fail(patch, os, "open", number, unreadable)
            with pytest.raises(OSError, match=os.strerror(number)):
                drop_stale_indexes(tmp_path, {str(index): runs("aa")})
    assert index.is_file()
    assert drop_stale_indexes(tmp_path, {str(index): runs("aa")}) == []


@named
def test_a_notebooks_copy_is_not_dropped_because_its_index_cannot_be_read_now(
    tmp_path, monkeypatch, number
):
    (tmp_path / "notebooks").mkdir()
    for name in ("01_method.json", "01_method.ipynb"):
        (tmp_path / "notebooks" / name).write_text("{")
    index = tmp_path / "notebooks" / "01_method.json"
    with monkeypatch.context() as patch:
        fail(patch, os, "open", number, index)
        with pytest.raises(OSError, match=os.strerror(number)):
            drop_damaged_indexes(tmp_path)
    assert len(os.listdir(tmp_path / "notebooks")) == 2
    assert drop_damaged_indexes(tmp_path) == [index]
    assert os.listdir(tmp_path / "notebooks") == []


def test_an_empty_folder_in_an_indexs_place_goes_and_a_full_one_is_named(tmp_path):
    index = tmp_path / "chess-lora.json"
    index.mkdir()
    assert drop_stale_indexes(tmp_path, {str(index): runs("aa")}) == [index]
    assert not index.exists()
    index.mkdir()
    (index / "mine.txt").write_text("kept")
    with pytest.raises(OSError, match=r"chess-lora\.json is a folder \(.*move it away") as caught:
        drop_stale_indexes(tmp_path, {str(index): runs("aa")})
    assert exit_code(caught.value) == 2
    assert read_text(index / "mine.txt") == "kept"
    remove(tmp_path / "gone")  # no fault
    (tmp_path / "link").symlink_to(index)
    remove(tmp_path / "link")  # the link, not where it leads
    assert (index / "mine.txt").is_file()


@pytest.mark.slow
def test_the_engine_ends_with_a_sentence_and_an_exit_code(tmp_path):
    index = tmp_path / "results" / PROFILE / "grid" / "few_shot" / "chess-lora.json"
    (index / "mine").mkdir(parents=True)
    done = snakemake(tmp_path, "--dry-run", notebooks="08_few_shot")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {index.relative_to(tmp_path)} is a folder")
    assert done.stderr.count("\n") == 1


def test_only_files_count_as_runs(tmp_path):
    keys = [f"k{i}" for i in range(7)]
    monitor = Monitor(tmp_path / "runs", keys)
    assert monitor.count() == 0
    (tmp_path / "runs").mkdir()
    places = [tmp_path / "runs" / f"{key}.json" for key in keys]
    os.mkfifo(places[0])
    places[1].mkdir()
    places[2].symlink_to("gone")
    places[3].symlink_to("/dev/zero")
    (tmp_path / "runs" / "k4.txt").write_text("")
    (tmp_path / "runs" / ".k5.json").write_text("")
    places[6].write_text(record("k6"))
    assert monitor.count() == 1


@pytest.mark.parametrize("number", [*CODES, errno.ENOTDIR], ids=errno.errorcode.get)
def test_a_folder_that_is_away_for_a_moment_does_not_end_the_count(tmp_path, monkeypatch, number):
    monitor = Monitor(tmp_path, ["k0", "k1"])
    (tmp_path / "k0.json").write_text(record("k0"))
    (tmp_path / "k1.json").write_text(record("k1"))
    fail(monkeypatch, os, "open", number, tmp_path / "k1.json")
    monitor.start()
    assert monitor.at_start == 1
    fail(monkeypatch, os, "scandir", number, tmp_path)
    assert monitor.count() == 1
    monitor.stop()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    """It was cut to nothing, wherever it led."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"results folder .* cannot be written \("):
        only_one(tmp_path)
    assert read_text(tmp_path / "mine") == "mine"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_a_sentence(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"results folder .* cannot be written \("):
        only_one(tmp_path)


def test_what_editors_and_killed_writers_leave_is_neither_code_nor_a_set(tmp_path):
    package = shutil.copytree(
        PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = code_digest("adapters", package)
    (package / "methods" / ".ipynb_checkpoints").mkdir()
    (package / "methods" / ".ipynb_checkpoints" / "lora-checkpoint.py").write_text("SCALE = 2\n")
    (package / ".#experiment.py").symlink_to("someone@somewhere.1234")
    code_digest.cache_clear()
    assert code_digest("adapters", package) == before
    for name in ("chess.yaml", ".chess.yaml.x1.tmp.yaml"):
        (tmp_path / name).write_bytes((MANIFESTS / "chess.yaml").read_bytes())
    assert manifest_names(tmp_path) == ("chess",)
