"""What the Snakefile needs around its rules: the groups of the grid, true indexes, one process at a time,
progress.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TextIO

from .code_digest import code_digest
from .files import holds_none, read_text, remove, same_error, write_whole
from .grids import expand
from .plain_data import read_json
from .profiles import Profile
from .sealed import is_whole
from .specs import RunSpec

ALL = "all"  # the group of all methods of a dataset


def only_one(folder: Path) -> IO[str]:
    """Return an open lock on the results folder; OSError if another reproduction works in it.

    The operating system drops the lock with the process, however that ends: nothing is unlocked by hand.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
    except OSError as error:
        raise same_error(
            error,
            f"results folder {folder} cannot be written ({error.strerror or error}); make it writable, or "
            "choose another one with --config results=FOLDER",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):  # not held: there are no locks
            print(
                f"the file system of {folder} has no locks ({error.strerror}): start one reproduction in it "
                "at a time",
                file=sys.stderr,
            )
            return lock
        lock.seek(0)
        raise RuntimeError(
            f"process {lock.read(20).strip() or 'unknown'} is already reproducing in {folder}; "
            "wait for it, or end it and call again"
        ) from None
    try:
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except OSError as error:
        raise same_error(error, f"{folder / '.lock'} cannot be written ({error.strerror})") from None
    return lock


def grid_groups(profile: Profile, experiments: Iterable[str]) -> dict[tuple[str, str, str], list[RunSpec]]:
    """Return (experiment, dataset, method or "all") -> its runs.

    One group is one job: `profile.job` says whether the methods of a dataset share a process. The runs' keys
    follow from profile, data and weights.
    """
    groups = {}
    for experiment in sorted(experiments):
        chosen = profile.experiment(experiment)
        methods = [entry.name for entry in profile.methods_of(chosen)]
        if profile.job == "dataset":
            methods = [ALL]
        for dataset in profile.datasets_of(chosen):
            for method in methods:
                name = None if method == ALL else method
                groups[experiment, dataset, method] = expand(profile, experiment, dataset, name)
    return groups


def digest(paths: Iterable[Path]) -> str:
    """Return a short hash of what these files say: unlike their dates, it survives a fresh checkout."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def write_index(
    path: Path, experiment: str, dataset: str | None, method: str | None, specs: Sequence[RunSpec]
) -> None:
    """Write a group's index: that each of these runs has a record that stands, done or failed."""
    names = {"experiment": experiment, "dataset": dataset or ALL, "method": method or ALL}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**names, "keys": [spec.key for spec in specs]}) + "\n")


def drop_stale_indexes(
    folder: Path,
    groups: Mapping[str, Sequence[RunSpec]],
    keep_old: bool = False,
    images: Callable[[RunSpec], str | None] = lambda spec: None,
) -> list[Path]:
    """Delete each group's index that does not name exactly the runs of the group, or names a record that is
    gone, damaged, of other images or, unless keep_old, of an earlier state of the library.

    So an edited profile, data bundle, image, checkpoint or library costs exactly the runs that it changed,
    and no other.  images: as `RunImages.digest`, which reads only files that have changed since.
    """
    dropped = []
    for name, specs in groups.items():
        path = Path(name)
        if os.path.lexists(path) and not _is_true(path, specs, folder / "runs", keep_old, images):
            remove(path)
            dropped.append(path)
    return dropped


def _is_true(
    path: Path,
    specs: Sequence[RunSpec],
    runs: Path,
    keep_old: bool,
    images: Callable[[RunSpec], str | None],
) -> bool:
    try:
        listed = read_json(path)["keys"]
    except (ValueError, KeyError, TypeError):
        return False
    except OSError as error:
        if not holds_none(error):
            raise
        return False
    return listed == [spec.key for spec in specs] and all(
        stands(runs / f"{spec.key}.json", keep_old, partial(images, spec)) for spec in specs
    )


def stands(path: Path, keep_old: bool = False, images: Callable[[], str | None] = lambda: None) -> bool:
    """Whether a record is whole, of the present code and of the present images, by a glance at its text: what
    the grid looks at closely it has looked at when it wrote the index.

    images: returns the digest of the image files that the run would read, None where nothing can be said.
    OSError where the machine does not let record or images be read.
    """
    try:
        text = read_text(path)
    except ValueError:
        return False
    except OSError as error:
        if not holds_none(error):
            raise
        return False
    named = f'\n "key": "{path.stem}",\n' in text
    if not (named and is_whole(text) and (keep_old or f'\n "code": "{code_digest()}",\n' in text)):
        return False
    try:
        found = images()
    except ValueError:  # faults of a set, which the grid will tell
        return False
    return found is None or f'\n "images": "{found}",\n' in text


class Monitor:
    """Counts the records of a grid while they are made and says how far it is: a line now and then, not a log
    file.
    """

    def __init__(
        self,
        runs: Path,
        keys: Sequence[str],
        every: float = 10.0,
        stream: TextIO | None = None,
        keep_old: bool = False,
        images: Callable[[str], str | None] = lambda key: None,
    ) -> None:
        self.keep_old, self.images = keep_old, images  # images: of a run's key, as `stands` asks for them
        self.runs, self.keys, self.every, self.stream = runs, set(keys), every, stream or sys.stderr
        self._stale: dict[str, int] = {}  # files that were there and do not count, by when they were written
        self._counted = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)  # never keeps the program alive

    def start(self) -> None:
        """Say what is there already, then watch."""
        for key in self.keys:
            path = self.runs / f"{key}.json"
            try:
                counts = not path.is_file() or stands(path, self.keep_old, partial(self.images, key))
            except OSError:  # what is wrong with it the grid will say, which needs it
                counts = False
            if not counts:
                self._stale[key] = self._time(key)
        self.began, self.at_start = time.monotonic(), self.count()
        self.shown = self.at_start
        if self.keys:
            self._say(f"runs: {self.at_start} of {len(self.keys)} are there already")
            self._thread.start()

    def stop(self) -> None:
        """Say the last count, if it is news."""
        self._ended.set()
        if self.keys and self.count() != self.shown:
            self._say(self.line(self.count(), time.monotonic() - self.began))

    def count(self) -> int:
        """Records that exist now; as many as before where the folder cannot be read for the moment."""
        try:
            with os.scandir(self.runs) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(".json") and entry.is_file()}
        except OSError:
            return self._counted
        there = self.keys & {name.removesuffix(".json") for name in names}
        self._counted = sum(key not in self._stale or self._written(key) for key in there)
        return self._counted

    def _written(self, key: str) -> bool:
        """Whether a file that did not count has been written anew."""
        return self._time(key) not in (0, self._stale[key])

    def _time(self, key: str) -> int:
        """When a record was written, 0 if that cannot be said."""
        try:
            return (self.runs / f"{key}.json").stat().st_mtime_ns
        except OSError:
            return 0

    def line(self, done: int, seconds: float) -> str:
        """Return 'runs: 12 of 40, 30%, 1:05 min so far, about 3 min left'."""
        text = f"runs: {done} of {len(self.keys)}, {100 * done // len(self.keys)}%, {clock(seconds)} so far"
        fresh, left = done - self.at_start, len(self.keys) - done
        return f"{text}, about {clock(seconds / fresh * left)} left" if fresh > 0 and left else text

    def _watch(self) -> None:
        while not self._ended.wait(self.every):
            done = self.count()
            if done != self.shown:
                self.shown = done
                self._say(self.line(done, time.monotonic() - self.began))
            if done == len(self.keys):
                return

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as people say it: '40 s', '3:05 min', '2:10 h'."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return (
        f"{whole // 60}:{whole % 60:02d} min"
        if whole < 5400
        else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    )
