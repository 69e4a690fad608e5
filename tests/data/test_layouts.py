"""Readers by layout, roots, one's own folders: against hand-written lists and any damage."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blocklora_lib.core.paths import ROOT
from blocklora_lib.data.layouts import Item, image_folder, items
from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.manifest_files import load_manifest, manifest_yaml, read_manifest
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.data.obtain.verify import verify
from blocklora_lib.data.problems import DataError, MissingData
from blocklora_lib.data.roots import data_root, find_folder, is_fake, read_marker
from blocklora_lib.data.user_dataset import own_manifest

PETS = {
    "name": "two_pets",
    "title": "TwoPets",
    "role": "target",
    "kind": "external",
    "template": "a photo of a {}.",
    "counts": {"train": 3, "val": 0, "test": 1},
    "licence": "CC0-1.0",
    "sources": [{"package": "none", "licence": "CC0-1.0", "attribution": "made by a test"}],
    "classes": ["maine coon", "pug"],
    "folders": {"coop": "two_pets", "clip_lora": "TwoPets"},
    "images": {"train": "pictures", "val": "pictures", "test": "pictures"},
}
SPLIT = {
    "train": [["b/2.jpg", 1, "pug"], ["a/9.jpg", 0, "maine_coon"], ["a/1.jpg", 0, "maine coon"]],
    "val": [],
    "test": [["b/1.jpg", 1, "pug"]],
}


def split_set(folder: Path, content: object = SPLIT) -> Manifest:
    (folder / "pictures").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "split.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    more = {
        "layout": "split_json",
        "split_file": {"name": "split.json"},
        "split_names": ["maine_coon", "pug"],
    }
    return Manifest.model_validate(PETS | more)


def images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name) * 9 % 256, 80, 90)).save(path)


def test_a_split_file_keeps_its_order_and_gives_the_manifests_names(tmp_path):
    manifest = split_set(tmp_path)
    assert items(manifest, tmp_path, "train") == [
        Item("pictures/b/2.jpg", 1, "pug"),
        Item("pictures/a/9.jpg", 0, "maine coon"),
        Item("pictures/a/1.jpg", 0, "maine coon"),
    ]
    assert items(manifest, tmp_path, "val") == []
    with pytest.raises(ValueError, match="unknown split 'valid'; did you mean 'val'"):
        items(manifest, tmp_path, "valid")


def test_a_split_file_is_enough_for_a_draw(tmp_path):
    manifest = split_set(tmp_path)
    (tmp_path / "pictures").rmdir()
    assert items(manifest, tmp_path, "test") == [Item("pictures/b/1.jpg", 1, "pug")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2", "is not JSON"),
        ([], "has no list 'train'"),
        ({"train": {}}, "has no list 'train'"),
        (
            {"train": [["a.jpg", 0]]},
            r"entry 0 of train: \['a.jpg', 0\] is not \[path, label, class name\]",
        ),
        ({"train": [["a.jpg", True, "pug"]]}, "is not"),
        ({"train": [["a.jpg", 2, "pug"]]}, "label 2 of 'a.jpg' is out of range; labels are 0 to 1"),
        ({"train": [["a.jpg", -1, "pug"]]}, "label -1"),
        (
            {"train": [["a.jpg", 0, "pug"]]},
            "label 0 is named 'pug', the manifest says 'maine_coon'",
        ),
        ({"train": [["../a.jpg", 1, "pug"]]}, "leaves the dataset's folder"),
        ({"train": [["/etc/passwd", 1, "pug"]]}, "leaves the dataset's folder"),
        ({"train": [["a\\b.jpg", 1, "pug"]]}, "leaves the dataset's folder"),
    ],
)
def test_a_damaged_split_file_is_named_with_the_next_command(tmp_path, content, says):
    manifest = split_set(tmp_path, content)
    with pytest.raises(DataError, match=says) as error:
        items(manifest, tmp_path, "train")
    assert str(error.value).startswith(str(tmp_path / "split.json"))
    file = tmp_path / "split.json"
    fetch = f"mv {file} {file}.damaged && blocklora data download two_pets --root {tmp_path.parent}"
    assert str(error.value).endswith(f"; next: {fetch}")
    assert "\n" not in str(error.value)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
ENTRY = st.tuples(
    st.text(max_size=12), st.integers(-2, 3), st.sampled_from(["pug", "maine_coon", "", "x"])
)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=ANY_JSON
    | st.text()
    | st.fixed_dictionaries({"train": st.lists(ENTRY.map(list) | ANY_JSON, max_size=5)})
)
def test_any_split_file_is_read_or_refused_in_one_sentence(tmp_path, content):
    manifest = split_set(tmp_path, content)
    try:
        found = items(manifest, tmp_path, "train")
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for item in found:
        assert 0 <= item.label < 2
        assert (tmp_path / item.path).resolve().is_relative_to(tmp_path.resolve())
    verify(manifest, tmp_path)  # whatever it finds, it does not fail


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300))
def test_any_bytes_for_annotations_are_refused_or_read(tmp_path, content):
    """The text lists and the marker of a miniature; for MATLAB's lists see test_mat_files."""
    lists = {
        "classes": "variants.txt",
        "train": "train.txt",
        "val": "train.txt",
        "test": "train.txt",
    }
    for name in ("train.txt", "FAKE.json"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "variants.txt").write_text("maine coon\npug\n")
    manifest = Manifest.model_validate(PETS | {"layout": "variant_lists", "annotations": lists})
    try:
        assert all(0 <= item.label < 2 for item in items(manifest, tmp_path, "train"))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert is_fake(tmp_path)
    with pytest.raises(DataError, match=r"FAKE\.json"):
        read_marker(tmp_path)


def test_variant_lists_split_a_line_at_its_first_space(tmp_path):
    more = {
        "layout": "variant_lists",
        "annotations": {
            "classes": "variants.txt",
            "train": "a.txt",
            "val": "b.txt",
            "test": "c.txt",
        },
    }
    manifest = Manifest.model_validate(PETS | more)
    (tmp_path / "variants.txt").write_text("maine coon\npug\n")
    (tmp_path / "a.txt").write_text("0002 pug\n0001 maine coon\n\n")
    assert items(manifest, tmp_path, "train") == [
        Item("pictures/0002.jpg", 1, "pug"),
        Item("pictures/0001.jpg", 0, "maine coon"),
    ]
    (tmp_path / "b.txt").write_text("0003 poodle\n")
    with pytest.raises(
        DataError, match=r"b\.txt line 1: class 'poodle' is out of range.*Known: maine coon, pug"
    ):
        items(manifest, tmp_path, "val")
    with pytest.raises(MissingData, match=r"c\.txt is missing"):
        items(manifest, tmp_path, "test")
    (tmp_path / "variants.txt").write_text("pug\nmaine coon\n")  # labels would be swapped
    with pytest.raises(DataError, match="lists other classes than the manifest"):
        items(manifest, tmp_path, "train")


def test_class_folders_follow_the_manifests_order_not_the_alphabets(tmp_path):
    manifest = load_manifest("imagenetv2")
    base = "imagenetv2-matched-frequency-format-val"
    images(tmp_path, *(f"{base}/{i}/x.jpeg" for i in (0, 2, 10, 999)))
    (tmp_path / base / "10" / "README.txt").write_text("no image")
    (tmp_path / base / "10" / "._x.jpeg").write_text("left by a copy")
    found = items(manifest, tmp_path, "test")
    assert [item.label for item in found] == [0, 2, 10, 999]
    assert found[2] == Item(f"{base}/10/x.jpeg", 10, "brambling")
    assert items(manifest, tmp_path, "train") == []  # a variant is test only


def test_the_first_image_folder_that_exists_is_used(tmp_path):
    manifest = load_manifest("imagenet")
    (tmp_path / "train").mkdir()
    assert image_folder(manifest, tmp_path, "train") == "train"
    (tmp_path / "images").mkdir()
    # CoOp's name for CLIP-LoRA's folder
    (tmp_path / "images" / "train").symlink_to(tmp_path / "train")
    assert image_folder(manifest, tmp_path, "train") == "images/train"
    with pytest.raises(
        MissingData, match=r"images/val is missing: no folder of test images, nor .*/val;"
    ):
        image_folder(manifest, tmp_path, "test")


def test_a_bundle_is_not_read_from_a_folder(tmp_path):
    with pytest.raises(DataError, match="fashion is a bundle"):
        items(load_manifest("fashion"), tmp_path, "train")


def test_the_root_is_given_or_in_the_environment_or_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.delenv("BLOCKLORA_DATA", raising=False)
    assert data_root() == ROOT / "data"
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("elsewhere") == Path.cwd() / "elsewhere"
    assert data_root("~") == Path.home()


def test_a_root_that_is_a_file_is_moved_away(tmp_path):
    root = tmp_path / "my data"
    root.touch()
    with pytest.raises(DataError, match="is a file, where datasets lie in a folder") as error:
        find_folder(load_manifest("dtd"), root)
    subprocess.run(shlex.split(str(error.value).rpartition("; next: ")[2]), check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["my data.file"]


def test_either_convention_is_found_and_a_missing_set_is_named(tmp_path):
    dtd = load_manifest("dtd")
    with pytest.raises(
        MissingData, match=r"dtd is missing: no folder of DTD \(nor DTD\); next: blocklora data"
    ):
        find_folder(dtd, tmp_path)
    with pytest.raises(FileNotFoundError):
        find_folder(dtd, tmp_path / "nowhere")
    (tmp_path / "dtd").symlink_to("dtd")
    with pytest.raises(DataError, match="symbolic link to nowhere or in a circle"):
        find_folder(dtd, tmp_path)
    (tmp_path / "dtd").unlink()
    (tmp_path / "DTD").mkdir()
    assert find_folder(dtd, tmp_path).samefile(tmp_path / "DTD")


def test_ones_own_folder_per_class_is_a_dataset(tmp_path):
    folder = tmp_path / "My Tools"
    images(folder, *(f"{c}/{i}.png" for c in ("claw_hammer", "saw") for i in range(10)))
    manifest = own_manifest(folder, seed=7)
    assert manifest.classes == ("claw hammer", "saw")
    assert manifest.prompts[0] == "a photo of a claw hammer."
    assert manifest.split_seed == 7
    assert manifest.counts == {"train": 10, "val": 4, "test": 6}  # 5, 2 and 3 of each class
    paths = [{item.path for item in items(manifest, folder, split)} for split in manifest.splits]
    assert len(set.union(*paths)) == sum(map(len, paths)) == 20
    assert verify(manifest, folder, "all") == []
    assert find_folder(manifest, tmp_path) == folder
    assert not is_fake(folder)

    # the cut, stated again: shuffle by the class's own stream
    expected = [f"{i}.png" for i in range(10)]
    random.Random("7/saw").shuffle(expected)
    test = [Path(i.path).name for i in items(manifest, folder, "test") if i.classname == "saw"]
    assert test == sorted(expected[:3])
    images(folder, *(f"axe/{i}.png" for i in range(4)))  # a class more does not move the others
    again = own_manifest(folder, seed=7)
    assert [Path(i.path).name for i in items(again, folder, "test") if i.classname == "saw"] == test


def test_ones_own_set_can_be_kept_as_a_small_yaml(tmp_path):
    images(tmp_path / "tools", *(f"{c}/{i}.png" for c in ("axe", "saw") for i in range(3)))
    manifest = own_manifest(tmp_path / "tools")
    (tmp_path / "tools.yaml").write_text(manifest_yaml(manifest), encoding="utf-8")
    assert read_manifest(tmp_path / "tools.yaml") == manifest
    assert "split_seed: 1" in (tmp_path / "tools.yaml").read_text()


def test_ones_own_splits_are_used_as_they_are(tmp_path):
    images(
        tmp_path,
        "train/axe/1.jpg",
        "train/saw/1.jpg",
        "train/saw/2.jpg",
        "test/axe/3.jpg",
        "test/saw/3.jpg",
    )
    manifest = own_manifest(tmp_path)
    assert manifest.split_seed is None
    assert manifest.counts == {"train": 3, "test": 2}
    assert items(manifest, tmp_path, "test") == [
        Item("test/axe/3.jpg", 0, "axe"),
        Item("test/saw/3.jpg", 1, "saw"),
    ]
    assert verify(manifest, tmp_path) == []
    (tmp_path / "test/saw/3.jpg").unlink()
    assert [p.what for p in verify(manifest, tmp_path)] == [
        "has 1 test images, the manifest says 2",
        "has no test image of class 'saw'",
    ]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "holds 0 class folders"),
        (("axe/1.png",), "holds 1 class folder"),
        (("axe/1.png", "axe/2.png", "saw/1.txt"), "saw holds no images"),
        (("axe/1.png", "axe/2.png", "saw/1.png"), "saw has 1 image; a class needs at least 2"),
        (("train/axe/1.png", "train/saw/1.png"), "has train but needs both train and test"),
        (
            ("train/axe/1.png", "train/saw/1.png", "test/axe/1.png", "test/adze/1.png"),
            "adze is a class that",
        ),
    ],
)
def test_ones_own_folder_that_is_no_dataset_says_why(tmp_path, names, says):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=says) as error:
        own_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_ones_own_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingData, match="nowhere is missing"):
        own_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_may_have_a_byte_order_mark_and_line_ends_of_windows(tmp_path, mark, ends):
    manifest = load_manifest("fgvc_aircraft")
    folder = make_fake(manifest, tmp_path, per_class=1)
    before = items(manifest, folder, "train")
    for name in manifest.annotations.values():
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_bytes(mark + text.replace("\n", ends).encode())
    assert items(manifest, folder, "train") == before


def test_a_list_that_is_not_utf_8_is_named_with_the_line(tmp_path):
    manifest = load_manifest("fgvc_aircraft")
    folder = make_fake(manifest, tmp_path, per_class=1)
    (folder / manifest.annotations["classes"]).write_bytes(
        "707-320\nCitro\xebn\n".encode("latin-1")
    )
    with pytest.raises(
        DataError, match="is not UTF-8: byte 0xeb in line 2; save it as UTF-8"
    ) as error:
        items(manifest, folder, "train")
    assert str(folder / manifest.annotations["classes"]) in str(error.value)
