"""Runs on draws that others can check: the record's checksum, and draws that come from a file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import eurosat_profile
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.data.draw import Draw, make_draw, rows_checksum
from blocklora_lib.data.draw_files import export_draw, import_draw
from blocklora_lib.data.layouts import Item
from blocklora_lib.data.sampling import draw
from blocklora_lib.runs.execute import execute, run_or_load
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.record import RunSpec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench, with_draw


@pytest.fixture
def spec(eurosat, tiny_clip) -> RunSpec:
    """Two shots of a miniature of EuroSAT, three images a class."""
    return make_spec(eurosat_profile(tiny_clip), "eurosat", "lora", 2, 1)


@pytest.fixture
def bench() -> Workbench:
    return Workbench("cpu")


def exported(bench, spec, path, seed=1, shots=2):
    export_draw(
        make_draw(spec.dataset, bench.dataset(spec.dataset).listing, shots, seed, "coop"), path
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nested", "coop", "clip_lora"])
def test_a_record_says_the_checksum_that_data_draw_prints(spec, bench, how):
    printed = (
        CliRunner().invoke(app, ["data", "draw", "eurosat", "--shots", "2", "--draw", how]).stdout
    )
    seen = json.loads(printed)
    spec = spec.model_copy(update={"draw": how})
    record = execute(spec, bench)
    assert (
        record.result.draw_checksum == seen["checksum"] == rows_checksum(seen["train"], seen["val"])
    )
    dataset = bench.dataset("eurosat")
    index = bench.check(spec).index.tolist()
    assert [dataset.path("train", i) for i in index] == [path for path, _, _ in seen["train"]]
    assert index == draw(dataset.labels("train"), 2, 1, how, val=dataset.labels("val")).tolist()


def test_a_run_without_training_draws_nothing(spec, bench):
    zero = make_spec_of_zero_shot(spec)
    assert execute(zero, bench).result.draw_checksum == ""


def make_spec_of_zero_shot(spec: RunSpec) -> RunSpec:
    facts = spec.model_dump() | dict(
        shots=0, seed=0, draw=None, training=None, method={"name": "zero_shot"}
    )
    return RunSpec.model_validate(facts)


@pytest.mark.slow
def test_an_imported_draw_is_the_run_that_drew_it(spec, bench, tmp_path):
    """Same images in the same order and the same seed: the same bits, and another key."""
    ours = with_draw(spec, exported(bench, spec, tmp_path / "a.json"), bench)
    here, there = execute(ours, bench), execute(spec, bench)
    assert here.result == there.result
    assert here.spec.draw == "imported"
    assert here.spec.draw_checksum == there.result.draw_checksum
    assert here.key != there.key
    other = with_draw(spec, exported(bench, spec, tmp_path / "b.json", seed=2), bench)
    result = execute(other, bench).result
    assert (result.draw_checksum, result.loss) != (here.result.draw_checksum, here.result.loss)
    assert len(result.loss) == 4


def test_the_key_follows_the_images_not_the_files_place_or_form(spec, bench, tmp_path):
    file = exported(bench, spec, tmp_path / "draw.json")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(file, tmp_path / "elsewhere" / "other name.json")
    content = json.loads(file.read_text())
    published = {
        split: {
            "data": [
                {"impath": f"/machine/eurosat/{path}", "label": label, "classname": name}
                for path, label, name in content[split]
            ]
        }
        for split in ("train", "val")
    }
    theirs = tmp_path / "shot_2-seed_1.json"
    theirs.write_text(json.dumps(published))
    keys = {with_draw(spec, path, Workbench("cpu")).key for path in (file, copy, theirs)}
    assert len(keys) == 1
    assert with_draw(spec, exported(bench, spec, file, seed=2), bench).key not in keys


@pytest.mark.slow
def test_a_record_of_an_imported_draw_is_found_again_without_the_file(spec, bench, tmp_path):
    file = exported(bench, spec, tmp_path / "draw.json")
    ours, store = with_draw(spec, file, bench), RunStore(tmp_path / "runs")
    record = run_or_load(ours, store, bench)
    file.unlink()
    assert run_or_load(ours, store, Workbench("cpu")) == record
    with pytest.raises(
        ValueError, match=r"is in no file that was given \(none was\); give its file with"
    ):
        execute(ours, Workbench("cpu"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(shots=1), "has 1 shots, the run 2; say --shots 1"),
        (dict(dataset="dtd"), "is a draw of dtd, not of eurosat"),
        (dict(train=[["2750/Forest/gone.jpg", 1, "Forest"]]), "is not in the train split"),
        (dict(checksum="0" * 64), "was changed after it was written"),
    ],
)
def test_a_draw_that_does_not_fit_the_run_is_one_sentence(spec, bench, tmp_path, change, says):
    file = exported(bench, spec, tmp_path / "draw.json")
    content = json.loads(file.read_text()) | change
    if "train" in change:
        content["checksum"] = rows_checksum(content["train"], content["val"])
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says) as error:
        with_draw(spec, file, bench)
    assert "\n" not in str(error.value)


def test_a_file_that_says_other_shots_than_it_has_is_refused(spec, bench, tmp_path):
    file = exported(bench, spec, tmp_path / "draw.json", shots=1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shots": 2}))
    with pytest.raises(ValueError, match="says 2 shots, and the largest of its classes has 1 tr"):
        with_draw(spec, file, bench)


def test_a_draw_that_validates_on_what_it_trains_on_is_refused(tmp_path):
    """As may be of a set without a val split, whose validation images are of train."""
    train = [Item(f"{name}/{i}.jpg", label, name) for label, name in enumerate("ab") for i in "12"]
    drawn = Draw(dataset="toys", draw="coop", shots=2, seed=1, train=tuple(map(tuple, train)))
    for val, says in ((train[:1], "1 images both to train on"), (train[1:], "'a/2.jpg'")):
        file = tmp_path / "draw.json"
        export_draw(drawn.model_copy(update={"val": tuple(map(tuple, val))}), file)
        with pytest.raises(ValueError, match=says):
            import_draw(file, {"train": train}, "toys")


def test_a_draw_without_images_of_a_class_is_refused(spec, bench, tmp_path):
    file = exported(bench, spec, tmp_path / "draw.json")
    content = json.loads(file.read_text())
    content["train"] = [row for row in content["train"] if row[1] != 4]
    content["checksum"] = rows_checksum(content["train"], content["val"])
    file.write_text(json.dumps(content))
    name = bench.dataset("eurosat").classes[4]
    with pytest.raises(ValueError, match=f"no training image of class '{name}'"):
        bench.check(with_draw(spec, file, bench))


def test_what_the_files_hold_is_told_when_none_is_the_draw(spec, bench, tmp_path):
    ours = with_draw(spec, exported(bench, spec, tmp_path / "a.json"), bench)
    other = exported(bench, spec, tmp_path / "b.json", seed=2)
    broken = tmp_path / "c.json"
    broken.write_text("[")
    with pytest.raises(ValueError, match=r"b\.json holds .*c\.json is not valid JSON"):
        Workbench("cpu", draws=(other, broken)).check(ours)


def test_a_method_without_training_takes_no_draw(spec, bench, tmp_path):
    file = exported(bench, spec, tmp_path / "draw.json")
    with pytest.raises(ValueError, match="method zero_shot does not train: it takes no draw"):
        with_draw(make_spec_of_zero_shot(spec), file, bench)


@pytest.mark.slow
def test_images_of_a_set_in_one_file_are_named_by_split_and_number(
    tiny_profile, manifests, tmp_path
):
    spec = make_spec(tiny_profile, "squares", "lora", 2, 1, manifests=manifests)
    bench = Workbench("cpu", manifests)
    file = tmp_path / "draw.json"
    drawn = bench.drawn(spec)
    export_draw(drawn, file)
    index = draw(bench.dataset("squares").labels("train"), 2, 1, "nested").tolist()
    assert [path for path, _, _ in drawn.train] == [f"train/{i:05d}" for i in index]
    ours = with_draw(spec, file, bench)
    assert torch.equal(bench.check(ours).index, bench.check(spec).index)
    assert execute(ours, bench).result == execute(spec, bench).result
    assert execute(spec, bench).result.draw_checksum == drawn.checksum
