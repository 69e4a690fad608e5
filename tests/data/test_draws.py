"""Draws as files: CoOp's published ones, its code restated, checksums, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
from conftest import TOYS
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.core.paths import ROOT
from blocklora_lib.data.draw import Draw, make_draw, rows_checksum, split_items
from blocklora_lib.data.draw_files import export_draw, import_draw
from blocklora_lib.data.layouts import Item
from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.manifest_files import load_manifest

# CoOp's split files and published draws are not ours to hand on; a developer who has them says
# where
COOP = Path(os.environ.get("BLOCKLORA_COOP_DATA") or ROOT.parent / "shared" / "data" / "coop")
SPLIT_FILES = {
    "caltech101": "Caltech101",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "ucf101": "UCF101",
}
needs_coop = pytest.mark.skipif(
    not (COOP / "splits").is_dir(), reason="CoOp's split files are not here (BLOCKLORA_COOP_DATA)"
)


def read_split(path: Path) -> dict[str, list[Item]]:
    content = json.loads(path.read_text())
    return {split: [Item(*row) for row in rows] for split, rows in content.items()}


def published() -> list[Path]:
    return sorted(p for p in (COOP / "draws").glob("*/*.json") if p.parent.name in SPLIT_FILES)


def coops_code(split: dict, num_shots: int, seed: int) -> dict[str, list]:
    """CoOp@ff61507's dtd.py with Dassl's draw, restated line by line with the global `random`."""
    state = random.getstate()
    random.seed(seed)
    drawn = {}
    for name, k in (("train", num_shots), ("val", min(num_shots, 4))):
        tracker = OrderedDict()
        for item in split[name]:
            if item[1] not in tracker:
                tracker[item[1]] = []
            tracker[item[1]].append(item)
        dataset = []
        for items in tracker.values():
            enough = len(items) >= k
            sampled_items = random.sample(items, k) if enough else random.choices(items, k=k)
            dataset.extend(sampled_items)
        drawn[name] = [tuple(item) for item in dataset]
    random.setstate(state)
    return drawn


def synthetic() -> dict[str, list[Item]]:
    """Three classes in another order than their labels, one with fewer images than shots."""
    counts = {"train": {2: 20, 0: 3, 1: 9}, "val": {2: 6, 0: 1, 1: 5}}
    return {
        split: [
            Item(f"images/{'abc'[label]}/{split}_{i}.jpg", label, f"class {'abc'[label]}")
            for label, n in of.items()
            for i in range(n)
        ]
        for split, of in counts.items()
    }


@needs_coop
@pytest.mark.parametrize("path", published(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_published_draw_at_hand_is_reproduced(path):
    shots, seed = (int(part.split("_")[1]) for part in path.stem.split("-"))
    split = read_split(COOP / "splits" / f"split_zhou_{SPLIT_FILES[path.parent.name]}.json")
    ours = make_draw(path.parent.name, split, shots, seed, "coop")
    theirs = json.loads(path.read_text())
    for name in ("train", "val"):
        rows = getattr(ours, name)
        assert len(rows) == len(theirs[name]["data"])
        for (image, label, classname), datum in zip(rows, theirs[name]["data"], strict=True):
            assert ("/" + datum["impath"]).endswith("/" + image)
            assert (label, classname) == (datum["label"], datum["classname"])
    read = import_draw(path, split, path.parent.name)
    assert (read.train, read.val, read.shots, read.seed) == (ours.train, ours.val, shots, seed)
    assert read.draw == "published"


@needs_coop
@pytest.mark.parametrize("name", SPLIT_FILES)
def test_coops_code_restated_draws_the_same_from_every_split_at_hand(name):
    path = COOP / "splits" / f"split_zhou_{SPLIT_FILES[name]}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    split = read_split(path)
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            ours, expected = make_draw(name, split, shots, seed), coops_code(split, shots, seed)
            assert list(ours.train) == expected["train"]
            assert list(ours.val) == expected["val"]


@needs_coop
@pytest.mark.parametrize("name", sorted({path.parent.name for path in published()}))
def test_the_manifests_read_these_split_files_and_give_the_published_draws(name):
    manifest = load_manifest({"oxford_flowers": "flowers102"}.get(name, name))
    file = COOP / "splits" / f"split_zhou_{SPLIT_FILES[name]}.json"
    split = split_items(manifest, file.parent, file)
    for path in published():
        if path.parent.name == name:
            theirs = import_draw(path, split, manifest.name)
            ours = make_draw(manifest.name, split, theirs.shots, theirs.seed)
            assert (ours.train, ours.val) == (theirs.train, theirs.val)


@given(shots=st.integers(1, 16), seed=st.integers(0, 99))
def test_coops_code_restated_draws_the_same_from_a_small_split(shots, seed):
    split = synthetic()
    ours, expected = make_draw("toys", split, shots, seed), coops_code(split, shots, seed)
    assert {"train": list(ours.train), "val": list(ours.val)} == expected


def test_clip_lora_draws_val_first_and_from_train_where_there_is_no_val():
    split = synthetic()
    random.seed(3)
    by_class = {label: [i for i in split["val"] if i.label == label] for label in (2, 0, 1)}
    expected = [
        tuple(item)
        for images in by_class.values()
        for item in (random.sample(images, 2) if len(images) > 1 else random.choices(images, k=2))
    ]
    ours = make_draw("toys", split, 2, 3, "clip_lora")
    assert list(ours.val) == expected
    both = make_draw("imagenet", {"train": split["train"]}, 1, 3, "clip_lora")
    assert len(both.train) == len(both.val) == 3
    assert not set(both.train) & set(both.val)
    assert {path for path, _, _ in both.val} <= {item.path for item in split["train"]}
    everything = make_draw("toys", split, -1, 3, "clip_lora")
    assert list(everything.train) == [tuple(item) for item in split["train"]]


def test_nested_draws_are_those_of_the_runs():
    from blocklora_lib.data.sampling import draw

    split = synthetic()
    ours = make_draw("toys", split, 3, 1, "nested")
    index = draw([item.label for item in split["train"]], 3, 1)
    assert [row[0] for row in ours.train] == [split["train"][i].path for i in index.tolist()]
    assert ours.val == ()


def test_a_draw_is_written_over_a_draw_and_nothing_else(tmp_path):
    drawn, photo = make_draw("toys", synthetic(), 4, 1), tmp_path / "holiday.jpg"
    photo.write_bytes(b"a photo")
    with pytest.raises(ValueError, match="is there and no file of a draw"):
        export_draw(drawn, photo)
    assert photo.read_bytes() == b"a photo"
    for _ in range(2):
        export_draw(drawn, tmp_path / "draw.json")


def test_a_file_says_all_and_comes_back_the_same(tmp_path):
    split = synthetic()
    drawn = make_draw("toys", split, 4, 1)
    path = tmp_path / "new" / "draw.json"
    export_draw(drawn, path)
    content = json.loads(path.read_text())
    assert list(content) == ["dataset", "draw", "shots", "seed", "train", "val", "checksum"]
    # the checksum, made from the file alone by the rule that is documented
    rule = json.dumps(
        {"train": content["train"], "val": content["val"]}, sort_keys=True, separators=(",", ":")
    )
    assert content["checksum"] == hashlib.sha256(rule.encode("ascii")).hexdigest() == drawn.checksum
    assert import_draw(path, split, "toys") == drawn
    assert [p.name for p in path.parent.iterdir()] == ["draw.json"]


names = st.text(max_size=12)
rows = st.lists(st.tuples(names, st.integers(0, 9), names), max_size=5).map(tuple)


@pytest.mark.slow
@given(train=rows, val=rows, seed=st.none() | st.integers())
def test_any_names_survive_the_file(train, val, seed):
    drawn = Draw(dataset="toys", draw="coop", shots=1, seed=seed, train=train, val=val)
    content = json.loads(drawn.to_json())
    assert content.pop("checksum") == rows_checksum(train, val)
    assert Draw.model_validate(content) == drawn


def test_paths_of_another_machine_are_found_by_their_longest_ending(tmp_path):
    split = {
        "train": [
            Item("images/a/1.jpg", 0, "a"),
            Item("images/b/1.jpg", 1, "b"),
            Item("1.jpg", 0, "a"),
        ],
        "val": [],
    }

    def read(image, label):
        data = [{"impath": image, "label": label, "classname": "x"}]
        path = tmp_path / "shot_1-seed_2.json"
        path.write_text(json.dumps({"train": {"data": data}}))
        return import_draw(path, split, "toys").train[0]

    assert read("./data/toys/images/a/1.jpg", 0) == ("images/a/1.jpg", 0, "a")
    assert read("D:\\data\\images\\b\\1.jpg", 1) == ("images/b/1.jpg", 1, "b")
    assert read("b/1.jpg", 1) == ("images/b/1.jpg", 1, "b")
    assert read("./1.jpg", 0) == ("1.jpg", 0, "a")
    with pytest.raises(ValueError, match=r"image 'c/2\.jpg' is not in the train split"):
        read("c/2.jpg", 0)
    with pytest.raises(ValueError, match=r"has label 0, the split says 1 \(b\)"):
        read("b/1.jpg", 0)


def edited(drawn: Draw, **changes) -> str:
    content = json.loads(drawn.to_json()) | changes
    if "checksum" not in changes:
        content["checksum"] = rows_checksum(content["train"] or [], content["val"])
    return json.dumps(content)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(train=[["images/a/other.jpg", 0, "class a"]]), "is not in the train split"),
        (dict(train=[["images/a/train_0.jpg", 1, "class b"]]), "has label 1, the split says 0"),
        (dict(val=[["images/a/train_0.jpg", 0, "class a"]]), "is not in the val split"),
        (dict(checksum="0" * 64), "was changed after it was written"),
        (dict(checksum="short"), "checksum: String should match"),
        (dict(sed=1), "unknown key 'sed'; did you mean 'seed'"),
        (dict(shots="four"), "shots: Input should be a valid integer"),
        (dict(dataset="dolls"), "is a draw of dolls, not of toys"),
        (
            dict(train=[["images/a/train_0.jpg", True, "class a"]]),
            r"train\.0\.1: Input should be a valid int",
        ),
        (dict(train=None), "train: Input should be a valid tuple"),
    ],
)
def test_a_draw_that_does_not_fit_is_refused_in_one_sentence(tmp_path, changes, says):
    path = tmp_path / "draw.json"
    path.write_text(edited(make_draw("toys", synthetic(), 1, 1), **changes))
    with pytest.raises(ValueError, match=says) as error:
        import_draw(path, synthetic(), "toys")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[1", "[]", "3", '"x"', "{}", "[" * 100_000, '{"train": {"data": [{}]}}']
)
def test_what_is_no_draw_is_refused(tmp_path, text):
    path = tmp_path / "draw.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"draw\.json is not"):
        import_draw(path, synthetic())
    with pytest.raises(FileNotFoundError, match=r"gone\.json is missing"):
        import_draw(tmp_path / "gone.json", synthetic())


def test_a_pickle_of_coops_is_refused_with_a_way_out(tmp_path):
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(pickle.dumps({"train": [], "val": []}))
    with pytest.raises(ValueError, match=r"is a pickle, which could run code .* write .* as JSON"):
        import_draw(path, synthetic())


keys = st.sampled_from(["train", "val", "data", "impath", "label", "seed"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(text=st.text(max_size=60) | values.map(json.dumps))
def test_any_text_is_refused_as_a_value_error(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "draw.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"draw\.json"):
        import_draw(path, synthetic())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(split={"train": []}), "no training images to draw from"),
        (dict(how="coup"), "did you mean 'coop'"),
        (dict(shots=0), "shots=0; a draw takes at least 1"),
        (dict(how="nested", shots=4), "class 'class a' has 3 training images; use at most 3 shots"),
        (dict(split={"train": [Item("x", 7, "a")]}), "label 7 of 'x' is out of range"),
        (dict(split={"train": [Item("x", -1, "a")]}), "label -1 of 'x' is out of range"),
    ],
)
def test_what_cannot_be_drawn_says_why(arguments, says):
    with pytest.raises(ValueError, match=says):
        make_draw(**(dict(dataset="toys", split=synthetic(), shots=1, seed=1) | arguments))


def toys(**changes) -> Manifest:
    facts = {
        **TOYS,
        "layout": "split_json",
        "images": {split: ["pictures"] for split in ("train", "val", "test")},
        "split_file": {"name": "split_toys.json"},
    }
    return Manifest.model_validate(facts | changes)


def test_a_split_file_alone_is_enough(tmp_path):
    content = {
        "train": [["b/1.jpg", 1, "doll"], ["a/1.jpg", 0, "car"]],
        "val": [["a/2.jpg", 0, "car"]],
        "test": [],
    }
    file = tmp_path / "elsewhere.json"
    file.write_text(json.dumps(content))
    expected = {
        "train": [Item("pictures/b/1.jpg", 1, "doll"), Item("pictures/a/1.jpg", 0, "car")],
        "val": [Item("pictures/a/2.jpg", 0, "car")],
    }
    assert split_items(toys(), tmp_path, file) == expected
    (tmp_path / "split_toys.json").write_text(json.dumps(content))
    assert split_items(toys(), tmp_path) == expected
    with pytest.raises(
        FileNotFoundError, match=r"gone\.json is missing; give the path of split_toys\.json"
    ):
        split_items(toys(), tmp_path, tmp_path / "gone.json")
    file.write_text(json.dumps(content | {"train": [["b/1.jpg", 2, "doll"]]}))
    with pytest.raises(ValueError, match=r"elsewhere\.json .*label 2 .*out of range"):
        split_items(toys(), tmp_path, file)


def test_lists_of_variants_need_no_images_either(tmp_path):
    (tmp_path / "names.txt").write_text("car\ndoll\n")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}1 doll\n{split}2 car\n")
    lists = {"classes": "names.txt"} | {split: f"{split}.txt" for split in ("train", "val", "test")}
    manifest = toys(layout="variant_lists", annotations=lists, split_file=None)
    found = split_items(manifest, tmp_path)
    assert found["train"] == [
        Item("pictures/train1.jpg", 1, "doll"),
        Item("pictures/train2.jpg", 0, "car"),
    ]
    with pytest.raises(ValueError, match="not read from a split file"):
        split_items(manifest, tmp_path, tmp_path / "names.txt")
