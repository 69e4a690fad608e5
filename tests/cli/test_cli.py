"""The command line: thin, quick to start, one sentence for what the user did wrong."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import profile_facts
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.cli.options import parameters
from blocklora_lib.learning.loop import TrainingDiverged
from blocklora_lib.runs import grid, images, rates, workbench

ROOT = str(Path(__file__).parents[2])


LORA = ["run", "--dataset", "dots", "--method", "lora", "--shots", "1"]


@pytest.fixture
def blocklora(tmp_path, tiny_clip, manifests, monkeypatch):
    """Call `blocklora ARGS` on the tiny profile and data; returns (exit code, stdout, stderr)."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile_facts(tiny_clip)))
    make, planned, of_runs = grid.make_spec, grid.planned, images.RunImages
    monkeypatch.setattr(images, "RunImages", lambda: of_runs(manifests))
    monkeypatch.setattr(grid, "make_spec", lambda *a, **k: make(*a, **k | {"manifests": manifests}))
    monkeypatch.setattr(grid, "planned", lambda *a: planned(*a[:4], manifests=manifests))
    choose, write = rates.choose, rates.write_choice
    monkeypatch.setattr(rates, "choose", lambda *a: choose(*a, manifests))
    monkeypatch.setattr(rates, "write_choice", lambda *a: write(*a, manifests))
    bench = workbench.Workbench
    monkeypatch.setattr(workbench, "Workbench", lambda *a, **k: bench(*a, manifests, **k))

    def call(command, *arguments):
        given = [
            command,
            "--profile",
            str(path),
            "--results",
            str(tmp_path / "results"),
            "--device",
            "cpu",
        ]
        result = CliRunner().invoke(app, [*given, *arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.mark.slow
@pytest.mark.parametrize("module", ["app", "data", "weights"])
def test_commands_start_quickly_without_what_loads_slowly(module):
    slow = "torch torchvision open_clip pandas scipy pyarrow matplotlib requests snakemake"
    slow += " papermill IPython nbformat"
    code = f"import sys, blocklora_lib.cli.{module}"
    code += f"; print(*sorted({{*{slow.split()}}} & {{*sys.modules}}))"
    words = [sys.executable, "-c", code]
    found = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True
    )
    assert (found.stdout, found.stderr) == ("\n", "")


def test_help_is_there():
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


@pytest.mark.slow
def test_a_grid_keeps_the_adapters_of_runs_that_it_makes_and_of_those_it_finds(blocklora, tmp_path):
    words = ("grid", "--dataset", "dots", "--method", "lora")
    assert blocklora(*words)[0] == 0
    kept = tmp_path / "results" / "adapters"
    assert not kept.exists()
    code, _, err = blocklora(*words, "--save-adapters")
    assert code == 0, err
    keys = {path.stem for path in (tmp_path / "results" / "runs").glob("*.json")}
    assert {path.stem for path in kept.iterdir()} == keys
    first = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert blocklora(*words, "--save-adapters")[0] == 0  # nothing is lacking
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == first
    image = tmp_path / "one.png"
    Image.new("RGB", (40, 40), "red").save(image)
    words = ["predict", str(min(kept.iterdir())), str(image), "--device", "cpu", "--format", "json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.slow
def test_a_profile_lets_the_seeds_of_a_grid_train_at_once(blocklora, tmp_path, tiny_clip):
    facts = profile_facts(tiny_clip) | {"shots": [1], "stack": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(facts))
    code, _, err = blocklora("grid", "--dataset", "dots", "--method", "lora")
    assert code == 0, err
    stored = [json.loads(p.read_text()) for p in (tmp_path / "results/runs").glob("*.json")]
    keys = {record["spec"]["seed"]: record["key"] for record in stored}
    with_it = {r["spec"]["seed"]: r["provenance"]["stacked_with"] for r in stored}
    assert with_it == {1: [keys[2]], 2: [keys[1]]}


@pytest.mark.slow
def test_run_writes_one_record_and_shows_it_again(blocklora, tmp_path):
    for _ in range(2):
        code, out, _ = blocklora(
            "run", "--dataset", "dots", "--method", "lora", "--shots", "1", "--seed", "1"
        )
        assert code == 0
        assert "dots lora(2) shots=1 seed=1: dots " in out
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 1


@pytest.mark.slow
def test_grid_lists_runs_resumes_and_shows_how_far_it_is(blocklora, tmp_path):
    code, out, _ = blocklora("grid", "--dataset", "dots", "--list")
    assert (code, out.splitlines()[-1]) == (0, "0 done, 13 missing, 0 failed")
    code, out, _ = blocklora("grid", "--dataset", "dots", "--method", "lora")
    assert code == 0
    assert out.splitlines()[0].startswith("[1/4] dots lora(2) shots=1 seed=1: dots ")
    assert " left" in out.splitlines()[0]
    code, out, _ = blocklora("grid", "--dataset", "dots", "--method", "lora")
    assert (code, out.strip()) == (0, "4 of 4 runs are already done")
    code, out, _ = blocklora("grid", "--dataset", "dots", "--list")
    assert out.splitlines()[-1] == "4 done, 9 missing, 0 failed"


def test_a_list_leaves_pythons_collection_as_it_was(blocklora):
    assert gc.isenabled()
    blocklora("grid", "--list")
    assert gc.isenabled()


def test_grid_counts_a_run_of_two_experiments_once(blocklora, tmp_path):
    facts = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    # 2 shots are few_shot's too
    facts["experiments"]["again"] = {"methods": ["lora"], "shots": [2, 4]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(facts))
    counts = {}
    for name in ("few_shot", "again", "all"):
        _, out, _ = blocklora("grid", "--experiment", name, "--list")
        counts[name] = int(out.splitlines()[-1].split(" done, ")[1].split()[0])
    assert counts == {"few_shot": 26, "again": 8, "all": 26 + 4}


@pytest.mark.slow
def test_settings_of_the_command_line_are_those_of_the_run(blocklora, tmp_path):
    code, out, _ = blocklora(*LORA, "-s", "rank=4", "-s", "targets=[q, v]", "-t", "lr=1e-3")
    assert code == 0
    assert "dots lora(4) shots=1 seed=1: dots " in out
    (path,) = (tmp_path / "results" / "runs").glob("*.json")
    spec = json.loads(path.read_text())["spec"]
    assert (spec["method"]["settings"]["rank"], spec["training"]["lr"]) == (4, 1e-3)
    assert spec["method"]["settings"]["targets"] == ["q", "v"]
    assert spec["training"]["batch_size"] == 4  # the profile's, as before


@pytest.mark.slow
def test_what_was_trained_is_saved_used_scored_and_merged(
    blocklora, tmp_path, manifests, monkeypatch
):
    from blocklora_lib.data import manifest_files
    from blocklora_lib.runs import scoring

    def call(*words):
        result = CliRunner().invoke(app, [*map(str, words)])
        return result.exit_code, result.stdout, result.stderr

    file = tmp_path / "dots.safetensors"
    assert "unknown" not in blocklora(*LORA)[2]
    code, out, err = blocklora(*LORA, "--save", str(file))
    assert (code, out.splitlines()[-1]) == (0, str(file))
    assert err == "note: this run was stored before; it is trained again to be saved\n"
    _, out, err = blocklora(*LORA, "--save", str(file))
    assert err == "note: this run was stored before; its record is shown, nothing is run\n"
    right = out.split(" (")[1].split("/")[0]

    folder = tmp_path / "new" / "inner"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 0, 99)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    code, out, err = call("predict", file, folder.parent, folder / "0.png")
    assert code == 0
    assert out.split("\n", 1)[0].split() == ["image", "class", "probability"]
    assert len(out.splitlines()) == 1 + 3  # the image that is named twice is looked at once
    assert err == f"note: {folder.parent}: 1 file is no image and is left out: inner/notes.txt\n"
    code, out, _ = call("predict", file, folder, "--format", "csv", "--top", 2)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert [row["image"] for row in rows][::2] == [str(folder / f"{i}.png") for i in range(3)]
    # two classes of two: their probabilities are all, to six digits
    assert float(rows[0]["probability"]) + float(rows[1]["probability"]) == pytest.approx(1, 1e-5)
    (folder / "1.png").write_bytes(b"no image")
    code, out, err = call("predict", file, folder, "-f", "json")
    assert code == 1
    assert [row["class"] for row in json.loads(out)] == [rows[0]["class"], rows[4]["class"]]
    assert f"left out: {folder / '1.png'} cannot be decoded" in err
    assert call("predict", file, folder / "1.png")[0] == 2
    assert "there is no image" in call("predict", file, folder / "9.png")[2]
    assert "unknown choice of --format 'yaml'" in call("predict", file, folder, "-f", "yaml")[2]
    assert "there is no adapter file" in call("predict", tmp_path / "x.safetensors", folder)[2]

    set_for, known = scoring.set_for, {"manifests": manifests}
    monkeypatch.setattr(scoring, "set_for", lambda *a, **k: set_for(*a, **k | known))
    monkeypatch.setattr(manifest_files, "manifest_names", lambda: ("dots",))
    code, out, _ = call("evaluate", file, "dots", "-f", "json")
    *classes, whole = json.loads(out)
    assert [row["class"] for row in classes] == ["one dot", "two dots"]
    assert (str(whole["correct"]), whole["class"]) == (right, "dots, test")

    code, out, _ = call("merge", file, "--into", tmp_path / "merged.safetensors")
    assert code == 0
    assert out.splitlines()[0] == "import open_clip"
    assert "create_model_and_transforms('merged', " in out


@pytest.fixture
def with_rates(tmp_path, blocklora):
    """`blocklora` on the tiny profile, which now declares a grid of rates."""
    facts = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    declared = {"grid": [1e-3, 1e-2, 1e30], "datasets": ["dots"], "shots": [2], "seeds": [1]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(facts | {"rates": declared}))
    return blocklora


@pytest.mark.slow
def test_rates_are_chosen_once_and_used_from_then_on(with_rates, tmp_path):
    code, _, err = with_rates("grid", "--dataset", "dots", "--list")
    assert code == 2
    assert "the learning rates of profile tiny were not chosen" in err
    assert f"say `blocklora rates --profile {tmp_path / 'tiny.yaml'}`" in err
    _, out, _ = with_rates("grid", "--experiment", "rates", "--list")
    assert out.splitlines()[-1] == "0 done, 9 missing, 0 failed"
    code, out, err = with_rates("rates")
    assert code == 0  # though training at 1e30 diverged, which is a run's result
    lines = out.splitlines()
    assert lines[0].startswith("[1/9] lr=0.001, dots lora(2) shots=2 seed=1: dots ")
    assert lines[-1] == str(tmp_path / "rates" / "tiny.yaml")
    assert [line.split()[0] for line in lines[-4:-1]] == ["lora", "block_lora", "frozen_a"]
    assert all("1e+30: failed" in line for line in lines[-4:-1])
    chosen = yaml.safe_load((tmp_path / "rates" / "tiny.yaml").read_text())["methods"]
    assert {method["accuracy"][2] for method in chosen.values()} == {None}
    before = (tmp_path / "rates" / "tiny.yaml").read_bytes()
    _, out, _ = with_rates("rates")
    assert out.splitlines()[0] == "9 of 9 runs are already done"
    assert (tmp_path / "rates" / "tiny.yaml").read_bytes() == before
    assert with_rates("run", "--dataset", "dots", "--method", "lora", "--shots", "1")[0] == 0
    (record,) = (
        spec
        for path in (tmp_path / "results" / "runs").glob("*.json")
        if (spec := json.loads(path.read_text())["spec"])["split"] == "test"
    )
    assert record["training"]["lr"] == chosen["lora"]["lr"]


@pytest.mark.slow
def test_a_choice_that_was_stopped_goes_on_from_there(with_rates, tmp_path, monkeypatch):
    from blocklora_lib.runs import execute

    done, fresh = [], execute.execute_alike

    def stopped(wanted, *args):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.extend(wanted)
        return fresh(wanted, *args)

    monkeypatch.setattr(execute, "execute_alike", stopped)
    assert with_rates("rates")[0] == 130
    assert not (tmp_path / "rates").exists()  # half a choice is none
    monkeypatch.setattr(execute, "execute_alike", fresh)
    code, out, _ = with_rates("rates")
    assert code == 0
    assert out.splitlines()[0] == "4 of 9 runs are already done"
    assert out.splitlines()[1].startswith("[5/9] ")


@pytest.mark.slow
def test_a_run_trains_on_the_images_that_a_file_names(blocklora, tmp_path, manifests):
    from blocklora_lib.data.dataset import load_dataset
    from blocklora_lib.data.draw import make_draw
    from blocklora_lib.data.draw_files import export_draw
    from blocklora_lib.runs.store import RunStore

    drawn = make_draw("dots", load_dataset("dots", manifests).listing, 1, 3, "nested")
    export_draw(drawn, tmp_path / "draw.json")
    words = ["run", "--dataset", "dots", "--method", "lora", "--draw", str(tmp_path / "draw.json")]
    assert blocklora(*words, "--shots", "1")[0] == 0
    (record,) = RunStore(tmp_path / "results" / "runs").records()
    assert (record.spec.draw, record.spec.draw_checksum) == ("imported", drawn.checksum)
    code, _, err = blocklora(*words, "--shots", "2")
    assert (code, "has 1 shots, the run 2" in err) == (2, True)


@pytest.mark.slow
def test_runs_that_leave_unreadable_images_out_are_runs_of_their_own(blocklora, tmp_path):
    from blocklora_lib.runs.store import RunStore

    words = ["grid", "--dataset", "dots", "--method", "zero_shot"]
    for more in ([], ["--skip-unreadable"]):
        assert blocklora(*words, *more)[0] == 0
    records = RunStore(tmp_path / "results" / "runs").records()
    assert sorted(record.spec.skip_unreadable for record in records) == [False, True]


@pytest.mark.slow
def test_grid_with_failures_lists_them_and_exits_non_zero(blocklora, monkeypatch):
    from blocklora_lib.methods import get_method

    method = get_method("lora")
    fit = method.fit

    def broken(self, context):
        if context.seed == 2:
            raise TrainingDiverged(1, 3, 9.0, 0.1, "seed two is cursed")
        return fit(self, context)

    monkeypatch.setattr(method, "fit", broken)
    for _ in range(2):  # the second time the failures are only read
        code, _, err = blocklora("grid", "--dataset", "dots", "--method", "lora")
        assert code == 1
        assert "2 of 4 runs failed" in err
        assert (
            "dots lora(2) shots=1 seed=2: training diverged at step 1 of 3: seed two is cursed"
            in err
        )
    assert (
        blocklora("grid", "--dataset", "dots", "--list")[1].splitlines()[-1]
        == "2 done, 9 missing, 2 failed"
    )
    assert (
        blocklora("run", "--dataset", "dots", "--method", "lora", "--shots", "1", "--seed", "2")[0]
        == 1
    )
    monkeypatch.setattr(method, "fit", fit)
    assert blocklora("grid", "--dataset", "dots", "--method", "lora", "--retry-failed")[0] == 0


@pytest.mark.slow
def test_what_a_record_says_writes_no_escapes_to_the_terminal(blocklora, monkeypatch):
    from blocklora_lib.methods import get_method

    def broken(self, context):
        raise TrainingDiverged(1, 3, 9.0, 0.1, "\x1b]0;owned\x07\x9b2J\u202ecursed")

    monkeypatch.setattr(get_method("lora"), "fit", broken)
    run = "run", "--dataset", "dots", "--method", "lora", "--shots", "1"
    for command in (run, ("grid", "--dataset", "dots"), run):  # made, then listed, then read
        _, out, err = blocklora(*command)
        assert r"\x1b]0;owned\x07\x9b2J\u202ecursed" in out + err
        assert (out + err).replace("\n", "").isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            RuntimeError("CUDA error: device lost"),
            75,
            "RuntimeError: CUDA error: device lost; nothing is stored",
        ),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(9), 9, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_stops_a_grid_has_an_exit_code_of_its_own_and_what_is_finished_stays(
    blocklora, tmp_path, monkeypatch, error, code, says
):
    from blocklora_lib.methods import get_method

    method = get_method("lora")
    fit = method.fit

    def broken(self, context):
        if context.seed == 2:
            raise error
        return fit(self, context)

    monkeypatch.setattr(method, "fit", broken)
    index, arguments = tmp_path / "index.json", ("grid", "--dataset", "dots", "--method", "lora")
    found, _, err = blocklora(*arguments, "--index", str(index))
    assert found == code
    assert says in err
    assert "Traceback" not in err
    assert not index.exists()
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 1
    monkeypatch.setattr(method, "fit", fit)
    found, out, _ = blocklora(*arguments, "--index", str(index))
    assert found == 0
    assert "1 of 4 runs are already done" in out
    keys = json.loads(index.read_text())["keys"]
    assert sorted(keys) == sorted(
        path.stem for path in (tmp_path / "results" / "runs").glob("*.json")
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--dataset", "dot", "--method", "lora"], "did you mean 'dots'"),
        (["run", "--dataset", "dots", "--method", "lorax"], "did you mean 'lora'"),
        (["run", "--dataset", "dots", "--method", "lora", "--shots", "9"], "use at most 6 shots"),
        (["grid", "--experiment", "few-shot"], "did you mean 'few_shot'"),
        (["grid", "--method", "nothing"], "unknown method 'nothing'"),
        ([*LORA, "-s", "rnak=8"], "unknown key 'rnak'; did you mean 'rank'"),
        ([*LORA, "-t", "lrr=1e-3"], "unknown key 'lrr'; did you mean 'lr'"),
        ([*LORA, "-s", "lr=1e-3"], "lr is a training setting: say -t lr=0.001"),
        ([*LORA, "-t", "rank=8"], "rank is a setting of method lora: say -s rank=8"),
        ([*LORA, "-s", "rank"], "cannot read -s 'rank'; write -s NAME=VALUE"),
        ([*LORA, "-s", "rank="], "cannot read -s 'rank='"),
        ([*LORA, "-s", "rank=4", "-s", "rank=8"], "-s rank is given twice"),
        ([*LORA, "-s", "rank=four"], "settings of method lora: rank: "),
        ([*LORA, "-t", "lr=-1"], "training of method lora: lr: "),
        ([*LORA, "-s", "n_blocks=2"], "has one block, not n_blocks=2"),
        (["run", "--dataset", "dots", "--method", "zero_shot", "-t", "lr=1"], "has a way of its"),
        ([*LORA, "--save", "nowhere/a.safetensors"], "no folder that can be written to"),
        (
            ["run", "--dataset", "dots", "--method", "zero_shot", "--save", "a.safetensors"],
            "method zero_shot trains nothing, so there is none to save",
        ),
    ],
)
def test_what_the_user_did_wrong_is_one_sentence(blocklora, arguments, says):
    code, _, err = blocklora(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_an_unwritable_results_folder_is_one_sentence(blocklora, tmp_path):
    (tmp_path / "results").write_text("a file")
    for command in (["grid"], ["run", "--dataset", "dots", "--method", "lora"]):
        code, _, err = blocklora(*command)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "cannot be written" in err


def test_notebook_parameters_are_read_in_papermills_way():
    assert parameters(["-p", "shots", "4", "-p", "name", "a b"]) == {"shots": "4", "name": "a b"}
    for words in (["-p", "shots"], ["shots", "4", "5"], ["-p", "a", "1", "--x"]):
        with pytest.raises(ValueError, match="written -p NAME VALUE"):
            parameters(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["run", "--dataset", "chess", "--method", "lora", "--shots", "0"],
            "shots=0: lora is trained",
        ),
        (["run", "--dataset", "my_pets", "--method", "lora"], "unknown dataset 'my_pets'"),
        (["run", "--seed", str(2**63)], "Invalid value for '--seed': Input should be less than"),
        (["run", "--threads", "99999"], "Invalid value for '--threads' (env var: 'OMP_NUM_THR"),
        (["run", "--dataset", "./~pets", "--method", "lora"], "/"),
        (["grid", "--list", "--tflops", "nan"], "--tflops nan is no rate"),
        (["grid", "--list", "--tflops=-1"], "--tflops -1 is no rate"),
        (["grid", "--experiment", "gone", "--tflops=0"], "--tflops 0 is no rate"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, words, told):
    """shots 0 gave pydantic's report; one's own missing folder the advice to download it."""
    given = ["--profile", "smoke", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, [words[0], *given, *words[1:]])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {told}")
    assert "validation error" not in line
    assert "data download" not in line


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 75, "out of memory"),
        (ImportError("a.so cannot be mapped"), 2, "a.so cannot"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_machine_that_fails_before_a_run_begins_is_a_sentence(monkeypatch, error, code, says):
    def full(*_):
        raise error

    monkeypatch.setattr("blocklora_lib.cli.app.named_profile", full)
    done = CliRunner().invoke(app, ["run", "--dataset", "chess", "--method", "lora"])
    assert done.exit_code == code
    assert done.output.startswith(f"error: {says}")
    assert done.output.count("\n") == 1
