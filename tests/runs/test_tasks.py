"""Tasks beside the classification of images: what names a run, what is counted, what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import profile_facts, write_bundle
from one_run import make_record, make_spec
from pydantic import ValidationError

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.learning.count import Count
from blocklora_lib.learning.evaluation import recalls
from blocklora_lib.learning.method import Predictor
from blocklora_lib.learning.texts import TextBackbone
from blocklora_lib.runs.classifier import load_classifier
from blocklora_lib.runs.execute import run_or_load
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.grid import make_spec as spec_of
from blocklora_lib.runs.kept import Kept
from blocklora_lib.runs.packed import read_texts
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import RunRecord, frame
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.weights.spec import BackboneSpec

TEXTS = {"animal": "a beast that {}", "food": "a meal that {}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of images, one of new names, and one of texts."""
    folder = tmp_path_factory.mktemp("tasks")
    write_bundle(folder, "names", {"train": 2, "test": 3}, role="task")
    new = ("wheel", "bell", "sail", "kite")
    write_bundle(folder, "new_names", {"test": 2}, new, role="task", seed=1)
    rows = [
        (text.format(word), label, split)
        for split, words in (("train", ["runs", "waits"]), ("test", ["sleeps", "is für zwei"]))
        for label, text in enumerate(TEXTS.values())
        for word in words
    ]
    path = folder / "words.parquet"
    pd.DataFrame(rows, columns=["text", "label", "split"]).to_parquet(path)
    facts = yaml.safe_load((folder / "manifests" / "names.yaml").read_text())
    facts |= dict(name="words", holds="texts", file=str(path), classes=list(TEXTS), template="{}")
    facts |= dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    facts |= dict(counts={"train": 4, "test": 4})
    (folder / "manifests" / "words.yaml").write_text(yaml.safe_dump(facts))
    return folder / "manifests"


@pytest.fixture(scope="module")
def profile(tiny_clip):
    methods = ["zero_shot", "lora", "block_lora"]
    names = dict(task="retrieval", datasets=["names"], evaluate_on=["names", "new_names"])
    texts = dict(task="texts", datasets=["words"], settings={"towers": ["text"]})
    common = dict(methods=methods, shots=[2], seeds=[1])
    experiments = {
        "few_shot": {},
        "names": names | common,
        "words": texts | common | {"training": {"augment": "none"}},
        "other": dict(backbone={"name": tiny_clip, "pretrained": "none", "precision": "bf16"}),
    }
    return Profile.model_validate(profile_facts(tiny_clip) | {"experiments": experiments})


def test_records_of_classification_keep_their_keys_and_their_bytes():
    """Those of the reference run, made before there were tasks."""
    texts = read_texts(RESULTS / "reference" / "pocket" / "runs.parquet")
    for key, text in list(texts.items())[::40]:
        record = RunRecord.from_json(text)
        assert (record.key, record.spec.key) == (key, key)
        assert record.to_json() == text
    assert make_spec(task="classification").key == make_spec().key
    assert make_spec(task="retrieval").key != make_spec().key


@pytest.mark.slow
def test_a_run_of_retrieval_is_stored_and_read_with_its_finds(profile, folder, tmp_path):
    store, bench = RunStore(tmp_path / "runs"), Workbench("cpu", folder)
    records = [run_or_load(s, store, bench) for s in expand(profile, "names", manifests=folder)]
    for record in records:
        assert store.load(record.spec) == record
        assert run_or_load(record.spec, store, bench) == record
        for name, finds in record.result.recall.items():
            assert record.result.accuracy[name] == finds["image to text, first 1"]
            assert finds["image to text, first 5"].correct == finds["image to text, first 5"].total
    rows = frame(records)
    assert rows["image to text, first 1"].equals(rows["accuracy"])
    assert (rows["text to image, first 5"] >= rows["text to image, first 1"]).all()


class Scores(Predictor):
    """A predictor whose scores are given."""

    def __init__(self, scores):
        self.scores_of, self.at = scores, 0

    def classifier(self, tokens):
        return None

    def logits(self, images, classifier):
        self.at += len(images)
        return self.scores_of[self.at - len(images) : self.at]


def test_finds_are_those_of_a_sort_by_hand(folder, tiny_clip):
    data = load_dataset("new_names", folder)
    labels = data.labels("test").numpy()
    scores = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(3))
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    found = recalls(Scores(scores), backbone, [data], "test")["new_names"]
    seen = scores.numpy()
    first = sum(int(np.argmax(row) == label) for row, label in zip(seen, labels, strict=True))
    assert found["image to text, first 1"] == Count(correct=first, total=len(labels))
    for k in (1, 5):
        hits = sum(bool((labels[np.argsort(-seen[:, c])[:k]] == c).any()) for c in range(4))
        assert found[f"text to image, first {k}"] == Count(correct=hits, total=4)
    assert 0 < first < len(labels)


@pytest.mark.slow
def test_texts_go_through_the_text_tower_as_prompts_do(profile, folder, tmp_path):
    bench, store = Workbench("cpu", folder), RunStore(tmp_path / "runs")
    (zero, lora, _) = specs = expand(profile, "words", manifests=folder)
    assert [s.task for s in specs] == ["texts"] * 3
    records = [run_or_load(spec, store, bench) for spec in specs]
    plain = bench.backbone(zero.backbone)
    data, texts = load_dataset("words", folder), TextBackbone.of(plain)
    words = ["a beast that sleeps", "a beast that is für zwei"]
    words += ["a meal that sleeps", "a meal that is für zwei"]
    rows = plain.encode_prompts(plain.tokenize(words))
    assert torch.equal(texts.encode_images(texts.preprocess(data.images("test"))), rows)
    answers = (rows @ plain.encode_prompts(plain.tokenize(list(TEXTS))).T).argmax(1)
    correct = int((answers == data.labels("test")).sum())
    assert records[0].result.accuracy == {"words": Count(correct=correct, total=4)}
    assert all(loss > 0 for loss in records[1].result.loss)
    config = AdapterConfig(**{k: v for k, v in lora.method.settings.items() if k != "kind"})
    assert config.towers == ("text",)
    keeper = Kept(file=tmp_path / "words.safetensors")
    run_or_load(lora, store, bench, keeper=keeper)
    with pytest.raises(AdapterError, match="was trained to tell texts apart"):
        load_classifier(keeper.path(lora), device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(task="texts"), "not cropped and go through the text tower; use augment: none"),
        (
            dict(task="retrieval", method={"name": "linear_probe"}, training=None),
            "method linear_probe is for the classification of images; for task retrieval use",
        ),
    ],
)
def test_what_a_task_cannot_do_is_refused_with_the_way_out(changes, said):
    with pytest.raises(ValidationError, match=said):
        make_spec(**changes)


def test_a_set_of_another_content_is_refused(profile, folder):
    (spec, *_) = expand(profile, "words", manifests=folder)
    bench = Workbench("cpu", folder)
    with pytest.raises(ValueError, match="words holds texts, and task classification takes images"):
        bench.check(spec.model_copy(update={"task": "classification"}))


@pytest.mark.parametrize(
    ("task", "own", "said"),
    [
        (
            "classification",
            "words",
            "words holds texts, and task classification takes images; give",
        ),
        ("retrieval", "words", "words holds texts, and task retrieval takes images; give sets of"),
        (
            "texts",
            "names",
            "names holds images, and task texts takes texts; give sets of texts, or",
        ),
    ],
)
def test_no_grid_lists_a_run_on_a_set_of_another_content(tiny_clip, folder, task, own, said):
    facts = profile_facts(tiny_clip) | {"source": None, "variants": [], "targets": [own]}
    facts |= {"experiments": {"few_shot": {"task": task, "methods": ["zero_shot"]}}}
    profile = Profile.model_validate(facts)
    with pytest.raises(ValueError, match=said):
        expand(profile, manifests=folder)


def test_a_run_on_a_set_of_texts_is_refused_when_its_spec_is_made(tiny_clip, folder):
    facts = profile_facts(tiny_clip) | {"source": None, "variants": [], "targets": ["words"]}
    profile = Profile.model_validate(facts)
    with pytest.raises(ValueError, match="words holds texts, and task classification takes images"):
        spec_of(profile, "words", "lora", 2, 1, manifests=folder)
    of_texts = {"evaluate_on": ["words"], "datasets": ["names"]}
    facts |= {"targets": ["names", "words"], "experiments": {"few_shot": of_texts}}
    with pytest.raises(ValueError, match="words holds texts, and task classification takes images"):
        expand(Profile.model_validate(facts), manifests=folder)


def test_an_experiment_has_a_backbone_of_its_own(profile, manifests):
    (own,) = {s.backbone.precision for s in expand(profile, "other", manifests=manifests)}
    (usual,) = {s.backbone.precision for s in expand(profile, "few_shot", manifests=manifests)}
    assert (own, usual) == ("bf16", "fp32")


def test_a_record_without_finds_says_nothing_of_them():
    assert '"recall"' not in make_record().to_json()
