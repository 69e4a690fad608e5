"""Images that decode are looked at once, whoever asks; what changed since is looked at again."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from blocklora_lib.core.user_cache import cache_folder
from blocklora_lib.data import image_files
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.data.whole_images import thorough_faults


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two whole images, and one that ends early."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((20 + i, 30), 50).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-100])
    return ImageFiles(sorted(folder.iterdir()))


@pytest.fixture
def looked(monkeypatch):
    """How often each file is decoded to see whether it can be, by its name."""
    count, fault = Counter(), image_files.fault

    def counted(path, thorough=True):
        count[path.name] += 1
        return fault(path, thorough)

    monkeypatch.setattr(image_files, "fault", counted)
    return count


def found(photos, code="code"):
    return thorough_faults(photos, photos.paths[0].parent, code)


def test_what_is_whole_is_looked_at_once_and_what_is_not_is_told_each_time(photos, looked):
    plain = photos.faults(thorough=True)
    looked.clear()
    assert [bool(why) for why in plain] == [False, False, True]
    for _ in range(3):
        assert found(photos) == plain
    assert looked == {"0.png": 1, "1.png": 1, "2.png": 3}


def test_a_file_that_changed_and_code_that_changed_look_again(photos, looked):
    found(photos)
    looked.clear()
    photos.paths[0].write_bytes(photos.paths[0].read_bytes()[:-100])
    assert found(photos)[0].startswith("cannot be decoded")
    assert looked == {"0.png": 1, "2.png": 1}
    found(photos, "other code")
    assert looked["1.png"] == 1


def test_the_ending_of_a_name_counts(photos, looked):
    found(photos)
    raw = photos.paths[0].rename(photos.paths[0].with_suffix(".nef"))
    (why,) = found(ImageFiles([raw]))
    assert why.startswith("is a camera's raw file")


def test_a_file_that_changes_meanwhile_is_not_remembered(photos, looked, monkeypatch):
    counted = image_files.fault

    def mended(path, thorough=True):
        Image.effect_noise((9, 9), 50).save(path)
        return counted(path, thorough)

    monkeypatch.setattr(image_files, "fault", mended)
    damaged = photos.paths[2].read_bytes()
    assert found(photos) == [""] * 3
    monkeypatch.setattr(image_files, "fault", counted)
    photos.paths[2].write_bytes(damaged)
    assert found(photos)[2]


@pytest.mark.parametrize("content", ["", "notes", "[]", "{}", '{"decoders": 1, "whole": [2]}'])
def test_a_damaged_memory_costs_a_look(photos, looked, content):
    expected = found(photos)
    (memory,) = (cache_folder() / "whole").iterdir()
    memory.write_text(content)
    assert found(photos) == expected
    assert looked["0.png"] == 2
