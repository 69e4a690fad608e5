"""What a command says on a terminal: of others' words only the characters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import blocklora_lib.cli
from blocklora_lib.cli.kept import _written
from blocklora_lib.cli.lines import say

PACKAGE = Path(blocklora_lib.cli.__file__).parent
OWNED, SHOWN = "a\x1b[2J\x07\x9b1m\r\u202eb", r"a\x1b[2J\x07\x9b1m\x0d\u202eb"


@pytest.mark.parametrize("err", [False, True])
def test_lines_stay_lines_and_what_would_steer_a_terminal_is_shown(capsys, err):
    say(f"one\n{OWNED}\n{Path('two')}", err=err)
    shown = capsys.readouterr()
    assert shown[err] == f"one\n{SHOWN}\ntwo\n"
    assert shown[not err] == ""


def test_a_table_shows_what_data_hold_as_it_is():
    rows = [(OWNED, 0.5)]
    assert _written(("image", "share"), rows, "table").splitlines()[1].split()[0] == SHOWN
    assert OWNED.replace("\r", "") in _written(("image", "share"), rows, "csv").replace("\r", "")


def test_only_data_for_programs_are_printed_as_they_are():
    raw = {
        (path.name, found)
        for path in PACKAGE.glob("*.py")
        for found in re.findall(r"typer\.echo\(([\w.]+)", path.read_text(encoding="utf-8"))
    }
    assert raw == {
        ("kept.py", "_written"),
        ("data.py", "json.dumps"),
        ("data.py", "drawn.to_json"),
    }
