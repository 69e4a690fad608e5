"""Whether images of a set may be ones that a kept adapter was trained on."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict

import pytest
from conftest import write_bundle
from one_run import make_spec
from PIL import Image

from blocklora_lib.data.layouts import own_items
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.user_dataset import own_manifest
from blocklora_lib.data.views import View
from blocklora_lib.learning.count import Count
from blocklora_lib.runs.kept import Trained
from blocklora_lib.runs.scoring import remark, set_for

TOLD = "images that it was trained on may be among these"


def about(name, manifest):
    """What a file says that was kept of a run on this set."""
    return Trained(
        spec=make_spec(dataset=name, evaluate_on=(name,)),
        classes=manifest.classes,
        template=manifest.template,
        image_loading="upright",
        data_sha256=manifest.sha256,
        view=asdict(View((8, 8))) | {"mean": [0.5], "std": [0.5]},
        weights={"tensors": "0" * 64},
        accuracy={name: Count(correct=0, total=1)},
    )


def grow(folder):
    for name in ("cat", "dog"):
        Image.new("RGB", (8, 8), (9, 9, 200)).save(folder / name / "00.png")


def split_folder(folder):
    """The same images, all of them for training but a new one a class."""
    for name in ("cat", "dog"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / "test" / name).mkdir(parents=True)
        shutil.move(folder / name, folder / "train" / name)
        Image.new("RGB", (8, 8), (9, 9, 201)).save(folder / "test" / name / "new.png")


CHANGES = {
    "an image more": grow,
    "an image less": lambda folder: (folder / "cat" / "3.png").unlink(),
    "another content": lambda f: Image.new("RGB", (8, 8), (1, 2, 3)).save(f / "dog" / "0.png"),
    "another name": lambda folder: (folder / "cat" / "3.png").rename(folder / "cat" / "33.png"),
    "another cut": split_folder,
}


@pytest.fixture
def pets(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (i, 99 * label, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def part(folder, split):
    """What the images of a split hold, digested here."""
    found = own_items(own_manifest(folder), folder, split)
    return {hashlib.sha256((folder / item.path).read_bytes()).hexdigest() for item in found}


def test_a_folder_that_has_grown_tests_on_images_of_the_training_and_it_is_said(pets):
    kept, trained = about("pets", own_manifest(pets)), part(pets, "train")
    assert not trained & part(pets, "test")
    assert remark(kept, set_for(kept, pets)) == ""
    grow(pets)
    assert trained & part(pets, "test")  # it was cut anew
    said = f"{TOLD}: pets is not, image for image, the set of its training"
    assert remark(kept, set_for(kept, pets)) == said


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("copy", [True, False])
def test_it_is_said_of_every_folder_of_another_content_and_of_no_equal_one(
    pets, tmp_path, change, copy
):
    kept, folder = about("pets", own_manifest(pets)), pets
    if copy:
        folder = shutil.copytree(pets, tmp_path / "elsewhere" / "other_pets")
        assert remark(kept, set_for(kept, folder)) == ""
    change(folder)
    assert remark(kept, set_for(kept, folder)).startswith(TOLD)


def test_of_all_images_and_of_those_for_training_it_is_always_said(pets):
    kept = about("pets", own_manifest(pets))
    for split in ("train", "all"):
        assert remark(kept, set_for(kept, pets, split), split) == TOLD
    assert remark(kept, set_for(kept, pets, "val"), "val") == ""


@pytest.mark.slow
def test_of_named_sets_it_is_said_where_that_of_the_training_is_another_now(tmp_path, pets):
    manifests = write_bundle(tmp_path, "squares")
    kept = about("squares", load_manifest("squares", manifests))
    assert remark(kept, set_for(kept, "squares", manifests=manifests)) == ""
    write_bundle(tmp_path, "squares", seed=7)
    assert remark(kept, set_for(kept, "squares", manifests=manifests)).startswith(TOLD)
    write_bundle(tmp_path, "dots", seed=8)
    assert remark(kept, set_for(kept, "dots", manifests=manifests)) == ""
