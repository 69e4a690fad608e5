"""What a run reads decides whether its record stands: images by content, labels, classes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import eurosat_profile
from PIL import Image

from blocklora_lib.core.yaml_data import to_yaml
from blocklora_lib.data import content
from blocklora_lib.data.content import file_digests
from blocklora_lib.data.manifest_files import data_checksum, load_manifest
from blocklora_lib.data.roots import checksum
from blocklora_lib.runs.execute import execute, run_or_load
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.images import RunImages
from blocklora_lib.runs.record import MachineFailure
from blocklora_lib.runs.standing import stored
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench

LONG_AGO = time.time_ns() - 3600 * 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blocklora" / "content"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three files; what was changed just now is not at issue unless a test says so."""
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
    "damage",
    ["", "{", "[]", "{}", '{"a": 1}', '{"a": [1, 2]}', '{"a": [[1, 2, 3, 4, 5], "x"]}', "\0" * 100],
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.slow
def test_a_notebook_computes_the_record_of_other_images_again(tiny_clip, eurosat, tmp_path):
    """It took whatever stood under the run's key, without a word."""
    from blocklora_lib.suite.notebook import Notebook

    profile = eurosat_profile(tiny_clip, methods=[{"name": "zero_shot"}], name="mine")
    (tmp_path / "mine.yaml").write_text(to_yaml(profile.model_dump(mode="json")))
    nb = Notebook("08_few_shot", str(tmp_path / "mine.yaml"), str(tmp_path / "results"))
    seen = []
    for _ in range(2):
        nb.compute("few_shot")
        seen += [record.images for record in nb.store.records()]
        swap(*images_of(eurosat)[-2:])
        nb.compute("few_shot")
        seen += [record.images for record in nb.store.records()]
    assert seen[0] == seen[3] != seen[1] == seen[2]


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


def lora(tiny_clip, shots=2, **changes):
    return make_spec(eurosat_profile(tiny_clip, **changes), "eurosat", "lora", shots, 1)


@pytest.mark.parametrize("draw", ["coop", "clip_lora", "nested"])
def test_the_digest_is_of_the_files_that_a_run_reads_in_order_with_their_labels(
    eurosat, tiny_clip, draw
):
    """From the split file and the draw's own file, without the library's readers of either."""
    spec = lora(tiny_clip, draw=draw)
    listed = json.loads(next(eurosat.glob("split*.json")).read_text())
    (base,) = {path.parents[1] for path in images_of(eurosat)}
    drawn = json.loads(Workbench("cpu").drawn(spec).to_json())["train"]
    assert len(drawn) == 2 * 10

    def digest(rows):
        seen = [
            [path, label, hashlib.sha256((eurosat / path).read_bytes()).hexdigest()]
            for path, label in rows
        ]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    tested = [(f"{base.relative_to(eurosat)}/{path}", label) for path, label, _ in listed["test"]]
    both = [
        ["eurosat", digest(tested)],
        ["few-shot", digest((path, label) for path, label, _ in drawn)],
    ]
    expected = hashlib.sha256(json.dumps(both).encode()).hexdigest()
    assert RunImages().digest(spec) == Workbench("cpu").images(spec) == expected


@pytest.mark.slow
def test_images_are_looked_at_without_torch_and_only_the_changed_one_is_read_again(
    eurosat, tiny_clip, monkeypatch
):
    monkeypatch.setattr(content, "RECENT", -(10**18))
    spec = lora(tiny_clip, draw="clip_lora")
    first, read = RunImages().digest(spec), []
    digest = content._digest
    monkeypatch.setattr(content, "_digest", lambda path: [read.append(path), digest(path)][1])
    assert RunImages().digest(spec) == first
    assert read == []
    code = (
        "import sys; from blocklora_lib.runs.images import RunImages as R;from "
        "blocklora_lib.runs.spec import RunSpec as S; "
        "print(R().digest(S.model_validate_json(sys.argv[1])));assert not {'torch', 'pandas', "
        "'open_clip'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, spec.model_dump_json()]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == first
    changed = eurosat / Workbench("cpu").drawn(spec).train[3][0]
    swap(
        changed,
        next(path for path in images_of(eurosat) if path.read_bytes() != changed.read_bytes()),
    )
    assert RunImages().digest(spec) != first
    assert changed in read
    assert len(read) == len(set(read)) <= 2


def other_image(path: Path) -> None:
    Image.new("RGB", (32, 32), "teal").save(path, "JPEG")


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_image, damaged, Path.unlink])
@pytest.mark.parametrize("of", ["train", "test", "list"])
def test_data_that_change_under_a_run_leave_no_record(spec, eurosat, tmp_path, of, change):
    store, bench = RunStore(tmp_path / "runs"), Workbench("cpu")
    dataset = bench.dataset("eurosat")
    path = {
        "train": lambda: eurosat / bench.drawn(spec).train[-1][0],
        "test": lambda: eurosat / dataset.path("test", 0),
        "list": lambda: next(eurosat.glob("split*.json")),
    }[of]()

    def on_step(step, *_):
        if path.exists() and step == 4:  # the last: images have been read, and most are kept
            change(path)

    with pytest.raises(MachineFailure) as error:
        run_or_load(spec, store, bench, on_step=on_step)
    assert "\n" not in str(error.value)
    assert not list(store.folder.glob("*.json"))
    if "changed while it ran" in str(error.value):  # or reading it failed
        assert ("a list of eurosat" if of == "list" else str(path)) in str(error.value)
        assert "nothing is stored of it" in str(error.value)


@pytest.mark.slow
def test_an_image_that_changed_between_two_runs_of_one_process_spoils_the_second_alone(
    eurosat, tiny_clip, tmp_path
):
    """Its pixels are kept from the first on: the second would be stored as of the new image."""
    store, bench = RunStore(tmp_path / "runs"), Workbench("cpu")
    one, two = (
        lora(tiny_clip, shots, draw="nested") for shots in (1, 2)
    )  # its images are among the two's
    run_or_load(one, store, bench)
    path = bench.drawn(one).train[0][0]
    assert path in {row[0] for row in bench.drawn(two).train}
    other_image(eurosat / path)
    with pytest.raises(MachineFailure, match=Path(path).name):
        run_or_load(two, store, bench)
    assert stored(store, one, images=Workbench("cpu").images).standing == "moved"
    assert run_or_load(two, store, Workbench("cpu")).status == "done"  # another process


@pytest.mark.slow
def test_a_run_whose_images_stay_is_stored_though_their_times_move(spec, eurosat, tmp_path):
    store = RunStore(tmp_path / "runs")
    on_step = lambda *_: [os.utime(path) for path in images_of(eurosat)]  # noqa: E731
    assert run_or_load(spec, store, Workbench("cpu"), on_step=on_step).status == "done"
    assert store.path(spec).is_file()


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    """A read tells no path: a person was told that 'what is written here' failed."""

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a.png").write_bytes(b"pixels")
    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(OSError, match=r"a\.png"):
        file_digests(tmp_path, ["a.png"])
