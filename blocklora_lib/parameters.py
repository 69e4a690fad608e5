"""Parameters of notebooks: read from the cell tagged `parameters`, checked by name and type before anything
runs.

papermill only warns of a parameter that a notebook does not have; a typo would then run with the default.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .strict import near

_INJECTED = "# Parameters\n"  # the first line of the cell that papermill injects


def literals(source: str, where: str) -> dict[str, Any]:
    """Return the assignments of a cell of plain literals, `name = literal` or `name: type = literal`."""
    values = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if not isinstance(target, ast.Name) or node.value is None:
            raise ValueError(f"{where}, line {node.lineno}: not `name = literal`; move it to the setup cell")
        try:
            values[target.id] = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(
                f"{where}: {target.id} is not a plain literal; move it to the setup cell"
            ) from None
    return values


def known_parameters(notebook: Path) -> dict[str, Any]:
    """Return name -> default of the notebook's parameters."""
    if not notebook.is_file():
        known = sorted(p.stem for p in notebook.parent.glob("[0-9]*.ipynb"))
        raise FileNotFoundError(f"unknown notebook {notebook.stem!r}; {near(notebook.stem, known)}")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it must have exactly one"
        )
    return literals("".join(tagged[0]["source"]), f"{notebook.name}, parameters cell")


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values, text read as YAML where the default is no text; refuse unknown names and wrong
    types.
    """
    known = known_parameters(notebook)
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{notebook.stem} has no parameter {name!r}; {near(name, known)}")
        default = known[name]
        if isinstance(value, str) and not isinstance(default, str):
            value = yaml.safe_load(value)
        checked[name] = _of_type(value, default, f"{notebook.stem}: {name}={value!r}")
    return checked


def _of_type(value: Any, default: Any, where: str) -> Any:
    if default is None or (value is None and not isinstance(default, (bool, int, float, str))):
        return value
    if isinstance(default, float) and isinstance(value, str):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        if default:
            value = [_of_type(v, default[0], f"{where}, entry {v!r}") for v in value]
        return type(default)(value)
    if type(value) is not type(default):
        raise ValueError(
            f"{where} must be {type(default).__name__}, as in {default!r}; it is {type(value).__name__}"
        )
    return value


def injected_parameters() -> dict[str, Any]:
    """Return what papermill injected into the running notebook: so plain `papermill` refuses typos too."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    cells = shell.user_ns.get("In", []) if shell is not None else []
    injected = [source for source in cells if source.startswith(_INJECTED)]
    return literals(injected[-1], "injected parameters") if injected else {}
