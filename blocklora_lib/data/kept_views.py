"""Views of image files that are decoded once: kept in one file a list and view, which all processes
read.

Whatever run, method or seed asks next copies bytes. The file is a safetensors file, written whole
or not at all: `views` (N, 3, H, W), uint8, and `sha256` (N, 32), of each view. Its head follows
from what it must hold, so that a file of other images, or a cut one, is known when it is opened; a
view is checked when a process first reads it. Nothing depends on the file: where there is no room
for it images are decoded each time, and a damaged one is made again, once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import features
from torch import Tensor

from ..core.files import holds_none, package_version, regular_file, sweep, whole_file
from ..core.locks import locked
from ..core.machine import usable_cpus
from .views import View

SPARE = 2**30  # bytes of the disk that are left to others
TOLD = 2000  # images from which on it is said that they are decoded
PART = 100  # images in memory at a time
_DIGEST = hashlib.sha256().digest_size
_PACKAGES = ("torchvision", "open_clip_torch", "pillow")
CODECS = ("jpg", "jpg_2000", "webp")  # of Pillow's libraries, those that may round otherwise

Decode = Callable[[Sequence[Path]], Tensor]


class KeptViews:
    """The views of one list of image files, by what they hold.

    folder: where files of views lie. title: what begins a file's name, such as 'dtd-test'. facts:
    what tells these images from others, a digest of their content above all, and the code that
    views them. unchanged: raises where the images are no more what the facts say.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        paths: Sequence[Path],
        facts: Mapping[str, Any],
        unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.title, self.paths, self.unchanged = folder, title, list(paths), unchanged
        self.facts = dict(facts) | {
            "versions": [package_version(package) for package in _PACKAGES],
            "codecs": [features.version(codec) for codec in CODECS],
        }
        self._rows = {path: row for row, path in enumerate(self.paths)}
        self._open: dict[View, _File | None] = {}  # None: there is none, and there will be none

    def read(self, view: View, paths: Sequence[Path], decode: Decode) -> Tensor | None:
        """Return these images' views (B, 3, H, W), uint8; None where none are kept.

        decode: views of image files, by which the file is made if it is not there: of all images of
        the list, in order.
        """
        for _ in range(2):  # the second time from a file made anew
            if view not in self._open:
                self._open[view] = self._find(view, decode)
            file = self._open[view]
            if file is None:
                break
            try:
                return file.read([self._rows[path] for path in paths])
            except ValueError as error:
                warnings.warn(f"{error}; its images are decoded again", stacklevel=2)
                del self._open[view]
                self._remove(file)
        self._open[view] = None  # as damaged when it was made anew: this disk keeps none
        return None

    def path(self, view: View) -> Path:
        """The file of a view."""
        return self.folder / f"{self.title}-{self._name(view)[:32]}.safetensors"

    def _name(self, view: View) -> str:
        facts = json.dumps(self.facts | {"view": str(view)}, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def _find(self, view: View, decode: Decode) -> _File | None:
        """The file, which is made if it is not there or is not right; by one process, others wait.

        None, with a warning, where it cannot be.
        """
        path, shape = self.path(view), (len(self.paths), 3, *view.size)
        head = _head(self._name(view), shape)
        try:
            if (found := _opened(path, head, shape)) is not None:
                return found
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(path):
                if (found := _opened(path, head, shape)) is None:
                    if lacking := self._lacking(len(head) + _bytes(shape)):
                        warnings.warn(lacking, stacklevel=3)
                        return None
                    self._make(path, head, decode)
                    found = _File(path, head, shape)
            return found
        except OSError as error:
            warnings.warn(f"{error}; {self._without}", stacklevel=3)
            return None

    def _remove(self, file: _File) -> None:
        """Remove a damaged file, unless another process has made it anew meanwhile."""
        with suppress(OSError), self._locked(file.path):  # else it is found damaged once more
            if file.stands:
                file.path.unlink()

    @staticmethod
    def _locked(path: Path) -> AbstractContextManager[bool]:
        return locked(path.with_name(f".{path.stem}.lock"), _tell)

    def _lacking(self, needed: int) -> str:
        """What to say where the disk has no room for so many bytes; '' where it has."""
        free = shutil.disk_usage(self.folder).free
        if needed <= free - SPARE:
            return ""
        return (
            f"the {len(self.paths):,} views of {self.title} would take {needed / 2**30:.2f} GiB, "
            f"and {self.folder} has {free / 2**30:.2f} GiB free, of which {SPARE / 2**30:.0f} is "
            f"left to others; {self._without}"
        )

    @property
    def _without(self) -> str:
        return (
            f"images of {self.title} are decoded again for each run: make room, give another disk "
            "by XDG_CACHE_HOME, or say keep_views: false in the profile"
        )

    def _make(self, path: Path, head: bytes, decode: Decode) -> None:
        if len(self.paths) >= TOLD:
            _tell(f"decoding the {len(self.paths):,} images of {self.title} once, into {path}")
        sweep(self.folder)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(head)
            digests = []
            for start in range(0, len(self.paths), PART):
                for view in decode(self.paths[start : start + PART]).numpy():
                    content = view.tobytes()
                    digests.append(hashlib.sha256(content).digest())
                    file.write(content)
            file.write(b"".join(digests))
            self.unchanged()  # else views of other images would stand under this name


class _File:
    """An open file of views. ValueError if it is not what it must be.

    It is read, not mapped: where a mapped file is cut short, or its disk fails, the process ends by
    a signal, and its pages count to a run's peak of memory.
    """

    def __init__(self, path: Path, head: bytes, shape: tuple[int, ...]) -> None:
        with regular_file(path) as file:
            if file.read(len(head)) != head or file.seek(0, 2) != len(head) + _bytes(shape):
                raise ValueError(f"{path} is cut short, or holds no views of these images")
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self.path, self._shape, self._start = path, shape[1:], len(head)
        self._row, self._digests = math.prod(shape[1:]), len(head) + math.prod(shape)
        self._checked = bytearray(shape[0])

    @property
    def stands(self) -> bool:
        """Whether it is still what stands at its path."""
        return os.path.samestat(os.fstat(self._file), os.lstat(self.path))

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return these views. ValueError names a file whose content is damaged."""
        views = np.empty((len(rows), self._row), np.uint8)
        try:
            with ThreadPoolExecutor(usable_cpus()) as pool:
                whole = list(pool.map(self._put, views, rows))
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read ({error.strerror})") from None
        if not all(whole):
            raise ValueError(f"{self.path} is damaged: it does not hold what was written")
        return torch.from_numpy(views).view(-1, *self._shape)

    def _put(self, view: np.ndarray, row: int) -> bool:
        """Read a view into its place; whether it is what was written, looked at the first time."""
        content = os.pread(self._file, self._row, self._start + row * self._row)
        if len(content) < self._row:
            return False
        view[:] = np.frombuffer(content, np.uint8)
        if not self._checked[row]:
            said = os.pread(self._file, _DIGEST, self._digests + row * _DIGEST)
            self._checked[row] = hashlib.sha256(content).digest() == said
        return bool(self._checked[row])


def _opened(path: Path, head: bytes, shape: tuple[int, ...]) -> _File | None:
    """The file, if it is there and right; what is wrong with one that is there is said."""
    try:
        return _File(path, head, shape)
    except ValueError as error:
        warnings.warn(f"{error}; they are decoded again", stacklevel=4)
    except OSError as error:
        if not holds_none(error):
            raise
    return None


def _head(name: str, shape: tuple[int, ...]) -> bytes:
    """The head of a file of safetensors: the length of a JSON text, and the text."""
    data = math.prod(shape)
    facts = {
        "__metadata__": {"name": name},
        "views": {"dtype": "U8", "shape": shape, "data_offsets": [0, data]},
        "sha256": {
            "dtype": "U8",
            "shape": [shape[0], _DIGEST],
            "data_offsets": [data, data + shape[0] * _DIGEST],
        },
    }
    text = json.dumps(facts).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(shape: tuple[int, ...]) -> int:
    """Of all views and their digests."""
    return math.prod(shape) + shape[0] * _DIGEST


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
