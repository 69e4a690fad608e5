"""Miniatures: every set, in both conventions, passes `verify`, is known as fake, reads as real."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath

import pytest
from PIL import Image

from blocklora_lib.data.layouts import items
from blocklora_lib.data.local import local_manifest
from blocklora_lib.data.manifest_files import all_manifests, load_manifest
from blocklora_lib.data.obtain.miniature import make_fake, with_classes
from blocklora_lib.data.obtain.verify import verify
from blocklora_lib.data.roots import find_folder, is_fake

EXTERNAL = {name: m for name, m in all_manifests().items() if m.kind == "external"}


def tree(folder) -> dict[str, str]:
    """Digest of every file by relative path."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# Paths that a real set has, written down from CoOp's split files and code, not from the manifests.
REAL_PATHS = {
    "caltech101": "caltech-101/101_ObjectCategories/Faces/image_0001.jpg",
    "dtd": "dtd/images/banded/banded_0001.jpg",
    "eurosat": "eurosat/2750/AnnualCrop/AnnualCrop_1.jpg",
    "fgvc_aircraft": "fgvc_aircraft/images/0000001.jpg",
    "flowers102": "oxford_flowers/jpg/image_00001.jpg",
    "food101": "food-101/images/apple_pie/1.jpg",
    "oxford_pets": "oxford_pets/images/Abyssinian_1.jpg",
    "stanford_cars": "stanford_cars/cars_train/00001.jpg",
    "sun397": "sun397/SUN397/a/abbey/sun_000001.jpg",
    "ucf101": "ucf101/UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg",
    "imagenet": "imagenet/images/train/n01440764/n01440764_1.JPEG",
    "imagenetv2": "imagenetv2/imagenetv2-matched-frequency-format-val/999/00001000.jpeg",
    "imagenet_sketch": "imagenet-sketch/images/n01440764/sketch_1.JPEG",
    "imagenet_a": "imagenet-adversarial/imagenet-a/n01498041/000001.jpg",
    "imagenet_r": "imagenet-rendition/imagenet-r/n01443537/art_1.jpg",
}


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["coop", "clip_lora"])
@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_a_miniature_of_every_set_passes_verify(tmp_path, name, convention):
    manifest = EXTERNAL[name]
    folder = make_fake(manifest, tmp_path, convention, per_class=1)
    assert folder == tmp_path / manifest.folders[convention] == find_folder(manifest, tmp_path)
    assert verify(manifest, folder, decode="all") == []
    assert is_fake(folder)
    for split in manifest.splits:
        found = items(manifest, folder, split)
        assert [item.label for item in found] == list(range(manifest.num_classes))
        assert [item.classname for item in found] == list(manifest.classes)
    assert [p for p in tmp_path.iterdir() if p != folder] == []  # no temporary folder is left
    if convention == "coop":  # files lie where the real set has them
        with Image.open(tmp_path / REAL_PATHS[name]) as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))


@pytest.mark.slow
def test_clip_loras_imagenet_has_train_and_val_without_images(tmp_path):
    folder = make_fake(EXTERNAL["imagenet"], tmp_path, "clip_lora", per_class=1)
    assert (folder / "train" / "n01440764").is_dir()
    assert (folder / "val").is_dir()
    assert not (folder / "images").exists()


def test_the_marker_states_counts_and_the_split_files_checksum(tmp_path):
    folder = make_fake(EXTERNAL["eurosat"], tmp_path, per_class=3)
    marker = json.loads((folder / "FAKE.json").read_text())
    split = (folder / "split_zhou_EuroSAT.json").read_bytes()
    assert marker["fake"] is True
    assert marker["counts"] == {"train": 30, "val": 30, "test": 30}
    assert marker["split_sha256"] == hashlib.sha256(split).hexdigest()
    names = {name for entries in json.loads(split).values() for _, _, name in entries}
    assert "Annual Crop Land" in names  # CoOp's readable name, while the folder is AnnualCrop


FEW = 2
# The first two classes of each set by its own list, from the sets' papers and pages, not from the
# manifests.
FIRST = {
    "imagenet": ["tench", "goldfish"],
    "imagenet_a": ["stingray", "goldfinch"],
    "imagenet_r": ["goldfish", "great white shark"],
    "eurosat": ["Annual Crop Land", "Forest"],
    "dtd": ["banded", "blotchy"],
    "food101": ["apple pie", "baby back ribs"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_a_miniature_of_few_classes_passes_verify_and_brings_its_own_manifest(tmp_path, name):
    folder = make_fake(EXTERNAL[name], tmp_path, per_class=1, classes=FEW)
    here = local_manifest(name, root=tmp_path)
    assert verify(here, folder, decode="all") == []
    assert list(here.classes[:FEW]) == FIRST.get(name, list(EXTERNAL[name].classes[:FEW]))
    for split in here.splits:
        found = items(here, folder, split)
        assert [item.classname for item in found] == list(here.classes)
        assert here.counts[split] == len(found) == len(here.classes)
    if EXTERNAL[name].role == "target":
        assert len(here.classes) == FEW
    whole = make_fake(EXTERNAL[name], tmp_path / "whole", per_class=1)
    places = [{PurePosixPath(path).parent for path in tree(made)} for made in (folder, whole)]
    assert places[0] <= places[1]  # no folder that the real set does not have


def test_variants_of_a_small_imagenet_are_still_parts_of_it():
    small = {n: with_classes(m, FEW) for n, m in EXTERNAL.items() if m.role != "target"}
    # the first two, and stingray (6), goldfinch (11) of A, great white shark (2) of R
    assert small["imagenet"].classes == tuple(
        EXTERNAL["imagenet"].classes[i] for i in (0, 1, 2, 6, 11)
    )
    for name, variant in small.items():
        if name != "imagenet":
            assert variant.varies(small["imagenet"])
    assert len(small["imagenet_a"].classes) == len(small["imagenet_r"].classes) == FEW
    assert (
        small["imagenetv2"].classes == small["imagenet_sketch"].classes == small["imagenet"].classes
    )


def test_more_classes_than_a_set_has_are_all_and_one_is_too_few():
    assert with_classes(EXTERNAL["eurosat"], 99) == EXTERNAL["eurosat"]
    assert with_classes(EXTERNAL["imagenet"], 1000) == EXTERNAL["imagenet"]
    assert with_classes(EXTERNAL["imagenet_a"], 1000) == EXTERNAL["imagenet_a"]
    with pytest.raises(ValueError, match="classes=1; a set has at least 2"):
        with_classes(EXTERNAL["eurosat"], 1)


def test_a_set_that_is_no_miniature_has_its_own_manifest(tmp_path):
    assert local_manifest("eurosat", root=tmp_path) == EXTERNAL["eurosat"]  # missing
    (tmp_path / "eurosat").mkdir()
    assert local_manifest("eurosat", root=tmp_path) == EXTERNAL["eurosat"]  # there, and real
    assert local_manifest("fashion", root=tmp_path) == load_manifest("fashion")


def test_a_damaged_manifest_of_a_miniature_is_named(tmp_path):
    folder = make_fake(EXTERNAL["dtd"], tmp_path, per_class=1, classes=FEW)
    (folder / "FAKE_manifest.json").write_text('{"name": "dtd"')
    with pytest.raises(
        ValueError, match=r"FAKE_manifest\.json is not the manifest of a miniature.*next: rm -r "
    ):
        local_manifest("dtd", root=tmp_path)


@pytest.mark.slow
def test_a_miniature_is_the_same_in_every_run_and_replaces_an_earlier_one(tmp_path):
    first = tree(make_fake(EXTERNAL["dtd"], tmp_path / "a", per_class=1))
    assert tree(make_fake(EXTERNAL["dtd"], tmp_path / "b", per_class=1)) == first
    make_fake(EXTERNAL["dtd"], tmp_path / "a", per_class=2)
    assert tree(make_fake(EXTERNAL["dtd"], tmp_path / "a", per_class=1)) == first


def test_a_real_folder_is_never_written_over(tmp_path):
    real = tmp_path / "dtd" / "images" / "banded"
    real.mkdir(parents=True)
    (real / "banded_0001.jpg").write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"dtd is there and is no miniature.*next: mv "):
        make_fake(EXTERNAL["dtd"], tmp_path)
    assert tree(tmp_path) == before


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="per_class=0"):
        make_fake(EXTERNAL["dtd"], tmp_path, per_class=0)
    with pytest.raises(ValueError, match="convention='torchvision'"):
        make_fake(EXTERNAL["dtd"], tmp_path, "torchvision")
    with pytest.raises(ValueError, match="no layout"):
        make_fake(load_manifest("fashion"), tmp_path)


def test_coops_companion_files_are_there(tmp_path):
    folder = make_fake(EXTERNAL["imagenet_a"], tmp_path, per_class=1)
    lines = (folder / "classnames.txt").read_text().splitlines()
    assert len(lines) == 1000  # CoOp copies ImageNet's file
    assert lines[0] == "n01440764 tench"
    flowers = make_fake(EXTERNAL["flowers102"], tmp_path, per_class=1)
    assert json.loads((flowers / "cat_to_name.json").read_text())["1"] == "pink primrose"


@pytest.mark.slow
def test_official_annotations_are_read_where_no_split_file_is_at_hand(tmp_path):
    """Layout mat, against scipy's own reading as torchvision does it."""
    from scipy.io import loadmat

    flowers = EXTERNAL["flowers102"].in_layout("mat")
    folder = make_fake(EXTERNAL["flowers102"], tmp_path, per_class=1)
    (folder / "split_zhou_OxfordFlowers.json").unlink()
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"]
    test = loadmat(folder / "setid.mat", squeeze_me=True)["tstid"]
    found = items(flowers, folder, "test")
    assert [item.path for item in found] == [f"jpg/image_{n:05d}.jpg" for n in test]
    assert [item.label for item in found] == [labels[n - 1] - 1 for n in test]
    assert verify(flowers, folder, "all") == []

    cars = EXTERNAL["stanford_cars"].in_layout("mat")
    folder = make_fake(EXTERNAL["stanford_cars"], tmp_path, per_class=1)
    (folder / "split_zhou_StanfordCars.json").unlink()
    rows = loadmat(folder / "devkit" / "cars_train_annos.mat", squeeze_me=True)["annotations"]
    found = items(cars, folder, "train")
    assert [(item.path, item.label) for item in found] == [
        (f"cars_train/{row['fname']}", row["class"] - 1) for row in rows
    ]
    assert items(cars, folder, "val") == []
    assert verify(cars, folder, "all") == []


@pytest.mark.parametrize("per_class", [33_334, 10**12, 10**40])
def test_a_slip_of_the_number_of_images_is_refused_before_anything_is_written(tmp_path, per_class):
    """EuroSAT: ten classes, three splits, so at most 33,333 a class; 10**12 filled the memory."""
    with pytest.raises(
        ValueError, match=rf"per_class={per_class} makes .* has at most 1,000,000; give fewer"
    ):
        make_fake(load_manifest("eurosat"), tmp_path / "data", per_class=per_class)
    assert not (tmp_path / "data").exists()
