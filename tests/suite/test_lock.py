"""The lock serves every Python that the project names. Asks a package index: `make test-lock`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from blocklora_lib.core.paths import ROOT

SOURCES = "connection_pool"  # published as source alone


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11.5", "3.12", "3.13"])
def test_an_index_has_every_pin_for(python, tmp_path):
    """A dry run of the installer, as for that Python on this platform."""
    words = "install --dry-run --quiet --no-deps --ignore-installed --only-binary=:all:".split()
    words += [f"--no-binary={SOURCES}", "--python-version", python, "--target", str(tmp_path)]
    command = [sys.executable, "-m", "pip", *words, "--requirement", ROOT / "requirements.lock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
