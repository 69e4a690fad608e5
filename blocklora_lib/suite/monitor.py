"""How far a grid is: its records counted while they are made."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from ..core.durations import clock
from ..runs.standing import stands


class Monitor:
    """Counts the records of a grid while they are made and says how far it is: a line now and then,
    not a log file.
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
        self.keep_old, self.images = keep_old, images  # of a run's key, as `stands` asks for them
        self.runs, self.keys, self.every, self.stream = runs, set(keys), every, stream or sys.stderr
        # files that were there and do not count, by when they were written
        self._stale: dict[str, int] = {}
        self._counted = 0
        self._first: tuple[int, float] | None = None  # the first new count, and after which time
        self._ended = threading.Event()
        # a daemon: it never keeps the program alive
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Say what is there already, then watch."""
        for key in self.keys:
            path = self.runs / f"{key}.json"
            try:
                counts = not path.is_file() or stands(
                    path, self.keep_old, partial(self.images, key)
                )
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
        """Records that exist now; as many as before while the folder cannot be read."""
        try:
            with os.scandir(self.runs) as entries:
                names = {
                    entry.name
                    for entry in entries
                    if entry.name.endswith(".json") and entry.is_file()
                }
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
        """Return 'runs: 12 of 40, 30%, 1:05 min so far, about 3 min left'.

        What is left is told from the first new record on, since notebooks without runs come first.
        """
        text = f"runs: {done} of {len(self.keys)}, {100 * done // len(self.keys)}%, "
        text += f"{clock(seconds)} so far"
        if self._first is None and done > self.at_start:
            self._first = done, seconds
        first, since = self._first or (done, seconds)
        if not first < done < len(self.keys):
            return text
        left = (seconds - since) / (done - first) * (len(self.keys) - done)
        return f"{text}, about {clock(left)} left"

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
