"""The paper profile on miniatures, driven with random weights, for a step each: a group of runs of
each experiment, and, in `make test-all`, every branch once.

Shown: each experiment, set, method and varied setting of paper.yaml makes runs that end with a
record, and the notebooks that read them run. Not shown: anything about accuracy (the weights are
random, a set is a few tiny squares), the published checkpoint, float16 training (a GPU's), many
classes, more than a shot or a step.

The grid is shared by the processes of a test run: each group of runs is made once, by whoever comes
first.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from conftest import mostly_rare
from figure_boxes import measuring_kernels

from blocklora_lib.core.paths import PROFILES, ROOT
from blocklora_lib.data.local import local_manifest
from blocklora_lib.data.manifest_files import all_manifests
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.data.roots import checksum as data_checksum
from blocklora_lib.runs.execute import execute, run_grid
from blocklora_lib.runs.grid import entries, expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.suite.catalogue import read_indexes
from blocklora_lib.suite.execution import run_notebook
from blocklora_lib.suite.report import write_report

pytestmark = pytest.mark.slow

NAME = "paper-smoke"
PAPER, SMOKE = load_profile("paper"), load_profile(NAME)
SHORTER = "comparison"  # methods with published schedules of their own, which no profile shortens
WHOLE = {e: experiment for e, experiment in PAPER.experiments.items() if e != SHORTER}
# of methods under transfer those that have no schedule of their own
METHODS = {entry.method_spec for entry in SMOKE.methods_of(SMOKE.experiment("cross_dataset"))}
GROUPS = [(e, d) for e, experiment in WHOLE.items() for d in PAPER.datasets_of(experiment)]
COMMON = {  # one group of each experiment; `make test-all` makes the whole grid, and what reads it
    *(("few_shot", "dtd"), ("blocks", "eurosat"), ("collapse", "dtd")),
    *(("cross_dataset", "imagenet"), ("twins", "dtd"), ("placement", "dtd")),
}
NOTEBOOKS = ["08_few_shot", "09_cross_dataset", "10_domain_generalization", "11_ablations"]
SIZES = {
    "steps_per_shot",
    "min_steps",
    "max_steps",
    "batch_size",
}  # in which the two profiles differ


def blocklora(*arguments) -> subprocess.CompletedProcess:
    """Call the command as a user does."""
    command = [sys.executable, "-m", "blocklora_lib.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@contextmanager
def lock(path: Path, wait: bool = True):
    """Hold a lock on a file; yields whether it is held."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@functools.cache  # the model is large: one a process
def bench() -> Workbench:
    return Workbench("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that all processes share: the miniatures, which BLOCKLORA_DATA names, and the
    results.
    """
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / NAME
    place.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, lock(place / "lock"):
        patch.setenv("BLOCKLORA_DATA", str(place / "fake"))
        if not (place / "fake").exists():
            done = blocklora(
                "data", "fake", "all", "--root", place / "fake", "--classes", 2, "--images", 1
            )
            assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKLORA_DATA", str(place / "fake"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield place


def made(place: Path, experiment: str, dataset: str, wait: bool = True) -> list:
    """The records of a group, made now unless they are there; without `wait`, none if others are at
    it.
    """
    with lock(place / f"{experiment}-{dataset}.lock", wait) as free:
        specs = expand(SMOKE, experiment, dataset) if free else []
        return list(run_grid(specs, RunStore(place / "results" / "runs"), bench()))


@pytest.fixture
def results(place) -> Path:
    """The results folder with the whole grid; what others are at is waited for last."""
    for wait in (False, True):
        for group in GROUPS:
            made(place, *group, wait)
    return place / "results"


@pytest.mark.parametrize(("experiment", "dataset"), mostly_rare(GROUPS, COMMON))
def test_every_run_of_the_group_is_done(place, experiment, dataset):
    records = made(place, experiment, dataset)
    assert {record.status for record in records} == {"done"}
    on = PAPER.evaluated(dataset, PAPER.experiments[experiment].evaluate_on)
    images = {name: len(local_manifest(name).classes) for name in on}  # one a class
    for record in records:
        assert {name: count.total for name, count in record.result.accuracy.items()} == images
        assert len(record.result.loss or []) == (1 if record.spec.shots else 0)


def branch(spec) -> tuple:
    """What of a run's spec is no size: where it is trained and evaluated, how, and with which
    settings.
    """
    training = spec.training.model_dump(exclude=SIZES) if spec.training else None
    return spec.dataset, spec.evaluate_on, spec.draw, spec.split, spec.method, str(training)


@pytest.mark.rare
def test_no_branch_of_the_paper_profile_is_left_out(results):
    records = RunStore(results / "runs").records()
    assert {record.status for record in records} == {"done"}
    asked = {
        branch(spec)
        for experiment in WHOLE
        for spec in expand(PAPER, experiment)
        if experiment != "cross_dataset" or spec.method in METHODS
    }
    assert {branch(record.spec) for record in records} == asked
    by_key = {record.key: record for record in records}
    for name, experiment in WHOLE.items():
        named = {
            (by_key[key].spec.dataset, entry.name) for key, entry in entries(SMOKE, name).items()
        }
        methods = {entry.name for entry in PAPER.methods_of(experiment)}
        if name == "cross_dataset":
            methods = {entry.name for entry in SMOKE.methods_of(SMOKE.experiment(name))}
        assert named == {
            (dataset, method) for dataset in PAPER.datasets_of(experiment) for method in methods
        }


def test_the_papers_grid_is_what_its_file_says():
    """The expectation of the test above, counted from the YAML without the library's expansion."""
    facts = yaml.safe_load((PROFILES / "paper.yaml").read_text())
    sets = [facts["source"], *facts["targets"]]
    external = {name for name, manifest in all_manifests().items() if manifest.kind == "external"}
    assert {*sets, *facts["variants"]} == external
    assert len(external) == 15
    branches = 0
    smoke = yaml.safe_load((PROFILES / "paper-smoke.yaml").read_text())["experiments"]
    for experiment in (facts["experiments"][name] | smoke.get(name, {}) for name in WHOLE):
        over = (
            [facts["source"]]
            if experiment.get("evaluate_on") == "targets"
            else experiment.get("datasets", sets)
        )
        methods = experiment.get("methods", facts["methods"])
        varied = sum(
            functools.reduce(lambda n, values: n * len(values), grid.values(), 1)
            for grid in experiment.get("vary", [])
        )
        branches += len(over) * len(methods) * (varied or 1)
    assert branches == sum(len(expand(SMOKE, experiment)) for experiment in WHOLE)


def test_methods_that_take_no_hours_are_compared(place, tmp_path):
    specs = expand(SMOKE, SHORTER, "dtd")
    assert len(specs) == len(SMOKE.experiments[SHORTER].methods)
    assert {spec.method for spec in specs} <= {
        spec.method for spec in expand(PAPER, SHORTER, "dtd")
    }
    records = run_grid(specs, RunStore(tmp_path / "runs"), bench())
    assert {record.status for record in records} == {"done"}


def test_its_numbers_stand_beside_no_published_ones():
    assert PAPER.published
    assert not SMOKE.published
    assert SMOKE.backbone.pretrained == "none"


@pytest.mark.parametrize("dataset", ["imagenet", "eurosat"])  # without a val split, and with one
def test_clip_loras_draw_is_driven_too(tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path))
    for manifest in all_manifests().values():
        if dataset in (manifest.name, manifest.variant_of):
            make_fake(
                manifest, tmp_path, per_class=2, classes=2
            )  # it draws an image to validate, too
    (spec,) = expand(
        SMOKE.model_copy(update={"draw": "clip_lora"}), "few_shot", dataset, "block_lora"
    )
    alone = {"evaluate_on": (dataset,), "data_checksum": data_checksum([local_manifest(dataset)])}
    record = execute(spec.model_copy(update=alone), Workbench("cpu", _backbones=bench()._backbones))
    assert (record.status, record.spec.draw) == ("done", "clip_lora")


def test_the_papers_own_architecture_makes_a_run(place, tmp_path):
    """All others here are of a smaller one, since a step takes sixteen times as long on this."""
    backbone = PAPER.backbone.model_copy(update={"pretrained": "none", "precision": "fp32"})
    profile = SMOKE.model_copy(update={"backbone": backbone})
    specs = expand(profile, "few_shot", "eurosat", "block_lora")
    (record,) = run_grid(specs, RunStore(tmp_path / "runs"), Workbench("cpu"))
    assert record.status == "done"
    assert record.spec.backbone.name == "ViT-B-16-quickgelu"


def test_the_papers_precision_is_loaded():
    """Its float16 weights; a step in float16 is a GPU's work, on a CPU it takes minutes."""
    spec = PAPER.backbone.model_copy(update={"pretrained": "none"})
    backbone = Workbench("cpu").backbone(spec)
    assert spec.precision == "fp16"
    assert backbone.model.visual.conv1.weight.dtype == torch.float16


def test_the_doors_are_open(place, tmp_path):
    """`data verify` of all miniatures, and a grid by the command line; data fake made them."""
    done = blocklora("data", "verify", "--decode", "all")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("nothing wrong (a miniature)") == 15
    words = ["--profile", NAME, "--results", tmp_path, "--dataset", "dtd", "--method", "zero_shot"]
    done = blocklora("grid", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[1/1] dtd zero_shot: dtd ")
    assert "1 done, 0 missing, 0 failed" in blocklora("grid", *words, "--list").stdout


@pytest.mark.rare
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs_on_it(results, name):
    given = {"compute_missing": False} if name == "08_few_shot" else {}
    with measuring_kernels() as (files, faults):
        run_notebook(name, NAME, given, results, verbose=False)
    index = read_indexes(results)[name]
    assert len(files) == 2 * len(index["figures"])  # as PDF and as PNG
    assert not faults
    assert "random weights" in index["note"]
    assert index["figures"]
    assert not [c for c in index["checks"] if c["verdict"] == "contradicted"]  # it would raise
    assert {c["verdict"] for c in index["claims"] if c["id"] in ("C10", "C11")} <= {"not run"}


@pytest.mark.rare
def test_the_report_is_written_of_it(results):
    """Whichever notebooks have run by then."""
    text = write_report(NAME, results)[0].read_text(encoding="utf-8")
    assert all(
        manifest.title in text
        for manifest in all_manifests().values()
        if manifest.kind == "external"
    )
