"""The shipped Slurm profile on a real Slurm of one node: what is killed, requeued or left alone by
a dead engine ends in the records of a run on this machine.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
from slurm_node import NoSlurm, slurm_node
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.core.paths import PROFILES, ROOT
from blocklora_lib.runs.store import RunStore

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
METHODS = ("zero_shot", "lora", "block_lora", "frozen_a")
# what trains nothing is one job for all sets
NAMES = {method: f"{'all' if method == 'zero_shot' else 'chess'}-{method}" for method in METHODS}
PROFILE = f"""\
extends: {PROFILES}/smoke.yaml
name: mine
description: a few runs, one job a method
device: cpu
experiments: {{few_shot: {{datasets: [chess], methods: [{", ".join(METHODS)}]}}}}
"""
# what a user edits, and shorter waits
EDITS = {
    "slurm_partition: gpu": "slurm_partition: debug",
    "checks: 10": "checks: 1",
    "latency-wait: 60": "latency-wait: 20",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a Slurm."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    try:
        with slurm_node(tmp_path_factory.mktemp("slurm")) as environment:
            yield environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    except NoSlurm as error:
        pytest.skip(f"no Slurm here: {error}")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The records of the same runs, made in this process."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "mine.yaml").write_text(PROFILE)
    words = ["grid", "--profile", str(folder / "mine.yaml"), "--results", str(folder / "results")]
    assert CliRunner().invoke(app, words).exit_code == 0
    return told(folder / "results" / "runs")


@pytest.fixture
def place(tmp_path, slurm):
    """A folder with the profiles, and an empty queue."""
    empty_queue(slurm, "scancel", "--user=root")
    text = (PROFILES / "slurm" / "config.yaml").read_text()
    for old, new in EDITS.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "config.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    return tmp_path


def told(runs):
    """What a store's records say of their specs."""
    return {r.key: (r.spec, r.status, r.result) for r in RunStore(runs).records()}


def engine(place, slurm, methods=METHODS):
    """README's command, for the groups of these methods, each with one of the two GPUs."""
    groups = [f"results/mine/grid/few_shot/{NAMES[method]}.json" for method in methods]
    words = ["-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(place)]
    words += ["--workflow-profile", "slurm", "--set-resources", "grid:gpu=1"]
    words += ["--config", "profile=mine.yaml", "notebooks=08_few_shot", "--", *groups]
    out = (place / "engine.log").open("a")
    return subprocess.Popen(
        [sys.executable, *words], env=slurm, cwd=place, stdout=out, stderr=subprocess.STDOUT
    )


def said(slurm, *words):
    return subprocess.run(words, env=slurm, capture_output=True, text=True, check=True).stdout


def empty_queue(slurm, *first):
    """Wait until no job is left."""
    if first:
        said(slurm, *first)
    deadline = time.monotonic() + 60
    while (jobs := said(slurm, "squeue", "-h")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert jobs == ""


def running(slurm, count, process, seconds=600):
    """Numbers of running jobs, once there are so many."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        jobs = said(slurm, "squeue", "-h", "-t", "R", "-o", "%i").split()
        if len(jobs) >= count:
            return jobs
        time.sleep(0.2)
    raise AssertionError(f"{count} jobs never ran at a time: {said(slurm, 'squeue')}")


def test_killed_and_requeued_jobs_and_a_killed_engine_leave_the_records_of_a_local_run(
    place, slurm, local
):
    runs, first = place / "results" / "mine" / "runs", engine(place, slurm)
    try:
        killed, requeued = running(slurm, 2, first)
        assert "gpu:1" in said(slurm, "scontrol", "show", "job", killed)
        said(slurm, "scancel", "--signal=KILL", "--full", killed)
        said(slurm, "scontrol", "requeue", requeued)
        said(slurm, "scontrol", "update", f"jobid={requeued}", "starttime=now")
        deadline = time.monotonic() + 600
        while not [*runs.glob("[0-9a-f]*.json")] and time.monotonic() < deadline:
            time.sleep(0.2)
        running(slurm, 1, first)
    finally:
        first.kill()
        first.wait()
    before = {path: path.read_bytes() for path in runs.glob("[0-9a-f]*.json")}
    assert before
    second = engine(place, slurm)  # beside what still runs
    assert second.wait(900) == 0, (place / "engine.log").read_text()[-3000:]
    assert told(runs) == local
    assert {path: path.read_bytes() for path in before} == before  # none was made again
    for method in METHODS:
        log = place / "results" / "mine" / "logs" / "grid" / "few_shot" / f"{NAMES[method]}.log"
        # of the last attempt: the engine removes what an earlier one left
        assert re.search(r"\] chess .* left\n|runs are already done\n", log.read_text())


def test_ctrl_c_cancels_the_jobs_and_says_so(place, slurm):
    process = engine(place, slurm, ["lora"])
    try:
        running(slurm, 1, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 130
    finally:
        process.kill()
    log = (place / "engine.log").read_text()
    assert "stopped, its jobs are cancelled" in log
    assert "Something failed" not in log
    empty_queue(slurm)
