"""Specs, their keys, records and the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_run import make_failure, make_record, make_spec
from pydantic import ValidationError

from blocklora_lib.runs.record import (
    BackboneSpec,
    MethodSpec,
    RunSpec,
    TrainingSpec,
)
from blocklora_lib.runs.spec import key_of
from blocklora_lib.runs.store import RunStore


def test_a_spec_is_frozen_hashable_and_survives_json():
    spec = make_spec()
    with pytest.raises(ValidationError):
        spec.shots = 8
    with pytest.raises(TypeError, match="cannot be changed"):
        spec.method.settings["rank"] = 4
    again = RunSpec.model_validate(json.loads(spec.model_dump_json()))
    assert (again, again.key, hash(again)) == (spec, spec.key, hash(spec))
    assert len(spec.key) == 16
    assert int(spec.key, 16) >= 0


def test_values_that_python_takes_for_equal_have_texts_of_their_own():
    """1 == True: texts that runs share are looked up by type, too, in either order."""
    for changes in ({"skip_unreadable": True}, {"shots": 1, "skip_unreadable": True}, {"shots": 1}):
        spec = make_spec(**changes)
        assert spec.key == key_of(json.loads(spec.model_dump_json()))
        assert json.loads(spec.canonical)["skip_unreadable"] is spec.skip_unreadable


CHANGES = [
    dict(dataset="dots"),
    dict(data_checksum="cd" * 32),
    dict(shots=5),
    dict(seed=2),
    dict(draw="coop"),
    dict(draw="imported", draw_checksum="ef" * 32),
    dict(skip_unreadable=True),
    dict(split="val"),
    dict(backbone=BackboneSpec(name="PocketCLIP", pretrained="none", checksum="12" * 32)),
    dict(backbone=BackboneSpec(name="PocketCLIP", pretrained="none", precision="bf16")),
    dict(
        method=MethodSpec(
            name="frozen_a", settings={"rank": 2, "n_blocks": 2, "targets": ["q", "k"]}
        )
    ),
    dict(
        method=MethodSpec(
            name="block_lora", settings={"rank": 4, "n_blocks": 2, "targets": ["q", "k"]}
        )
    ),
    dict(evaluate_on=("dots", "squares")),
    *(
        dict(training=TrainingSpec(**{k: v}))
        for k, v in dict(
            steps_per_shot=5,
            min_steps=2,
            max_steps=9,
            batch_size=8,
            lr=1e-3,
            lr_min=0.0,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            augment="none",
            divergence_factor=2.0,
            share_prefix=True,
            checkpointing=True,
            class_chunk=8,
        ).items()
    ),
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_every_field_moves_the_key(changes):
    spec = make_spec()
    assert spec.key  # asked for before the copy: a copy must not carry it along
    assert make_spec(**changes).key != spec.key
    assert spec.model_copy(update=changes).key == make_spec(**changes).key


def test_every_training_setting_is_among_the_changes():
    changed = {k for c in CHANGES if "training" in c for k in c["training"].model_fields_set}
    assert changed == set(TrainingSpec.model_fields)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.lists(st.integers()),
        max_size=5,
    )
)
def test_the_key_does_not_depend_on_the_order_of_settings(settings):
    backwards = dict(reversed(settings.items()))
    facts = make_spec().model_dump()
    a, b = (
        RunSpec.model_validate(facts | {"method": {"name": "m", "settings": s}}, context="a record")
        for s in (settings, backwards)
    )
    assert (a.key, hash(a), a) == (b.key, hash(b), b)
    assert RunSpec.model_validate_json(a.model_dump_json(), context="a record").key == a.key


@pytest.mark.slow
def test_the_key_is_the_same_in_another_process():
    code = (
        "import sys; from blocklora_lib.runs.spec import "
        "RunSpec;print(RunSpec.model_validate_json(sys.argv[1]).key);assert 'torch' not in "
        "sys.modules, 'runs.py must not import torch'"
    )
    root = str(Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code, make_spec().model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": root},
    )
    assert found.stdout.strip() == make_spec().key


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(shot=4), "unknown key 'shot'; did you mean 'shots'"),
        (dict(shots=0), "shots=0 means no training"),
        (dict(training=None), "needs draw"),
        (dict(draw="imported"), "an imported draw, and only such a one, is named by its checksum"),
        (dict(draw_checksum="ef" * 32), "draw='nested' with draw_checksum='efef"),
        (dict(draw="imported", draw_checksum="draw.json"), "String should match pattern"),
        (dict(draw="random"), "'nested', 'coop', 'clip_lora' or 'imported'"),
        (dict(evaluate_on=("a", "a")), "names a set twice"),
        (dict(evaluate_on=()), "evaluate_on"),
        (dict(training={"learning_rate": 1}), "unknown key 'learning_rate'"),
        (dict(training={"lr": -1}), "greater than 0"),
        (dict(training={"max_steps": 1, "min_steps": 2}), "max_steps=1 is below min_steps=2"),
        (dict(training={"betas": (0.9, 1.0)}), "must lie in"),
    ],
)
def test_bad_specs_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("rule", "shots", "steps"),
    [
        (dict(), 16, 8000),  # CLIP-LoRA: 500 a shot
        (dict(), 1, 500),
        (dict(max_steps=60), 16, 60),
        (dict(steps_per_shot=20, min_steps=40), 1, 40),
        (dict(steps_per_shot=20, min_steps=40, max_steps=100), 4, 80),
    ],
)
def test_steps(rule, shots, steps):
    assert TrainingSpec(**rule).steps(shots) == steps


def test_store_gives_back_what_it_got(tmp_path):
    store = RunStore(tmp_path / "a" / "runs")
    assert store.load(make_spec()) is None
    assert store.records() == []
    record = make_record()
    path = store.save(record)
    assert path.name == f"{record.key}.json"
    assert store.load(make_spec()) == store.load_key(record.key) == record
    assert store.records() == [record]
    assert [p.name for p in store.folder.iterdir()] == [path.name]  # no temporary file is left
    data = json.loads(path.read_text())
    assert data["schema"] == 2
    assert data["result"]["accuracy"]["dots"] == {"correct": 7, "total": 10}


def test_a_half_written_record_is_never_seen(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.save(make_record(correct=5))

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.save(make_record(correct=9))
    assert store.load(make_spec()).result.accuracy["dots"].correct == 5
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".0123456789abcdef.77.tmp").write_text(
        '{"schema": 1, "key"'
    )  # a process that was killed
    assert len(store.records()) == 1


def test_failures_are_kept_and_never_counted(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record())
    store.save(make_failure(make_spec(seed=2)))
    assert [r.status for r in store.records("failed")] == ["failed"]
    frame = store.frame()
    assert len(frame) == 2  # two evaluated sets of the one that is done
    assert set(frame["status"]) == {"done"}
    everything = store.frame(include_failed=True)
    assert len(everything) == 3
    assert everything.loc[everything["status"] == "failed", "accuracy"].isna().all()


def test_frame_has_one_row_a_set_and_the_settings_as_columns(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record())
    frame = store.frame()
    assert frame["evaluated_on"].tolist() == ["squares", "dots"]
    row = frame.iloc[0]
    assert (row["key"], row["shots"], row["seed"], row["method"]) == (
        make_spec().key,
        4,
        1,
        "block_lora",
    )
    assert (row["method_label"], row["accuracy"], row["train_accuracy"]) == (
        "Block-LoRA",
        0.7,
        0.75,
    )
    assert (row["rank"], row["n_blocks"], row["targets"]) == (2, 2, "q,k")
    assert (row["seconds_train"], row["seconds_total"], row["peak_memory_bytes"]) == (
        1.0,
        1.75,
        1 << 20,
    )
    empty = RunStore(tmp_path / "none").frame()
    assert empty.empty
    assert "accuracy" in empty.columns


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"seed": 1', '"seed": 2'),  # no longer the spec of its key
        lambda text: text.replace('"status": "done"', '"status": "failed"'),
        lambda text: text.replace('"cost"', '"costs"'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    store = RunStore(tmp_path)
    path = store.save(make_record())
    path.write_text(damage(path.read_text()))
    for read in (lambda: store.load(make_spec()), store.records, store.frame):
        with pytest.raises(
            ValueError, match=rf"{path.name} is damaged .*delete the file and run again"
        ):
            read()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/runs cannot be written .*--results"):
        RunStore(tmp_path / "file" / "runs").check_writable()
    RunStore(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []
