"""What can be wrong with a dataset on disk: the file, the fault, and the command that helps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from ..manifests import Manifest

MARKER = "FAKE.json"  # the file that marks a miniature


class Problem(NamedTuple):
    """What is wrong with which file, and the command that helps.  str(problem) is one sentence."""

    file: str
    what: str
    next_command: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}; next: {self.next_command}"


class DataError(ValueError):
    """A fault that stops the reading of a set; the message is `problem` as one sentence."""

    def __init__(self, file: Path | str, what: str, next_command: str) -> None:
        self.problem = Problem(str(file), " ".join(what.split()), next_command)
        super().__init__(str(self.problem))


class MissingData(DataError, FileNotFoundError):
    """A dataset, split file or folder that is not there."""


def command(verb: str, name: str, folder: Path, *options: str) -> str:
    """Return `blocklora data VERB NAME --root ROOT ...` for the dataset in `folder`, ready for a shell."""
    words = ["blocklora", "data", verb, name, "--root", str(folder.parent), *options]
    return shlex.join(words)


def remedy(manifest: Manifest, folder: Path, spoiled: Path | None = None, convention: str = "") -> str:
    """Return the command that puts the set in `folder` right: write it again, or fetch what is missing.

    spoiled: a file or folder that is there and damaged; what is there is not fetched again, so it moves away.
    One's own images are not fetched: the command looks at them again, after they were mended by hand.
    """
    if manifest.layout == "folder":
        return shlex.join(["blocklora", "data", "verify", str(folder)])
    if (folder / MARKER).exists():
        names = {name: key for key, name in reversed(manifest.folders.items())}
        key = convention or names.get(folder.name, "coop")
        return command("fake", manifest.name, folder, "--convention", key)
    away = f"{shlex.join(['mv', str(spoiled), f'{spoiled}.damaged'])} && " if spoiled else ""
    return away + command("download", manifest.name, folder)
