"""Paths, names and addresses as a manifest may give them: none leads out of its folder."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _relative(path: str) -> str:
    """Refuse a path that could leave the dataset's folder."""
    leaves = path.startswith(("/", "~")) or ".." in path.split("/")
    if not path or leaves or re.match(r"[A-Za-z]:|.*\\", path) or _CONTROLS.search(path):
        raise ValueError(
            f"{path!r} must be a path relative to the dataset's folder, with / and without .."
        )
    return str(PurePosixPath(path))


def plain_name(name: str) -> str:
    """Return a name that is one of a file alone; ValueError where it could lead elsewhere."""
    if not is_plain(name):
        raise ValueError(
            f"{name!r} must be a plain file name: no folder, no leading dot, at most 200 bytes"
        )
    return name


def is_plain(name: str) -> bool:
    """Whether a name stands for a file of the folder that it is put into, and for no hidden one.

    Endings that a download puts behind a name still have room in it.
    """
    wrong = re.match(r"[.~-]|$|[A-Za-z]:", name) or re.search(r"[/\\]", name)
    return not wrong and not _CONTROLS.search(name) and _bytes(name) <= 200


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _address(url: str) -> str:
    try:
        whole = not _CONTROLS.search(url) and urlsplit(url).hostname != ""
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{url!r} is no address; give it as a browser shows it")
    return url


Url = Annotated[str, AfterValidator(_address)]
PlainName = Annotated[str, AfterValidator(plain_name)]
RelativePath = Annotated[str, AfterValidator(_relative)]
RelativePaths = Annotated[tuple[RelativePath, ...], BeforeValidator(_listed), Field(min_length=1)]
