"""JSON as plain data, read so that nothing in it is lost or guessed; notebooks are JSON too.

No torch, and nothing beyond Python: files of adapters are read where no YAML reader is installed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import read_text

VALUES = 3_000_000  # in a text; the largest list of images here has half a million


def check_size(text: str) -> None:
    """ValueError for a JSON text of which so many values are made that they fill the memory."""
    if (most := text.count(",") + text.count("[") + text.count("{")) > VALUES:
        raise ValueError(f"it holds some {most:,} values, one of its kind at most {VALUES:,}")


def parse_json(text: str, where: str) -> Any:
    """Return what a JSON text says; ValueError, with `where`: a key given twice, NaN, Infinity."""
    try:
        check_size(text)
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"{where} is not JSON of ours: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None


def read_json(path: str | Path) -> Any:
    """Return what a JSON file says; errors as `parse_json` and `files.read_text`."""
    return parse_json(read_text(path), str(path))


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    facts = dict(pairs)
    if len(facts) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice; keep one of the two")
    return facts


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _no_number(text)


def read_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook of format 4 as plain data, its cells with source as one text and metadata.

    Raises ValueError, with the path, for anything else.
    """
    with undamaged(f"notebook {path}", "restore it, or execute it again"):
        notebook = read_json(path)
        if notebook["nbformat"] != 4 or not isinstance(notebook["metadata"], dict):
            raise ValueError("it is not of format 4")
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["metadata"].get("tags", []), cell["cell_type"]
    return notebook


@contextmanager
def undamaged(what: str, mend: str) -> Iterator[None]:
    """Say in one ValueError that plain data lack the form that is read within: what, why, mend."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{what} is damaged ({why!s:.500}); {mend}") from None
