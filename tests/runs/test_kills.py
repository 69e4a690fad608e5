"""Processes that are killed at random moments: no record is lost, doubled or changed by it.

A child trains the runs of a tiny profile, writes their index and packs their records; it is killed
after a random time, and another goes on. Whatever is killed when, a record that was there stays the
same to the byte, and what is there in the end is what an undisturbed process made.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import open_clip
import pytest
from one_run import make_record
from one_run import make_spec as made_up_spec

from blocklora_lib.core.files import sweep
from blocklora_lib.runs.execute import MachineFailure, run_grid, run_or_load
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.spec import RunSpec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.suite.engine import drop_stale_indexes, write_index

FEW, ALL = 10, 1000


def child(work: Callable[[], object]) -> int:
    """Start a process that does this; return its number."""
    if (number := os.fork()) == 0:
        code = 70
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever else this process was about to do is its parent's
    return number


def ended(number: int) -> int:
    """Return how a child ended: its exit code, or minus the signal that it was killed by."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[0-9a-f]*.json")}


def work(folder: Path, specs: list[RunSpec], bench: Workbench, seed: int) -> None:
    """What a process of the grid does, in an order of its own: runs, their index, one Parquet."""
    mixed = random.Random(seed).sample(specs, len(specs))
    store = RunStore(folder / "runs")
    assert len(list(run_grid(mixed, store, bench))) == len(specs)
    write_index(folder / "grid" / "all.json", "few_shot", None, None, specs)
    store.pack(folder / "packed.parquet")


def disturb(kills: int, specs: list[RunSpec], manifests: Path, folder: Path) -> int:
    """Kill so many processes in turn; return how many stores became whole on the way.

    What an undisturbed process makes, this one makes: the children have all that it loaded, so that
    of their time little goes before there is something to disturb.
    """
    bench = Workbench("cpu", manifests)
    for place in ("loading", "undisturbed"):
        start = time.monotonic()
        work(folder / place, specs, bench, 0)
    span = (time.monotonic() - start) / 2  # so that most are killed at what they came for
    store = RunStore(folder / "undisturbed" / "runs")
    results: dict[str, object] = {record.key: record.result for record in store.records()}
    chance, stores, killed = random.Random(0), 0, 0
    while killed < kills:
        place = folder / f"store-{stores}"
        stores += 1
        seen: dict[str, bytes] = {}
        while True:
            stops = killed < kills
            number = child(partial(work, place, specs, bench, killed))
            if stops:
                time.sleep(chance.random() * span)
                os.kill(number, signal.SIGKILL)
            code = ended(number)
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
            now = contents(place / "runs") if (place / "runs").is_dir() else {}
            assert {name: now.get(name) for name in seen} == seen  # none lost, none changed
            records = RunStore(place / "runs").records()  # none damaged
            assert {r.key: r.result for r in records}.items() <= results.items()
            seen = now
            for path in (place / "packed.parquet", place / "grid" / "all.json"):
                if path.exists():  # whole or not there
                    check_whole(path, results)
            if code == 0:
                break
        assert {name.removesuffix(".json") for name in seen} == set(results)
        index = {str(place / "grid" / "all.json"): specs}
        assert drop_stale_indexes(place, index) == []
        sweep(place, older=-1)
        left = {path.name for path in place.rglob("*") if path.is_file()} - seen.keys()
        assert {name for name in left if not name.endswith(".lock")} == {
            "all.json",
            "packed.parquet",
        }
    return stores


def check_whole(path: Path, results: dict[str, object]) -> None:
    if path.suffix == ".json":
        assert set(json.loads(path.read_text())["keys"]) == set(results)
        return
    assert {r.key: r.result for r in RunStore(path).records()} == results


@pytest.fixture
def specs(tiny_profile, manifests):
    """Six runs that take hundredths of a second each."""
    found = expand(tiny_profile, "few_shot", "dots", manifests=manifests)
    return [spec for spec in found if spec.method.name in ("zero_shot", "lora")][:6]


@pytest.fixture
def disturbed(specs, manifests, tmp_path, tiny_config):
    """`disturb` in a process of its own: no fork survives the threads that autograd has for a GPU,
    and tests on stand-ins for one leave them in this process.
    """
    fresh = get_context("spawn")
    known = dict(initializer=open_clip.add_model_config, initargs=(tiny_config,))
    with ProcessPoolExecutor(1, fresh, **known) as pool:
        yield lambda kills: pool.submit(disturb, kills, specs, manifests, tmp_path).result()


@pytest.mark.slow
def test_ten_kills_at_random_moments(disturbed):
    assert disturbed(FEW) >= 1


@pytest.mark.faults
def test_a_thousand_kills_at_random_moments(disturbed):
    assert disturbed(ALL) > 10


# a kill at every step of a run

STEPS = ("check_writable", "execute", "check_unchanged", "save", "saved")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_of_a_run_loses_that_run_alone(step, specs, manifests, tmp_path):
    from blocklora_lib.runs import execute as module

    store, before = RunStore(tmp_path / "runs"), specs[0]
    whole = store.save(make_record())  # of another run, finished long ago
    text = whole.read_text()

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def dying() -> None:
        if step == "execute":
            module.execute_alike = die
        elif step == "check_unchanged":
            Workbench.check_unchanged = die
        elif step == "saved":
            real = RunStore.save
            RunStore.save = lambda *given: (real(*given), die())
        else:
            setattr(RunStore, step, die)
        run_or_load(before, store, Workbench("cpu", manifests))

    assert ended(child(dying)) == -signal.SIGKILL
    assert whole.read_text() == text
    assert (store.load(before) is not None) == (step == "saved")
    assert ended(child(lambda: run_or_load(before, store, Workbench("cpu", manifests)))) == 0
    assert store.load(before).status == "done"
    assert len(store.records()) == 2


# what a machine refuses


def test_a_limit_of_a_files_size_is_noticed_before_training(tmp_path):
    """RLIMIT_FSIZE, as batch systems set it: a record is larger than what the probe of 4 kB was."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(OSError, match=r"results folder .*runs cannot be written \(File too"):
            RunStore(tmp_path / "runs").check_writable()

    assert ended(child(limited)) == 0
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_record_that_a_limit_cuts_leaves_the_old_one(tmp_path):
    store = RunStore(tmp_path / "runs")
    path = store.save(make_record(correct=3))
    text = path.read_text()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match=r"\.json cannot be written \(File too large\)"):
            store.save(make_record(correct=8))

    assert ended(child(limited)) == 0
    assert path.read_text() == text
    assert list(store.folder.iterdir()) == [path]


@pytest.mark.slow
def test_a_run_without_file_descriptors_is_the_machines_failure(specs, manifests, tmp_path):
    store = RunStore(tmp_path / "runs")

    def starved() -> None:
        bench = Workbench("cpu", manifests)
        bench.check(specs[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        with pytest.raises((MachineFailure, OSError), match="Too many open files"):
            run_or_load(specs[0], store, bench)

    assert ended(child(starved)) == 0
    assert not store.folder.is_dir() or list(store.folder.iterdir()) == []
    assert ended(child(lambda: run_or_load(specs[0], store, Workbench("cpu", manifests)))) == 0
    assert store.load(specs[0]).status == "done"


@pytest.mark.slow
def test_two_processes_of_one_number_do_not_meet(tmp_path):
    """Containers count their processes from 1, and a folder may be shared by several."""
    stores = [RunStore(tmp_path / "runs") for _ in range(2)]

    def same() -> None:
        os.getpid = lambda: 1
        for seed in range(30):
            spec = made_up_spec(seed=seed)
            stores[0].check_writable()
            stores[0].save(make_record(spec))

    assert [ended(number) for number in [child(same), child(same)]] == [0, 0]
    assert len(stores[0].records()) == 30
    assert len(list(stores[0].folder.iterdir())) == 30


@pytest.mark.slow
@pytest.mark.parametrize("jump", [-10 * 86_400, 10 * 86_400])
def test_a_clock_that_jumps_changes_no_result(specs, manifests, tmp_path, jump):
    def jumping(seconds: float) -> Callable[[], object]:
        def work() -> None:
            real, start = time.time, time.time()
            time.time = lambda: real() + (seconds if real() - start > 0.01 else 0)
            run_or_load(
                specs[1], RunStore(tmp_path / f"{seconds:.0f}"), Workbench("cpu", manifests)
            )

        return work

    records = []
    for seconds in (0, jump):
        assert ended(child(jumping(seconds))) == 0
        records += RunStore(tmp_path / f"{seconds:.0f}").records()
    assert records[0].result == records[1].result
    assert all(0 <= s < 1000 for record in records for s in record.cost.seconds.values())


@pytest.mark.slow
def test_a_folder_in_a_records_place_is_set_aside(specs, manifests, tmp_path):
    store = RunStore(tmp_path / "runs")
    (store.path(specs[0]) / "mine").mkdir(parents=True)
    assert ended(child(lambda: run_or_load(specs[0], store, Workbench("cpu", manifests)))) == 0
    assert store.load(specs[0]).status == "done"
    assert (store.folder / "damaged" / f"{specs[0].key}.json" / "mine").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root alone")
def test_a_full_disk_is_noticed_before_training(specs, manifests, tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        store = RunStore(disk / "runs")

        def full() -> None:
            from blocklora_lib.runs import execute as module

            module.execute_alike = lambda *_: os._exit(9)  # training
            with pytest.raises(OSError, match=rf"{store.folder} cannot be written \(No space"):
                run_or_load(specs[0], store, Workbench("cpu", manifests))

        assert ended(child(full)) == 0
        assert list(store.folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_notebook_that_is_killed_leaves_the_copy_that_was_there(tmp_path):
    """papermill writes after each cell: half of a copy never stands under its name."""
    import papermill
    from nbformat.v4 import new_notebook

    from blocklora_lib.suite.execution import run_notebook

    copy = tmp_path / "notebooks" / "01_method.ipynb"

    def run(die: bool) -> None:
        def execute(source: Path, running: Path, **_: object) -> object:
            running.write_text("half")
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            running.write_text("whole")
            return new_notebook()

        papermill.execute_notebook = execute
        run_notebook("01_method", "smoke", results=tmp_path, verbose=False)

    assert ended(child(partial(run, True))) == -signal.SIGKILL
    assert not copy.exists()
    assert ended(child(partial(run, False))) == 0
    assert ended(child(partial(run, True))) == -signal.SIGKILL
    assert copy.read_text() == "whole"
    assert [path.name for path in (tmp_path / "notebooks").glob("[!.]*")] == [copy.name]
