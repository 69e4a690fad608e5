"""Every damage is named in one sentence with file and next command; nothing is changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from blocklora_lib.core.paths import MANIFESTS
from blocklora_lib.data.manifest_files import load_manifest, read_manifest
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.data.obtain.verify import verify
from blocklora_lib.data.roots import find_folder

EUROSAT = load_manifest("eurosat")
SPLIT = "split_zhou_EuroSAT.json"
FIRST = "2750/AnnualCrop/AnnualCrop_1.jpg"  # in train; of 3 images a class and split


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> Path:
    return make_fake(EUROSAT, tmp_path_factory.mktemp("miniature"), per_class=3)


@pytest.fixture
def folder(miniature, tmp_path) -> Path:
    return Path(shutil.copytree(miniature, tmp_path / "eurosat"))


def fingerprint(folder: Path) -> dict[str, tuple]:
    """Mode, time of change, link target and content of everything below."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files, "."]:
            path = Path(place, name)
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            link = os.readlink(path) if path.is_symlink() else ""
            digest = hashlib.sha256(content).hexdigest()
            found[str(path)] = (state.st_mode, state.st_mtime_ns, state.st_size, link, digest)
    return found


def edit_split(folder: Path, change, seal: bool = True) -> None:
    """Change the split file; seal: FAKE.json gets its new checksum: only the rest is wrong."""
    path = folder / SPLIT
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    if seal:
        marker = json.loads((folder / "FAKE.json").read_text())
        marker["split_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "FAKE.json").write_text(json.dumps(marker))


def missing_dataset(folder):
    shutil.rmtree(folder)


def missing_split_file(folder):
    (folder / SPLIT).unlink()


def other_split_file(folder):
    edit_split(
        folder, lambda split: split["train"][0].__setitem__(0, FIRST[5:] + ".jpg"), seal=False
    )


def split_file_cut(folder):
    path = folder / SPLIT
    path.write_bytes(path.read_bytes()[:1000])


def wrong_counts(folder):
    edit_split(folder, lambda split: split["train"].pop())


def missing_image(folder):
    (folder / FIRST).unlink()


def truncated_image(folder):
    # neither first nor last: a sample would pass it by
    path = folder / "2750/AnnualCrop/AnnualCrop_2.jpg"
    path.write_bytes(path.read_bytes()[:-120])


def empty_image(folder):
    (folder / FIRST).write_bytes(b"")


def not_an_image(folder):
    (folder / FIRST).write_text("<html>404</html>")


def class_without_images(folder):
    edit_split(folder, lambda split: split.update(train=[e for e in split["train"] if e[1] != 8]))


def label_out_of_range(folder):
    edit_split(folder, lambda split: split["test"][4].__setitem__(1, 10))


def wrong_class_name(folder):
    edit_split(folder, lambda split: split["test"][4].__setitem__(2, "Forests"))


def escaping_path(folder):
    edit_split(folder, lambda split: split["test"][4].__setitem__(0, "../../secret.jpg"))


def listed_in_two_splits(folder):
    edit_split(folder, lambda split: split["test"].__setitem__(0, split["train"][0]))


def link_loop(folder):
    (folder / "2750" / "again").symlink_to(folder, target_is_directory=True)


def link_to_itself(folder):
    (folder / "2750" / "self").symlink_to("self")


def link_to_nowhere(folder):
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to("gone.jpg")


def damaged_marker(folder):
    (folder / "FAKE.json").write_text("{}")


def marker_of_another_set(folder):
    path = folder / "FAKE.json"
    path.write_text(path.read_text().replace('"eurosat"', '"dtd"'))


DAMAGES = [  # (damage, file that is named, words of the sentence)
    (missing_dataset, "eurosat", "is missing"),
    (missing_split_file, SPLIT, "is missing"),
    (other_split_file, SPLIT, "has another checksum"),
    (split_file_cut, SPLIT, "is not JSON"),
    (wrong_counts, "eurosat", "has 29 train images, its FAKE.json says 30"),
    (missing_image, FIRST, "is missing"),
    (truncated_image, "2750/AnnualCrop/AnnualCrop_2.jpg", "cannot be decoded"),
    (empty_image, FIRST, "cannot be decoded (the file is empty)"),
    (not_an_image, FIRST, "cannot be decoded"),
    (class_without_images, "eurosat", "has no train image of class 'River'"),
    (label_out_of_range, SPLIT, "label 10 of 'Forest"),
    (wrong_class_name, SPLIT, "is named 'Forests', the manifest says"),
    (escaping_path, SPLIT, "leaves the dataset's folder"),
    (listed_in_two_splits, FIRST, "is listed in train and test"),
    (link_loop, "2750/again", "a symbolic link in a loop"),
    (link_to_itself, "2750/self", "a symbolic link to nowhere or in a loop"),
    (link_to_nowhere, FIRST, "is missing"),
    (damaged_marker, "FAKE.json", "is not the mark of a miniature"),
    (marker_of_another_set, "FAKE.json", "a miniature of dtd, not of eurosat"),
]


@pytest.mark.parametrize(
    ("damage", "file", "says"), DAMAGES, ids=lambda v: getattr(v, "__name__", "")
)
def test_every_damage_is_found_and_named_and_nothing_is_changed(folder, damage, file, says):
    assert verify(EUROSAT, folder) == []
    damage(folder)
    before = fingerprint(folder.parent)
    problems = verify(EUROSAT, folder)
    assert fingerprint(folder.parent) == before
    found = [p for p in problems if says in p.what]
    assert found, problems
    problem = found[0]
    assert problem.file == str(folder.parent / "eurosat" if file == "eurosat" else folder / file)
    assert problem.next_command.split()[0] in {"blocklora", "rm", "mv"}
    sentence = str(problem)
    assert sentence.startswith(f"{problem.file} ")
    assert sentence.endswith(f"; next: {problem.next_command}")
    assert "\n" not in sentence


def test_one_fault_is_one_problem(folder):
    missing_split_file(folder)
    assert len(verify(EUROSAT, folder)) == 1  # not one a split


def test_both_conventions_in_one_root_are_named_when_they_differ(tmp_path):
    dtd = load_manifest("dtd")
    first = make_fake(dtd, tmp_path, "coop", per_class=1)
    second = tmp_path / "DTD"
    if second.exists():
        pytest.skip("this file system does not tell dtd from DTD")
    second.symlink_to(first, target_is_directory=True)  # one set under two names is fine
    assert find_folder(dtd, tmp_path) == first
    assert verify(dtd, first) == []
    second.unlink()
    shutil.copytree(first, second)  # so are two copies
    assert verify(dtd, first) == []
    next(second.rglob("banded_0001.jpg")).unlink()
    for folder in (first, second):
        (problem,) = verify(dtd, folder)
        assert problem.file == str(first)
        assert f"and {second} both hold DTD, and they differ" in problem.what
        assert problem.next_command == f"mv {second} {second}.other"
    with pytest.raises(ValueError, match="both hold DTD"):
        find_folder(dtd, tmp_path)


@pytest.mark.slow
def test_two_imagenets_in_one_folder_are_named(tmp_path):
    imagenet = load_manifest("imagenet")
    folder = make_fake(imagenet, tmp_path, per_class=1)
    shutil.copytree(folder / "images" / "train" / "n01440764", folder / "train" / "n01440764")
    (problem,) = verify(imagenet, folder, decode="none")
    assert problem.file == str(folder / "images/train")
    assert "both hold train images" in problem.what


def test_a_class_folder_without_images_is_named(tmp_path):
    imagenet_a = load_manifest("imagenet_a")
    folder = make_fake(imagenet_a, tmp_path, per_class=1)
    for image in (folder / "imagenet-a" / "n01498041").iterdir():
        image.unlink()
    problems = verify(imagenet_a, folder)
    assert any("has no test image of class 'stingray'" in p.what for p in problems)
    assert any("has 199 test images, its FAKE.json says 200" in p.what for p in problems)
    shutil.rmtree(folder / "imagenet-a")
    assert "no folder of test images" in verify(imagenet_a, folder)[0].what


def test_a_real_set_is_held_against_the_manifest(folder):
    """Without FAKE.json the miniature is a damaged real set: its lists are not EuroSAT's."""
    (folder / "FAKE.json").unlink()
    said = [str(problem) for problem in verify(EUROSAT, folder)]
    assert any("has another checksum: its sha256 starts" in s and "541503a77d0b" in s for s in said)
    assert any("has 30 train images, the manifest says 13500" in s for s in said)
    spare = f"mv {folder / SPLIT} {folder / SPLIT}.damaged"  # what is there is not fetched again
    assert all(
        f"next: {spare} && blocklora data download eurosat --root {folder.parent}" in s
        for s in said
    )


def test_gits_name_of_a_file_is_a_checksum(folder):
    """`echo hello | git hash-object --stdin` gives ce0136...; such an id vouches for some files."""
    path = folder / SPLIT
    (folder / "FAKE.json").unlink()
    named = {"sha256": None, "md5": None, "git_sha1": "ce013625030ba8dba906f756967f9e9ca394464a"}
    manifest = EUROSAT.model_copy(
        update={"split_file": EUROSAT.split_file.model_copy(update=named)}
    )
    assert any("its git_sha1 starts" in p.what for p in verify(manifest, folder, "none"))
    path.write_bytes(b"hello\n")
    assert not any("git_sha1" in p.what for p in verify(manifest, folder, "none"))


def test_unverified_counts_are_not_held_against_a_set(tmp_path):
    food = load_manifest("food101")
    folder = make_fake(food, tmp_path, per_class=1)
    (folder / "FAKE.json").unlink()
    assert [p.what[:20] for p in verify(food, folder)] == ["has another checksum"]


def test_the_depth_of_decoding(folder):
    middle = folder / "2750/AnnualCrop/AnnualCrop_2.jpg"
    with Image.open(middle) as image:
        # a good image in another format, as SUN397 has some
        image.resize((8, 8)).save(middle, "BMP")
    assert verify(EUROSAT, folder, "all") == []
    Image.effect_noise((64, 64), 50).save(middle, "PNG")
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 255  # head and end look whole
    middle.write_bytes(content)
    assert verify(EUROSAT, folder, "none") == verify(EUROSAT, folder, "sample") == []
    (problem,) = verify(EUROSAT, folder, "all")
    assert problem.file == str(middle)
    for number in (1, 3):  # the first and the last of a class are in every sample
        shutil.copy(middle, folder / f"2750/River/River_{9 * 8 + number}.jpg")
    assert [p.file[-12:] for p in verify(EUROSAT, folder, "sample")] == [
        "River_73.jpg",
        "River_75.jpg",
    ]
    with pytest.raises(ValueError, match="decode='some'"):
        verify(EUROSAT, folder, "some")


def test_many_damaged_images_make_a_short_report(folder):
    for image in sorted((folder / "2750").rglob("*.jpg")):
        image.write_bytes(b"")
    problems = verify(EUROSAT, folder)
    assert len(problems) == 3 * (20 + 1)
    assert "holds 10 more train images that cannot be read" in problems[20].what


def test_a_typo_in_a_manifest_is_named_with_the_next_command(tmp_path):
    path = tmp_path / "eurosat.yaml"
    text = (MANIFESTS / "eurosat.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("split_file:", "splitfile:", 1), encoding="utf-8")
    with pytest.raises(
        ValueError, match="unknown key 'splitfile'; did you mean 'split_file'"
    ) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("correct the file, then run: blocklora data list")
    assert "\n" not in str(error.value)
