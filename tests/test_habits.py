"""The house's habits, so that one command looks at all: lint, form, types, stripped notebooks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from blocklora_lib.core.paths import NOTEBOOKS, ROOT


def said(*words: str) -> str:
    """What a tool prints; '' where it finds nothing to say."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_ruff_finds_nothing():
    assert said("ruff", "check", "--no-cache", ".") == ""


def test_files_are_laid_out_by_ruff():
    assert said("ruff", "format", "--no-cache", "--check", ".") == ""


@pytest.mark.slow
def test_notebooks_stand_without_outputs():
    found = [str(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert found
    assert said("nbstripout", "--keep-id", "--verify", *found) == ""


@pytest.mark.slow
def test_types_hold():
    assert said("mypy") == ""
