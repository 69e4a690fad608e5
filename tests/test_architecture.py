"""The shape of the house: who may know whom, how long a file may be, what does without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blocklora_lib
from blocklora_lib.core.paths import ROOT

PACKAGE = Path(blocklora_lib.__file__).parent
ROOMS = sorted(p.parent for p in PACKAGE.rglob("__init__.py"))
METHODS = PACKAGE / "methods"
GROUND_UP = tuple(
    "core layers adapters data weights clip costs learning methods runs theory measure analysis "
    "display claims suite cli".split()
)
LINES = 300
# Readers of records, and all that they import, run where torch is not: a laptop that makes the
# paper's figures, the login node of a cluster, a listing that has to be quick.
TORCH_FREE = """
core.files core.json_data core.yaml_data adapters.config costs.adapter costs.step costs.memory
theory.bounds clip.architectures weights.files data.manifest_files data.local runs.grid runs.results
runs.estimate runs.standing analysis.intervals display.tables claims.paper_claims claims.published
claims.published_tables suite.report suite.engine suite.monitor suite.reproduce suite.catalogue
cli.app
""".split()


@pytest.mark.slow
def test_imports_keep_to_the_contract_of_pyproject():
    """Rooms know what stands below them alone, and no modules know each other in a circle."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    words = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_contract_has_no_list_of_exceptions():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "[tool.importlinter]" in text
    assert "ignore_imports" not in text


def test_tests_have_the_rooms_of_what_they_test():
    assert {room for room in GROUND_UP if not [*(ROOT / "tests" / room).glob("test_*.py")]} == set()


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_room_says_what_it_is_for_and_what_it_may_know(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert said
    assert "TODO" not in said
    if room.parent != PACKAGE:
        return
    known = re.search(r"Knows ([^.]*(?:\.\w[^.]*)*)\.", " ".join(said.split()))[1]
    named = {name for name in GROUND_UP if re.search(rf"\b{name}\b", known)}
    if "all below" in known:
        named |= {*GROUND_UP[: max(map(GROUND_UP.index, named))]}
    if not known.startswith("all"):
        assert rooms_used_by(room) <= named | {"core", room.name}


def rooms_used_by(room):
    """Rooms that a room's modules import from, deferred imports included."""
    found = set()
    for path in room.rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                found |= {(node.module or alias.name).split(".")[0] for alias in node.names}
    return found & {*GROUND_UP}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_module_is_two(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.slow
def test_readers_of_records_do_without_torch():
    names = [f"blocklora_lib.{name}" for name in TORCH_FREE]
    names += [
        f"blocklora_lib.display.figures.{p.stem}"
        for p in (PACKAGE / "display" / "figures").glob("[a-z]*.py")
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'open_clip']))\n"
        f"for name in {names!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_is_a_short_file():
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in METHODS.glob("[a-z]*.py")}
    assert {name: n for name, n in lengths.items() if n > 200} == {}


def test_a_reader_of_the_method_meets_little():
    """adapters/ and clip/ together, what one reads to know the method and its model."""
    lines = [
        len(p.read_text(encoding="utf-8").splitlines())
        for room in ("adapters", "clip")
        for p in (PACKAGE / room).glob("*.py")
    ]
    assert sum(lines) < 2500
