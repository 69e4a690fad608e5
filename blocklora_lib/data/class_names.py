"""Names of class folders: text, one class each, and prompts that CLIP can tell apart. No torch."""

from __future__ import annotations

import html
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from .problems import DataError, move


def class_name(folder: str) -> str:
    """The class that a folder's name gives: composed letters, single blanks, also in place of _."""
    return " ".join(unicodedata.normalize("NFC", folder).replace("_", " ").split())


def as_read(name: str) -> str:
    """What CLIP's tokenizer reads of a class name: two names that read alike have one prompt."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(name))).lower().split())


def distinct(folder: Path, places: list[str], classes: tuple[str, ...]) -> None:
    """Refuse classes whose names CLIP reads alike: one of two is then never predicted."""
    seen: dict[str, str] = {}
    for name in classes:
        read = as_read(class_name(name))
        if not read:
            what = "gives no class name: CLIP reads nothing of it; call it by what its images show"
            raise DataError(folder / places[0] / name, what, renamed(folder, places, name, "class"))
        if read in seen:
            what = (
                f"and {seen[read]!r} have one prompt, "
                f"as CLIP reads {read!r} of both, so one could never be"
            )
            mend = renamed(folder, places, name, f"{class_name(name)} 2")
            what += " predicted: call one otherwise, or put the images of both into one folder"
            raise DataError(folder / places[0] / name, what, mend)
        seen[read] = name


def check_name(place: Path, name: str) -> None:
    """Refuse a path under `place` of which a part is no text, or not what a manifest can hold."""
    unfit = re.match(r"~|[A-Za-z]:|.*\\", name) and "/" not in name  # of a class folder
    if name.isascii() and name.isprintable() and not unfit:
        return
    if not name.isascii() and sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        what = (
            "has a name of more than ASCII, "
            f"and Python takes names for {sys.getfilesystemencoding()} here"
        )
        raise DataError(place / name, f"{what}: set PYTHONUTF8=1", "export PYTHONUTF8=1")
    path = place
    for part in name.split("/"):
        path /= part
        raw = os.fsencode(part)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            what = (
                "has a name that is not UTF-8 (of many, say: "
                "convmv -r -f latin1 -t utf8 --notest FOLDER)"
            )
            raise DataError(path, what, move(path, _free(path, raw.decode("latin-1")))) from None
        if any(unicodedata.category(c) == "Cc" for c in part) or (unfit and path.is_dir()):
            plain = re.sub(r"[\\~:\x00-\x1f\x7f-\x9f]", "_", part)
            what = (
                f"has {part!r} as its name, with a control character, "
                "\\, a drive or a leading ~: rename it"
            )
            raise DataError(path, what, move(path, _free(path, plain)))


def _free(path: Path, name: str) -> Path:
    """A path of this name beside `path` where nothing stands yet."""
    other, number = path.with_name(name), 2
    while os.path.lexists(other):
        other, number = path.with_name(f"{name} {number}"), number + 1
    return other


def renamed(folder: Path, places: Iterable[str], old: str, new: str) -> str:
    """The command that renames a class in every split that has it."""
    there = [folder / place / old for place in places if (folder / place / old).is_dir()]
    return " && ".join(move(path, _free(path, new)) for path in there)
