"""The store of run records: one JSON file a run, written whole or not at all."""

from __future__ import annotations

import fnmatch
import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import (
    ValidationError,
)

from ..core.files import holds_none, is_there, read_text, same_error, write_whole
from ..core.schema import explain
from .spec import RunSpec

if TYPE_CHECKING:
    from pandas import DataFrame
from .record import RunRecord, frame, in_order


class RunStore:
    """A folder of records. Its readers never see half a record: a file gets its name when it is
    complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of this spec is or will be."""
        return self.folder / f"{spec.key}.json"

    def check_writable(self) -> None:
        """Fail now, with one sentence, rather than after hours of training."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a name that no process of another machine has; and more than nothing, which a full
            # disk takes
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix=".writable-", buffering=0
            ) as probe:
                probe.write(b"0" * 4096)
        except OSError as error:
            told = f"results folder {self.folder} cannot be written ({error.strerror or error})"
            raise same_error(
                error, f"{told}; make it writable or choose another one with --results"
            ) from None

    def save(self, record: RunRecord) -> Path:
        """Write the record under a temporary name, then rename it."""
        path = self.path(record.spec)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.to_json())
        return path

    def load(self, spec: RunSpec) -> RunRecord | None:
        """Return the record of this spec, done or failed, or None; errors as `read_record`."""
        path = self.path(spec)
        return read_record(path) if is_there(path) else None

    def set_aside(self, spec: RunSpec) -> Path:
        """Move the file of this spec to runs/damaged, under a name that is free, and return that
        place.
        """
        path, folder = self.path(spec), self.folder / "damaged"
        try:
            folder.mkdir(exist_ok=True)
            names = (folder / f"{path.name}{f'.{i}' if i else ''}" for i in itertools.count())
            place = next(name for name in names if not is_there(name))
            os.replace(path, place)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and folder.is_dir():
                return place  # another process was first
            told = f"{path} is damaged and cannot be moved to {folder} ({error.strerror})"
            raise same_error(error, f"{told}; move it away, or make room for that folder") from None
        return place

    def read(self) -> tuple[list[RunRecord], list[DamagedRecord]]:
        """Return all records, sorted by what they ran, and what is wrong with files that are none.

        Raises OSError as `read_record`.
        """
        found, damaged = [], []
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        for name in sorted(fnmatch.filter(names, "[0-9a-f]*.json")):
            try:
                found.append(read_record(self.folder / name))
            except DamagedRecord as error:
                damaged.append(error)
        return in_order(found), damaged

    def records(self, status: Literal["done", "failed"] | None = None) -> list[RunRecord]:
        """All records, sorted by what they ran; `status` keeps one kind. DamagedRecord names the
        first.
        """
        found, damaged = self.read()
        if damaged:
            raise damaged[0]
        return [r for r in found if status in (None, r.status)]

    def frame(self, include_failed: bool = False) -> DataFrame:
        """One row for each (record, evaluated set). Failed runs are no results; they are left out."""
        return frame(self.records(None if include_failed else "done"))


class DamagedRecord(ValueError):
    """A file that stands where a record should, and cannot be counted; `path` and why."""

    def __init__(self, path: Path, reason: object) -> None:
        self.path = path
        super().__init__(f"run record {path} is damaged ({reason}); delete the file and run again")


class EarlierRecord(DamagedRecord):
    """A record of schema 1, which had no checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ValueError.__init__(
            self, f"run record {path} was made by an earlier version and has no checksum; run again"
        )


def read_record(path: Path) -> RunRecord:
    """Read one record file; DamagedRecord says what is wrong with it, and the way out.

    Raises OSError where the machine does not let it be read, which says nothing of the record.
    """
    try:
        text = read_text(path)
        if text.startswith('{\n "schema": 1,'):
            raise EarlierRecord(path)
        record = RunRecord.from_json(text)
        if path.stem != record.key:
            raise ValueError(f"the file's name is not its key {record.key}")
    except DamagedRecord:
        raise
    except (ValueError, TypeError, RecursionError, OSError) as error:
        if isinstance(error, OSError) and not holds_none(error):
            raise
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise DamagedRecord(path, reason) from None
    return record
