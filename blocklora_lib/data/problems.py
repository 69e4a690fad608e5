"""What can be wrong with a dataset on disk: the file, the fault, and the command that helps."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.files import printable
from .manifest import Manifest

MARKER = "FAKE.json"  # the file that marks a miniature


class Problem(NamedTuple):
    """What is wrong with which file, and the command that helps. str(problem) is one sentence."""

    file: str
    what: str
    next_command: str

    def __str__(self) -> str:
        return f"{printable(self.file)} {self.what}; next: {self.next_command}"


class DataError(ValueError):
    """A fault that stops the reading of a set; the message is `problem` as one sentence."""

    def __init__(self, file: Path | str, what: str, next_command: str) -> None:
        self.problem = Problem(str(file), " ".join(what.split()), next_command)
        super().__init__(str(self.problem))


class MissingData(DataError, FileNotFoundError):
    """A dataset, split file or folder that is not there."""


def shell(words: Sequence[str]) -> str:
    """Return a command line that a shell reads as these words, whatever their bytes."""
    return " ".join(map(_quoted, words))


def again(folder: Path) -> str:
    """The command that looks at a folder of one's own again, after it was mended by hand."""
    return shell(["blocklora", "data", "verify", str(folder)])


def move(old: Path, new: Path) -> str:
    """The command that renames a file or a folder, and writes over none."""
    return shell(["mv", "-n", str(old), str(new)])


def move_away(folder: Path, path: Path) -> str:
    """The command that moves a path out of the folder, beside it."""
    inner = ".".join(path.relative_to(folder).parts)  # so that two of one name do not meet there
    return move(path, folder.with_name(f"{folder.name}.{inner}"))


def _quoted(word: str) -> str:
    if word.isprintable():  # lone surrogates, that is, bytes that are not UTF-8, are not
        return shlex.quote(word)
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{plain}'"


def command(verb: str, name: str, folder: Path, *options: str) -> str:
    """Return `blocklora data VERB NAME --root ROOT ...` for the set in `folder`, for a shell."""
    words = ["blocklora", "data", verb, name, "--root", str(folder.parent), *options]
    return shlex.join(words)


def remedy(
    manifest: Manifest, folder: Path, spoiled: Path | None = None, convention: str = ""
) -> str:
    """Return the command that puts the set in `folder` right: write again, or fetch the rest.

    spoiled: a file or folder that is there and damaged; what is there is not fetched again, so it
    moves away. One's own images are not fetched: the command looks at them again, after they were
    mended by hand.
    """
    if manifest.layout == "folder":
        return again(folder)
    if (folder / MARKER).exists():
        names = {name: key for key, name in reversed(manifest.folders.items())}
        key = convention or names.get(folder.name, "coop")
        return command("fake", manifest.name, folder, "--convention", key)
    away = f"{shlex.join(['mv', str(spoiled), f'{spoiled}.damaged'])} && " if spoiled else ""
    return away + command("download", manifest.name, folder)
