"""Runs of methods on cached features: end to end, each image encoded once, what a record says of
choice and budget, and what is refused before any training.
"""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from conftest import eurosat_profile, profile_facts, write_bundle

from blocklora_lib.core.user_cache import cache_folder
from blocklora_lib.data.dataset import Dataset
from blocklora_lib.data.draw import Draw, validation_rows
from blocklora_lib.data.layouts import Item
from blocklora_lib.learning import feature_cache, feature_method
from blocklora_lib.learning.feature_cache import FeatureCache
from blocklora_lib.methods import get_method, method_names
from blocklora_lib.runs.execute import execute, run_grid
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import MachineFailure, RunRecord, RunSpec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench

SHORT = {
    "tip_adapter_f": dict(epochs=2),
    "linear_probe": dict(iterations=5, halvings=2),
    "lp_plus": dict(steps=[6, 3]),
    "task_res": dict(epochs=[2, 2]),
    "clip_adapter": dict(epochs=[2, 2, 2]),
    "zs_lp": dict(epochs=2),
    "clap": dict(epochs=2),
    "prolip": dict(steps=2),
}
ON_FEATURES = [name for name in method_names() if get_method(name).on_features]
CHOOSE = {
    "tip_adapter",
    "tip_adapter_f",
    "gda",
    "proker",
    "linear_probe",
    "lp_plus",
    "clip_adapter",
}
CLASSES = 3  # of squares, with 2 validation images each


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def profile(backbone, names=ON_FEATURES, **changes) -> Profile:
    methods = [{"name": name, "settings": SHORT.get(name, {})} for name in names]
    return Profile.model_validate(profile_facts(backbone) | {"methods": methods} | changes)


def test_the_cases_cover_all_methods_on_features():
    assert set(ON_FEATURES) >= CHOOSE | {"zero_shot", "task_res", "zs_lp", "clap", "prolip"}


@pytest.mark.slow
def test_a_grid_runs_and_encodes_each_image_once(tiny_clip, manifests, tmp_path):
    settings = profile(tiny_clip)
    specs = [s for s in expand(settings, manifests=manifests) if s.dataset == "squares"]
    bench, store = Workbench("cpu", manifests), RunStore(tmp_path / "runs")
    records = list(run_grid(specs, store, bench))
    assert {r.status for r in records} == {"done"}
    # squares: all of its train, val and test images; noisy_squares: its test images
    assert bench.features.encoded == CLASSES * (6 + 2 + 4 + 3)
    again = Workbench("cpu", manifests)  # as in another process
    results = [execute(spec, again).result for spec in specs]
    assert again.features.encoded == 0
    assert results == [record.result for record in records]
    fresh = Workbench("cpu", manifests, features=FeatureCache())  # without what is on disk
    assert [execute(spec, fresh).result for spec in specs[-8:]] == results[-8:]


@pytest.mark.parametrize("name", ON_FEATURES)
def test_its_record_says_what_it_chose_and_took(name, tiny_clip, manifests):
    spec = make_spec(profile(tiny_clip), "squares", name, 2, 1, manifests=manifests)
    assert spec.training is None
    assert spec.method.chooses == (name in CHOOSE)
    record = execute(spec, Workbench("cpu", manifests))
    assert RunRecord.from_json(record.to_json()) == record
    budget, result = record.cost.budget, record.result
    few = 2 * CLASSES if spec.shots else 0
    chosen_by = 2 * CLASSES if name in CHOOSE else 0  # min(2, 4) a class
    assert (result.choice is not None) == (name in CHOOSE)
    if result.choice:
        assert result.choice.validation.total == chosen_by
        assert set(result.choice.settings) == set(get_method(name).Settings.grid)
    assert budget.image_passes == few * max(1, spec.method.settings.get("views", 0)) + chosen_by
    assert budget.text_passes in (0, CLASSES)  # each prompt once
    assert (budget.updates > 0) == (result.trainable_parameters > 0)
    assert budget.updates >= len(result.loss)
    assert (result.train is None) == (spec.shots == 0)
    row = record.rows()[0]
    assert (row["updates"], row["image_passes"]) == (budget.updates, budget.image_passes)


@pytest.mark.slow
def test_seconds_do_not_depend_on_what_ran_before(tiny_clip, manifests, monkeypatch):
    """On a clock that goes on by a second for each image that is encoded, and stands else."""
    clock, pooled = [0.0], feature_cache._pooled

    def ticking(backbone, pixels):
        clock[0] += len(pixels)
        return pooled(backbone, pixels)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(feature_cache, "_pooled", ticking)
    spec = make_spec(profile(tiny_clip), "squares", "gda", 2, 1, manifests=manifests)
    bench = Workbench("cpu", manifests)
    cold, warm = execute(spec, bench), execute(spec, bench)
    kept = execute(spec, Workbench("cpu", manifests))  # in files, by another process
    taken = cold.cost.budget.image_passes
    assert [r.cost.seconds["train"] for r in (cold, warm, kept)] == pytest.approx([taken] * 3)


def test_values_without_a_finite_score_fail_their_run_alone(
    tiny_clip, manifests, tmp_path, monkeypatch
):
    """It ended all of the grid, at each start anew."""
    monkeypatch.setattr(feature_method, "MOST", math.inf)  # else no such values are taken
    methods = [{"name": "gda", "settings": {"a": [1e300, 1e299]}}, {"name": "tip_adapter"}]
    mine = Profile.model_validate(profile_facts(tiny_clip) | {"methods": methods})
    given = [("squares", m["name"], 2, 1) for m in methods]
    specs = [make_spec(mine, *one, manifests=manifests) for one in given]
    failed, done = run_grid(specs, RunStore(tmp_path / "runs"), Workbench("cpu", manifests))
    assert (failed.status, done.status) == ("failed", "done")
    assert "no value of a gives finite scores on validation images" in failed.error.message


def test_a_records_memory_is_its_fits(tiny_clip, manifests, monkeypatch):
    """Not what the process held before, nor what features are encoded with."""
    block = 40 * 2**20
    spec = make_spec(profile(tiny_clip), "squares", "gda", 2, 1, manifests=manifests)
    method, pooled = get_method("gda"), feature_cache._pooled
    fit = method.fit

    def greedy(self, context):
        found = fit(self, context)  # which asks for features
        torch.ones(block // 4)
        return found

    def encoding(backbone, pixels):
        torch.ones(block)  # four times as much
        return pooled(backbone, pixels)

    monkeypatch.setattr(method, "fit", greedy)
    monkeypatch.setattr(feature_cache, "_pooled", encoding)
    bench = Workbench("cpu", manifests, features=FeatureCache())
    before = torch.ones(block)
    records = [execute(spec, bench) for _ in range(2)]  # the second encodes nothing
    assert len(before) == block
    for record in records:
        assert 0.9 * block < record.cost.fit_bytes < 2 * block  # the kernel counts in lumps
        assert record.cost.peak_memory_bytes > 4 * block
        assert record.rows()[0]["fit_bytes"] == record.cost.fit_bytes


@pytest.mark.slow
def test_an_adapters_budget(tiny_clip, manifests):
    facts = profile_facts(tiny_clip)
    spec = make_spec(Profile.model_validate(facts), "squares", "lora", 2, 1, manifests=manifests)
    budget = execute(spec, Workbench("cpu", manifests)).cost.budget
    # four steps of batches of 4 from 6 images: 4, 2, 4, 2; all three prompts at each
    assert budget.model_dump() == dict(
        updates=4, images_seen=12, image_passes=12, text_passes=4 * CLASSES
    )


def test_a_record_without_a_budget_is_still_read(tiny_clip, manifests):
    from blocklora_lib.runs.sealed import seal

    spec = make_spec(profile(tiny_clip), "squares", "zero_shot", 0, 0, manifests=manifests)
    record = execute(spec, Workbench("cpu", manifests))
    facts = json.loads(record.to_json())
    del facts["cost"]["budget"], facts["cost"]["fit_bytes"], facts["result"]["choice"]
    facts = {k: v for k, v in facts.items() if k in RunRecord.model_fields or k == "schema"}
    old = RunRecord.from_json(seal(facts))
    assert (old.cost.budget, old.result.choice) == (None, None)
    assert old.rows()[0]["updates"] is None


@pytest.mark.slow
def test_without_a_grid_no_validation_image_is_touched(tiny_clip, tmp_path, monkeypatch):
    folder = write_bundle(tmp_path, counts={"train": 6, "val": 2, "test": 4})
    read = []
    whole = Dataset.images
    monkeypatch.setattr(
        Dataset, "images", lambda self, split: read.append(split) or whole(self, split)
    )
    names = ["gda", "task_res", "clap"]
    settings = profile(tiny_clip, names, source=None, variants=[], targets=["squares"])
    for name in names:
        read.clear()
        bench = Workbench("cpu", folder, features=FeatureCache())
        execute(make_spec(settings, "squares", name, 2, 1, manifests=folder), bench)
        assert ("val" in read) == (name == "gda")
    facts = settings.model_dump()["methods"][0] | {"settings": {"a": [1.0]}}
    fixed = profile(tiny_clip, source=None, variants=[], targets=["squares"], methods=[facts])
    read.clear()
    bench = Workbench("cpu", folder, features=FeatureCache())
    record = execute(make_spec(fixed, "squares", "gda", 2, 1, manifests=folder), bench)
    assert "val" not in read
    assert record.result.choice is None


def one_set(tiny_clip, **changes):
    return profile(tiny_clip, source=None, variants=[], targets=["squares"], **changes)


def test_without_a_val_split_settings_are_chosen_on_training_images_that_were_not_drawn(
    tiny_clip, tmp_path
):
    folder = write_bundle(tmp_path, counts={"train": 6, "test": 4})
    bench = Workbench("cpu", folder)
    spec = make_spec(one_set(tiny_clip), "squares", "gda", 4, 1, manifests=folder)
    inputs = bench.check(spec)
    split, rows = inputs.validation
    assert split == "train"
    assert not set(rows.tolist()) & set(inputs.index.tolist())
    labels = bench.dataset("squares").labels("train")[rows]
    assert labels.bincount().tolist() == [2, 2, 2]  # what 4 of 6 leave over
    assert execute(spec, bench).status == "done"


@pytest.mark.slow
def test_too_few_validation_images_are_refused_before_training(tiny_clip, tmp_path):
    folder = write_bundle(tmp_path, counts={"train": 6, "test": 4})
    spec = make_spec(one_set(tiny_clip), "squares", "gda", 6, 1, manifests=folder)
    with pytest.raises(
        ValueError, match=r"squares has too few validation images .* of 12 .* has left 0"
    ) as error:
        Workbench("cpu", folder).check(spec)
    assert "\n" not in str(error.value)
    free = make_spec(one_set(tiny_clip), "squares", "clap", 6, 1, manifests=folder)
    Workbench("cpu", folder).check(free)


@pytest.mark.slow
def test_a_classifier_of_its_own_classes_is_not_asked_for_others(tiny_clip, manifests):
    facts = {"experiments": {"few_shot": {}, "across": {"evaluate_on": "targets"}}}
    settings = profile(tiny_clip, **facts)
    specs = {s.method.name: s for s in expand(settings, "across", manifests=manifests)}
    for name, spec in specs.items():
        bench = Workbench("cpu", manifests)
        if get_method(name).own_classes:
            with pytest.raises(ValueError, match=rf"{name} learns .* squares .* those of dots"):
                bench.check(spec)
        else:
            assert set(execute(spec, bench).result.accuracy) == {"squares", "dots"}
    assert {name for name in specs if not get_method(name).own_classes} == {
        "zero_shot",
        "zero_shot_ensemble",
        "clip_adapter",
        "prolip",
    }


def test_training_settings_of_a_profile_are_no_part_of_its_key(tiny_clip, manifests):
    keys = []
    for lr in (1e-2, 1e-3):
        facts = profile_facts(tiny_clip)["training"] | {"lr": lr}
        settings = profile(tiny_clip, training=facts)
        keys.append([s.key for s in expand(settings, manifests=manifests)])
    assert keys[0] == keys[1]
    spec = expand(profile(tiny_clip), manifests=manifests)[-1]
    given = spec.model_dump() | {"training": profile(tiny_clip).training.model_dump()}
    with pytest.raises(ValueError, match="has a way of its own; use training=None"):
        RunSpec.model_validate(given)


ROWS = {
    "train": [Item(f"{k}/{i}", k, str(k)) for k in range(3) for i in range(8)],
    "val": [Item(f"v{k}/{i}", k, str(k)) for k in range(3) for i in range(6)],
}


def drawn(shots, val=()):
    train = [item for item in ROWS["train"] if int(item.path[2:]) < shots]
    return Draw(dataset="a", draw="nested", shots=shots, seed=1, train=tuple(map(tuple, train)),
                val=tuple(map(tuple, val)))  # fmt: skip


@pytest.mark.parametrize(("shots", "few"), [(1, 1), (3, 3), (4, 4), (8, 4)])
def test_validation_images_are_min_of_shots_and_4_a_class(shots, few):
    split, rows = validation_rows(drawn(shots), ROWS, 1)
    assert split == "val"
    assert len(set(rows)) == len(rows)
    assert torch.tensor([ROWS["val"][i].label for i in rows]).bincount().tolist() == [few] * 3
    assert rows == validation_rows(drawn(shots), ROWS, 1)[1]
    assert shots == 8 or rows != validation_rows(drawn(shots), ROWS, 2)[1]
    assert set(validation_rows(drawn(1), ROWS, 1)[1]) <= set(rows)


def test_validation_images_that_a_draw_names_are_taken():
    named = [ROWS["val"][i] for i in (3, 3, 8, 14)]  # CoOp draws with replacement
    assert validation_rows(drawn(2, named), ROWS, 1) == ("val", [3, 3, 8, 14])
    only = {"train": ROWS["train"]}
    named = [ROWS["train"][i] for i in (6, 14, 22)]  # CLIP-LoRA's ImageNet
    assert validation_rows(drawn(1, named), only, 1) == ("train", [6, 14, 22])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clap", "gda"])
def test_files_on_disk_are_known_by_what_they_hold(name, tiny_clip, eurosat):
    methods = [{"name": name, "settings": SHORT.get(name, {})}]
    spec = make_spec(eurosat_profile(tiny_clip, methods=methods), "eurosat", name, 2, 1)
    bench = Workbench("cpu")
    record = execute(spec, bench)
    chosen_by = 2 * 10 if name == "gda" else 0
    assert bench.features.encoded == 3 * 10 + 2 * 10 + chosen_by  # test, few-shot, validation
    again = Workbench("cpu")
    assert execute(spec, again).result == record.result
    assert again.features.encoded == 0
    split, rows = ("test", range(1)) if name == "clap" else bench.check(spec).validation
    path = eurosat / bench.dataset("eurosat").path(split, int(rows[0]))
    other = eurosat / bench.dataset("eurosat").path("test", 25)
    path.write_bytes(other.read_bytes())
    moved = Workbench("cpu")
    assert moved.images(spec) != record.images
    execute(spec, moved)
    assert moved.features.encoded == (3 * 10 if name == "clap" else 2 * 10)
    path.write_bytes(other.read_bytes() + b"more")
    with pytest.raises(MachineFailure, match="changed while it ran"):
        moved.check_unchanged(spec)


def test_a_file_that_changes_while_it_is_encoded_is_not_kept(tiny_clip, eurosat, monkeypatch):
    methods = [{"name": "zero_shot"}]
    spec = make_spec(eurosat_profile(tiny_clip, methods=methods), "eurosat", "zero_shot", 0, 0)
    bench = Workbench("cpu")
    bench.check(spec)
    path = eurosat / bench.dataset("eurosat").path("test", 0)
    whole = FeatureCache._encode

    def encode(self, *given):
        found = whole(self, *given)
        path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(FeatureCache, "_encode", encode)
    with pytest.raises(MachineFailure, match=r"changed while it was encoded"):
        execute(spec, bench)
    assert not list((cache_folder() / "features").glob("*"))
