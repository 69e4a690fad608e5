"""One's own folders: nothing is left out in silence, and every refusal's command leads on."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.data.dataset import Dataset
from blocklora_lib.data.layouts import items
from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.manifest_files import (
    all_manifests,
    data_checksum,
    load_manifest,
    read_manifest,
)
from blocklora_lib.data.obtain.verify import notes
from blocklora_lib.data.problems import DataError
from blocklora_lib.data.user_dataset import own_manifest, seen_in_training, write_own
from blocklora_lib.data.user_folder import look

SPLITS = ("train", "test")


def fill(folder: Path, *paths: str, colour: str = "teal") -> Path:
    """Images of these names, of whatever format Pillow knows the ending of, else PNG."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        known = Image.registered_extensions().get(Path(path).suffix.lower(), "PNG")
        Image.new("RGB", (8, 8), colour).save(folder / path, known)
    return folder


def classes(folder: Path, *names: str, images: int = 3) -> Path:
    return fill(folder, *(f"{name}/{i}.png" for name in names for i in range(images)))


def all_different(folder: Path) -> Path:
    """The same images, each of a colour of its own."""
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    return folder


def verified(folder: Path):
    return CliRunner().invoke(app, ["data", "verify", str(folder)])


def every_path(folder: Path) -> set[str]:
    manifest = own_manifest(folder)
    return {item.path for split in manifest.splits for item in items(manifest, folder, split)}


def mend(command: str) -> None:
    """Do what an error says."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, env=environment)


def refusal(folder: Path) -> DataError | None:
    try:
        own_manifest(folder)
    except DataError as error:
        return error
    return None


def led_out(folder: Path, error: DataError, steps: int = 4) -> Path:
    """Follow the commands of one error after another until the folder is a dataset; return it."""
    for _ in range(steps):
        command = error.problem.next_command
        if command.startswith("blocklora data verify "):
            (told,) = command.removeprefix("blocklora data verify ").split()
            folder = Path(told)
        else:
            mend(command)
        following = refusal(folder)
        if following is None:
            return folder
        if following.problem == error.problem:
            break
        error = following
    raise AssertionError(f"no way out: {error}")


ENDINGS = [
    "jfif",
    "JPG",
    "jpe",
    "bmp",
    "tif",
    "TIFF",
    "webp",
    "gif",
    "ppm",
    "jp2",
    "avif",
    "png",
    "pgm",
    "tga",
    "ico",
]


@pytest.mark.parametrize(
    "name", [*(f"x.{ending}" for ending in ENDINGS), "x", "x.dat", "x.1", "a/b/x.png", "a.png/x"]
)
def test_every_image_is_taken_whatever_its_name_and_depth(tmp_path, name):
    folder = classes(tmp_path / "pets", "cat", "dog")
    fill(folder, f"cat/{name}")
    assert f"cat/{name}" in every_path(folder)
    dataset = Dataset(own_manifest(folder), tmp_path)
    assert not any(dataset.unreadable(split, thorough=True) for split in ("train", "val", "test"))


@pytest.mark.parametrize("ending", ["heic", "HEIF", "svg", "jxl", "nef", "eps"])
def test_an_image_that_cannot_be_read_is_refused_by_name_and_not_left_out(tmp_path, ending):
    folder = classes(tmp_path / "pets", "cat", "dog")
    (folder / f"cat/x.{ending}").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    found = verified(folder)
    assert found.exit_code == 1
    assert (
        f"cat/x.{ending} cannot be decoded (Pillow knows no image format in it; save .{ending} as"
        in found.output
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cat/notes.txt", "1 file is no image and is left out: cat/notes.txt"),
        ("cat/clip.mp4", "1 file is no image and is left out: cat/clip.mp4"),
        ("cat/.DS_Store", "1 hidden or system file or folder is left out: cat/.DS_Store"),
        ("cat/._1.png", "1 hidden or system file or folder is left out: cat/._1.png"),
        ("cat/Thumbs.db", "1 hidden or system file or folder is left out: cat/Thumbs.db"),
        ("cat/.cache/1.png", "1 hidden or system file or folder is left out: cat/.cache"),
        ("__MACOSX/cat/1.png", "1 hidden or system file or folder is left out: __MACOSX"),
        (
            ".ipynb_checkpoints/1.png",
            "1 hidden or system file or folder is left out: .ipynb_checkpoints",
        ),
        ("README.md", "1 file is no image and is left out: README.md"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, says):
    folder = classes(tmp_path / "pets", "cat", "dog")
    before = every_path(folder)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("words")
    assert every_path(folder) == before
    found = verified(folder)
    assert found.exit_code == 0
    assert f"note: {says}\n" in found.output
    assert "nothing wrong" not in found.output


def test_many_are_counted_and_some_named(tmp_path):
    folder = fill(
        classes(tmp_path / "pets", "cat", "dog"), "front.png", "cat/2020/a.png", "cat/2020/b.png"
    )
    for i in range(7):
        (folder / f"dog/{i}.txt").write_text("words")
    Image.new("RGB", (8, 8)).save(
        folder / "dog/moves.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    (folder / "dog/loop").symlink_to(folder / "dog")
    assert look(folder).notes == (
        "7 files are no images and are left out: dog/0.txt, dog/1.txt, dog/2.txt and 4 more",
        "1 image lies beside the class folders, belongs to no class and is left out: front.png",
        "2 images lie in folders of their class's folder and are taken as ones of the class: "
        "cat/2020/a.png, cat/2020/b.png",
        "1 link leads back to a folder that it stands in and is left out: dog/loop",
    )
    assert (
        "note: 1 file holds several frames: its first is shown: dog/moves.gif"
        in verified(folder).output
    )


def test_a_link_to_nowhere_is_missed_by_name_and_one_to_an_image_is_that_image(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog")
    (folder / "cat/gone.png").symlink_to("nowhere.png")
    (folder / "cat/circle.png").symlink_to("circle.png")
    (folder / "cat/other.png").symlink_to(folder / "dog/1.png")
    assert {"cat/gone.png", "cat/circle.png", "cat/other.png"} < every_path(folder)
    found = verified(folder)
    assert found.exit_code == 1
    for name in ("gone", "circle"):
        assert f"cat/{name}.png is a symbolic link to nowhere" in found.output
        assert f"cat/{name}.png is missing" in found.output


@pytest.mark.parametrize("name", ["_cat", "cat_", "cat ", " cat", "__cat__"])
def test_an_odd_class_folder_is_a_class(tmp_path, name):
    folder = classes(tmp_path / "pets", name, "dog", "owl")
    assert sorted(own_manifest(folder).classes) == ["cat", "dog", "owl"]
    assert {path.rpartition("/")[0] for path in every_path(folder)} == {name, "dog", "owl"}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "valid", "test"), {"train": "train", "val": "valid", "test": "test"}),
        (
            ("Training", "Validation", "Testing"),
            {"train": "Training", "val": "Validation", "test": "Testing"},
        ),
        (("train", "dev", "test"), {"train": "train", "val": "dev", "test": "test"}),
        (("train_set", "test_set"), {"train": "train_set", "test": "test_set"}),
        (("seg_train", "seg_test"), {"train": "seg_train", "test": "seg_test"}),
        (("Train-Data", "test1"), {"train": "Train-Data", "test": "test1"}),
        (("trainset", "TestSet"), {"train": "trainset", "test": "TestSet"}),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, names, splits):
    every = [f"{name}/{c}" for name in names for c in ("cat", "dog")]
    folder = all_different(classes(tmp_path / "pets", *every, images=2))
    manifest = own_manifest(folder)
    assert {split: images[0] for split, images in manifest.images.items()} == splits
    assert manifest.counts == dict.fromkeys(splits, 4)
    assert verified(folder).output.endswith("nothing wrong\n")


@pytest.mark.parametrize("test", ["test", "test1", "test_set"])
def test_splits_of_unsorted_images_are_no_classes(tmp_path, test):
    """Kaggle's dogs and cats: the name of a file says its class."""
    folder = fill(
        tmp_path / "pets", *(f"train/{c}.{i}.png" for c in ("cat", "dog") for i in range(3)),
        *(f"{test}/{i}.png" for i in range(3)),
    )  # fmt: skip
    found = verified(folder)
    assert found.exit_code == 1
    assert "put them into a folder per class there" in found.output


def test_words_beside_a_splits_name_make_it_a_class(tmp_path):
    folder = classes(tmp_path / "things", "train station", "test tube", "bullet_train", "train_")
    assert len(own_manifest(folder).classes) == 4


def test_folders_that_hold_the_same_folders_may_be_no_classes(tmp_path):
    folder = classes(tmp_path / "pets", *(f"fold{i}/{c}" for i in (1, 2) for c in ("cat", "dog")))
    assert look(folder).notes[-1] == (
        "fold1, fold2 hold the same folders, cat, dog: if these are the classes, give fold1 alone, "
        "which is then cut"
    )


@pytest.mark.parametrize(
    "inner",
    [
        [f"{c}/{s}" for c in ("cat", "dog", "it's a cow") for s in SPLITS],
        ["cat/train", "cat/test", "dog/train", "dog/test", "dog/val"],
        ["cat/train_set", "cat/test_set", "dog/train_set", "dog/test_set"],
    ],
)
def test_splits_within_classes_are_put_above_them(tmp_path, inner):
    folder = classes(tmp_path / "pets", *inner)
    with pytest.raises(DataError, match="put the splits above the classes") as error:
        look(folder)
    mend(error.value.problem.next_command)
    found = look(folder)
    assert found.classes == tuple(sorted({name.split("/")[0] for name in inner}))
    assert {"train", "test"} <= set(found.splits)
    for place in inner:
        name, split = place.split("/")
        assert len([*(folder / split / name).iterdir()])


def test_numbered_classes_called_as_a_split_are_told_apart(tmp_path):
    """One folder a patient, under test 1, test 2 and control: no class is to be taken away."""
    folder = classes(tmp_path / "study", "test 1/p1", "test 1/p2", "test 2/p1", "control/p1")
    with pytest.raises(DataError, match="if all are classes, say so by a _") as error:
        look(folder)
    mend(error.value.problem.next_command)
    assert look(folder).classes == ("control", "test 1_", "test 2_")


def test_a_link_to_what_holds_the_class_brings_no_images_of_others(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog")
    before = every_path(folder)
    (folder / "cat/all").symlink_to(folder)
    (folder / "cat/above").symlink_to(tmp_path)
    assert every_path(folder) == before
    assert "2 links lead back to folders that they stand in" in look(folder).notes[0]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/gone").symlink_to("nowhere")  # of someone else: no mend of this folder
    told = verified(folder).output
    assert "cat/above is a symbolic link in a loop" in told
    assert "elsewhere" not in told


def test_a_link_to_another_folder_of_the_class_brings_its_images_once(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog", "cat/old/kept")
    before = every_path(folder)
    (folder / "cat/first").symlink_to("old")
    (folder / "cat/old/second").symlink_to("kept")
    assert every_path(folder) == before
    told = look(folder).notes[-1]
    assert told.startswith("2 links lead to folders of the class that are read already")
    assert "cat/first" in told


@pytest.mark.parametrize(("link", "to"), [("cats", "cat"), ("a", "cat"), ("test", "train")])
def test_a_class_or_a_split_that_is_another_by_a_link_is_refused_by_name(tmp_path, link, to):
    """Its images counted twice, as of two classes or for training and test."""
    splits = ("train/cat", "train/dog") if link == "test" else ("cat", "dog")
    folder = classes(tmp_path / "pets", *splits)
    (folder / link).symlink_to(to)
    found = refusal(folder)
    assert f"{folder / link} is a link to what {to!r} holds" in str(found)
    mend(found.problem.next_command)
    assert not (folder / link).is_symlink()
    assert (folder / to).is_dir()


def test_results_among_the_images_are_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    """The folder that a run itself made was refused as a class without images."""
    monkeypatch.chdir(classes(tmp_path / "pets", "cat", "dog"))
    words = ["run", "--dataset", ".", "--method", "zero_shot", "--results", "results"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "would lie among the images" in done.output
    assert sorted(path.name for path in (tmp_path / "pets").iterdir()) == ["cat", "dog"]


def test_train_is_a_class_where_it_holds_images_beside_others(tmp_path):
    folder = classes(tmp_path / "vehicles", "train", "car", "bus")
    assert own_manifest(folder).classes == ("bus", "car", "train")
    assert own_manifest(folder).split_seed == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda f: classes(f, "train", "test"),
            "holds images right in test, train: put them into a folder per",
        ),
        (
            lambda f: classes(f, "train/a", "car", "bus"),
            "holds train, which looks like a split, beside bus, car",
        ),
        (
            lambda f: classes(f, "train/a", "train/b", "test/a", "test/b", "x"),
            "look like splits, beside x",
        ),
        (
            lambda f: classes(f, "train/a", "train/b", "test"),
            "test holds images right in it, of no class",
        ),
        (
            lambda f: classes(f, "train/a", "train/b"),
            "has train but needs both train and test, or neither",
        ),
        (
            lambda f: classes(f, "train/a", "train/b", "val/a", "val/b"),
            "to test on val, call it test",
        ),
        (lambda f: classes(f, "train/a", "train/b", "eval/a", "eval/b"), "call it test"),
        (lambda f: classes(f, "train/a", "train/b", "test/a", "eval/a"), "call it val"),
        (
            lambda f: classes(f, "test/a", "test/b", "val/a", "val/b"),
            "has test, val but needs both",
        ),
        (
            lambda f: classes(f, "train/a", "train/b", "test/a", "val/a", "valid/a"),
            "are both the val split",
        ),
        (
            lambda f: classes(f, "train/a", "train/b", "test/a", "test/c"),
            "c is a class that train does not have",
        ),
        (
            lambda f: classes(f, "train/Cat", "train/b", "test/cat"),
            "cat is written otherwise than 'Cat' in train",
        ),
        (
            lambda f: classes(f, "train/cat", "train/b", "test/cat "),
            "is written otherwise than 'cat' in train",
        ),
        (
            lambda f: classes(
                f, "train/café", "train/b", unicodedata.normalize("NFD", "test/café")
            ),
            "is written other",
        ),
        (lambda f: classes(f, "red_panda", "red panda"), "and 'red panda' have one prompt"),
        (
            lambda f: classes(f, "Crane", "crane"),
            "and 'Crane' have one prompt, as CLIP reads 'crane' of both",
        ),
        (
            lambda f: classes(f, "a_&_b", "a &amp; b", "c"),
            "have one prompt, as CLIP reads 'a & b' of both",
        ),
        (lambda f: classes(f, "café", unicodedata.normalize("NFD", "café")), "have one prompt"),
        (lambda f: classes(f, "train/x y", "train/x_y", "test/x y", "test/x_y"), "have one prompt"),
        (lambda f: classes(f, "___", "b"), "gives no class name: CLIP reads nothing of it"),
        (lambda f: classes(f, "a\nb", "c"), "with a control character"),
        (lambda f: classes(f, "a\\b", "c"), "with a control character, \\, a drive"),
        (lambda f: classes(f, "~a", "C:d"), "a drive or a leading ~: rename it"),
        (lambda f: classes(f, "a", os.fsdecode(b"caf\xe9")), "has a name that is not UTF-8"),
        (
            lambda f: classes(fill(f, os.fsdecode(b"a/\xe9 '\\.png")), "a", "b"),
            "has a name that is not UTF-8",
        ),
        (lambda f: classes(f, ".cat", "dog", "owl"), ".cat is a hidden folder that holds images"),
        (
            lambda f: (classes(f, "cat", "dog") / "owl").mkdir(),
            "owl holds no images; fill the class or take its",
        ),
        (
            lambda f: fill(classes(f, "cat", "dog"), "owl/.x.png"),
            "owl holds no images; fill the class or take",
        ),
        (
            lambda f: classes(f, "inner/cat", "inner/dog"),
            "holds 1 class folder; a dataset has at least 2: is inner",
        ),
        (
            lambda f: classes(f, "pets-main/images/cat", "pets-main/images/dog"),
            "a dataset has at least 2: is pets-main/images in it meant?",
        ),
    ],
)
def test_every_refusal_leads_out(tmp_path, make, says):
    folder = tmp_path / "pets"
    make(folder)
    before = {
        path.stat().st_ino
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    with pytest.raises(DataError) as error:
        own_manifest(folder)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    found = verified(folder)
    assert found.exit_code == 1
    assert says in found.output
    led_out(folder, error.value)
    after = {
        path.stat().st_ino
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert before == after  # no way out writes over an image


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_too_few_classes_lead_to_folders_to_fill(tmp_path, names):
    folder = classes(tmp_path / "pets", *names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(
        DataError, match=f"holds {len(names)} class folders?; a dataset has at least 2"
    ) as error:
        own_manifest(folder)
    mend(error.value.problem.next_command)
    for place in folder.iterdir():
        classes(folder, place.name)
    assert len(own_manifest(folder).classes) == 2


def test_a_class_without_test_images_is_told(tmp_path):
    folder = classes(tmp_path / "pets", "train/cat", "train/dog", "test/cat")
    (folder / "test/dog").mkdir()
    assert look(folder).notes == (
        "1 class folder holds no images: test/dog",
        "1 class has no test images: no accuracy tells of it: dog",
    )


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Pets!", "my_pets"),
        ("imagenet", "own_imagenet"),
        ("con", "con"),
        ("日本", "own"),
        ("fashion", "own_fashion"),
    ],
)
def test_a_folder_of_any_name_is_a_dataset_of_its_own(tmp_path, folder, name, monkeypatch):
    place = classes(tmp_path / folder, "cat", "dog")
    assert own_manifest(place).name == name
    assert own_manifest(f"{place}/") == own_manifest(place)
    monkeypatch.chdir(place)
    assert own_manifest(".") == own_manifest(place)
    written = write_own(place, tmp_path / "manifests")
    assert read_manifest(tmp_path / "manifests" / f"{name}.yaml") == written


def test_two_folders_of_one_name_do_not_share_results(tmp_path):
    one, two = (
        classes(tmp_path / "a/pets", "cat", "dog"),
        classes(tmp_path / "b/pets", "cat", "dog", images=4),
    )
    write_own(one, tmp_path / "manifests")
    with pytest.raises(DataError, match=r"would be pets beside the images of .*a/pets") as error:
        write_own(two, tmp_path / "manifests")
    mend(error.value.problem.next_command)
    assert write_own(tmp_path / "b/pets_2", tmp_path / "manifests").name == "pets_2"
    one.rename(tmp_path / "a/moved")
    # the same images in another place are the same dataset
    (tmp_path / "a/moved").rename(tmp_path / "pets")
    assert write_own(tmp_path / "pets", tmp_path / "manifests").name == "pets"
    fill(tmp_path / "pets", "cat/new.png")  # and so is a folder to which images were added
    write_own(tmp_path / "pets", tmp_path / "manifests")


def test_a_read_only_folder_is_read(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog")
    before = sorted(folder.rglob("*"))
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555)
    try:
        own_manifest(folder)
    finally:
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
    assert sorted(folder.rglob("*")) == before


def test_the_way_of_looking_is_part_of_the_key_of_ones_own_sets_and_of_no_others(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog")
    upright, clip = own_manifest(folder), own_manifest(folder, image_loading="as_clip")
    assert upright.image_loading == "upright"
    assert data_checksum([upright]) != data_checksum([clip])
    assert {manifest.image_loading for manifest in all_manifests().values()} == {"as_clip"}
    exif = Image.Exif()
    exif[274] = 6
    wide = Image.fromarray(
        np.repeat(np.array([[[255, 0, 0]] * 8 + [[0, 0, 255]] * 8], np.uint8), 16, 0)
    )
    for path in folder.rglob("*.png"):
        wide.save(path, exif=exif)
    views = [
        Dataset(m, tmp_path).images("test").at(16, "cpu").evaluation_views()[0]
        for m in (upright, clip)
    ]
    red = [view[0].float() for view in views]
    assert red[0][:4].mean() > 250 > 5 > red[0][-4:].mean()  # turned: red above, blue below
    assert red[1][:, :4].mean() > 250 > 5 > red[1][:, -4:].mean()  # as stored: red left, blue right


def run(folder, tmp_path, *options):
    words = [
        "run",
        "--profile",
        "smoke",
        "--method",
        "zero_shot",
        "--results",
        str(tmp_path / "results"),
    ]
    return CliRunner().invoke(app, [*words, "--dataset", str(folder), *options])


@pytest.mark.slow
def test_a_run_tells_what_it_leaves_out_and_looks_as_it_is_told(tmp_path):
    folder = fill(classes(tmp_path / "pets", "cat", "dog"), "stray.png")
    done = run(folder, tmp_path, "--shots", "0")
    assert done.exit_code == 0, done.output
    assert (
        "note: 1 image lies beside the class folders, "
        "belongs to no class and is left out: stray.png" in done.output
    )
    done = run(folder, tmp_path, "--shots", "0", "--image-loading", "as_clip")
    assert done.exit_code == 0, done.output
    assert load_manifest("pets", tmp_path / "results/manifests").image_loading == "as_clip"
    assert len(list((tmp_path / "results/runs").glob("*.json"))) == 2
    assert "stored before" not in done.output
    done = run(folder, tmp_path, "--shots", "0", "--image-loading", "as_clip")
    assert "note: this run was stored before; its record is shown, nothing is run" in done.output
    assert run(folder, tmp_path, "--device", "").exit_code == 2
    refused = run(folder, tmp_path, "--image-loading", "clip")
    assert refused.exit_code == 2
    assert "did you mean 'as_clip'?" in refused.output


@pytest.mark.slow
def test_test_images_that_are_trained_on_are_told(tmp_path):
    folder = tmp_path / "pets"
    for i, name in enumerate(("train/cat/a", "train/dog/b", "test/cat/c", "test/dog/d")):
        fill(folder, f"{name}.png", colour=("red", "green", "blue", "white")[i])
    manifest = own_manifest(folder)
    assert seen_in_training(manifest, folder) == []
    shutil.copy(folder / "train/cat/a.png", folder / "test/cat/again.png")
    os.link(folder / "train/dog/b.png", folder / "test/cat/wrong.png")
    (folder / "test/dog/gone.png").symlink_to("nowhere")
    (folder / "train/dog/gone.png").symlink_to("nowhere")
    (note,) = seen_in_training(manifest, folder)
    assert note.startswith("2 test images are among the training images, too: their accuracy flat")
    assert note.endswith("test/cat/again.png, test/cat/wrong.png")
    done = run(classes(tmp_path / "alike", "cat", "dog"), tmp_path, "--shots", "0")
    assert "note: 2 test images are among the training images" in done.output


@pytest.mark.slow
def test_what_is_there_twice_is_told_by_verify_and_by_a_run(tmp_path):
    folder = classes(tmp_path / "pets", "train/cat", "train/dog")
    all_different(folder)
    shutil.copytree(folder / "train", folder / "test")
    leak = "note: 6 test images are among the training images, too: their accuracy flatters: test/"
    found = verified(folder)
    assert (found.exit_code, found.output.count(": note: ")) == (0, 1)
    assert leak in found.output
    assert found.output.endswith("the images that it reads are whole; see the notes\n")
    assert leak in run(folder, tmp_path).output
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        Image.new("RGB", (8, 8), (0, i, 99)).save(path)
    assert verified(folder).output.endswith("nothing wrong\n")
    shutil.copy(folder / "train/cat/1.png", folder / "train/cat/again.png")  # of one class: no word
    assert verified(folder).output.endswith("nothing wrong\n")
    shutil.copy(folder / "train/cat/0.png", folder / "train/dog/9.png")
    both = "note: 2 images are in another class, too: what is right of one is wrong of the other: "
    for found in (verified(folder), run(folder, tmp_path)):
        assert found.exit_code == 0
        assert f"{both}train/cat/0.png, train/dog/9.png\n" in found.output


def test_pillows_remarks_on_images_that_are_read_do_not_reach_the_terminal(tmp_path, monkeypatch):
    folder = classes(tmp_path / "pets", "cat", "dog")
    # of 64: Pillow warns, and refuses from 100 on
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert verified(folder).exit_code == 0
    assert not [
        str(warning.message) for warning in caught if "DecompressionBomb" in str(warning.category)
    ]


@pytest.mark.parametrize("words", [5, 25, 26, 70, 71])
@pytest.mark.parametrize("splits", [[""], ["train/", "test/"]])
def test_class_names_that_a_text_tower_cuts_are_found(tmp_path, words, splits):
    """'a photo of a' is four tokens, the stop one more, and one stands at each end."""
    name = " ".join(["a"] * words)
    folder = classes(tmp_path / "pets", *(f"{split}{c}" for split in splits for c in (name, "dog")))
    length = words + 4 + 1 + 2
    found = verified(folder)
    assert found.exit_code == (length > 77)
    assert ("1 class name is too long for PocketCLIP" in found.output) == (32 < length <= 77)
    if length > 77:
        assert f"gives a prompt of {length} tokens, and CLIP reads 77" in found.output
        mend(found.output.partition("next: ")[2].splitlines()[0])
        again = verified(folder)
        assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_a_huge_image_stops_a_run_before_it_trains_and_a_smaller_one_does_not(tmp_path):
    folder = classes(tmp_path / "pets", "cat", "dog")
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png", compress_level=1)
    for i in range(3):
        (folder / f"cat/{i}.png").unlink()
        (folder / f"cat/{i}.png").symlink_to(tmp_path / "huge.png")
    found = run(folder, tmp_path, "--shots", "0")
    assert found.exit_code == 2
    assert "is larger than 178,956,970 pixels" in found.output
    assert not list((tmp_path / "results").glob("runs/*.json"))
    shutil.rmtree(folder / "cat")
    classes(folder, "cat")
    assert run(folder, tmp_path, "--shots", "0").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    ],
)
def test_names_of_more_than_ascii_survive_any_locale(tmp_path, environment):
    folder = classes(tmp_path / "pets", "café", "dog")
    (folder / "café/naïve.txt").write_text("words", encoding="utf-8")
    words = [sys.executable, "-m", "blocklora_lib.cli", "data", "verify", str(folder)]
    known = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))
    }
    found = subprocess.run(words, capture_output=True, env=known | environment)
    assert b"Traceback" not in found.stderr + found.stdout
    if found.returncode:
        assert (
            b"has a name of more than ASCII, and Python takes names for ascii here: "
            b"set PYTHONUTF8=1" in found.stdout
        )
        found = subprocess.run(
            words, capture_output=True, env=known | environment | {"PYTHONUTF8": "1"}
        )
    assert found.returncode == 0
    assert b"1 file is no image and is left out: caf" in found.stdout


NAMES = (
    "train test val valid Train TEST eval cat Cat dog _x x_ images .hid __MACOSX a_b 1 １".split()
)
NAMES += [
    *"-rf * ~t c:d b\\s 'q' $(rm)".split(),
    "a b",
    " x",
    "x ",
    "n\nl",
    "café",
    unicodedata.normalize("NFD", "café"),
]
NAMES.append(os.fsdecode(b"\xe9t"))
FILES = [
    "1.png",
    "2.jpg",
    "3",
    "x.txt",
    ".h.png",
    "Thumbs.db",
    "4.heic",
    "~$5.png",
    "n\nl.png",
    "-1.png",
    "a'b.png",
]
ONE_PIXEL = io.BytesIO()
Image.new("RGB", (1, 1)).save(ONE_PIXEL, "PNG")
ONE_PIXEL = ONE_PIXEL.getvalue()
FILES.append(os.fsdecode(b"\xff.png"))


def grow(place: Path, draw: random.Random, depth: int = 0) -> None:
    """A tree of folders as no one would make it on purpose."""
    place.mkdir(parents=True)
    for name in draw.sample(FILES, draw.choice([0, 0, 1, 2, 3, 4] if depth < 3 else [2, 3, 4])):
        (place / name).write_bytes(b"words" if name.endswith(("txt", "db", "heic")) else ONE_PIXEL)
    for name in draw.sample(
        NAMES, draw.choice([[0, 2, 2, 3, 4], [0, 2, 2, 3, 4], [0, 0, 0, 1], [0]][depth])
    ):
        grow(place / name, draw, depth + 1)


@pytest.mark.parametrize("seed", range(12))
def test_of_any_tree_no_image_is_lost_and_every_command_can_be_run(tmp_path, seed):
    folder = tmp_path / "set"
    grow(folder, random.Random(seed))
    files = {path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()}
    told = set()
    while error := refusal(folder):
        assert str(error) not in told  # or it would lead in a circle
        assert "\n" not in str(error)
        told.add(str(error))
        command = error.problem.next_command
        if command.startswith("blocklora data verify "):
            given = Path(command.split()[-1])
            if given == folder:
                break  # a class of one image: more are to be added by hand
            folder = given
            continue
        mend(command)
        if command.startswith("mkdir "):
            break  # classes to be filled by hand
    else:
        listed = every_path(folder)
        shown = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        images = {path for path in shown if Path(path).name not in ("x.txt", "Thumbs.db")}
        left = {
            path
            for path in images - listed
            if not any(part[0] == "." or part[:2] == "__" for part in Path(path).parts)
        }
        beside = [note for note in look(folder).notes if "beside the class folders" in note]
        assert len(left) == sum(int(note.split()[0]) for note in beside)
    assert {path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_manifest_of_class_folders_takes_and_names_the_same(tmp_path):
    """A dataset for good, by a YAML of one's own."""
    folder = classes(tmp_path / "pets", "images/cat", "images/dog")
    fill(folder, "images/cat/x.jfif", "images/cat/in/y")
    left_out = {"counts", "split_seed", "folders", "layout", "images"}
    facts = own_manifest(folder / "images").model_dump(exclude=left_out)
    place = {"images": {"test": ("images",)}, "folders": {"coop": "pets"}}
    manifest = Manifest(**facts, **place, layout="class_folders", counts={})
    cats = ("cat/0.png", "cat/1.png", "cat/2.png", "cat/in/y", "cat/x.jfif")
    expected = [f"images/{path}" for path in (*cats, "dog/0.png", "dog/1.png", "dog/2.png")]
    assert [item.path for item in items(manifest, folder, "test")] == expected
    fill(folder, "images/owl/1.png")
    (folder / "images/dog/notes.txt").write_text("words")
    assert notes(manifest, folder) == [
        "1 file is no image and is left out: dog/notes.txt",
        "1 image lies in a folder of its class's folder and is taken as one of the class: cat/in/y",
        "1 folder is of no class of the manifest: owl",
    ]
    (folder / "images").rename(folder / "pictures")
    assert notes(manifest, folder) == []  # `verify` says what is wrong


def test_class_names_that_yaml_would_read_as_something_else_stay_names(tmp_path):
    """open_clip's test_csvdataset_getitem_stringifies_numeric_caption, for names of folders."""
    names = ["007", "0x10", "12:30", "1e3", "2024-01-02", "3.0", "=", "nan", "no", "null", "true"]
    manifest = write_own(classes(tmp_path / "numbers", *names), tmp_path)
    again = read_manifest(tmp_path / f"{manifest.name}.yaml")
    assert again.classes == manifest.classes == tuple(names)
    assert again.prompts[0] == "a photo of a 007."
