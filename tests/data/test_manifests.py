"""Manifests: what they refuse, and that the bundled ones are whole."""

from __future__ import annotations

import re

import pytest
from conftest import edit_manifest, write_bundle

from blocklora_lib.core.paths import MANIFESTS
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.manifest_files import (
    all_manifests,
    data_checksum,
    load_manifest,
    manifest_names,
    manifest_yaml,
    read_manifest,
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(licens="CC0"), "unknown key 'licens'; did you mean 'licence'"),
        (dict(licence="delete"), "licence: Field required"),
        (dict(template="a photo"), "must contain {} once"),
        (dict(template="{} {}"), "must contain {} once"),
        (dict(template="a photo of a {classs}."), "must contain {} once"),
        (dict(template="a {} of {classs}."), "must contain {} once"),
        (dict(template="a {0}"), "must contain {} once"),
        (dict(template="a {:>10}"), "must contain {} once"),
        (dict(template="a {!r}"), "must contain {} once"),
        (dict(template="a {} {"), "must contain {} once"),
        (dict(template="a }{}"), "must contain {} once"),
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
    assert data_checksum([before.model_copy(update=dict(notes="new", title="T"))]) == data_checksum(
        [before]
    )
    other = before.model_copy(update=dict(name="other"))
    assert data_checksum([before, other]) != data_checksum([other, before])


def test_bundled_manifests_are_valid_and_variants_share_the_classes_of_their_source():
    bundled = {name: m for name, m in all_manifests().items() if m.kind == "bundle"}
    for manifest in bundled.values():
        assert manifest.path.is_file()
        if manifest.variant_of:
            assert manifest.varies(bundled[manifest.variant_of])
            assert manifest.classes == bundled[manifest.variant_of].classes


EXTERNAL = {name: m for name, m in all_manifests().items() if m.kind == "external"}
CLASSES = {  # the paper's sets and their numbers of classes, from their own publications
    "imagenet": 1000,
    "caltech101": 100,
    "oxford_pets": 37,
    "stanford_cars": 196,
    "flowers102": 102,
    "food101": 101,
    "fgvc_aircraft": 100,
    "sun397": 397,
    "dtd": 47,
    "eurosat": 10,
    "ucf101": 101,
    "imagenetv2": 1000,
    "imagenet_sketch": 1000,
    "imagenet_a": 200,
    "imagenet_r": 200,
}


def test_the_papers_fifteen_sets_name_their_classes():
    assert {name: len(m.classes) for name, m in EXTERNAL.items()} == CLASSES
    for name, manifest in EXTERNAL.items():
        repeated = {c for c in manifest.classes if manifest.classes.count(c) > 1}
        assert repeated <= {"missile", "sunglasses"}, name
        assert not any("_" in c or c != c.strip() for c in manifest.classes), name
    with pytest.raises(
        FileNotFoundError,
        match=r"imagenet is missing: no folder of ImageNet; next: blocklora data download imagenet",
    ):
        load_dataset("imagenet")


@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_every_fact_of_a_set_has_its_source(name):
    manifest = EXTERNAL[name]
    facts = {
        "classes",
        "folders",
        "images",
        "templates",
        "archives",
        "licence",
        "citation",
        "image_names",
    }
    sometimes = (
        "counts counts_unverified split_file annotations "
        "alternatives class_folders class_indices".split()
    )
    facts |= {key for key in (*sometimes, "terms", "companions") if getattr(manifest, key)}
    assert facts <= set(manifest.fact_sources)
    assert manifest.template == "a photo of a {}." == manifest.templates.clip_lora
    assert manifest.templates.coop.count("{}") == 1
    assert manifest.steps
    assert manifest.citation
    assert set(manifest.folders) == {"coop", "clip_lora"}
    if manifest.licence == "not stated by a source at hand":
        assert "unverified" in manifest.fact_sources["licence"]
    for archive in manifest.archives:
        assert archive.mirror_of is None or archive.mirror_of < len(manifest.archives)


def test_split_files_have_checksums():
    with_split = {name: m.split_file for name, m in EXTERNAL.items() if m.layout == "split_json"}
    assert len(with_split) == 9
    for name, split_file in with_split.items():
        assert split_file.git_sha1, name
        assert split_file.sha256 or name in ("food101", "sun397"), name
        assert split_file.mirrors[0].endswith(f"/splits/{split_file.name}")


def test_imagenets_names_and_folders_are_those_of_clip():
    """open_clip and timm hold independent copies of names and folders, in label order."""
    import importlib.resources

    from open_clip import IMAGENET_CLASSNAMES

    imagenet = EXTERNAL["imagenet"]
    assert imagenet.classes == tuple(IMAGENET_CLASSNAMES)
    timm = pytest.importorskip("timm")
    lists = importlib.resources.files(timm) / "data" / "_info"
    assert list(imagenet.class_folders) == (lists / "imagenet_synsets.txt").read_text().split()
    for name in ("imagenet_a", "imagenet_r"):
        variant = EXTERNAL[name]
        assert list(variant.class_folders) == (lists / f"{name}_synsets.txt").read_text().split()
        assert [str(i) for i in variant.class_indices] == (
            lists / f"{name}_indices.txt"
        ).read_text().split()


def test_variants_share_imagenets_classes():
    imagenet = EXTERNAL["imagenet"]
    # labels are in this order
    assert list(imagenet.class_folders) == sorted(imagenet.class_folders)
    variants = {name: m for name, m in EXTERNAL.items() if m.variant_of}
    assert set(variants) == {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
    for name, variant in variants.items():
        index = variant.class_indices or range(1000)
        assert variant.classes == tuple(imagenet.classes[i] for i in index)
        assert variant.varies(imagenet)
        assert not variant.varies(EXTERNAL["dtd"])
        assert not variant.model_copy(update={"classes": variant.classes[::-1]}).varies(imagenet)
        if name != "imagenetv2":  # its folders are the labels
            assert variant.class_folders == tuple(imagenet.class_folders[i] for i in index)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(layout="split_jsn"), "layout: Input should be"),
        (
            dict(layout="class_folders", class_folders="delete"),
            "layout class_folders needs class_folders",
        ),
        (dict(split_file="delete"), "layout split_json needs split_file"),
        (dict(class_folders=["a"]), "class_folders has 1 entries for 10 classes"),
        (dict(class_indices=list(range(10))), "class_indices without variant_of"),
        (dict(template="{}."), "must be templates.clip_lora"),
        (dict(counts_unverified={"test": 1}), "counts and counts_unverified both give test"),
        (
            dict(layout="variant_lists", annotations={"classes": "c.txt"}),
            "needs annotations classes, test, train",
        ),
        (
            dict(layout="mat", annotations={"labels": "l.mat"}),
            "layout mat needs annotations test, train, val",
        ),
        (dict(fact_sources={"licens": "x"}), "fact_sources names licens"),
        (dict(folders={"coop": "../up"}), "'../up' must be a path relative"),
        (dict(folders={"coop": "/abs"}), "'/abs' must be a path relative"),
        (dict(folders={"coop": "."}), "folders.coop: '.' must be the plain name of a folder"),
        (dict(folders={"clip_lora": ".downloads"}), "folders.clip_lora: '.downloads' must be the"),
        (dict(folders={"coop": "dtd/images"}), "folders.coop: 'dtd/images' must be the plain name"),
        (dict(split_file={"name": "."}), "split_file.name: '.' is a folder of the set's images"),
        (dict(split_file={"name": "./2750/"}), "split_file.name: '2750' is a folder"),
        (
            dict(images={"train": "2750/a", "test": "2750/b"}, split_file={"name": "2750"}),
            "split_file.name: '2750' is a folder",
        ),
        (
            dict(archives=[{"url": "https://x.example/2750", "unpack": False}]),
            "archives.0: '2750' is a folder",
        ),
        (dict(images={"train": "C:x"}), "'C:x' must be a path relative"),
        (dict(split_file={"name": "a.json", "sha256": "12"}), "split_file.sha256"),
        (dict(archives=[{"url": "u", "sha25": "x"}]), "unknown key 'sha25'; did you mean 'sha256'"),
    ],
)
def test_bad_facts_of_a_set_say_what_is_wrong(tmp_path, changes, says):
    path = tmp_path / "eurosat.yaml"
    path.write_text((MANIFESTS / "eurosat.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    edit_manifest(tmp_path, changes, "eurosat")
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        load_manifest("eurosat", tmp_path)
    assert "\n" not in str(error.value)


def test_an_alternative_layout_brings_its_own_counts():
    flowers = EXTERNAL["flowers102"]
    official = flowers.in_layout("mat")
    assert official.counts == {"train": 1020, "val": 1020, "test": 6149}
    assert official.split_file is None
    assert flowers.in_layout("split_json") is flowers
    with pytest.raises(ValueError, match="unknown layout of flowers102 'folder'"):
        flowers.in_layout("folder")


@pytest.mark.parametrize("name", ["eurosat", "imagenet_a", "fashion"])
def test_a_manifest_survives_being_written(tmp_path, name):
    manifest = load_manifest(name)
    (tmp_path / f"{name}.yaml").write_text(manifest_yaml(manifest), encoding="utf-8")
    assert read_manifest(tmp_path / f"{name}.yaml") == manifest
