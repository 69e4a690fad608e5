"""Options that have no use for what stands beside them: named, never ignored."""

from __future__ import annotations

import pytest
from one_run import make_record
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.store import RunStore


def refused(*words: object) -> str:
    """The one sentence with which a command refuses to begin."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "lora"],
        ["--shots", "16"],  # its default, said aloud
        ["--seed", "2"],
        ["--results", "x"],
        ["--retry-failed"],
        ["--keep-old"],
        ["--skip-unreadable"],
        ["--fast"],
        ["-s", "rank=4"],
        ["-t", "lr=1"],
        ["--save", "x.safetensors"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_is_repeated_as_it_was_or_not_at_all(words):
    name = {"-s": "--setting", "-t": "--training"}.get(words[0], words[0])
    line = refused("run", "--verify", "none.json", "--threads", 1, *words)
    assert line.startswith(f"error: {name}: of no effect beside --verify;")


def test_all_that_is_ignored_is_named():
    line = refused("run", "--save", "x", "--verify", "none.json", "--method", "lora")
    assert line.startswith("error: --method, --save: of no effect beside --verify;")


@pytest.mark.parametrize(
    "words", [["--output", "x.json"], ["--shots", "4"], ["--seed", "1"], ["--draw", "coop"]]
)
def test_a_draw_is_checked_or_made(words):
    line = refused("data", "draw", "chess", "--check", "gone.json", *words)
    assert line.startswith(f"error: {words[0]}: of no effect beside --check;")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shots", "4"], "--shots"),
        (["--shots", "16", "--seed", "1"], "--shots and --seed"),  # the defaults, said aloud
        (["--shots", "0", "--seed", "3"], "--seed"),
    ],
)
def test_a_method_that_does_not_train_takes_neither_shots_nor_seed(words, told, tmp_path):
    given = ["--profile", "smoke", "--results", tmp_path / "results", "--dataset", "chess"]
    line = refused("run", *given, "--method", "zero_shot", *words)
    assert line == (
        f"error: method zero_shot trains on no images and has no use for {told}; leave {told} out"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "words", [["architectures", "--record"], ["merge", "none.safetensors", "--into"]]
)
def test_a_folder_that_is_not_there_is_told_before_anything_is_computed(words, tmp_path):
    file = tmp_path / "nowhere" / "a.safetensors"
    assert refused(*words, file) == (
        f"error: {file} cannot be written: {file.parent} is no folder that can be written to; "
        "make it one, or give another file"
    )


@pytest.mark.parametrize("dataset", ["chess", "./pets"])
def test_the_way_to_look_at_images_is_checked_always(dataset):
    line = refused("run", "--dataset", dataset, "--method", "lora", "--image-loading", "bogus")
    assert line == "error: unknown choice of --image-loading 'bogus'; Known: as_clip, upright"


@pytest.mark.parametrize("how", ["upright", "as_clip"])
def test_a_named_set_is_looked_at_in_its_own_way(how, tmp_path):
    given = ["--profile", "smoke", "--results", tmp_path / "results"]
    line = refused("run", *given, "--dataset", "chess", "--method", "lora", "--image-loading", how)
    assert f"--image-loading {how} is for a folder of your own images, and chess has" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_set_without_a_split_file_refuses_one(there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    if there:
        (tmp_path / "d.json").write_text("{}")
    for dataset, name in (("chess", "chess"), ("./pets", "pets"), ("pets", "pets")):
        line = refused("data", "draw", dataset, "--split-file", "d.json")
        assert line == f"error: {name} is not read from a split file; leave --split-file away"


@pytest.mark.parametrize("inside", ["", "/inner"])
def test_a_file_where_a_folder_is_wanted_is_told_with_a_way_out(inside, tmp_path):
    RunStore(tmp_path / "runs").save(make_record())
    (tmp_path / "photo.png").write_bytes(b"someone's")
    into = f"{tmp_path / 'photo.png'}{inside}"
    line = refused("records", "merge", tmp_path / "runs", "--into", into)
    assert line.startswith(f"error: {into}: ")
    assert "a folder is wanted, where a file stands: give another name, or move it away" in line
    assert (tmp_path / "photo.png").read_bytes() == b"someone's"
