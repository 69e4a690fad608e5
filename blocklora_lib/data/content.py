"""Digests of image files by what they hold. A file that has not changed since is not read again.

That is judged as git judges it: by size, times of change, inode and device, and never of a file
that changed within the seconds before it was read, which could have changed once more without a
trace.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, cast

from ..core.files import ABSENT, FORBIDDEN, NO_FILE, regular_file
from ..core.user_cache import recall, remember

RECENT = 5 * 10**9  # ns before the reading in which a change makes a file's times no witness
WORKERS = 8  # reading waits for the disk, and hashing does not hold the interpreter
TOLD = 2000  # files to read from which on it is said

T = TypeVar("T")


def file_digests(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file by its path in a folder; of no readable file, why not.

    What was found is kept in the user's cache folder, a file for each folder of images.
    """
    name = f"content/{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]}.json"
    known = _read(name)
    seen = {path: _stamp(folder / path) for path in dict.fromkeys(paths)}
    found = {
        path: known[path][1] for path, now in seen.items() if now and known.get(path, [0])[0] == now
    }
    todo = [path for path in seen if path not in found]
    if todo:
        from concurrent.futures import ThreadPoolExecutor  # a listing reads no image

        fresh: dict[str, list[Any]] = {}
        with ThreadPoolExecutor(WORKERS) as pool:
            read = pool.map(lambda path: _digest(folder / path), todo)
            for path, (stamp, digest, settled) in zip(
                todo, _bar(read, len(todo), folder), strict=True
            ):
                found[path] = digest
                if settled:
                    fresh[path] = [stamp, digest]
        if fresh:  # with what another process has found meanwhile
            remember(name, json.dumps(_read(name) | fresh, separators=(",", ":")))
    return [found[path] for path in paths]


def _digest(path: Path) -> tuple[list[int] | None, str, bool]:
    """(stamp, SHA-256 or what stands in its place, whether the stamp vouches for it)."""
    began = time.time_ns()
    try:
        with regular_file(path) as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
            stamp = _numbers(before)
            same = stamp == _numbers(os.fstat(file.fileno()))
    except OSError as error:
        for codes, why in (
            (ABSENT, "missing"),
            (NO_FILE | {None}, "no regular file"),
            (FORBIDDEN, "not to be read"),
        ):
            if error.errno in codes:
                return None, why, False
        raise  # the machine's
    return stamp, digest, same and max(before.st_mtime_ns, before.st_ctime_ns) < began - RECENT


def _stamp(path: Path) -> list[int] | None:
    try:
        return _numbers(os.stat(path))
    except OSError:
        return None


def _numbers(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _read(name: str) -> dict[str, list[Any]]:
    """What is known of a folder's files: path -> [stamp, digest]; all else is left out."""
    try:
        facts = json.loads(recall(name) or "{}")
        return {
            path: entry
            for path, entry in facts.items()
            if len(entry) == 2 and len(entry[0]) == 5 and len(entry[1]) == 64
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _bar(values: Iterator[T], total: int, folder: Path) -> Iterable[T]:
    """The values, with a bar on a terminal where there are many, else one line."""
    if total < TOLD:
        return values
    if not sys.stderr.isatty():
        print(
            f"reading {total:,} images of {folder} once, to know their content",
            file=sys.stderr,
            flush=True,
        )
        return values
    from tqdm import tqdm

    return tqdm(values, total=total, unit="image", desc=f"content of {folder.name}", leave=False)
