"""The house's habits, so that one command looks at all: lint, form, types, stripped notebooks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from blocklora_lib.core.paths import NOTEBOOKS, ROOT

USES_THE_FACE = """
from pathlib import Path

import torch
from torch import nn

from blocklora_lib import AdapterConfig, AdapterSet, attach, attach_linear, find_adapters

model: nn.Module = nn.TransformerEncoderLayer(16, 2)
config = AdapterConfig(kind="block_lora", rank=4, n_blocks=2)
adapters: AdapterSet = attach(model, config, torch.Generator().manual_seed(1))
optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=1e-3))
rank: int | None = adapters.config.rank
adapters.merge().unmerge().save(Path("a.safetensors"), {"note": "mine"})
count: int = sum(found.num_parameters() for found in find_adapters(model))
plain: nn.Module = adapters.detach()
attach_linear(plain, ["linear?"], AdapterConfig(rank=2)).merge_and_unload()
again: AdapterSet = AdapterSet.load("a.safetensors", plain)
"""


def said(*words: str) -> str:
    """What a tool prints; '' where it finds nothing to say."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_ruff_finds_nothing():
    assert said("ruff", "check", "--no-cache", ".") == ""


def test_files_are_laid_out_by_ruff():
    assert said("ruff", "format", "--no-cache", "--check", ".") == ""


def test_notebooks_stand_without_outputs():
    found = [str(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert found
    assert said("nbstripout", "--keep-id", "--verify", *found) == ""


@pytest.mark.slow
def test_types_hold():
    assert said("mypy") == ""


@pytest.mark.slow
def test_a_file_that_uses_the_face_is_clean_under_a_strict_checker(tmp_path):
    """As a user checks it: with mypy's own settings, none of ours."""
    (tmp_path / "mine.py").write_text(USES_THE_FACE, encoding="utf-8")
    words = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", str(tmp_path / "mine.py")]
    assert said("mypy", *words) == ""
