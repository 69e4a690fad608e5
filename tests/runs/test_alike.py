"""Nothing twice: what trains the same is trained once, and a test image in a file is decoded once,
whatever the run, the experiment and the process; each record is what its run alone gives.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import profile_facts

from blocklora_lib.core.locks import locked
from blocklora_lib.data import image_files
from blocklora_lib.data.layouts import items
from blocklora_lib.data.local import local_manifest
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.data.roots import data_root, find_folder
from blocklora_lib.learning.loop import TrainingDiverged
from blocklora_lib.methods.adapters import AdapterMethod
from blocklora_lib.runs.execute import execute, run_grid, run_or_load
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.kept import Kept
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.suite.engine import grid_groups


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trained(monkeypatch):
    """(seed, rank) of each training of an adapter from here on."""
    made, fit = [], AdapterMethod.fit

    def counted(self, context):
        made.append((context.seed, self.settings.rank))
        return fit(self, context)

    monkeypatch.setattr(AdapterMethod, "fit", counted)
    return made


@pytest.fixture
def profile(tiny_clip) -> Profile:
    """LoRA on the source, evaluated there and on every target, and with one block by two names."""
    facts = profile_facts(tiny_clip) | {"shots": [1], "seeds": [1]}
    one = {"settings.reading": ["block_rank", "input", "total_rank"], "settings.n_blocks": [1]}
    facts["experiments"] = {
        "few_shot": {"datasets": ["squares"], "methods": ["lora"]},
        "cross_dataset": {"evaluate_on": "targets", "methods": ["zero_shot", "lora"]},
        "blocks": {"datasets": ["squares"], "methods": ["block_lora"], "vary": [one]},
    }
    return Profile.model_validate(facts)


def specs_of(profile, manifests, *names):
    return [spec for name in names for spec in expand(profile, name, manifests=manifests)]


@pytest.mark.slow
def test_what_trains_the_same_trains_once_and_each_record_is_its_own(
    profile, manifests, bench, tmp_path, trained
):
    specs = specs_of(profile, manifests, *profile.experiments)
    assert len(specs) == 6
    assert len({spec.fit_key for spec in specs}) == 2  # zero-shot's, and LoRA's by five names
    records = list(run_grid(specs, RunStore(tmp_path), bench))
    assert trained == [(1, 2)]
    trained.clear()
    alone = [execute(spec, Workbench("cpu", manifests)) for spec in specs]
    assert len(trained) == 5
    assert [r.result for r in records] == [r.result for r in alone]
    assert [r.spec for r in records] == specs
    for one, other in zip(records, alone, strict=True):
        if one.spec.shots:
            told = {r.key for r in records if r.spec.shots} - {one.key}
            assert {*one.provenance.pop("trained_with")} == told
            assert one.cost.budget == other.cost.budget
            assert one.cost.seconds.keys() == other.cost.seconds.keys()
        assert one.provenance.keys() == other.provenance.keys()


def test_what_differs_in_more_than_its_sets_has_another_name(profile, manifests):
    (spec,) = specs_of(profile, manifests, "few_shot")
    (_, across) = specs_of(profile, manifests, "cross_dataset")
    assert spec.key != across.key
    assert spec.fit_key == across.fit_key
    wider = {**spec.method.settings, "rank": 4}
    for changes in (
        {"seed": 2},
        {"shots": 2},
        {"split": "val"},
        {"skip_unreadable": True},
        {"deterministic": False},
        {"training": spec.training.model_copy(update={"lr": 1e-3})},
        {"method": type(spec.method)(name="lora", settings=wider)},
    ):
        assert spec.model_copy(update=changes).fit_key != spec.fit_key, changes
    for name, n_blocks in (("block_lora", 2), ("lora_plus", 1), ("frozen_a", 1)):
        method = type(spec.method)(name=name, settings={"rank": 2, "n_blocks": n_blocks})
        assert spec.model_copy(update={"method": method}).fit_key != spec.fit_key, name


@pytest.mark.slow
def test_runs_of_another_grid_are_made_with_those_that_train_the_same(
    profile, manifests, bench, tmp_path, trained
):
    few, across = (specs_of(profile, manifests, name) for name in ("few_shot", "cross_dataset"))
    store = RunStore(tmp_path)
    assert [r.spec for r in run_grid(few, store, bench, beside=[*few, *across])] == few
    assert {r.key for r in store.records()} == {few[0].key, across[1].key}  # not zero-shot's
    assert [r.status for r in run_grid(across, store, bench)] == ["done"] * 2
    assert trained == [(1, 2)]


def test_whoever_trains_the_same_is_waited_for(profile, manifests, bench, tmp_path):
    (spec,), (_, across) = (
        specs_of(profile, manifests, name) for name in ("few_shot", "cross_dataset")
    )
    store = RunStore(tmp_path)
    store.check_writable()
    with locked(store.lock(spec), print), pytest.raises(RuntimeError, match="another process"):
        run_or_load(across, store, bench, wait=False)


def test_a_training_that_fails_fails_once_for_all(profile, manifests, bench, tmp_path, monkeypatch):
    tried = []

    def diverging(self, context):
        tried.append(1)
        raise TrainingDiverged(1, 2, float("nan"), 1.0, "the loss is not finite")

    monkeypatch.setattr(AdapterMethod, "fit", diverging)
    specs = specs_of(profile, manifests, "few_shot", "blocks")
    records = list(run_grid(specs, RunStore(tmp_path), bench))
    assert {r.error.kind for r in records} == {"diverged"}
    assert len(tried) == 1


@pytest.mark.slow
def test_what_another_grid_lacks_costs_this_one_no_run(
    profile, manifests, bench, tmp_path, trained, monkeypatch
):
    few, across = (specs_of(profile, manifests, name) for name in ("few_shot", "cross_dataset"))
    changed = Workbench.check_unchanged

    def gone(self, spec):
        if spec == across[1]:
            raise OSError("a target's folder is away")
        changed(self, spec)

    monkeypatch.setattr(Workbench, "check_unchanged", gone)
    store = RunStore(tmp_path)
    (record,) = run_grid(few, store, bench, beside=across)
    assert record.status == "done"
    assert [r.key for r in store.records()] == [few[0].key]
    strange = across[1].model_copy(update={"data_checksum": "0" * 64})
    (again,) = run_grid(few, RunStore(tmp_path / "b"), bench, beside=[strange])
    assert again.result == record.result


@pytest.mark.slow
def test_an_adapter_is_kept_in_the_form_of_its_own_method(
    profile, manifests, bench, tmp_path, trained
):
    specs = specs_of(profile, manifests, "few_shot", "blocks")
    keeper = Kept(tmp_path / "adapters")
    keeper.check()
    list(run_grid(specs, RunStore(tmp_path / "runs"), bench, keeper=keeper))
    assert len(trained) == len(specs)  # of Block-LoRA there are three readings
    assert not any(map(keeper.lacks, specs))


@pytest.fixture
def miniature(tmp_path, monkeypatch) -> Profile:
    """The profile paper-smoke on its source, the source's variants and two of its targets, with a
    CLIP that takes no time.
    """
    import open_clip

    vision = dict(image_size=32, patch_size=16, width=32, layers=2, head_width=16)
    text = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2)
    config = tmp_path / "TinySmoke-test.json"
    config.write_text(json.dumps(dict(embed_dim=16, vision_cfg=vision, text_cfg=text)))
    open_clip.add_model_config(config)
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path / "fake"))
    smoke = load_profile("paper-smoke")
    chosen = (smoke.source, *smoke.variants, "eurosat", "dtd")
    for name in chosen:
        make_fake(load_manifest(name), tmp_path / "fake", per_class=2, classes=2)
    quick = {"zero_shot", "lora", "block_lora", "lora_r1", "frozen_a", "linear_probe", "gda"}
    experiments = {
        name: smoke.experiments[name].model_copy(
            update={
                "datasets": ("eurosat",) if name == "blocks" else None,
                "methods": tuple(m for m in smoke.experiments[name].methods if m in quick),
            }
        )
        for name in ("few_shot", "comparison", "blocks", "cross_dataset")
    }
    backbone = smoke.backbone.model_copy(update={"name": config.stem})
    changes = {"targets": chosen[-2:], "backbone": backbone, "experiments": experiments}
    return smoke.model_copy(update=changes)


@pytest.mark.slow
@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_over_a_grid_no_test_image_is_decoded_twice_and_nothing_is_trained_twice(
    miniature, tmp_path, monkeypatch, skip_unreadable
):
    miniature = miniature.model_copy(update={"skip_unreadable": skip_unreadable})
    decoded, looked, fitted = Counter(), Counter(), Counter()
    read, fault = image_files.read, image_files.fault

    def reading(path, loading="as_clip"):
        decoded[path] += 1
        return read(path, loading)

    def looking(path, thorough=True):
        looked[path] += thorough
        return fault(path, thorough)

    monkeypatch.setattr(image_files, "read", reading)
    monkeypatch.setattr(image_files, "fault", looking)
    groups = grid_groups(miniature, miniature.experiments)
    specs = {spec.key: spec for group in groups.values() for spec in group}
    assert len(groups) == 8  # jobs: few_shot and comparison of three sets, and two more
    for name in {spec.method.name for spec in specs.values() if spec.shots}:
        method = next(s for s in specs.values() if s.method.name == name).method.load()
        whole = type(method).fit

        def fit(self, context, whole=whole, name=name):
            settings = self.settings.model_dump(mode="json", exclude={"kind", "reading"})
            fitted[str((context.names, context.shots, context.seed, name, settings))] += 1
            return whole(self, context)

        monkeypatch.setattr(type(method), "fit", fit)
    store = RunStore(tmp_path / "runs")
    for group in groups.values():  # a job is a process: it shares what is on the disk
        bench = Workbench("cpu")
        done = list(run_grid(group, store, bench, beside=list(specs.values())))
        assert {record.status for record in done} == {"done"}
    tests = set()
    for name in (*miniature.datasets, *miniature.variants):
        manifest = local_manifest(name)
        folder = find_folder(manifest, data_root(None))
        tests |= {folder / item.path for item in items(manifest, folder, "test")}
    assert {path: decoded[path] for path in tests} == dict.fromkeys(tests, 1)
    # to leave out what does not decode, each is decoded once more, whatever the job
    assert {path: looked[path] for path in tests} == dict.fromkeys(tests, int(skip_unreadable))
    trainings = {spec.fit_key for spec in specs.values() if spec.shots}
    assert sum(fitted.values()) == len(trainings) < sum(1 for s in specs.values() if s.shots)
