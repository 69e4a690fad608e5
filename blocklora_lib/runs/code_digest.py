"""A digest of the part of the library that computes a method's results. No torch; files are read.

It covers what a run (`runs.execute`) and the method's module import, directly or not, as syntax
trees: comments, docstrings and layout do not count, every other edit does. A record keeps it, so
that a record of other code is known; a new method leaves the records of all others as they are.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from ..core.user_cache import recall, remember
from ..methods import get_method, method_names

PACKAGE = Path(__file__).parents[1]
ROOT = "runs.execute"  # it imports all but the method's module, which it loads by name
# What stores, describes or words results and computes none; all else that the roots import counts.
SILENT = frozenset(
    """core.collection core.files core.gpus core.json_data core.locks core.machine core.paths
    core.schema core.user_cache core.writable core.yaml_data data.content data.obtain.fetch
    data.obtain.resuming data.problems runs.code_digest runs.cost runs.packed runs.provenance
    runs.record runs.sealed runs.standing runs.store""".split()
) | {""}  # the face of the package


def code_of(method: str) -> str:
    """Return the digest of what computes a method of the registry, 'none' for one not in it."""
    if method not in method_names():
        return "none"
    return code_digest(get_method(method).__module__.rpartition(".")[2])


@cache
def code_digest(method: str = "", package: Path = PACKAGE) -> str:
    """Return 64 hexadecimal digits that change when code changes that determines results.

    method: a module of `methods`; '' for what the results of all have in common.
    """
    raw = _bytes_digest(package)
    known = recall(f"code/{raw}{method}")  # parsing takes half a second
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    found = _digest(computing_modules(method, package))
    remember(f"code/{raw}{method}", found)
    return found


@cache
def views_digest(package: Path = PACKAGE) -> str:
    """The same of what decodes and views image files, by which views that are kept are named."""
    return _digest(_reached({"data.image_files"}, package))


def _digest(modules: dict[str, str]) -> str:
    said = "".join(f"{name}\n{text}\n" for name, text in sorted(modules.items()))
    return hashlib.sha256(said.encode()).hexdigest()


@cache  # a listing asks for the digest of every method
def _bytes_digest(package: Path) -> str:
    """The SHA-256 of all that stands in a package's files, by which what was found is kept."""
    files = {_name(path, package): path.read_bytes() for path in sources(package)}
    return hashlib.sha256(
        b"\0".join(b"%s\0%s" % (n.encode(), files[n]) for n in sorted(files))
    ).hexdigest()


def sources(package: Path = PACKAGE, ending: str = "py") -> list[Path]:
    """Return the files of a package that end so. What editors leave beside them, hidden, is none of
    it.
    """
    found = sorted(package.rglob(f"*.{ending}"))
    return [
        path
        for path in found
        if not any(p.startswith(".") for p in path.relative_to(package).parts)
    ]


def computing_modules(method: str = "", package: Path = PACKAGE) -> dict[str, str]:
    """Return the modules that the digest covers, by name within the package ('data.draws'), by
    `meaning`.
    """
    return _reached({ROOT, f"methods.{method}".rstrip(".")}, package)


def _reached(todo: set[str], package: Path) -> dict[str, str]:
    """The same of these modules and what they import."""
    files = {_name(path, package): path for path in sources(package)}
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name:
            todo.add(name.rpartition(".")[0])  # the face of its room is run with it
        if name not in found and name not in SILENT:
            inner = files[name].name == "__init__.py"
            found[name], imported = _read(files[name].read_bytes(), name, inner)
            todo |= imported & files.keys()
    return found


def meaning(tree: ast.Module) -> str:
    """Return a module's tree without positions, comments and docstrings, the same text on every
    Python.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = node.body[1:]
    return _written(tree)


def _written(node: object) -> str:
    """A tree as text; what is empty is left out, since newer Pythons have more fields."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        inner = ",".join(
            f"{name}={_written(value)}" for name, value in fields if value not in (None, [])
        )
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    return repr(node)


@lru_cache(256)  # most modules are the same from one look to the next
def _read(source: bytes, name: str, inner: bool) -> tuple[str, frozenset[str]]:
    """(meaning, names of what it may import) of a module; inner: it is the face of a folder."""
    tree = ast.parse(source)
    return meaning(tree), frozenset(
        _imported(name.split(".") if inner else name.split(".")[:-1], tree)
    )


def _imported(package: list[str], tree: ast.Module) -> Iterator[str]:
    """Names, within ours, of what a module in a folder of ours may import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *(node.module.split(".") if node.module else [])]
            if not node.level:
                if parts[0] != PACKAGE.name:
                    continue
                parts = parts[1:]
            yield ".".join(parts)
            yield from (".".join([*parts, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix(f"{PACKAGE.name}.") for alias in node.names)


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
