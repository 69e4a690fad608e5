"""Parameters of notebooks: read from the cell tagged `parameters`, checked by name and type before
anything runs.

papermill only warns of a parameter that a notebook does not have; a typo would then run with the
default.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.json_data import read_notebook
from ..core.schema import near, short
from ..core.yaml_data import parse_yaml

SAMPLES: dict[str, list[Any]] = {"list[int]": [1], "list[str]": ["name"]}
_INJECTED = "# Parameters\n"  # the first line of the cell that papermill injects


def literals(source: str, where: str) -> dict[str, Any]:
    """Return the assignments of a cell of plain literals, `name = literal` or `name: type =
    literal`.
    """
    values = {}
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(
            f"{where}, line {error.lineno}: no Python ({error.msg}); write `name = literal`"
        ) from None
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        names: list[ast.expr] = getattr(node, "targets", None) or [getattr(node, "target", None)]
        value: Any = getattr(node, "value", None)
        assigned = isinstance(node, ast.Assign | ast.AnnAssign) and value is not None
        if not assigned or len(names) > 1 or not isinstance(names[0], ast.Name):
            raise ValueError(
                f"{where}, line {node.lineno}: not `name = literal`; move it to the setup cell"
            )
        try:
            values[names[0].id] = ast.literal_eval(value)
        except ValueError:
            raise ValueError(
                f"{where}: {names[0].id} = {ast.unparse(value)[:80]} is not a plain literal; "
                "give a finite number, text or a list, and move what is computed to the setup cell"
            ) from None
    return values


def known_parameters(notebook: Path) -> dict[str, Any]:
    """Return name -> default of the notebook's parameters."""
    if not notebook.is_file():
        known = sorted(p.stem for p in notebook.parent.glob("[0-9]*.ipynb"))
        raise FileNotFoundError(f"unknown notebook {notebook.stem!r}; {near(notebook.stem, known)}")
    return literals(_parameters_cell(notebook), f"{notebook.name}, parameters cell")


def _parameters_cell(notebook: Path) -> str:
    tagged = [
        c for c in read_notebook(notebook)["cells"] if "parameters" in c["metadata"].get("tags", [])
    ]
    if len(tagged) != 1:
        raise ValueError(
            f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it must have exactly one"
        )
    return "".join(tagged[0]["source"])


def _samples(source: str) -> dict[str, list[Any]]:
    """Lists as the annotations of the cell want them: what an empty default does not show."""
    found: dict[str, list[Any]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation)
            found |= {node.target.id: SAMPLES[kind]} if kind in SAMPLES else {}
    return found


SHARES = {"delta", "margin"}  # a probability, and a part of 1
MOST = 1_000_000  # of a count: steps, images and the like, of which a notebook takes thousands
_ANY = 2**63  # of what is no count


def check_parameters(
    notebook: Path, given: Mapping[str, Any], typed: bool = False
) -> dict[str, Any]:
    """Return the given values; refuse unknown names, wrong types, numbers not finite, counts that
    are not positive or above MOST, a list's entry that stands twice, and SHARES that are none.

    Text is read as YAML where the default is no text, unless the values are `typed`, as in a
    notebook's cell.
    """
    known, checked = known_parameters(notebook), {}
    samples = _samples(_parameters_cell(notebook))
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{notebook.stem} has no parameter {name!r}; {near(name, known)}")
        default, where = known[name], f"{notebook.stem}: {name}={short(value)}"
        if isinstance(value, str) and not isinstance(default, str) and not typed:
            value = parse_yaml(value, where)
        numbers = range(0 if default == 0 else 1, MOST + 1)  # 0: the profile's
        if name in ("seed", "seeds"):
            numbers = range(_ANY)
        elif isinstance(default, list) and any(type(x) is int and x < 1 for x in default):
            numbers = range(-_ANY, _ANY)
        if name in samples and not default:  # an empty list is the profile's
            default = samples[name] if value != [] else []
        if isinstance(value, str) and isinstance(default, list):  # papermill's -p reads none
            listed = json.dumps(default)
            raise ValueError(
                f"{where} must be list, as in {default!r}; it is str: say -p {name} '{listed}' to "
                f"`blocklora notebook`, and to papermill -y '{name}: {listed}'"
            )
        checked[name] = _of_type(value, default, where, numbers)
        if isinstance(default, (list, tuple)) and (twice := _twice(checked[name])):
            raise ValueError(f"{where} lists {twice} twice; list each once")
        if name in SHARES and not 0 < checked[name] < 1:
            raise ValueError(f"{where} must lie between 0 and 1, as in {default!r}")
    return checked


def _twice(values: Sequence[Any]) -> str | None:
    """The first value that stands twice, as an error shows it."""
    counts = Counter(map(repr, values))
    return next((short(value) for value in values if counts[repr(value)] > 1), None)


def _of_type(value: Any, default: Any, where: str, numbers: range) -> Any:
    if default is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(value, where)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        alike = len({type(entry) for entry in default}) <= 1
        if not alike and len(value) != len(default):
            raise ValueError(f"{where} must have {len(default)} entries, as in {default!r}")
        if default and not value:
            raise ValueError(f"{where} has no entry; give at least one, as in {default!r}")
        if default:
            samples = [default[0]] * len(value) if alike else default
            value = [
                _of_type(entry, sample, f"{where}, entry {short(entry)}", numbers)
                for entry, sample in zip(value, samples, strict=True)
            ]
        return type(default)(value)
    if type(value) is not type(default):
        raise ValueError(
            f"{where} must be {type(default).__name__}, as in {default!r}; it is "
            f"{type(value).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is no finite number; give one such as {default!r}")
    if type(value) is int and value not in numbers:
        raise ValueError(
            f"{where} must be a whole number from {numbers[0]} to {numbers[-1]}, such as "
            f"{default!r}"
        )
    if isinstance(value, float) and default > 0 >= value:
        raise ValueError(f"{where} must be above 0, such as {default!r}")
    return value


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} is too large a number") from None


def injected_parameters() -> dict[str, Any]:
    """Return what papermill injected into the running notebook: so plain `papermill` refuses typos
    too.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    cells = shell.user_ns.get("In", []) if shell is not None else []
    injected = [source for source in cells if source.startswith(_INJECTED)]
    return literals(injected[-1], "injected parameters") if injected else {}
