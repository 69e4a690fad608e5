"""What notebooks check and judge, read from their cells before anything runs.

A check has an id of its own in the whole suite, '03.E1': the notebook's number, then a name. A
claim is named as `paper_claims` names it. Ids are written out, so that both can be held here.
"""

from __future__ import annotations

import ast
from pathlib import Path

from ..claims.paper_claims import BY_ID
from ..core.json_data import read_notebook
from ..core.paths import NOTEBOOKS
from ..core.schema import UnknownName
from .catalogue import notebook_names


def number(name: str) -> str:
    """Return a notebook's number: '03' of '03_counts'."""
    return name.partition("_")[0]


def ids_in(path: Path) -> tuple[list[str], list[str]]:
    """Return the ids that a notebook checks, and those that it judges, in order.

    A check in a loop has an f-string, of which what stands before the first brace is the id.
    """
    checked: list[str] = []
    judged: list[str] = []
    for cell in read_notebook(path)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "nb." not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if getattr(node.func.value, "id", "") != "nb" or node.func.attr not in (
                "check",
                "judge",
            ):
                continue
            texts = node.args if node.func.attr == "judge" else node.args[:1]
            found = [_literal(text) for text in texts]
            if "" in found or (node.func.attr == "check" and not found):
                raise ValueError(
                    f"{path.name}, cell {cell['id']}: the id of nb.{node.func.attr} has to be "
                    'written out, as in nb.check("03.E1", ...)'
                )
            (checked if node.func.attr == "check" else judged).extend(found)
    return checked, judged


def check_ids(folder: Path = NOTEBOOKS) -> None:
    """Refuse an id that two checks of the suite have, that is not its notebook's, or that names no
    claim.
    """
    places: dict[str, str] = {}
    for name in notebook_names(folder):
        checked, judged = ids_in(folder / f"{name}.ipynb")
        for id in checked:
            if not id.startswith(f"{number(name)}.") or len(id) <= len(number(name)) + 1:
                raise ValueError(f"{name}.ipynb: check {id!r}; begin its id with {number(name)}.")
            if id in places:
                raise ValueError(
                    f"check {id} is made in {places[id]} and again in {name}; give each its own id"
                )
            places[id] = name
        for id in judged:
            if id not in BY_ID:
                raise UnknownName("claim", id, BY_ID, f"{name}.ipynb judges it")
        if twice := {id for id in judged if judged.count(id) > 1}:
            raise ValueError(f"{name}.ipynb judges {min(twice)} twice; show its verdict once")


def _literal(node: ast.expr) -> str:
    """Return a string as it is written, or what an f-string begins with; '' of anything else."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
