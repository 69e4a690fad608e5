"""What a run reads decides whether its record stands: images by content, labels, classes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import eurosat_profile

from blocklora_lib.data import content
from blocklora_lib.data.content import file_digests
from blocklora_lib.data.roots import checksum
from blocklora_lib.experiment import Workbench, execute, run_or_load
from blocklora_lib.grids import make_spec
from blocklora_lib.manifests import data_checksum, load_manifest
from blocklora_lib.runs import RunStore
from blocklora_lib.standing import stored

LONG_AGO = time.time_ns() - 3600 * 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blocklora" / "content"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three files; what was changed within the last seconds is not at issue unless a test says so."""
    monkeypatch.setattr(content, "RECENT", -(10**18))
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / name).write_bytes(name.encode() * 1000)
    return tmp_path / "images"


def truth(folder: Path, names: str = "abc") -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def unread(monkeypatch) -> None:
    monkeypatch.setattr(content, "_digest", lambda path: pytest.fail(f"{path} is read again"))


def test_a_file_is_read_once(folder, monkeypatch):
    assert file_digests(folder, "abca") == truth(folder, "abca")
    unread(monkeypatch)
    assert file_digests(folder, "cba") == truth(folder, "cba")


def in_place(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def renamed_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x" * 1000)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def linked_elsewhere(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x" * 1000)
    shutil.copystat(path, other)
    path.unlink()
    path.symlink_to(other)


def dated_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [in_place, renamed_over, linked_elsewhere, dated_back])
def test_another_content_of_the_same_size_and_date_is_noticed(folder, change):
    before = file_digests(folder, "abc")
    time.sleep(0.02)  # beyond the tick of the file system's clock
    change(folder / "b")
    after = file_digests(folder, "abc")
    assert after == truth(folder)
    assert [x != y for x, y in zip(before, after, strict=True)] == [False, True, False]


def test_a_file_that_changed_a_moment_ago_is_not_trusted(folder, cache, monkeypatch):
    monkeypatch.setattr(content, "RECENT", 5 * 10**9)
    assert file_digests(folder, "abc") == truth(folder)
    assert not cache.exists()  # nothing of them may be kept


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"a": 1}', '{"a": [1, 2]}', '{"a": [[1, 2, 3, 4, 5], "x"]}', "\0" * 100]
)
def test_a_damaged_cache_is_ignored(folder, cache, damage):
    file_digests(folder, "abc")
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert file_digests(folder, "abc") == truth(folder)


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_digests(folder, "abc") == truth(folder)


def test_what_is_no_file_has_a_word_in_place_of_a_digest_and_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("gone")
    found = file_digests(folder, ["pipe", "zero", "nowhere", "gone", "a"])
    assert found[:4] == ["no regular file", "no regular file", "missing", "missing"]
    assert found[4:] == truth(folder, "a")


@pytest.fixture
def spec(tiny_clip, eurosat):
    return make_spec(eurosat_profile(tiny_clip), "eurosat", "lora", 2, 1)


def images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.jpg"))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_the_record_of_other_images_is_computed_again(spec, eurosat, tmp_path):
    store = RunStore(tmp_path / "runs")
    first = run_or_load(spec, store, Workbench("cpu"))
    assert len(first.images) == 64
    assert stored(store, spec, images=Workbench("cpu").images).standing == "done"
    images = images_of(eurosat)
    for one, other in zip(images, images[::-1], strict=True):
        if one < other:
            swap(one, other)
    assert stored(store, spec, images=Workbench("cpu").images).standing == "moved"
    again = run_or_load(spec, store, Workbench("cpu"))
    assert again.images != first.images
    assert again.key == first.key
    assert stored(store, spec, keep_old=True, images=Workbench("cpu").images).standing == "done"


def test_images_that_are_not_at_hand_say_nothing_of_a_record(spec, eurosat, tmp_path):
    store = RunStore(tmp_path / "runs")
    first = run_or_load(spec, store, Workbench("cpu"))
    bench = Workbench("cpu", root=tmp_path / "nothing")
    assert stored(store, first.spec, images=bench.images).standing == "done"


def test_exchanged_labels_of_the_split_file_are_another_run(spec, eurosat, tiny_clip):
    (file,) = eurosat.glob("split*.json")
    facts = json.loads(file.read_text())
    names = {label: name for _, label, name in facts["train"]}
    for part in facts.values():
        for row in part:
            if row[1] < 2:
                row[1:] = [1 - row[1], names[1 - row[1]]]
    file.write_text(json.dumps(facts))
    other = make_spec(eurosat_profile(tiny_clip), "eurosat", "lora", 2, 1)
    assert other.key != spec.key
    with pytest.raises(ValueError, match="are not those of the spec"):
        execute(spec, Workbench("cpu"))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("imagenet", "class_folders"),
        ("imagenet_a", "class_folders"),
        ("eurosat", "classes"),
        ("dtd", "classes"),
    ],
)
def test_two_classes_exchanged_in_a_manifest_are_another_run(name, field):
    manifest = load_manifest(name)
    first, second, *others = getattr(manifest, field)
    other = manifest.model_copy(update={field: (second, first, *others)})
    assert data_checksum([other]) != data_checksum([manifest])


def test_the_checksum_of_bundles_is_what_it_was():
    """So that no run of the pocket profiles has another key."""
    manifests = [load_manifest("chess"), load_manifest("textures")]
    seen = [[m.name, m.sha256, list(m.classes), m.template] for m in manifests]
    text = json.dumps(seen, separators=(",", ":"))
    assert checksum(manifests) == hashlib.sha256(text.encode()).hexdigest()
