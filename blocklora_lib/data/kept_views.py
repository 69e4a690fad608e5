"""Views of image files that are decoded once: kept in one file a list and view, which all processes
map.

Whatever run, method or seed asks next copies bytes. The file is a safetensors file, written whole
or not at all: `views` (N, 3, H, W), uint8, and `sha256` (N, 32), of each view. Its head follows
from what it must hold, so that a file of other images, or a cut one, is known when it is opened; a
view is checked when a process first reads it. Nothing depends on the file: where there is no room
for it images are decoded each time, and a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
                file.path.unlink(missing_ok=True)
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
            with locked(path.with_name(f".{path.stem}.lock"), _tell):
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
    """A file of views, mapped. ValueError if it is not what it must be."""

    def __init__(self, path: Path, head: bytes, shape: tuple[int, ...]) -> None:
        with regular_file(path) as file:
            if file.read(len(head)) != head or file.seek(0, 2) != len(head) + _bytes(shape):
                raise ValueError(f"{path} is cut short, or holds no views of these images")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path, self._shape, self._start = path, shape[1:], len(head)
        self._row, self._digests = math.prod(shape[1:]), len(head) + math.prod(shape)
        self._checked = bytearray(shape[0])

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return a copy of these views. ValueError names a file whose content is damaged."""
        if new := [row for row in dict.fromkeys(rows) if not self._checked[row]]:
            with ThreadPoolExecutor(usable_cpus()) as pool:
                whole = list(pool.map(self._whole, new))
            if not all(whole):
                raise ValueError(f"{self.path} is damaged: it does not hold what was written")
            for row in new:
                self._checked[row] = 1
        views = np.empty((len(rows), self._row), np.uint8)
        for view, row in zip(views, rows, strict=True):
            view[:] = np.frombuffer(self._map, np.uint8, self._row, self._place(row))
        # a run's peak of memory is its own: pages of the map count, though they can be dropped
        self._map.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(views).view(-1, *self._shape)

    def _place(self, row: int) -> int:
        return self._start + row * self._row

    def _whole(self, row: int) -> bool:
        with memoryview(self._map) as content:
            start, said = self._place(row), self._digests + row * _DIGEST
            found = hashlib.sha256(content[start : start + self._row]).digest()
            return found == content[said : said + _DIGEST]


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
