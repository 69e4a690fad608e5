"""A record's run repeated: the same bits are said, and what is another one by its name."""

from __future__ import annotations

import json

import pytest
from one_run import make_failure, make_record, make_spec
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.verify import circumstances, differences


def call(*words):
    done = CliRunner().invoke(app, ["run", *map(str, words)])
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_record_is_what_its_run_gives_again_and_a_changed_one_is_not(tmp_path):
    given = ["--profile", "smoke", "--results", tmp_path]
    words = ["--dataset", "chess", "--method", "lora", "--shots", "1"]
    code, said = call(*given, *words)
    path = tmp_path / "runs" / said.splitlines()[-1].rpartition("/")[2]
    assert (code, path.is_file()) == (0, True)
    code, said = call("--profile", "smoke", "--verify", path)
    assert code == 0
    assert f"the same bits as {path}" in said
    RunStore(path.parent).pack(tmp_path / "p.parquet")
    facts = json.loads(path.read_text())
    del facts["checksum"]
    facts["result"]["loss"][1] += 1e-7
    path.write_text(seal(facts))
    code, said = call("--profile", "smoke", "--verify", path)
    assert code == 1
    assert "loss of step 2: it was " in said
    assert f"1 differences to {path}" in said
    assert path.read_text() == seal(facts)  # nothing is stored
    assert call("--profile", "smoke", "--verify", tmp_path / "p.parquet" / path.name)[0] == 0


def test_differences_are_of_counts_losses_status_and_circumstances():
    record = make_record()
    assert differences(record, make_record()) == circumstances(record, make_record()) == []
    assert differences(record, make_record(correct=8)) == [
        f"accuracy on {name}: it was {{'correct': 7, 'total': 10}} and is "
        "{'correct': 8, 'total': 10}"
        for name in ("dots", "squares")
    ]
    assert differences(record, make_failure(make_spec())) == ["it was done and is failed"]
    other = record.model_copy(update={"provenance": {"threads": 4}, "code": "0" * 64})
    assert circumstances(record, other) == [
        "code of the library: another state",
        "threads: it was None and is 4",
    ]
    stacked = record.model_copy(update={"provenance": {"stacked_with": ["a" * 16, "b" * 16]}})
    alone = record.model_copy(update={"provenance": {}})
    assert circumstances(stacked, alone) == [
        "it was trained at once with 2 more (stack), and is alone"
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--verify", "none.json"], "no record"),
        (["--dataset", "chess"], "--dataset and --method, or --verify RECORD"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    code, said = call(*words)
    assert (code, said.count("\n")) == (2, 1)
    assert told in said


def own_images(folder):
    """Two classes, of images that alpha makes another thing when they are seen upright."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            colour = (60 * i, 99 * label, 0, 128)
            Image.new("RGBA", (8, 8), colour).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["upright", "as_clip"])
def test_a_run_on_ones_own_images_is_repeated_from_their_folder(tmp_path, how):
    pets = own_images(tmp_path / "pets")
    given = ["--profile", "smoke", "--dataset", pets]
    words = ["--method", "lora", "--shots", "1", "--image-loading", how]
    code, said = call(*given, "--results", tmp_path / "res", *words)
    assert code == 0, said
    (path,) = (tmp_path / "res" / "runs").glob("*.json")
    manifest = (tmp_path / "res" / "manifests" / "pets.yaml").read_bytes()
    code, said = call(*given, "--verify", path)
    assert code == 0, said
    assert f"the same bits as {path}" in said
    moved = tmp_path / "elsewhere" / "runs" / path.name
    moved.parent.mkdir(parents=True)
    moved.write_bytes(path.read_bytes())
    assert call(*given, "--verify", moved, "--image-loading", how)[0] == 0  # no manifest beside it
    (pets / "cat" / "0.png").unlink()
    code, said = call(*given, "--verify", path)
    assert code == 2
    assert "the data of pets (checksum " in said
    assert (tmp_path / "res" / "manifests" / "pets.yaml").read_bytes() == manifest


@pytest.mark.parametrize(
    ("dataset", "words", "told"),
    [
        ("pets", [], "say where it lies with --dataset FOLDER"),
        ("pets", ["--dataset", "./others"], "and the images of {}/others would be others; give"),
        ("pets", ["--dataset", "pet"], "unknown dataset 'pet'"),
        ("chess", ["--dataset", "./pets"], "is of chess; --dataset and --image-loading go with"),
        ("chess", ["--dataset", "chess"], "is of chess; --dataset and --image-loading go with"),
        ("chess", ["--image-loading", "upright"], "is of chess; --dataset and --image-loading go"),
    ],
)
def test_a_folder_goes_with_a_record_of_ones_own_images(
    tmp_path, monkeypatch, dataset, words, told
):
    monkeypatch.chdir(tmp_path)
    own_images(tmp_path / "others")
    record = make_record(make_spec(dataset=dataset, evaluate_on=(dataset,)))
    path = RunStore("runs").save(record)
    code, said = call("--profile", "smoke", "--verify", path, *words)
    assert (code, said.count("\n")) == (2, 1)
    assert told.format(tmp_path) in said
