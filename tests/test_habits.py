"""The house's habits, so that one command looks at all: lint, form, types, stripped notebooks."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import blocklora_lib
from blocklora_lib.core.paths import NOTEBOOKS, ROOT

PACKAGE = Path(blocklora_lib.__file__).parent


def said(*words: str) -> str:
    """What a tool prints; '' where it finds nothing to say."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.slow
def test_ruff_finds_nothing():
    assert said("ruff", "check", "--no-cache", ".") == ""


@pytest.mark.slow
def test_files_are_laid_out_by_ruff():
    assert said("ruff", "format", "--no-cache", "--check", ".") == ""


@pytest.mark.slow
def test_notebooks_stand_without_outputs():
    found = [str(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert found
    assert said("nbstripout", "--keep-id", "--verify", *found) == ""


def test_examples_in_docstrings_hold():
    files = [p for p in PACKAGE.rglob("*.py") if ">>> " in p.read_text(encoding="utf-8")]
    assert files
    for path in files:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        assert not doctest.testmod(importlib.import_module(name)).failed, name


@pytest.mark.slow
def test_types_hold():
    assert said("mypy") == ""
