"""Views that are decoded once: the same bits from the file, whoever reads; what is wrong with a
file is found and made again; where there is no room, or no wish for it, images are decoded.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blocklora_lib.core.machine import PROC
from blocklora_lib.data import image_files
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.data.kept_views import KeptViews
from blocklora_lib.data.views import View

VIEW = View.square(16)


@pytest.fixture
def photos(tmp_path):
    random, paths = np.random.default_rng(0), []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        shape = (20 + i, 30 - i, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """How often each file is decoded from here on."""
    count, read = Counter(), image_files.read

    def counted(path, loading="as_clip"):
        count[path] += 1
        return read(path, loading)

    monkeypatch.setattr(image_files, "read", counted)
    return count


def kept(photos, folder, **changes) -> ImageFiles:
    """The files as another process opens them."""
    files = ImageFiles(photos)
    files.keep_views(KeptViews(folder, "toys-test", photos, {"images": "these"} | changes))
    return files.at(VIEW, "cpu")


def test_each_file_is_decoded_once_for_all_who_read(photos, tmp_path, decoded):
    plain = ImageFiles(photos).at(VIEW, "cpu").evaluation_views()
    decoded.clear()
    for _ in range(2):
        files = kept(photos, tmp_path / "views")
        assert torch.equal(files.evaluation_views(), plain)
        assert torch.equal(torch.cat([p.evaluation_views() for p in files.split(2)]), plain)
        some = torch.tensor([3, 0, 3])
        assert torch.equal(files[some].evaluation_views(), plain[some])
    assert decoded == dict.fromkeys(photos, 1)
    (file,) = (tmp_path / "views").iterdir()
    assert file.name.startswith("toys-test-")
    assert torch.equal(load_file(file)["views"], plain)  # a file that others can open, too


def test_what_is_read_is_a_copy_and_the_file_is_not_mapped(photos, tmp_path):
    """Pages of a map count to a run's peak of memory, and a file that is cut ends its readers."""
    files = kept(photos, tmp_path)
    views = files.evaluation_views()
    before = views.clone()
    views.zero_()
    assert torch.equal(files.evaluation_views(), before)
    (file,) = tmp_path.glob("*.safetensors")
    if (maps := PROC / "self/maps").exists():
        assert str(file) not in maps.read_text()


def test_a_file_that_is_cut_while_it_is_read_is_made_anew(photos, tmp_path, decoded):
    files = kept(photos, tmp_path / "views")
    plain = files.evaluation_views()
    (file,) = (tmp_path / "views").iterdir()
    whole = file.read_bytes()
    os.truncate(file, 700)  # within the first view
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged.*decoded again"):
        assert torch.equal(files.evaluation_views(), plain)
    assert file.read_bytes() == whole
    assert decoded == dict.fromkeys(photos, 2)


def test_a_disk_that_fails_is_said_and_images_are_decoded(photos, tmp_path, monkeypatch):
    files = kept(photos, tmp_path / "views")
    plain = files.evaluation_views()

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    with pytest.warns(UserWarning, match=r"cannot be read \(Input/output error\)"):
        assert torch.equal(files.evaluation_views(), plain)


def test_on_a_disk_that_damages_what_is_written_images_are_decoded_each_time(
    photos, tmp_path, decoded, monkeypatch
):
    make = KeptViews._make

    def damaging(self, path, *given):
        make(self, path, *given)
        flip(path, path.stat().st_size // 2)

    plain = ImageFiles(photos).at(VIEW, "cpu").evaluation_views()
    decoded.clear()
    monkeypatch.setattr(KeptViews, "_make", damaging)
    files = kept(photos, tmp_path / "views")
    with pytest.warns(UserWarning, match="is damaged"):
        found = [files.evaluation_views() for _ in range(4)]
    assert all(torch.equal(views, plain) for views in found)
    assert decoded == dict.fromkeys(photos, 2 + 4)  # made twice, and never again


def test_a_damaged_file_is_made_anew_by_the_first_who_notices(photos, tmp_path, decoded):
    plain = kept(photos, tmp_path / "views").evaluation_views()
    (file,) = (tmp_path / "views").iterdir()
    flip(file, file.stat().st_size // 2)
    readers = [kept(photos, tmp_path / "views") for _ in range(4)]  # as of four processes
    for reader in readers:
        views = reader._held.views
        views._open[VIEW] = views._find(VIEW, reader._evaluated)
    decoded.clear()
    with pytest.warns(UserWarning, match="is damaged"):
        found = [reader.evaluation_views() for reader in readers]
    assert all(torch.equal(views, plain) for views in found)
    assert decoded == dict.fromkeys(photos, 1)
    assert [f.name for f in (tmp_path / "views").iterdir()] == [file.name]


def test_other_views_images_and_code_have_files_of_their_own(photos, tmp_path, decoded):
    folder = tmp_path / "views"
    kept(photos, folder).evaluation_views()
    kept(photos, folder, images="others").evaluation_views()
    kept(photos, folder, code="new").evaluation_views()
    kept(photos, folder).at(View((16, 16), "squash"), "cpu").evaluation_views()
    assert len(list(folder.iterdir())) == 4
    assert decoded == dict.fromkeys(photos, 4)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a bit of a view": lambda file: flip(file, file.stat().st_size // 2),
    "a bit of the head": lambda file: flip(file, 20),
    "a bit of a digest": lambda file: flip(file, -1),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "empty": lambda file: file.write_bytes(b""),
    "no views at all": lambda file: file.write_text("notes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_and_made_anew(photos, tmp_path, decoded, damage):
    folder = tmp_path / "views"
    plain = kept(photos, folder).evaluation_views()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    DAMAGES[damage](file)
    with pytest.warns(UserWarning, match=rf"{file.name} .*decoded again"):
        assert torch.equal(kept(photos, folder).evaluation_views(), plain)
    assert file.read_bytes() == whole
    assert decoded == dict.fromkeys(photos, 2)


def test_a_file_of_other_images_under_the_name_is_not_taken(photos, tmp_path):
    plain = kept(photos, tmp_path / "a").evaluation_views()
    kept(photos[::-1], tmp_path / "b", images="others").evaluation_views()
    (ours,), (theirs,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    shutil.copy(theirs, ours)
    with pytest.warns(UserWarning, match="holds no views of these images; they are decoded again"):
        assert torch.equal(kept(photos, tmp_path / "a").evaluation_views(), plain)


def test_two_who_ask_at_once_decode_once(photos, tmp_path, decoded, monkeypatch):
    slow, begun = image_files.read, threading.Event()

    def reading(path, loading="as_clip"):
        begun.set()
        time.sleep(0.05)
        return slow(path, loading)

    monkeypatch.setattr(image_files, "read", reading)
    found = []

    def read():
        found.append(kept(photos, tmp_path / "views").evaluation_views())

    first, second = (threading.Thread(target=read) for _ in range(2))
    first.start()
    assert begun.wait(10)
    second.start()
    first.join()
    second.join()
    assert torch.equal(*found)
    assert decoded == dict.fromkeys(photos, 1)
    assert len(list((tmp_path / "views").iterdir())) == 1  # neither a lock nor half a file


def test_without_room_it_says_so_and_decodes_each_time(photos, tmp_path, decoded, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2**30 + 1000))
    files = kept(photos, tmp_path / "views")
    with pytest.warns(UserWarning, match=r"5 views of toys-test would take .* has 1\.00 GiB free"):
        views = files.evaluation_views()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert torch.equal(files.evaluation_views(), views)
    assert decoded == dict.fromkeys(photos, 2)
    assert not list((tmp_path / "views").iterdir())


def test_a_folder_that_cannot_be_written_costs_no_run(photos, tmp_path):
    (tmp_path / "views").write_text("a file in its place")
    plain = ImageFiles(photos).at(VIEW, "cpu").evaluation_views()
    with pytest.warns(UserWarning, match=r"keep_views: false"):
        assert torch.equal(kept(photos, tmp_path / "views").evaluation_views(), plain)


def test_images_that_change_meanwhile_are_not_kept(photos, tmp_path):
    def changed():
        raise RuntimeError("0.png changed")

    files = ImageFiles(photos)
    files.keep_views(KeptViews(tmp_path / "views", "toys-test", photos, {}, changed))
    with pytest.raises(RuntimeError, match="changed"):
        files.at(VIEW, "cpu").evaluation_views()
    assert not list((tmp_path / "views").iterdir())


def test_a_bad_image_is_named_and_nothing_is_kept(photos, tmp_path):
    photos[2].write_text("no image")
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded"):
        kept(photos, tmp_path / "views").evaluation_views()
    assert not list((tmp_path / "views").iterdir())


def test_what_was_decoded_for_training_is_not_decoded_to_be_evaluated(photos, decoded):
    files = ImageFiles(photos).at(VIEW, "cpu")
    plain = files.evaluation_views()
    decoded.clear()
    for _ in range(2):
        files.training_views("light", torch.Generator().manual_seed(0))
        assert torch.equal(files.evaluation_views(), plain)
    assert decoded == dict.fromkeys(photos, 1)
