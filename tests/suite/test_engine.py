"""The engine: what it would run, what it runs again, and what it says."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import eurosat_profile
from engine_runs import PROFILE, record, runs, snakemake
from one_run import make_failure, make_record, make_spec
from PIL import Image
from snakemake.target_jobs import parse_target_jobs_cli_args
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.core.durations import clock
from blocklora_lib.core.files import HOST
from blocklora_lib.core.paths import PROFILES, ROOT
from blocklora_lib.core.yaml_data import to_yaml
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.methods import MethodSpec
from blocklora_lib.runs.code_digest import code_of
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.catalogue import notebook_names
from blocklora_lib.suite.engine import (
    digest,
    drop_stale_indexes,
    grid_groups,
    only_one,
    variant_jobs,
    without_adapter,
)
from blocklora_lib.suite.monitor import Monitor
from blocklora_lib.suite.reproduce import as_typed


def planned(done):
    """Rule -> number of jobs, from the table of a dry run."""
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    rules = ("all", "grid", "notebook", "report")
    return {
        row[0]: int(row[1])
        for row in rows
        if len(row) == 2 and row[0] in rules and row[1].isdigit()
    }


@pytest.mark.slow
def test_a_notebook_that_needs_runs_waits_for_its_groups(tmp_path):
    profile = load_profile(PROFILE)
    methods = profile.experiment("few_shot").methods or profile.methods
    groups = len(profile.datasets)
    if profile.job == "method":  # what trains nothing is one job for all sets
        once = {entry.name for entry in profile.methods} - {e.name for e in profile.trained}
        groups = sum(1 if name in once else groups for name in methods)
    assert planned(snakemake(tmp_path, "--dry-run", notebooks="08_few_shot")) == {
        "all": 1, "grid": groups, "notebook": 1, "report": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_notebook_that_needs_no_runs_waits_for_none(tmp_path):
    done = snakemake(tmp_path, "--dry-run", notebooks="01_method")
    assert planned(done) == {"all": 1, "notebook": 1, "report": 1}


@pytest.mark.slow
def test_a_notebook_comes_before_runs_that_it_does_not_need(tmp_path):
    done = snakemake(tmp_path, "--dry-run", notebooks="01_method,08_few_shot")
    told = done.stdout + done.stderr
    assert "rule grid:" in told
    assert told.count("rule notebook:") == told.count("priority: 1") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(notebooks="08_fewshot"), "unknown notebook '08_fewshot'; did you mean '08_few_shot'"),
        (dict(results="a{x}b"), "Snakemake reads braces as wildcards; choose another name"),
        (dict(profile="poket"), "unknown profile 'poket'; did you mean 'pocket'"),
    ],
)
def test_a_typo_is_one_sentence(tmp_path, config, message):
    done = snakemake(tmp_path, "--dry-run", **config)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_paths_reach_the_engine_as_they_are_typed(tmp_path):
    """To YAML `: ` makes a mapping and ` #` ends the text; the results went to another folder in
    silence.
    """
    (tmp_path / "it's: my #1.yaml").write_text("extends: smoke\nname: mine\ndescription: mine\n")
    given = dict(profile="it's: my #1.yaml", results="a: b #2", notebooks="01_method")
    done = snakemake(tmp_path, "--dry-run", "--quiet", "host", **given)
    assert planned(done) == {"all": 1, "notebook": 1, "report": 1}
    assert "a: b #2/report.html" in done.stdout + done.stderr


@pytest.mark.parametrize("value", ["a #b", "a: b", "007", "1e3", "[x", "it's", "a=b", "", "yes"])
def test_a_value_of_config_is_the_text_that_was_typed(value):
    told = {"profile": value}
    assert as_typed([f"profile={value}"]) == as_typed([f'profile="{value}"']) == told


@pytest.mark.slow
def test_what_is_made_is_made_again_only_when_its_profile_or_what_that_extends_changes(tmp_path):
    """By a profile's file, which extends another; with a notebook that needs no runs."""
    (tmp_path / "base.yaml").write_text((PROFILES / f"{PROFILE}.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nname: my-own\ndescription: mine\n")
    given = dict(profile="mine.yaml", notebooks="00_overview")
    done = snakemake(tmp_path, "--quiet", "host", quiet=1, **given)
    assert done.returncode == 0, done.stderr
    assert "notebook 1 of 1: 00_overview" in done.stderr
    assert (tmp_path / "results" / "my-own" / "report.html").is_file()
    assert "Nothing to be done" in snakemake(tmp_path, **given).stderr
    with (tmp_path / "base.yaml").open("a") as file:
        file.write("# a remark\n")
    assert planned(snakemake(tmp_path, "--dry-run", **given)) == {
        "all": 1,
        "notebook": 1,
        "report": 1,
    }


GROUP = f"results/{PROFILE}/grid/few_shot/chess-lora.json"  # a group's index, where jobs write it


def compute(folder, profile, index):
    """What the job of a group does, in this process."""
    dataset, method = Path(index).stem.split("-")
    results = folder / Path(index).parts[0] / Path(index).parts[1]
    words = f"--profile {profile} --results {results} --dataset {dataset}"
    words += f" --method {method}" * (method != "all")
    done = CliRunner().invoke(app, ["grid", *words.split(), "--index", str(folder / index)])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    compute(folder, PROFILE, GROUP)
    return folder


@pytest.fixture
def computed(made, tmp_path):
    """A folder of its own with the group's records and index."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_only_a_missing_record_is_computed(computed):
    index = json.loads((computed / GROUP).read_text())
    specs = expand(load_profile(PROFILE), "few_shot", "chess", "lora")
    assert index["keys"] == [spec.key for spec in specs]
    runs = computed / "results" / PROFILE / "runs"
    first, *others = [runs / f"{key}.json" for key in index["keys"]]
    before = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    assert snakemake(computed, GROUP, notebooks="08_few_shot").returncode == 0
    assert first.is_file()
    assert {path: path.stat().st_mtime_ns for path in others} == before


SLURM = ("sbatch", "squeue", "sacct", "sacctmgr", "scancel", "sinfo", "scontrol", "sshare")
# Notes what is asked for, and makes at once what the job would: a job's number is its line's.
SBATCH = """#!{python} -SEI
import json, os, shlex, sys
here = {folder!r}
with open(here + "/asked", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
    number = file.tell()
words = shlex.split(next(word for word in sys.argv if "--target-jobs" in word))
rule, _, text = words[words.index("--target-jobs") + 1].partition(":")
given = dict(pair.split("=", 1) for pair in text.split(","))
place = here + "/results/paper/"
if rule == "grid":
    paths = ["grid/{{experiment}}/{{dataset}}-{{method}}.json".format(**given)]
else:
    paths = ["notebooks/{{name}}.ipynb".format(**given), "notebooks/{{name}}.json".format(**given)]
for path in paths:
    os.makedirs(os.path.dirname(place + path), exist_ok=True)
    open(place + path, "w").close()
with open(here + "/numbers", "a") as file:
    file.write(str(number) + "|COMPLETED\\n")
print(number)
"""


def stand_ins(folder, monkeypatch, **scripts):
    """Put Slurm's commands on PATH; those without a script say nothing."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    (folder / "bin").mkdir()
    for name in SLURM:
        (folder / "bin" / name).write_text(scripts.get(name, "#!/bin/sh\nexit 0\n"))
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # of the machine that submits: says nothing


def on_slurm(folder, *words):
    """Call the engine as the README does, with shorter waits."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", ".", "--workflow-profile", "slurm", "--scheduler", "greedy"]
    command += ["--slurm-init-seconds-before-status-checks", "1"]
    command += ["--seconds-between-status-checks", "1", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def value(words, option):
    return words[words.index(option) + 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "gpus", "memory"),
    [("auto", ["--gpus=1"], [16, 24, 32, 40]), ("cpu", [], [4, 6, 8, 10])],
)
def test_on_a_cluster_jobs_ask_for_what_they_need(tmp_path, monkeypatch, device, gpus, memory):
    """Where sbatch refuses, each is asked for three times more, with more memory."""
    note = f'#!/bin/sh\necho "$*" >> {tmp_path}/asked; exit 1\n'
    stand_ins(tmp_path, monkeypatch, sbatch=note)
    (tmp_path / "mine.yaml").write_text(
        f"extends: {PROFILES / PROFILE}.yaml\nname: mine\ndescription: on a cluster\n"
        f"device: {device}\n"
        "experiments: {few_shot: {datasets: [chess], methods: [lora, gda]}}\n"
    )
    done = on_slurm(
        tmp_path, "--config", "profile=mine.yaml", "notebooks=04_time,05_memory,08_few_shot"
    )
    assert "total number of cores" not in done.stderr, done.stderr
    lines = (tmp_path / "asked").read_text().splitlines()
    asked = [line.split(" --wrap")[0].split() for line in lines]
    rules = [next(word for word in words if word.startswith("rule_")) for words in asked]
    for name in ("lora", "gda", "04_time", "05_memory"):  # 08 waits for its runs
        mine = [words for words, rule in zip(asked, rules, strict=True) if rule.endswith(name)]
        assert [value(words, "--mem") for words in mine] == [f"{1000 * m}" for m in memory]
        short = name == "05_memory"  # a model alone: minutes of a CPU
        for words in mine:
            assert [w for w in words if w.startswith("--gpu")] == ([] if short else gpus), name
            assert ("--exclusive" in words) == (name == "04_time")  # it measures time
            assert value(words, "-p") == "gpu"
    assert len(asked) == 16


@pytest.mark.slow
def test_the_whole_paper_reaches_a_cluster(tmp_path, monkeypatch):
    """Every group of runs once, as the node will read it, then the notebooks that wait for them."""
    sbatch = SBATCH.format(python=sys.executable, folder=str(tmp_path))
    numbers = f"#!/bin/sh\ncat {tmp_path}/numbers\n"
    age = "#!/bin/sh\necho 'MinJobAge = 300 sec'\n"  # without which sacct would be asked
    stand_ins(tmp_path, monkeypatch, sbatch=sbatch, squeue=numbers, scontrol=age)
    wanted = [f"results/paper/notebooks/{name}.ipynb" for name in notebook_names()]
    done = on_slurm(
        tmp_path,
        "--jobs",
        "1000",
        "--latency-wait",
        "5",
        "--config",
        "profile=paper",
        "--",
        *wanted,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    profile, found = load_profile("paper"), {}
    for words in asked:
        wrapped = shlex.split(next(word for word in words if "--target-jobs" in word))
        ((rule, given),) = parse_target_jobs_cli_args([value(wrapped, "--target-jobs")])
        assert found.setdefault((rule, *given.values()), words) is words  # none twice
    groups = grid_groups(profile, profile.experiments)
    named = {("grid", e, d, m.replace(",", "~")) for e, d, m in groups}
    assert {key for key in found if key[0] == "grid"} == named
    assert {key[1] for key in found if key[0] == "notebook"} == {*notebook_names()}
    for key in named:
        assert "--gpus=1" in found[key]
        assert 30 < int(value(found[key], "-t")) <= 1440
    hours = {
        name: int(value(found["grid", "few_shot", name, "lora"], "-t"))
        for name in ("imagenet", "dtd")
    }
    assert hours["imagenet"] > hours["dtd"]


def heed_signals():
    """What nohup and a script's `&` have a process ignore, tests that are run so included."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "stop", "code"),
    [
        (os.killpg, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 143),
        (os.kill, signal.SIGHUP, 129),
    ],
    ids=["ctrl-c", "kill", "hang up"],
)  # a terminal's Ctrl-C goes to all, `kill` to one
def test_a_stop_is_one_line_and_the_same_command_goes_on(tmp_path, end, stop, code):
    command = [sys.executable, "-m", "blocklora_lib.cli", "reproduce", "--profile", PROFILE]
    command += ["--notebooks", "08_few_shot", "--jobs", "1", "--results", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        preexec_fn=heed_signals,
    )
    deadline = time.monotonic() + 120
    while not (logs := [*tmp_path.rglob("logs/grid/*/*.log")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)  # Python itself, before it reaches our code, would say where it was
    if stop == signal.SIGTERM:  # Ctrl-Z and fg before it
        os.kill(process.pid, signal.SIGTSTP)
        found = psutil.Process(process.pid)
        while found.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        jobs = {job.status() for job in found.children(recursive=True)}
        assert psutil.STATUS_STOPPED in jobs <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
        os.kill(process.pid, signal.SIGCONT)
    end(process.pid, stop)
    said = process.communicate(timeout=60)[1]  # which ends when no job holds its pipe any more
    assert process.returncode == code
    assert logs
    assert re.fullmatch(
        r"runs: 0 of \d+ are there already\n(runs: .* (so far|left)\n)*"
        r"stopped; the same command goes on\n",
        said,
    )
    assert [path for path in tmp_path.rglob(".*.lock") if path.parent.name == "runs"] == []


@pytest.mark.slow
def test_on_one_machine_a_gpu_runs_one_job_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    (tmp_path / "mine.yaml").write_text(
        f"extends: {PROFILES / PROFILE}.yaml\nname: mine\ndescription: on GPUs\ndevice: auto\n"
        "experiments: {few_shot: {datasets: [chess], methods: [zero_shot]}}\n"
    )
    # the runs fail, for there is no such GPU; what is looked at is what the engine may hand out
    done = snakemake(tmp_path, profile="mine.yaml", notebooks="08_few_shot")
    assert 'gpu=Resource("gpu", 2)' in done.stderr
    assert done.returncode != 0
    assert "device 'auto'" in done.stderr


@pytest.mark.slow
def test_a_truncated_record_and_one_of_other_code_are_computed_again_and_it_is_said(computed):
    store = RunStore(computed / "results" / PROFILE / "runs")
    first, second, *others = sorted(store.folder.glob("*.json"))
    whole = json.loads(first.read_text())
    first.write_text(first.read_text()[:500])
    facts = json.loads(second.read_text())
    del facts["checksum"]
    second.write_text(seal(facts | {"code": "0" * 64}))
    before = {path: path.stat().st_mtime_ns for path in others}
    done = snakemake(computed, GROUP, notebooks="08_few_shot")
    assert done.returncode == 0, done.stderr
    assert "1 run is of an earlier state of the library and is computed again" in done.stderr
    aside = store.folder / "damaged"
    assert f"1 record is damaged, is set aside in {aside}" in done.stderr
    assert json.loads(first.read_text())["result"] == whole["result"]
    again = json.loads(second.read_text())
    assert again["code"] == code_of(again["spec"]["method"]["name"])
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert [path.name for path in (store.folder / "damaged").iterdir()] == [first.name]


@pytest.mark.slow
def test_unchanged_image_files_leave_nothing_to_do_and_a_changed_one_its_runs(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path / "data"))
    folders = [
        make_fake(load_manifest(name), tmp_path / "data", per_class=1)
        for name in ("eurosat", "dtd")
    ]
    facts = eurosat_profile(
        "PocketCLIP", targets=["eurosat", "dtd"], methods=[{"name": "zero_shot"}]
    )
    facts = facts.model_dump(mode="json", exclude_unset=True) | {"name": "mine"}
    facts |= {"backbone": {"name": "PocketCLIP", "pretrained": "bundled"}, "job": "dataset"}
    (tmp_path / "mine.yaml").write_text(to_yaml(facts))
    indexes = [f"results/mine/grid/few_shot/{name}-all.json" for name in ("eurosat", "dtd")]
    given = dict(profile="mine.yaml", notebooks="08_few_shot")
    for place in indexes:
        compute(tmp_path, tmp_path / "mine.yaml", place)
    assert "Nothing to be done" in snakemake(tmp_path, *indexes, "--dry-run", **given).stdout
    (split,) = folders[0].glob("split*.json")
    image = next(folders[0].rglob(Path(json.loads(split.read_text())["test"][0][0]).name))
    Image.new("RGB", (32, 32), "teal").save(image)
    assert planned(snakemake(tmp_path, *indexes, "--dry-run", **given)) == {"grid": 1}
    assert not (tmp_path / indexes[0]).exists()
    assert (tmp_path / indexes[1]).exists()


def test_groups_hold_every_run_of_the_experiment_once():
    profile = load_profile(PROFILE)
    keys = [spec.key for group in grid_groups(profile, ["few_shot"]).values() for spec in group]
    assert sorted(keys) == sorted(spec.key for spec in expand(profile, "few_shot"))


def test_what_trains_nothing_is_one_job_for_all_sets():
    profile = load_profile("paper")
    assert profile.job == "method"
    groups = grid_groups(profile, ["few_shot", "cross_dataset"])
    alone = {group: specs for group, specs in groups.items() if not specs[0].shots}
    names = [(experiment, "all", "zero_shot") for experiment in ("cross_dataset", "few_shot")]
    assert sorted(alone) == names
    assert [spec.dataset for spec in alone[names[1]]] == list(profile.datasets)


@pytest.fixture
def group(tmp_path):
    """A finished group of two runs."""
    (tmp_path / "runs").mkdir()
    for key in ("aa", "bb"):
        (tmp_path / "runs" / f"{key}.json").write_text(record(key))
    path = tmp_path / "chess-lora.json"
    path.write_text(json.dumps({"keys": ["aa", "bb"]}))
    return path


@pytest.mark.parametrize(
    ("keys", "stale"),
    [
        (["aa", "bb"], False),
        (["aa", "cc"], True),  # the profile, the data or the weights changed
        (["aa", "bb", "cc"], True),  # a seed was added
        (["aa"], True),  # a seed was taken away: the index would list a run too many
    ],
)
def test_an_index_of_other_runs_is_dropped(group, keys, stale):
    assert drop_stale_indexes(group.parent, {str(group): runs(*keys)}) == ([group] if stale else [])
    assert group.exists() != stale


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_text(path.read_text().replace('"end": 0', '"end": 1')),
        lambda path: path.write_text(record("aa")),  # another run's
        lambda path: path.write_text(record("bb", code="0" * 64)),
        lambda path: path.write_bytes(b"\xff" * 100),
        pipe,
        endless,
    ],
    ids=[
        "gone",
        "empty",
        "cut short",
        "changed",
        "misnamed",
        "of other code",
        "binary",
        "pipe",
        "endless",
    ],
)
def test_an_index_whose_records_do_not_stand_is_dropped(group, damage):
    damage(group.parent / "runs" / "bb.json")
    assert drop_stale_indexes(group.parent, {str(group): runs("aa", "bb")}) == [group]


def test_an_index_of_records_of_other_code_stands_where_it_is_asked_for(group):
    (group.parent / "runs" / "bb.json").write_text(record("bb", code="0" * 64))
    assert drop_stale_indexes(group.parent, {str(group): runs("aa", "bb")}, keep_old=True) == []


@pytest.mark.parametrize(
    ("found", "stale"), [("", False), (None, False), ("0" * 64, True), (ValueError, True)]
)
def test_an_index_whose_records_saw_other_images_is_dropped(group, found, stale):
    """Images that are not at hand say nothing; what is wrong with them the grid will say."""

    def images(spec):
        if isinstance(found, type):
            raise found
        return found if spec.key == "bb" else ""

    dropped = drop_stale_indexes(group.parent, {str(group): runs("aa", "bb")}, images=images)
    assert dropped == ([group] if stale else [])


def test_an_index_of_runs_whose_adapters_are_not_kept_is_dropped_where_they_are_to_be(tmp_path):
    done, failed = make_spec(seed=1), make_spec(seed=2)
    plain = make_spec(method=MethodSpec(name="gda"), training=None)
    for made in (make_record(done), make_failure(failed), make_record(plain)):
        RunStore(tmp_path / "runs").save(made)
    path = tmp_path / "chess-all.json"
    specs = [done, failed, plain]
    path.write_text(json.dumps({"keys": [spec.key for spec in specs]}))
    lacks = without_adapter(tmp_path)
    assert list(map(lacks, specs)) == [True, False, False]
    assert drop_stale_indexes(tmp_path, {str(path): specs}, keep_old=True) == []
    (tmp_path / "adapters").mkdir()
    kept = tmp_path / "adapters" / f"{done.key}.safetensors"
    kept.touch()
    assert drop_stale_indexes(tmp_path, {str(path): specs}, True, lacks=lacks) == []
    kept.unlink()
    assert drop_stale_indexes(tmp_path, {str(path): specs}, True, lacks=lacks) == [path]


def test_a_damaged_index_is_dropped(group):
    group.write_text("{")
    assert drop_stale_indexes(group.parent, {str(group): runs("aa", "bb")}) == [group]


def test_a_second_reproduction_of_the_same_results_is_refused(tmp_path):
    lock = only_one(tmp_path)
    with pytest.raises(RuntimeError, match=f"process {os.getpid()} is already reproducing"):
        only_one(tmp_path)
    lock.close()
    only_one(tmp_path).close()


def test_what_killed_writers_left_is_swept_once_it_is_a_day_old(tmp_path):
    code = f"""
import os, signal
from blocklora_lib.core.files import whole_file
with whole_file({str(tmp_path / "runs" / "a.json")!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "runs").mkdir()
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = (tmp_path / "runs").iterdir()
    only_one(tmp_path).close()
    assert left.exists()  # it may be another process's
    assert f".{HOST}." in left.name  # which of several machines it was
    own = tmp_path / "runs" / ".notes.tmp"
    own.write_text("a user's")
    notebook = tmp_path / ".01_method.x.abcdefgh.tmp"  # papermill's copy, cell by cell
    notebook.mkdir()
    (notebook / "01_method.ipynb").write_text("half")
    lock = tmp_path / "runs" / ".aa.lock"
    lock.touch()
    for path in (left, own, notebook):
        os.utime(path, (0, 0))
    only_one(tmp_path).close()
    assert [*(tmp_path / "runs").iterdir()] == [own]
    assert not notebook.exists()


@pytest.mark.slow
def test_a_killed_reproduction_leaves_no_lock(tmp_path):
    code = f"from blocklora_lib.suite.engine import *; held = only_one(Path({str(tmp_path)!r}))"
    code += "; print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.wait()
    only_one(tmp_path).close()


def test_a_results_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"results folder .*file cannot be written .* choose another"):
        only_one(tmp_path / "file")


def test_the_monitor_says_how_many_runs_are_there_and_how_long_the_rest_will_take(tmp_path):
    heard = io.StringIO()
    monitor = Monitor(tmp_path, [f"k{i}" for i in range(4)], every=0.02, stream=heard)
    (tmp_path / "k0.json").write_text(record("k0"))
    (tmp_path / "k3.json").write_text(record("k3", code="0" * 64))  # will be computed again
    (tmp_path / "other.json").write_text("{}")  # of another profile's grid
    monitor.start()
    (tmp_path / "k1.json").write_text("{}")
    deadline = time.monotonic() + 10
    while "2 of 4" not in heard.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.stop()
    assert heard.getvalue().startswith("runs: 1 of 4 are there already\n")


def test_the_time_left_is_told_from_the_first_new_run_on(tmp_path):
    """Notebooks without runs may take the first minutes."""
    monitor = Monitor(tmp_path, [f"k{i}" for i in range(4)], every=60, stream=io.StringIO())
    (tmp_path / "k0.json").write_text(record("k0"))
    monitor.start()
    assert monitor.line(1, 100) == "runs: 1 of 4, 25%, 1:40 min so far"
    assert monitor.line(2, 200) == "runs: 2 of 4, 50%, 3:20 min so far"
    assert monitor.line(3, 230) == "runs: 3 of 4, 75%, 3:50 min so far, about 30 s left"
    assert monitor.line(4, 260) == "runs: 4 of 4, 100%, 4:20 min so far"
    monitor.stop()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (185, "3:05 min"), (7800, "2:10 h")]
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert clock(seconds) == text


def test_the_digest_of_files_is_about_what_they_say(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1")
    before = digest([path])
    os.utime(path, (0, 0))
    assert digest([path]) == before
    path.write_text("x = 2")
    assert digest([path]) != before


@pytest.mark.slow
def test_blanks_quotes_and_braces_in_paths_are_only_letters(tmp_path):
    place = tmp_path / "a b" / "it's $HOME; $(touch pwned) `touch pwned`; touch pwned & é"
    place.mkdir(parents=True)
    text = (PROFILES / f"{PROFILE}.yaml").read_text().replace("name: smoke", "name: mine")
    (place / "my own.yaml").write_text(text)
    given = dict(profile=str(place / "my own.yaml"), results=str(place / "my results"))
    done = snakemake(tmp_path, "--quiet", "host", notebooks="00_overview", quiet=1, **given)
    assert done.returncode == 0, done.stderr
    assert (place / "my results" / "report.html").is_file()
    assert not (tmp_path / "results").exists()
    assert not [*tmp_path.rglob("pwned"), *ROOT.glob("pwned")]
    (place / "my results" / "notebooks" / "00_overview.json").write_text(
        '{"figures": ['
    )  # a disk was full
    done = snakemake(tmp_path, "--dry-run", notebooks="00_overview", **given)
    assert "00_overview.json is damaged: its notebook is executed again" in done.stderr
    assert planned(done) == {"all": 1, "notebook": 1, "report": 1}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_reproduction(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    only_one(tmp_path).close()
    assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "3", '{"keys": 3}', "\xff"])
def test_any_damage_drops_an_index(group, text):
    group.write_bytes(text.encode("latin-1"))
    assert drop_stale_indexes(group.parent, {str(group): runs("aa", "bb")}) == [group]


def test_a_sweep_is_a_list_of_notebooks_with_their_parameters(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "- {notebook: 08_few_shot, datasets: [chess], shots: [2], compute_missing: true}\n"
    )
    jobs = variant_jobs(str(path), load_profile("smoke"))
    ((folder, name),) = jobs
    assert (folder.startswith("chess-shots2-"), name) == (True, "08_few_shot")
    words = jobs[folder, name]
    assert words[words.index("shots") + 1] == "[2]"
    assert {"-p", "datasets", '["chess"]', "compute_missing"} <= set(words)
    assert variant_jobs("", load_profile("smoke")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{shots: [2]}]", "names no notebook; write {notebook: NAME"),
        ("[{notebook: 08_fewshot, shots: [2]}]", "did you mean '08_few_shot'"),
        ("[{notebook: 08_few_shot, shot: [2]}]", "no parameter 'shot'; did you mean 'shots'"),
        ("[{notebook: 08_few_shot, shots: [two]}]", "must be int"),
        ("[{notebook: 08_few_shot}]", "varies nothing; name datasets"),
        ("[{notebook: 06_generalization_bound, rank: 4}]", "varies nothing; name datasets"),
        ("[{notebook: 08_few_shot, shots: [1, 2]}]", "is the profile's own; leave it out"),
        (
            "[{notebook: 08_few_shot, shots: [1]}, "
            "{notebook: 08_few_shot, shots: [1], compute_missing: false}]",
            "two entries of 08_few_shot vary .* alike",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        variant_jobs(text, load_profile("smoke"))
