"""Names that a user gives, as figures write them: texts, in which a dollar begins no formula."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any


def as_text(label: str, width: int = 0) -> str:
    r"""Return a label as matplotlib shows it letter by letter.

    width: characters after which a new line begins; 0: none does.

    >>> as_text("from $5 to $6"), as_text("a long label", 8)
    ('from \\$5 to \\$6', 'a long\nlabel')
    """
    lines = textwrap.wrap(label, width) if width else [" ".join(label.split())]
    return re.sub(r"(?<!\\)\$", r"\\$", "\n".join(lines))


def with_texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a figure that hold labels of methods (`method_label` of a frame) or
    titles of sets, with as_text of these.
    """
    found = {}
    for name, value in given.items():
        if "method_label" in getattr(value, "columns", ()):
            found[name] = value.assign(method_label=value["method_label"].map(as_text))
        elif name == "titles" and value:
            found[name] = {of: as_text(title) for of, title in value.items()}
    return found


def panel_title(title: str, width: float) -> str:
    """Return a title in lines that a panel of `width` inches, its axis included, has room for."""
    return as_text(title, int(14 * width))
