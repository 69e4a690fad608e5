"""From a bundle to tensors, and what a damaged or odd bundle says."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CLASSES, edit_manifest, write_bundle
from PIL import Image

from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.obtain.miniature import make_fake


def test_images_and_labels_are_those_of_the_file(manifests):
    dataset = load_dataset("squares", manifests)
    assert dataset.classes == CLASSES
    assert dataset.prompts[0] == "a photo of a red square."
    rows = pq.read_table(dataset.manifest.path).to_pylist()
    for split, n in (("train", 18), ("val", 6), ("test", 12)):
        images, labels = dataset.images(split), dataset.labels(split)
        assert (images.shape, images.dtype) == ((n, 3, 32, 32), torch.uint8)
        assert labels.dtype == torch.int64
        expected = [row for row in rows if row["split"] == split]
        assert labels.tolist() == [row["label"] for row in expected]
        pixels = np.asarray(Image.open(io.BytesIO(expected[-1]["image"])).convert("RGB"))
        assert np.array_equal(images[-1].permute(1, 2, 0).numpy(), pixels)
    assert dataset.images("train") is dataset.images("train")  # decoded once


def test_a_damaged_bundle_is_named(tmp_path):
    folder = write_bundle(tmp_path)
    file = tmp_path / "squares.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"squares\.parquet is damaged.*restore it from git"):
        load_dataset("squares", folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"squares\.parquet of dataset squares is missing"):
        load_dataset("squares", folder)


def test_a_class_without_images_is_named(tmp_path):
    folder = write_bundle(tmp_path, skip=("train", 1))
    with pytest.raises(ValueError, match="no train image of class 'green square'"):
        load_dataset("squares", folder)


def test_counts_of_the_manifest_are_checked(tmp_path):
    folder = write_bundle(tmp_path)
    edit_manifest(folder, {"counts": {"train": 18, "val": 6, "test": 13}})
    with pytest.raises(ValueError, match="has 12 test images, its manifest says 13"):
        load_dataset("squares", folder)


def test_a_missing_split_and_an_unknown_one(manifests):
    variant = load_dataset("noisy_squares", manifests)
    with pytest.raises(ValueError, match="noisy_squares has no train images; it has test"):
        variant.images("train")
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean 'test'"):
        variant.labels("tests")


def test_part_of_a_set_without_a_split_file_is_not_taken_for_the_set(tmp_path):
    folder = make_fake(load_manifest("fgvc_aircraft"), tmp_path, classes=2)
    with warnings.catch_warnings(action="error"):
        whole = load_dataset("fgvc_aircraft", root=tmp_path)
        assert len(whole.without("test", {0}).images("test")) == len(whole.labels("test")) - 1
        whole.images("train")
    for split in ("train", "test"):
        lines = folder / f"images_variant_{split}.txt"
        lines.write_text(lines.read_text().partition("\n")[2])
    part = load_dataset("fgvc_aircraft", root=tmp_path)
    with pytest.raises(ValueError, match=r"3 test images, its manifest says 4.*; next: blocklora"):
        part.labels("test")
    with pytest.warns(UserWarning, match="says 4: its draws are other ones"):
        part.labels("train")
    lines.write_text("")
    with pytest.raises(ValueError, match="has 0 test images, its manifest says 4; next: blocklora"):
        load_dataset("fgvc_aircraft", root=tmp_path).labels("test")


def test_a_split_file_that_is_not_the_published_one_is_told(tmp_path):
    folder = make_fake(load_manifest("eurosat"), tmp_path, per_class=1)
    with warnings.catch_warnings(action="error"):
        load_dataset("eurosat", root=tmp_path)
    for mark in folder.glob("FAKE*"):
        mark.unlink()
    with pytest.warns(UserWarning, match=r"another split file .*split_zhou_EuroSAT\.json has"):
        load_dataset("eurosat", root=tmp_path)
