"""Runs of LoRA's relatives, of 2SFS and of the template ensemble on PocketCLIP, end to end."""

from __future__ import annotations

import pytest
import torch
from conftest import profile_facts

from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import RunRecord
from blocklora_lib.runs.workbench import Workbench

ENTRIES = [
    {"name": "zero_shot"},
    {"name": "zero_shot_ensemble"},
    {"name": "lora"},
    {"name": "alpha_over_r", "method": "lora", "settings": {"scaling": "rank"}},
    {"name": "dora", "settings": {"rank": 2}},
    {"name": "pissa", "settings": {"rank": 2}},
    {"name": "vera", "settings": {"rank": 16}},
    {"name": "two_stage"},
]


@pytest.fixture(scope="module")
def bench(manifests):
    return Workbench("cpu", manifests)


@pytest.fixture(scope="module")
def profile():
    facts = profile_facts("PocketCLIP") | {"methods": ENTRIES, "variants": []}
    facts["backbone"] = {"name": "PocketCLIP", "pretrained": "bundled"}
    return Profile.model_validate(facts)


@pytest.fixture(scope="module")
def records(profile, bench, manifests):
    found = {}

    def of(name, shots=2):
        if name not in found:
            taken = 0 if name.startswith("zero_shot") else shots
            spec = make_spec(profile, "squares", name, taken, min(taken, 1), manifests=manifests)
            found[name] = execute(spec, bench)
        return found[name]

    return of


def numbers(model, kind):
    """Trained numbers, from the widths and depths of the two towers."""
    towers = [(t.width, len(t.resblocks)) for t in (model.visual.transformer, model.transformer)]
    each = {
        "lora": lambda d: 3 * 2 * 2 * d,
        "pissa": lambda d: 3 * 2 * 2 * d,
        "dora": lambda d: 3 * (2 * 2 * d + d),
        "vera": lambda d: 3 * (16 + d),
        "two_stage": lambda d: 4 * d,
    }[kind]
    classifier = 3 * model.visual.output_dim if kind == "two_stage" else 0
    return sum(each(d) * depth for d, depth in towers) + classifier


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "vera", "two_stage"])
def test_a_run_of_each(name, records, bench, profile):
    backbone = bench.backbone(profile.backbone)
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    record = records(name)
    assert record.status == "done"
    assert RunRecord.from_json(record.to_json()) == record
    assert record.result.trainable_parameters == numbers(backbone.model, name)
    assert len(record.result.loss) == record.cost.budget.updates == 4
    assert record.cost.budget.images_seen == 12
    assert execute(record.spec, bench).result == record.result  # and again, bit for bit
    for n, p in backbone.named_parameters():
        assert torch.equal(p, before[n]), n
        assert not p.requires_grad, n


def test_all_start_from_the_frozen_model(records):
    """The first loss is of the same batch; PiSSA's starts under dropout of the principal part."""
    first = {name: records(name).result.loss[0] for name in ("lora", "dora", "vera", "two_stage")}
    assert max(first.values()) - min(first.values()) < 1e-4


def test_the_scale_alpha_over_r_is_another_run_of_lora(records):
    plain, root = records("alpha_over_r"), records("lora")
    assert plain.spec.method.name == root.spec.method.name == "lora"
    assert plain.spec.key != root.spec.key
    assert plain.result.loss[0] == root.result.loss[0]  # B is zero
    assert plain.result.loss[-1] != root.result.loss[-1]


def test_the_ensemble_reads_seven_prompts_a_class(records):
    single, ensemble = records("zero_shot"), records("zero_shot_ensemble")
    assert single.spec.key != ensemble.spec.key
    assert ensemble.result.trainable_parameters == 0
    assert set(ensemble.result.accuracy) == set(single.result.accuracy) == {"squares"}


def test_what_a_weight_does_not_allow_is_a_failure_record(profile, bench, manifests):
    entry = {"name": "pissa", "settings": {"rank": 4096}}
    other = Profile.model_validate(profile.model_dump() | {"methods": [entry]})
    spec = make_spec(other, "squares", "pissa", 2, 1, manifests=manifests)
    record = execute(spec, bench)
    assert (record.status, record.error.kind) == ("failed", "refused")
    assert "rank=4096" in record.error.message
