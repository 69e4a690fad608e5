"""Runs of a grid that are trained at once have the records that they have alone."""

from __future__ import annotations

import pytest
import torch
from conftest import profile_facts

from blocklora_lib.core.locks import locked
from blocklora_lib.learning.loop import TrainingDiverged
from blocklora_lib.methods.adapters import AdapterMethod
from blocklora_lib.runs import stacked
from blocklora_lib.runs.execute import execute, run_grid
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.kept import Kept
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.store import RunStore

SEEDS = [1, 2, 3]


@pytest.fixture
def batches(monkeypatch):
    """Seeds of each training from here on, of a stack's and of a run alone."""
    made, fit, together = [], AdapterMethod.fit, stacked.fit_stack

    def alone(self, context):
        made.append((context.seed,))
        return fit(self, context)

    def at_once(contexts, config):
        made.append(tuple(context.seed for context in contexts))
        return together(contexts, config)

    monkeypatch.setattr(AdapterMethod, "fit", alone)
    monkeypatch.setattr(stacked, "fit_stack", at_once)
    return made


@pytest.fixture
def specs(tiny_clip, manifests):
    """LoRA of three seeds, on the source and on all targets, and with them zero-shot."""
    return [s for name in ("few_shot", "across") for s in of(tiny_clip, manifests, name)]


def facts(backbone):
    changes = {
        "shots": [2],
        "seeds": SEEDS,
        "experiments": {
            "few_shot": {"datasets": ["squares"], "methods": ["zero_shot", "lora"]},
            "across": {"evaluate_on": "targets", "methods": ["lora"]},
        },
    }
    # what a rounding does to AdamW's first steps grows with the rate
    found = profile_facts(backbone) | changes
    return found | {"training": found["training"] | {"lr": 1e-3}}


def of(backbone, manifests, name):
    return expand(Profile.model_validate(facts(backbone)), name, manifests=manifests)


def is_its_run_alone(record, bench):
    expected = execute(record.spec, bench)
    assert record.result.loss == pytest.approx(expected.result.loss, rel=1e-5)
    changed = {"loss": record.result.loss}
    assert expected.result.model_copy(update=changed) == record.result
    assert record.cost.budget == expected.cost.budget
    assert record.cost.seconds.keys() == expected.cost.seconds.keys()
    assert "stacked_with" not in expected.provenance
    return True


@pytest.mark.slow
def test_each_record_is_that_of_its_run_alone_and_says_with_which(specs, bench, tmp_path, batches):
    store = RunStore(tmp_path)
    records = list(run_grid(specs, store, bench, stack=3))
    assert batches == [(1, 2, 3)]
    assert [r.spec for r in records] == specs
    few = [s.key for s in specs if s.shots][:3]
    for record in records:
        trained = record.spec.shots > 0
        own = {"stacked_with", "trained_with"} & record.provenance.keys()
        assert own == ({"stacked_with", "trained_with"} if trained else set())
        if trained:
            with_it = next(s.key for s in specs if s.fit_key == record.spec.fit_key)
            assert record.provenance["stacked_with"] == [key for key in few if key != with_it]
        assert store.load(record.spec) == record
    assert all(is_its_run_alone(r, bench) for r in records[1:4])
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.slow
def test_a_smaller_stack_takes_the_rest_in_turn_and_none_is_every_run_alone(
    specs, bench, tmp_path, batches
):
    few = specs[:4]
    list(run_grid(few, RunStore(tmp_path / "a"), bench, stack=2))
    assert batches == [(1, 2), (3,)]
    batches.clear()
    records = list(run_grid(few, RunStore(tmp_path / "b"), bench))
    assert batches == [(1,), (2,), (3,)]
    assert not any("stacked_with" in record.provenance for record in records)


@pytest.mark.slow
def test_who_is_stopped_goes_on_with_what_is_left(specs, bench, tmp_path, batches):
    store = RunStore(tmp_path)
    stopped = run_grid(specs[1:4], store, bench, stack=3)
    first = next(stopped)
    stopped.close()  # the others were trained and are not stored
    assert [record.key for record in store.records()] == [first.key]
    assert not list(tmp_path.glob(".*.lock"))
    records = list(run_grid(specs[1:4], store, bench, stack=3))
    assert batches == [(1, 2, 3), (2, 3)]
    assert records[0] == first
    assert records[1].provenance["stacked_with"] == [records[2].key]
    assert all(is_its_run_alone(record, bench) for record in records)


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_left_out(specs, bench, tmp_path, batches):
    store, few = RunStore(tmp_path), specs[1:4]
    store.check_writable()
    running = run_grid(few, store, bench, stack=3)
    with locked(store.lock(few[1]), print):
        assert next(running).spec == few[0]
        assert next(running).spec == few[2]
    assert next(running).spec == few[1]
    assert batches == [(1, 3), (2,)]


@pytest.mark.slow
def test_a_run_that_diverges_fails_alone(specs, bench, tmp_path, monkeypatch):
    together, error = stacked.fit_stack, TrainingDiverged(1, 4, float("nan"), 1.0, "it does")

    def one_diverges(contexts, config):
        first, _, third = together(contexts, config)
        return [first, error, third]

    monkeypatch.setattr(stacked, "fit_stack", one_diverges)
    few = specs[1:4]
    records = list(run_grid(few, RunStore(tmp_path), bench, stack=3))
    assert [record.status for record in records] == ["done", "failed", "done"]
    assert "it does" in records[1].error.message
    assert records[1].provenance["stacked_with"] == [few[0].key, few[2].key]
    assert is_its_run_alone(records[2], bench)
    assert bench.backbone(few[0].backbone).passes  # and the backbone is as it was, for the next


@pytest.mark.slow
def test_runs_that_memory_does_not_hold_at_once_are_trained_alone(
    specs, bench, tmp_path, batches, monkeypatch
):
    """Every attempt ended in MachineFailure, and so did each time that the grid was started."""
    together = stacked.fit_stack

    def no_room(contexts, config):
        together(contexts, config)  # the passes of the towers were made
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(stacked, "fit_stack", no_room)
    few = specs[1:4]
    with pytest.warns(UserWarning, match="no room for 2 runs at once .*Tried to allocate 2 GiB"):
        records = list(run_grid(few, RunStore(tmp_path), bench, stack=2))
    assert batches == [(1, 2), (1,), (2,), (3,)]
    assert [record.spec for record in records] == few
    for record in records:
        expected = execute(record.spec, bench)
        assert record.result == expected.result
        assert record.cost.budget == expected.cost.budget
        assert "stacked_with" not in record.provenance
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.slow
def test_what_cannot_be_one_batch_is_trained_alone(specs, bench, tmp_path, batches):
    shared = specs[1].training.model_copy(update={"share_prefix": True})
    few = [spec.model_copy(update={"training": shared}) for spec in specs[1:3]]
    records = list(run_grid(few, RunStore(tmp_path), bench, stack=3))
    assert batches == [(1,), (2,)]
    assert not any("stacked_with" in record.provenance for record in records)


@pytest.mark.slow
def test_the_adapter_of_each_is_kept(specs, bench, tmp_path, batches):
    keeper, few = Kept(tmp_path / "adapters"), specs[1:4]
    keeper.check()
    list(run_grid(few, RunStore(tmp_path / "runs"), bench, keeper=keeper, stack=3))
    assert batches == [(1, 2, 3)]
    assert not any(map(keeper.lacks, few))


def test_runs_of_one_stack_differ_in_seed_and_sets_alone(specs):
    few, across = specs[1:4], specs[4:]
    assert len({spec.stack_key for spec in few + across}) == 1
    wider = {**few[0].method.settings, "rank": 4}
    for changes in (
        {"shots": 1},
        {"dataset": "dots"},
        {"split": "val"},
        {"deterministic": False},
        {"draw": "coop"},
        {"training": few[0].training.model_copy(update={"lr": 2e-3})},
        {"method": type(few[0].method)(name="lora", settings=wider)},
    ):
        assert few[0].model_copy(update=changes).stack_key != few[0].stack_key, changes


def test_a_notebook_computes_as_its_profile_says(tmp_path, monkeypatch):
    from blocklora_lib.runs import execute as runs
    from blocklora_lib.suite.notebook import Notebook

    asked = []
    monkeypatch.setattr(runs, "run_grid", lambda *_, stack, **__: asked.append(stack) or [])
    nb = Notebook("08_few_shot", "smoke", str(tmp_path))
    nb.compute("few_shot")
    nb.profile = nb.profile.model_copy(update={"stack": 3})
    nb.compute("few_shot")
    assert asked == [1, 3]


def test_a_notebook_keeps_adapters_where_its_profile_does(tmp_path, monkeypatch):
    from blocklora_lib.runs import execute as runs
    from blocklora_lib.suite.notebook import Notebook

    asked = []
    monkeypatch.setattr(runs, "run_grid", lambda *_, keeper, **__: asked.append(keeper) or [])
    nb = Notebook("08_few_shot", "smoke", str(tmp_path))
    nb.compute("few_shot")
    nb.profile = nb.profile.model_copy(update={"save_adapters": True})
    nb.compute("few_shot")
    assert asked[0] is None
    assert asked[1].folder == tmp_path / "adapters"
