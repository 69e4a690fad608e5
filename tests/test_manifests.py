"""Manifests: what they refuse, and that the bundled ones are whole."""

from __future__ import annotations

import pytest
from conftest import edit_manifest, write_bundle

from blocklora_lib.datasets import load_dataset
from blocklora_lib.manifests import all_manifests, data_checksum, load_manifest, manifest_names


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(licens="CC0"), "unknown key 'licens'; did you mean 'licence'"),
        (dict(licence="delete"), "licence: Field required"),
        (dict(template="a photo"), "must contain {} once"),
        (dict(template="{} {}"), "must contain {} once"),
        (dict(classes=["a", "b", "a"]), "lists 'a' more than once"),
        (dict(variant_of="dots"), "names the source set"),
        (dict(counts={"test": 3}), "train images"),
        (dict(counts={"tset": 3}), "counts.tset"),
        (dict(sha256="abc"), "sha256"),
        (dict(name="sqares"), "differs from the file's name"),
        (dict(class_count=2), "give classes or class_count, not both"),
        (dict(classes=[]), "0 classes; list at least two"),
        (dict(classes=[], class_count=2), "a bundle needs file, sha256 and classes"),
        (
            dict(sources=[{"package": "x", "licence": "y", "attribution": "z", "web": "w"}]),
            "unknown key 'web'",
        ),
    ],
)
def test_bad_manifests_say_what_is_wrong(tmp_path, changes, says):
    folder = write_bundle(tmp_path)
    edit_manifest(folder, changes)
    with pytest.raises(ValueError, match=says.replace("{", r"\{").replace("}", r"\}")) as error:
        load_manifest("squares", folder)
    assert "\n" not in str(error.value)


def test_broken_yaml_is_named(tmp_path):
    folder = write_bundle(tmp_path)
    (folder / "squares.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"squares\.yaml is not valid YAML"):
        load_manifest("squares", folder)


def test_unknown_dataset_lists_the_near_names(manifests):
    with pytest.raises(ValueError, match="unknown dataset 'square'; did you mean 'squares'"):
        load_manifest("square", manifests)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        manifest_names(tmp_path)


def test_data_checksum_covers_images_classes_template_and_order(tmp_path):
    folder = write_bundle(tmp_path)
    before = load_manifest("squares", folder)
    for changes in (dict(template="{}."), dict(classes=["a", "b", "c"]), dict(sha256="0" * 64)):
        assert data_checksum([before.model_copy(update=changes)]) != data_checksum([before])
    assert data_checksum([before.model_copy(update=dict(notes="new", title="T"))]) == data_checksum([before])
    other = before.model_copy(update=dict(name="other"))
    assert data_checksum([before, other]) != data_checksum([other, before])


def test_bundled_manifests_are_valid_and_variants_share_the_classes_of_their_source():
    bundled = {name: m for name, m in all_manifests().items() if m.kind == "bundle"}
    for manifest in bundled.values():
        assert manifest.path.is_file()
        if manifest.variant_of:
            assert manifest.classes == bundled[manifest.variant_of].classes


def test_sets_that_are_not_shipped_state_their_classes_and_only_known_counts():
    external = {name: m for name, m in all_manifests().items() if m.kind == "external"}
    assert len(external) == 15  # the paper's eleven sets and four variants of ImageNet
    assert {name for name, m in external.items() if m.variant_of == "imagenet"} == {
        "imagenetv2",
        "imagenet_sketch",
        "imagenet_a",
        "imagenet_r",
    }
    assert external["sun397"].num_classes == 397
    assert external["sun397"].counts == {}  # no source at hand states them
    assert not any(m.sha256 or m.classes for m in external.values())
    with pytest.raises(FileNotFoundError, match="imagenet is not among the images that the project ships"):
        load_dataset("imagenet")
