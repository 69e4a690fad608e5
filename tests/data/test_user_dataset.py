"""One's own images: a folder per class is a dataset, in one command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.user_dataset import own_manifest, write_own


@pytest.fixture
def pets(tmp_path):
    """Two classes of five images, in colours that tell them apart."""
    random = np.random.default_rng(0)
    for name, colour in (("red_cat", 0), ("blue_dog", 2)):
        for i in range(5):
            pixels = random.integers(0, 90, (40, 50, 3), dtype=np.uint8)
            pixels[..., colour] += 150
            path = tmp_path / "my pets" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "my pets"


def run(*arguments):
    return CliRunner().invoke(
        app, ["run", "--profile", "smoke", "--method", "block_lora", *map(str, arguments)]
    )


@pytest.mark.slow
def test_a_folder_per_class_runs_in_one_command_and_is_never_run_twice(pets, tmp_path):
    results = tmp_path / "results"
    for _ in range(2):
        done = run("--dataset", pets, "--shots", 1, "--results", results)
        assert done.exit_code == 0, done.output
        assert "my_pets block_lora(2, 2) shots=1 seed=1: my_pets " in done.output
    (record,) = (results / "runs").glob("*.json")
    facts = json.loads(record.read_text(encoding="utf-8"))
    assert facts["provenance"]["template"] == "a photo of a {}."
    assert facts["provenance"]["miniature"] is False
    assert facts["result"]["accuracy"]["my_pets"]["total"] == 4  # 0.3 of five a class, rounded
    assert load_manifest("my_pets", results / "manifests").classes == ("blue dog", "red cat")


def test_ones_own_images_may_lie_in_a_hidden_folder(pets):
    """Nothing is fetched into it, so it needs no plain name."""
    hidden = pets.rename(pets.with_name(".pets"))
    assert own_manifest(hidden).folders["coop"] == ".pets"


def test_other_images_are_another_dataset(pets, tmp_path):
    before = own_manifest(pets).sha256
    assert write_own(pets, tmp_path / "manifests").sha256 == before
    Image.new("RGB", (40, 50)).save(pets / "red_cat" / "5.png")
    assert own_manifest(pets).sha256 != before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda pets: [p.unlink() for p in (pets / "red_cat").iterdir()], "holds no images"),
        (lambda pets: (pets / "red_cat").rename(pets.parent / "red_cat"), "holds 1 class folder"),
        (lambda pets: pets.rename(pets.parent / "elsewhere"), "is missing: give a folder"),
        (
            lambda pets: (pets / "train").mkdir(),
            "train holds no images; fill the class or take its folder away",
        ),
    ],
)
def test_a_folder_that_is_no_dataset_says_why(pets, tmp_path, damage, says):
    damage(pets)
    failed = run("--dataset", pets, "--shots", 1, "--results", tmp_path / "results")
    assert failed.exit_code == 2
    assert says in failed.output
    assert len(failed.output.strip().splitlines()) == 1
