"""The digest of the code that computes results: what moves it, what not, and what it covers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blocklora_lib.methods import get_method, method_names
from blocklora_lib.runs.code_digest import (
    PACKAGE,
    SILENT,
    _bytes_digest,
    code_digest,
    code_of,
    computing_modules,
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the library, which is read and never imported, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / PACKAGE.name
    shutil.copytree(
        PACKAGE,
        folder,
        ignore=shutil.ignore_patterns("__pycache__", "figures", "measure", "theory"),
    )
    return folder


def forget() -> None:
    code_digest.cache_clear()
    _bytes_digest.cache_clear()


def fresh(package: Path, method: str = "adapters") -> str:
    forget()
    return code_digest(method, package)


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_computes_nothing_moves_nothing(package):
    before = fresh(package)
    loop = package / "learning/loop.py"
    edit(loop, '"""The one training loop', '"""A training loop')
    edit(package / "learning/told.py", "WINDOW = 20  # steps", "WINDOW = 20  # a remark")
    edit(loop, "skipped: list[int] = []", "skipped: list[int] = (\n        []\n    )")
    edit(package / "cli/run_options.py", "import gc", "import gc, re")  # the command line
    edit(package / "display/tables.py", "SENTENCE = 40", "SENTENCE = 41")  # a table's looks
    assert fresh(package) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("learning/told.py", "WINDOW = 20", "WINDOW = 21"),
        ("learning/loop.py", "betas=spec.betas", "betas=(0.9, 0.98)"),
        ("learning/evaluation.py", "argmax(-1)", "argmin(-1)"),
        ("learning/feature_cache.py", "BATCH = 100", "BATCH = 100.0"),
        ("methods/adapters.py", '"LoRA+", "collapsed"', '"LoRA+", "lora"'),
        ("data/sampling.py", "shots, seed", "seed, shots"),
        ("data/layouts.py", "VAL, TEST = 0.2, 0.3", "VAL, TEST = 0.3, 0.2"),
        ("core/seeding.py", '"{seed}/{purpose}"', '"{purpose}/{seed}"'),
    ],
)
def test_an_edit_of_what_computes_moves_the_digest(package, file, old, new):
    before = fresh(package)
    edit(package / file, old, new)
    assert fresh(package) != before


def test_a_new_method_and_what_only_it_imports_move_its_own_digest_and_no_other(package):
    shared, adapters = fresh(package, ""), fresh(package)
    assert shared != adapters
    (package / "helpers_of_mine.py").write_text("FACTOR = 2\n")
    (package / "methods" / "mine.py").write_text("from ..helpers_of_mine import FACTOR\n")
    mine = fresh(package, "mine")
    (package / "helpers_of_mine.py").write_text("FACTOR = 3\n")
    assert fresh(package, "mine") not in (mine, shared, adapters)
    edit(package / "methods/zero_shot.py", "trains = False", "trains = True")
    assert (fresh(package, ""), fresh(package)) == (shared, adapters)


def test_a_method_has_the_digest_of_the_module_it_stands_in():
    assert code_of("lora") == code_of("block_lora") == code_digest("adapters")
    assert code_of("zero_shot") == code_digest("zero_shot") != code_of("lora")
    assert code_of("no_such_method") == "none"


@pytest.mark.slow
def test_every_module_that_a_run_loads_is_covered_or_named_as_silent_and_the_digest_needs_no_torch(
    tmp_path,
):
    """Python's own list of what a run imported against the static closure."""
    code = """
import sys
import blocklora_lib.runs.code_digest as c
c.code_digest()
assert "torch" not in sys.modules
import blocklora_lib.runs.execute
from blocklora_lib.methods import get_method, method_names
[get_method(n) for n in method_names()]
print(*[m for m in sys.modules if m.startswith("blocklora_lib")])
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = {name.removeprefix("blocklora_lib").lstrip(".") for name in done.stdout.split()}
    assert {"learning.loop", "learning.evaluation", "methods.zero_shot", "data.draw"} <= loaded
    modules = {get_method(n).__module__.rpartition(".")[2] for n in method_names()}
    covered = set.union(*(set(computing_modules(module)) for module in modules))
    assert loaded <= covered | SILENT
    others = "cli.app display.tables suite.report suite.notebook runs.profile runs.grid".split()
    assert all((PACKAGE / f"{name.replace('.', '/')}.py").exists() for name in others)
    assert not set(others) & covered


def test_the_digest_is_remembered_and_a_damaged_memory_is_ignored(package, tmp_path):
    first = fresh(package)
    (kept,) = (tmp_path / "cache" / "blocklora" / "code").iterdir()
    assert kept.read_text() == first
    for damage in ("", "0" * 63, first.upper() + "\n", "\0"):
        kept.write_text(damage)
        assert fresh(package) == first
    kept.write_text("0" * 64)
    assert fresh(package) == "0" * 64  # it is read, not computed


def test_without_a_cache_folder_that_can_be_written_the_digest_is_the_same(
    package, tmp_path, monkeypatch
):
    first = fresh(package)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fresh(package) == first
