"""What the project ships, held to what is said of it: pocket images, licences, small models."""

from __future__ import annotations

import json
from functools import cache

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core.paths import ROOT
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.manifest_files import all_manifests
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.weights.spec import BUNDLED, BackboneSpec

POCKET = ROOT / "pocket"
MODELS = POCKET / "model"
CARDS = {  # of each model: its card, and the numbers in it
    "PocketCLIP": ("README.md", "evaluation.json"),
    "PocketSigmoid": ("pocketsigmoid.md", "pocketsigmoid_evaluation.json"),
    "PocketCoCa": ("pocketcoca.md", "pocketcoca_evaluation.json"),
}
BUNDLES = {name: m for name, m in all_manifests().items() if m.kind == "bundle"}
MANIFESTS = {name: m for name, m in BUNDLES.items() if m.role != "task"}
EVALUATIONS = {
    model: json.loads((MODELS / numbers).read_text())["sets"]
    for model, (_, numbers) in CARDS.items()
}
MEBI = 2**20


@cache
def backbone(model):
    return load_backbone(BackboneSpec(name=model, pretrained="bundled"), "cpu")


def test_roles_are_those_of_the_paper():
    """A source with four variants (ImageNet's) and ten targets, all in the pocket profile."""
    profile = load_profile("pocket")
    roles = ("source", "variant", "target")
    by_role = {role: {n for n, m in MANIFESTS.items() if m.role == role} for role in roles}
    assert by_role["source"] == {profile.source}
    assert by_role["variant"] == set(profile.variants)
    assert len(profile.variants) == 4
    assert by_role["target"] == set(profile.targets)
    assert len(profile.targets) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_bundle_is_what_its_manifest_says_and_no_object_crosses_splits(name):
    # checks SHA-256, counts, classes without images
    manifest, data = MANIFESTS[name], load_dataset(name)
    for split in manifest.counts:
        images = data.images(split)
        assert images.shape == (manifest.counts[split], 3, 64, 64)
        assert images.dtype == torch.uint8
    rows = pd.read_parquet(manifest.path, columns=["group", "split", "source"])
    # a texture's groups are halves of a photograph: train and val share the left one, test has the
    # right one
    parts = rows["split"].replace("val", "train") if name == "textures" else rows["split"]
    assert parts.groupby(rows["group"]).nunique().max() == 1
    if manifest.variant_of:
        assert manifest.classes == MANIFESTS[manifest.variant_of].classes
        source = pd.read_parquet(MANIFESTS[manifest.variant_of].path, columns=["group", "split"])
        seen = set(source.loc[source["split"] != "test", "group"])
        # a variant shows code points of the source's test split only
        assert not seen & set(rows["group"])
    else:
        # every set can be drawn at sixteen shots
        assert torch.bincount(data.labels("train")).min() >= 16


def test_sets_of_other_tasks_share_nothing_between_what_is_trained_on_and_what_is_asked():
    known, new = (pd.read_parquet(BUNDLES[n].path) for n in ("emoji_names", "emoji_names_new"))
    assert not set(known["group"]) & set(new["group"])
    assert not set(BUNDLES["emoji_names"].classes) & set(BUNDLES["emoji_names_new"].classes)
    assert known.groupby("split")["source"].unique().map(set).to_dict() == {
        "test": {"twemoji"}, "train": {"noto", "fluent-emoji"},
    }  # fmt: skip
    texts = pd.read_parquet(BUNDLES["definitions"].path)
    assert not texts["text"].duplicated().any()
    counts = texts.groupby(["split", "label"]).size().groupby("split").unique().map(list)
    assert counts.to_dict() == {"train": [32], "val": [8], "test": [40]}


def test_bundles_and_weights_stay_small():
    assert sum(m.path.stat().st_size for m in BUNDLES.values()) < 30 * MEBI
    assert set(CARDS) == set(BUNDLED)
    for stem in BUNDLED.values():
        weights = MODELS / f"{stem}.safetensors"
        assert weights.stat().st_size < 20e6
        with safe_open(weights, "pt") as file:
            assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118


def test_every_licence_has_its_text_and_every_set_its_credit():
    credits = (POCKET / "ATTRIBUTION.md").read_text()
    for manifest in BUNDLES.values():
        assert f"`{manifest.file}`" in credits
        for source in manifest.sources:
            assert source.attribution in credits
            if source.licence in ("public-domain", "LicenseRef-free-fonts"):
                continue  # no licence to print; the fonts' own stand in licences/debian
            assert (POCKET / "licences" / f"{source.licence}.txt").stat().st_size > 500, (
                source.licence
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name"),
    [("PocketCLIP", name) for name in ("emoji_source", "letters", "photos", "chess")]
    + [
        (model, name) for model in ("PocketSigmoid", "PocketCoCa") for name in ("photos", "clipart")
    ],
)
def test_zero_shot_accuracy_is_the_model_cards(model, name):
    data, tower = load_dataset(name), backbone(model)
    with torch.inference_mode():
        classes = tower.encode_prompts(tower.tokenize(data.prompts))
        images = tower.encode_images(tower.preprocess(data.images("test")))
    accuracy = 100 * (images @ classes.T).argmax(1).eq(data.labels("test")).float().mean().item()
    # the card rounds to 0.1; one image more or less for another machine's rounding
    assert accuracy == pytest.approx(
        EVALUATIONS[model][name]["zero_shot"], abs=0.05 + 100 / len(data.labels("test"))
    )


@pytest.mark.parametrize(
    ("model", "more"), [("PocketCLIP", 10), ("PocketSigmoid", 10), ("PocketCoCa", 9)]
)
def test_a_model_passes_its_gate(model, more):
    """On most sets zero-shot is clearly above chance, and features know more than pixels."""
    sets = EVALUATIONS[model]
    assert sets["emoji_source"]["zero_shot"] >= 30
    targets = [name for name, m in MANIFESTS.items() if m.role == "target"]
    assert sum(sets[name]["zero_shot"] >= 3 * sets[name]["chance"] for name in targets) >= 5
    assert sum(row["linear_probe"] > row["pixel_probe"] for row in sets.values()) >= more
    card = (MODELS / CARDS[model][0]).read_text()
    for name, row in sets.items():
        told = f"| {row['zero_shot']} | {row['pixel_probe']} | {row['linear_probe']} |"
        assert told in card, name


@pytest.mark.slow
def test_no_image_is_tested_and_also_trained_on_or_chosen_by():
    """Packages hold drawings twice; the bytes of one in another split or class are left out."""
    for name, manifest in MANIFESTS.items():
        data = load_dataset(name)
        seen = {s: [image.numpy().tobytes() for image in data.images(s)] for s in manifest.counts}
        others = {image for split in seen if split != "test" for image in seen[split]}
        assert not others & set(seen.get("test", [])), name


def test_no_image_of_the_folder_of_ones_own_is_there_twice():
    """One trained on and tested flattered notebook 18."""
    images = [path.read_bytes() for path in (POCKET / "stickers").rglob("*.webp")]
    assert len(set(images)) == len(images) == 256
