"""`blocklora evaluate`: rows, and what it says of images that may have been trained on."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.data.user_dataset import own_manifest
from blocklora_lib.learning.count import Count
from blocklora_lib.runs import classifier, kept, scoring


def manifest(dataset):
    return None if dataset == "chess" else own_manifest(dataset)


@pytest.fixture
def evaluate(monkeypatch):
    """Call it on 'chess' with these counts and this remark; returns the result."""

    def call(counts, remark="", dataset="chess"):
        for room, name, value in (
            (kept, "trained", None),
            (classifier, "load_classifier", None),
            (scoring, "set_for", SimpleNamespace(name="chess", manifest=manifest(dataset))),
            (scoring, "score", dict(counts)),
            (scoring, "remark", remark),
        ):
            monkeypatch.setattr(room, name, lambda *a, _value=value, **k: _value)
        return CliRunner().invoke(app, ["evaluate", "x.safetensors", str(dataset), "-f", "csv"])

    return call


def test_a_class_that_is_called_as_the_total_is_keeps_its_row(evaluate):
    counts = {"chess, test": Count(correct=3, total=5), "rook": Count(correct=1, total=4)}
    done = evaluate(counts)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = [tuple(row.values())[:3] for row in csv.DictReader(done.stdout.splitlines())]
    assert rows == [("chess, test", "3", "5"), ("rook", "1", "4"), ("chess, test", "4", "9")]


def test_what_is_to_be_known_of_the_images_is_said_beside_the_rows(evaluate):
    done = evaluate({"rook": Count(correct=1, total=4)}, "they are old")
    assert (done.exit_code, done.stderr) == (0, "note: they are old\n")


def test_what_a_folder_holds_beside_its_images_is_said_as_a_run_says_it(evaluate, tmp_path):
    """It was left out in silence, and so were images of two classes."""
    for number, name in enumerate(("cat/a", "cat/b", "cat/c", "dog/a", "dog/b", "dog/c", "stray")):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 5, 0, 0)).save(path)
    done = evaluate({"cat": Count(correct=1, total=4)}, dataset=tmp_path / "pets")
    assert done.exit_code == 0
    stray, twice = done.stderr.splitlines()
    assert stray.endswith("left out: stray.png")
    assert "images are in another class, too" in twice
