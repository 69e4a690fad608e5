"""What the Snakefile needs around its rules: the groups of the grid, true indexes, one process at a time,
progress.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TextIO

from .grids import expand
from .profiles import Profile

ALL = "all"  # the group of all methods of a dataset


def only_one(folder: Path) -> IO[str]:
    """Return an open lock on the results folder, or end with a sentence if another reproduction works in it.

    The operating system drops the lock with the process, however that ends: nothing is unlocked by hand.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
    except OSError as error:
        raise SystemExit(
            f"results folder {folder} cannot be written ({error.strerror}); make it writable, or choose "
            "another one with --config results=FOLDER"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise SystemExit(
            f"process {lock.read().strip() or 'unknown'} is already reproducing in {folder}; "
            "wait for it, or end it and call again"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def grid_groups(profile: Profile, experiments: Iterable[str]) -> dict[tuple[str, str, str], list[str]]:
    """Return (experiment, dataset, method or "all") -> keys of its runs.

    One group is one job: `profile.job` says whether the methods of a dataset share a process. The keys follow
    from profile, data and weights.
    """
    groups = {}
    for experiment in sorted(experiments):
        chosen = profile.experiment(experiment)
        methods = [entry.name for entry in profile.methods_of(chosen)]
        if profile.job == "dataset":
            methods = [ALL]
        for dataset in profile.datasets_of(chosen):
            for method in methods:
                specs = expand(profile, experiment, dataset, None if method == ALL else method)
                groups[experiment, dataset, method] = [spec.key for spec in specs]
    return groups


def digest(paths: Iterable[Path]) -> str:
    """Return a short hash of what these files say: unlike their dates, it survives a fresh checkout."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def drop_stale_indexes(folder: Path, groups: Mapping[str, Sequence[str]]) -> list[Path]:
    """Delete each group's index that does not name exactly the runs of the group, or names a record that is
    gone.

    So an edited profile, data bundle or checkpoint costs exactly the runs that it changed, and no other.
    """
    dropped = []
    for name, keys in groups.items():
        path = Path(name)
        if path.is_file() and not _is_true(path, keys, folder / "runs"):
            path.unlink()
            dropped.append(path)
    return dropped


def _is_true(path: Path, keys: Sequence[str], runs: Path) -> bool:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["keys"]
    except (ValueError, KeyError):
        return False
    return listed == list(keys) and all((runs / f"{key}.json").is_file() for key in keys)


class Monitor:
    """Counts the records of a grid while they are made and says how far it is: a line now and then, not a log
    file.
    """

    def __init__(
        self, runs: Path, keys: Sequence[str], every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.runs, self.keys, self.every, self.stream = runs, set(keys), every, stream or sys.stderr
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)  # never keeps the program alive

    def start(self) -> None:
        """Say what is there already, then watch."""
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
        """Records that exist now."""
        try:
            return sum(os.path.splitext(name)[0] in self.keys for name in os.listdir(self.runs))
        except FileNotFoundError:
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
