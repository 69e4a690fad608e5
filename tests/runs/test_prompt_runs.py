"""Runs of prompt methods, end to end, and what is refused before any training."""

from __future__ import annotations

import json
from contextlib import nullcontext

import open_clip
import pytest
import torch
from conftest import profile_facts, write_bundle

from blocklora_lib.learning.prompt_method import PromptMethod
from blocklora_lib.methods import get_method, method_names
from blocklora_lib.runs.contexts import run_context
from blocklora_lib.runs.execute import execute, run_grid
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import RunRecord, frame
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench

PROMPTED = [name for name in method_names() if issubclass(get_method(name), PromptMethod)]
SHORT = {name: {} for name in PROMPTED} | {
    "coop": {"context": 4},
    "prograd": {"context": 4},
    "maple": {"depth": 2},
    "promptsrc": {"depth": 2},
}
OWN = {"schedule": {"epochs": [1, 2, 3], "batch_size": 4}}
CLASSES, STEPS = 3, 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def profile(backbone, names=PROMPTED, **changes) -> Profile:
    methods = [{"name": name, "settings": SHORT[name]} for name in names]
    return Profile.model_validate(profile_facts(backbone) | {"methods": methods} | changes)


def run(backbone, manifests, name, **settings) -> RunRecord:
    entry = {"name": name, "settings": SHORT[name] | settings}
    facts = profile(backbone, methods=[entry])
    spec = make_spec(facts, "squares", name, 2, 1, manifests=manifests)
    return execute(spec, Workbench("cpu", manifests))


def test_all_are_known():
    assert set(PROMPTED) == {"coop", "kgcoop", "prograd", "cocoop", "maple", "promptsrc"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTED)
def test_a_run_by_a_profiles_training_settings(name, tiny_clip, manifests):
    record = run(tiny_clip, manifests, name)
    assert RunRecord.from_json(record.to_json()) == record
    assert record == record.model_copy(update={"result": run(tiny_clip, manifests, name).result})
    assert set(record.result.accuracy) == {"squares", "noisy_squares"}
    assert record.result.train.total == 2 * CLASSES
    budget = record.cost.budget
    # four steps of batches of 4 from 6 images: 4, 2, 4, 2
    assert (budget.updates, budget.images_seen) == (STEPS, 12)
    assert budget.image_passes >= 12
    assert budget.text_passes >= STEPS * CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTED)
def test_a_run_by_its_own_schedule(name, tiny_clip, manifests):
    record = run(tiny_clip, manifests, name, **OWN)
    assert record.spec.training is None
    assert not record.spec.method.chooses
    # two epochs of one batch of 4, the other two of 6 images left out
    assert len(record.result.loss) == 2
    assert (record.cost.budget.updates, record.cost.budget.images_seen) == (2, 8)
    assert RunRecord.from_json(record.to_json()) == record
    row = frame([record]).iloc[0]
    lr = record.spec.method.settings["schedule"]["lr"]
    assert (row["epochs"], row["batch_size"], row["lr"]) == ("1,2,3", 4, lr)
    assert "schedule" not in row


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [n for n in PROMPTED if "image" not in get_method(n).towers])
def test_evaluated_images_are_encoded_once_and_counted_as_before(
    name, precision, tiny_clip, manifests
):
    facts = profile(tiny_clip, [name], source=None, variants=[], targets=["squares"])
    backbone = facts.backbone.model_copy(update={"precision": precision})
    facts = facts.model_copy(update={"backbone": backbone})
    spec = make_spec(facts, "squares", name, 2, 1, manifests=manifests)
    bench = Workbench("cpu", manifests)
    record = execute(spec, bench)
    assert bench.features.encoded == CLASSES * (6 + 4)  # squares' train and test images
    again = Workbench("cpu", manifests)  # as in another process
    assert execute(spec, again).result == record.result
    assert again.features.encoded == 0
    # of images that are encoded for each run anew: bit for bit the same scores
    context, dataset = run_context(spec, bench, bench.check(spec)), bench.dataset("squares")
    predictor = spec.method.load().fit(context)
    model = context.backbone
    features = bench.features.features(model, bench.source(dataset, "test"))
    with torch.inference_mode():
        classifier = predictor.classifier(model.tokenize(predictor.prompts(dataset.classes)))
        scores = predictor.logits(model.preprocess(dataset.images("test")), classifier)
        assert torch.equal(predictor.scores(features, classifier), scores)
    correct = int((scores.argmax(-1) == dataset.labels("test")).sum())
    assert record.result.accuracy["squares"].correct == correct


def test_rates_are_chosen_for_those_without_a_schedule(tiny_clip, manifests):
    entries = [
        {"name": "a", "method": "coop", "settings": {"context": 4}},
        {"name": "b", "method": "coop", "settings": {"context": 4} | OWN},
    ]
    settings = profile(tiny_clip, methods=entries)
    assert [entry.name for entry in settings.trained] == ["a"]
    specs = expand(settings, manifests=manifests)
    assert {s.training is None for s in specs if s.method.settings["schedule"]} == {True}


@pytest.mark.slow
def test_a_grid_is_evaluated_on_other_classes(tiny_clip, manifests, tmp_path):
    across = {"experiments": {"few_shot": {}, "across": {"evaluate_on": "targets", "shots": [1]}}}
    specs = expand(profile(tiny_clip, **across), "across", manifests=manifests)
    for record in run_grid(specs, RunStore(tmp_path), Workbench("cpu", manifests)):
        assert set(record.result.accuracy) == {"squares", "dots"}


@pytest.mark.parametrize("name", PROMPTED)
def test_prompts_longer_than_the_context_are_refused_before_training(name, tiny_clip, tmp_path):
    classes = ("ox", "a very long name " + "of many words " * 3)
    folder = write_bundle(tmp_path, classes=classes, template="{}")
    facts = dict(source=None, variants=[], targets=["squares"])
    spec = make_spec(profile(tiny_clip, **facts), "squares", name, 1, 1, manifests=folder)
    with pytest.raises(ValueError, match=f"method {name} .* tokens, the text tower .* reads 16"):
        Workbench("cpu", folder).check(spec)


@pytest.mark.slow
def test_generic_prompts_longer_than_the_context_are_refused_before_training(tiny_clip, tmp_path):
    """Of PromptSRC alone: its own prompts of these classes fit."""
    classes = ("ox", "a yellow submarine of many very long words")
    folder = write_bundle(tmp_path, classes=classes)
    facts = dict(source=None, variants=[], targets=["squares"])
    for name in ("coop", "promptsrc"):
        spec = make_spec(profile(tiny_clip, **facts), "squares", name, 1, 1, manifests=folder)
        says = r"method promptsrc with generic templates: prompt .* tokens, .* reads 16"
        refused = pytest.raises(ValueError, match=says) if name == "promptsrc" else nullcontext()
        with refused:
            Workbench("cpu", folder).check(spec)


@pytest.mark.parametrize("name", PROMPTED)
def test_a_class_of_which_the_tokenizer_reads_nothing_is_refused(name, tiny_clip, tmp_path):
    folder = write_bundle(tmp_path, classes=("ox", "&nbsp;"))
    facts = dict(source=None, variants=[], targets=["squares"])
    spec = make_spec(profile(tiny_clip, **facts), "squares", name, 1, 1, manifests=folder)
    with pytest.raises(ValueError, match=rf"method {name}: class '&nbsp;' is no word to TinyCLIP"):
        Workbench("cpu", folder).check(spec)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A tiny CLIP whose image tower is a ResNet."""
    vision = dict(image_size=32, layers=[1, 1, 1, 1], width=16, patch_size=None)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=2)
    config = dict(embed_dim=16, vision_cfg=vision, text_cfg=text)
    path = tmp_path_factory.mktemp("clip") / "TinyResNet-test.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(path)
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTED)
def test_a_resnet_takes_prompts_in_its_text_tower_alone(name, resnet, manifests):
    if "image" not in get_method(name).towers:
        assert run(resnet, manifests, name).status == "done"
        return
    with pytest.raises(ValueError, match=rf"method {name} .* image tower, and that of {resnet} .*"
                                         r"ViT-B-16 .* such as coop"):  # fmt: skip
        run(resnet, manifests, name)


def test_a_text_tower_that_is_no_transformer_of_open_clip_is_refused(tiny_clip, manifests):
    bench = Workbench("cpu", manifests)
    spec = make_spec(profile(tiny_clip), "squares", "coop", 1, 1, manifests=manifests)
    bench.check(spec)
    bench.backbone(spec.backbone).model.attn_mask = None
    with pytest.raises(ValueError, match="coop puts learnt tokens into the text tower, and that"):
        bench.check(spec)
