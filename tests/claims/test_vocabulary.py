"""No module but those of claims/ has a word for a verdict, and no notebook writes one."""

from __future__ import annotations

import ast
import json
import re

import pytest

from blocklora_lib.claims.paper_claims import BY_ID
from blocklora_lib.claims.verdict import MEANINGS, STEMS
from blocklora_lib.core.paths import NOTEBOOKS, ROOT

PACKAGE = ROOT / "blocklora_lib"
# 'not run' is plain English of things that do not run; as a verdict it stands alone
WORDS = re.compile(
    rf"\b({'|'.join(word for word in STEMS if word != 'not run')}|"
    r"(not )?reproduced|on pocket only)\b"
    r"|^not run$",
    re.IGNORECASE,
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "claims" not in path.parents)


def texts(source):
    """The strings of a module or cell, docstrings included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_search_finds_every_word():
    for word in MEANINGS:
        assert WORDS.search(word)
    assert not WORDS.search("its projections are not run backwards")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_no_word_for_a_verdict(path):
    assert not [t for t in texts(path.read_text(encoding="utf-8")) if WORDS.search(t)]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_writes_no_verdict(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [
        text
        for cell in cells
        for text in (
            texts("".join(cell["source"]))
            if cell["cell_type"] == "code"
            else ["".join(cell["source"])]
        )
        if WORDS.search(text)
    ]
    assert not found


def test_the_report_writes_no_verdict():
    template = PACKAGE / "suite" / "templates" / "report.html.j2"
    assert not WORDS.search(template.read_text(encoding="utf-8"))


BY_HAND = ("README.md", "CHANGELOG.md", "benchmarks/README.md", "docs/*.md", "paper/*.tex")
WRITTEN = sorted(path for pattern in BY_HAND for path in ROOT.glob(pattern))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_hand_writes_the_verdict_of_a_claim(path):
    """Words may be explained; beside a claim's id they stand in what is written by a command."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<!-- claims: .*?<!-- end of claims -->", "", text, flags=re.DOTALL)
    claim = rf"\b({'|'.join(sorted(BY_ID))})\b"
    sentences = re.split(r"(?<=[.;])\s+", text)
    assert not [s for s in sentences if re.search(claim, s) and WORDS.search(s)]
