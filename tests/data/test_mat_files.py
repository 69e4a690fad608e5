"""MATLAB's lists: as scipy reads them, in a process that a damaged file may end."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from conftest import TOYS
from scipy.io import loadmat, savemat

from blocklora_lib.data.layouts import items
from blocklora_lib.data.manifest import Manifest
from blocklora_lib.data.mat_files import read_mat
from blocklora_lib.data.problems import DataError

pytestmark = pytest.mark.slow  # a process for each file

CARS = np.array(
    [("a.jpg", 1, 0.5), ("é/b.jpg", 196, 2)],
    dtype=[("fname", object), ("class", object), ("bbox", object)],
)
FLOWERS = TOYS | {
    "counts": {"train": 1, "val": 1, "test": 1},
    "images": {"train": "jpg", "val": "jpg", "test": "jpg"},
    "layout": "mat",
    "annotations": {"labels": "labels.mat", "splits": "setid.mat"},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_numbers_are_scipys(tmp_path, dtype, packed):
    numbers = np.arange(1, 103, dtype=dtype)
    path = tmp_path / "a.mat"
    savemat(path, {"other": 1, "labels": numbers, "last": "words"}, do_compression=packed)
    found = read_mat(path)["labels"]
    assert found == loadmat(path, squeeze_me=True)["labels"].tolist()
    assert {type(number) for number in found} == {int}
    assert read_mat(path)["other"] == [1]


@pytest.mark.parametrize("packed", [False, True])
def test_entries_are_scipys(tmp_path, packed):
    savemat(tmp_path / "a.mat", {"annotations": CARS}, do_compression=packed)
    found = read_mat(tmp_path / "a.mat")["annotations"]
    assert found == [
        {"fname": "a.jpg", "class": 1, "bbox": 0.5},
        {"fname": "é/b.jpg", "class": 196, "bbox": 2},
    ]


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path, started, run = tmp_path / "a.mat", [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **how: started.append(a) or run(*a, **how))
    for value, processes in ((1, 1), (1, 1), (2, 2)):
        savemat(path, {"labels": [value, 3]})
        os.utime(path, ns=(value, value))
        assert read_mat(path)["labels"] == [value, 3]
        assert len(started) == processes


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        # one wrong byte: of the first, scipy's reader ends its process by SIGSEGV
        (
            lambda whole: whole[:532] + b"\x0e" + whole[533:],
            r"be read: the reader ended by SIG",
        ),
        (lambda whole: whole[:-9], "is not a MATLAB file that can be read: could not read bytes"),
        (lambda whole: b"MATLAB 7.3" + bytes(600), "is not a MATLAB file that can be read: "),
        (lambda whole: b"", "is not a MATLAB file that can be read: "),
    ],
)
def test_a_damaged_file_is_an_error_and_ends_no_process(tmp_path, damage, says):
    path = tmp_path / "a.mat"
    savemat(path, {"annotations": CARS})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=says) as told:
        read_mat(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("labels", "test", "says"),
    [
        ([1, 2, 2], [1.5], "image 1.5 is out of range; there are 3 labels"),
        ([1, 2, 2], [4], "image 4 is out of range"),
        ([1, 2, 2], "one", "tstid: image 'one' is out of range"),
        ([1, np.nan, 2], [2], "label -1 of 'image_00002.jpg' is out of range"),
        ([1, 3, 2], [2], "is out of range; labels are 0 to 1"),
        ({"a": 1}, [1], "is out of range"),
        ([1, 2, 2], None, "setid.mat has no variable 'tstid'"),
    ],
)
def test_lists_of_other_values_are_refused(tmp_path, labels, test, says):
    """One image of a split was no list to the reader; NaN and texts ended in a traceback."""
    splits = {"trnid": [1], "valid": [3]} | ({} if test is None else {"tstid": test})
    savemat(tmp_path / "setid.mat", splits)
    savemat(tmp_path / "labels.mat", {"labels": labels})
    (tmp_path / "jpg").mkdir()
    manifest = Manifest.model_validate(FLOWERS)
    if isinstance(labels, list) and np.nan not in labels:
        assert [item.label for item in items(manifest, tmp_path, "train")] == [0]
    with pytest.raises(DataError, match=says) as told:
        items(manifest, tmp_path, "test")
    assert "\n" not in str(told.value)
