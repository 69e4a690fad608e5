"""Classes of one prompt: told, recorded or refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import edit_manifest, profile_facts, write_bundle

from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.manifest_files import all_manifests, load_manifest
from blocklora_lib.data.obtain.verify import notes
from blocklora_lib.learning.evaluation import same_prompts
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.weights.spec import BackboneSpec

# their published names, see CoOp's classnames.txt
IMAGENETS = {"imagenet", "imagenetv2", "imagenet_sketch"}


def test_of_all_manifests_imagenet_and_its_variants_alone_have_two_classes_of_one_prompt():
    found = {name: manifest.alike for name, manifest in all_manifests().items() if manifest.alike}
    assert found == dict.fromkeys(IMAGENETS, (("missile", "missile"), ("sunglasses", "sunglasses")))
    for name in IMAGENETS:
        assert notes(load_manifest(name), Path("nowhere"))[0].startswith(
            "classes missile and missile have one prompt"
        )


def test_the_tokenizer_of_the_backbone_decides(tiny_clip):
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")

    def found(*classes):
        manifest = SimpleNamespace(template="a photo of a {}.")
        prompts = tuple(manifest.template.format(name) for name in classes)
        return same_prompts(
            backbone, SimpleNamespace(classes=classes, prompts=prompts, manifest=manifest)
        )

    assert found("cat", "dog", "Dog") == [["dog", "Dog"]]
    assert found("a &amp; b", "cat", "a & b", "cat", "CAT ") == [
        ["a &amp; b", "a & b"],
        ["cat", "cat", "CAT "],
    ]
    assert found("cat", "", "dog") == [[""]]  # a name of which it reads nothing
    assert found("cat", "cats", "❤", "☃") == []


@pytest.fixture
def alike(tmp_path, tiny_clip):
    """A set whose second and third class are one to CLIP, and a profile of it."""
    manifests = write_bundle(tmp_path, "squares", classes=("owl", "Crane", "crane"))
    facts = profile_facts(tiny_clip) | {
        "source": None,
        "variants": [],
        "targets": ["squares"],
        "experiments": {"few_shot": {}},
    }
    return Profile.model_validate(facts), manifests


def test_a_given_set_warns_and_the_record_says_so(alike):
    profile, manifests = alike
    spec = make_spec(profile, "squares", "zero_shot", 1, 1, manifests=manifests)
    with pytest.warns(
        UserWarning,
        match="classes 'Crane' and 'crane' of squares have one prompt: only one of them",
    ):
        record = execute(spec, Workbench("cpu", manifests))
    assert record.provenance["one_prompt"] == {"squares": [["Crane", "crane"]]}
    json.loads(record.to_json())


def test_a_set_whose_classes_differ_has_no_such_note(tiny_profile, manifests):
    spec = make_spec(tiny_profile, "squares", "zero_shot", 1, 1, manifests=manifests)
    assert "one_prompt" not in execute(spec, Workbench("cpu", manifests)).provenance


def test_ones_own_set_is_refused_before_it_trains(alike):
    profile, manifests = alike
    edit_manifest(manifests, {"layout": "folder"})
    assert load_dataset("squares", manifests).manifest.layout == "folder"
    spec = make_spec(profile, "squares", "block_lora", 1, 1, manifests=manifests)
    with pytest.raises(
        ValueError, match=r"have one prompt: .* give the class's folder another name"
    ):
        execute(spec, Workbench("cpu", manifests))
