"""The store of run records: one JSON file a run, written whole; to travel, one Parquet of them."""

from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ..core.collection import no_collection
from ..core.files import holds_none, is_there, read_text, same_error, write_whole
from ..core.schema import explain
from ..core.writable import check_room
from .packed import RECORDS, SUFFIX, read_texts, write_texts
from .spec import RunSpec

if TYPE_CHECKING:
    from pandas import DataFrame
from .record import RunRecord, frame, in_order
from .sealed import unseal


class RunStore:
    """A folder of records, or, where there is none, the Parquet beside it that has its name (see
    `pack`), which is only read.

    Its readers never see half a record: a file gets its name when it is complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        packed = self.folder.suffix == SUFFIX
        self.file = self.folder if packed else self.folder.with_name(self.folder.name + SUFFIX)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of this spec is or will be."""
        return self._path(spec.key)

    def lock(self, spec: RunSpec) -> Path:
        """The name that whoever runs this spec, or trains the same, has locked (`locks.locked`)."""
        return self.folder / f".{spec.fit_key}.lock"

    def check_writable(self) -> None:
        """Fail now, with one sentence, rather than after hours of training."""
        self._check_unpacked()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_room(self.folder)
        except OSError as error:
            told = f"results folder {self.folder} cannot be written ({error.strerror or error})"
            raise same_error(
                error, f"{told}; make it writable or choose another one with --results"
            ) from None

    def save(self, record: RunRecord) -> Path:
        """Write the record under a temporary name, then rename it."""
        self._check_unpacked()
        path = self.path(record.spec)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.to_json())
        return path

    def load(self, spec: RunSpec) -> RunRecord | None:
        """Return the record of this spec, done or failed, or None; errors as `read_record`."""
        return self.load_key(spec.key, spec)

    def load_key(self, key: str, known: RunSpec | None = None) -> RunRecord | None:
        """Return the record of this key, see `load`. known: its spec, where that is at hand."""
        if self._packed is not None:
            text = self._packed.get(key)
            return None if text is None else record_of(text, self.file / f"{key}.json", known)
        path = self._path(key)
        return read_record(path, known) if is_there(path) else None

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

    @no_collection()  # records by the thousand, which stay
    def read(self) -> tuple[list[RunRecord], list[DamagedRecord]]:
        """Return all records, sorted by what they ran, and what is wrong with files that are none.

        Raises OSError as `read_record`.
        """
        found, damaged = [], []
        for name in self._names():
            try:
                if self._packed is None:
                    found.append(read_record(self.folder / name))
                else:
                    text = self._packed[name.removesuffix(".json")]
                    found.append(record_of(text, self.file / name))
            except DamagedRecord as error:
                damaged.append(error)
        return in_order(found), damaged

    def facts(self) -> tuple[list[dict[str, Any]], list[DamagedRecord]]:
        """Return all records as JSON, and what is wrong with files that are none.

        As `read`, many times faster: by name and checksum alone, which are those of a whole record.
        """
        found, damaged = [], []
        for name in self._names():
            path = (self.file if self._packed is not None else self.folder) / name
            try:
                packed = self._packed
                text = read_text(path) if packed is None else packed[name.removesuffix(".json")]
                facts = unseal(text)
                _check_name(path, facts.get("key"))
                found.append(facts)
            except (ValueError, OSError, KeyError) as error:
                if isinstance(error, OSError) and not holds_none(error):
                    raise
                damaged.append(DamagedRecord(path, error))
        return found, damaged

    def records(self, status: Literal["done", "failed"] | None = None) -> list[RunRecord]:
        """All records, sorted by what they ran; `status` keeps one kind. DamagedRecord names the
        first.
        """
        found, damaged = self.read()
        if damaged:
            raise damaged[0]
        return [r for r in found if status in (None, r.status)]

    def frame(self, include_failed: bool = False) -> DataFrame:
        """One row for each (record, evaluated set); failed runs, no results, are left out."""
        with no_collection():
            return frame(self.records(None if include_failed else "done"))

    def pack(self, path: str | Path, specs: Sequence[RunSpec] | None = None) -> int:
        """Write all records, or those of these specs, into one Parquet, each as its text.

        Returns how many. Raises DamagedRecord for the first that is none, as `records`.
        """
        records = self.records() if specs is None else filter(None, map(self.load, specs))
        texts = {record.key: self.text(record.key) for record in records}
        write_texts(path, texts)
        return len(texts)

    def unpack(self, path: str | Path) -> int:
        """Write the records of a Parquet as the files that they were; return how many were new.

        Raises ValueError where a file here holds another record of the same run.
        """
        texts = read_texts(path)
        new = {key: text for key, text in texts.items() if not is_there(self._path(key))}
        for key in texts.keys() - new.keys():
            if read_text(self._path(key)) != texts[key]:
                raise ValueError(
                    f"{self._path(key)} and {path} have different records of the same run; move "
                    "one of them away"
                )
        for key, text in new.items():
            record_of(text, Path(path, f"{key}.json"))
        self.folder.mkdir(parents=True, exist_ok=True)
        for key, text in new.items():
            write_whole(self._path(key), text)
        return len(new)

    def merge(self, others: Sequence[RunStore]) -> Merged:
        """Take over the records of other stores, to the byte, that this one lacks.

        Done beats failed, then the present state of the library an earlier one, whose runs would be
        made again. Where two done records that are alike in that have different results, the one
        that is here, or of the store named first, stands. Damaged ones are left out; both are told.
        """
        self._check_unpacked()
        self.folder.mkdir(parents=True, exist_ok=True)
        merged = Merged()
        for other in others:
            records, damaged = other.read()
            merged.damaged += damaged
            for record in records:
                try:
                    mine = self.load_key(record.key)
                except DamagedRecord as error:
                    merged.damaged += [error] * (error.path not in {d.path for d in merged.damaged})
                    continue
                if mine is None or mine.standing < record.standing:
                    write_whole(self._path(record.key), other.text(record.key))
                    merged.taken.add(record.key)
                elif mine.standing == record.standing and mine.result != record.result:
                    merged.differing.append((mine, other))
        return merged

    def text(self, key: str) -> str:
        """The text of a record that is there, as its file holds it."""
        return self._packed[key] if self._packed is not None else read_text(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    @cached_property
    def _packed(self) -> dict[str, str] | None:
        """The packed records' texts by key; None of a folder, or where nothing is yet."""
        if self.folder.is_dir() or not is_there(self.file):
            return None
        return read_texts(self.file)

    def _names(self) -> list[str]:
        if self._packed is not None:
            return sorted(f"{key}.json" for key in self._packed)
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(fnmatch.filter(names, RECORDS))

    def _check_unpacked(self) -> None:
        if self._packed is not None:
            raise ValueError(
                f"{self.file} holds packed records, which are only read; make a folder of them by "
                f"`blocklora records unpack {self.file}`, or choose another folder"
            )


@dataclass
class Merged:
    """What `RunStore.merge` did: keys of records taken over, runs of which another store has
    another result (as the record that stands, and that store), and what was left out.
    """

    taken: set[str] = field(default_factory=set)
    differing: list[tuple[RunRecord, RunStore]] = field(default_factory=list)
    damaged: list[DamagedRecord] = field(default_factory=list)


class DamagedRecord(ValueError):
    """A file that stands where a record should, and cannot be counted; `path` and why."""

    def __init__(self, path: Path, reason: object) -> None:
        self.path = path
        packed = path.parent.suffix == SUFFIX
        way_out = f"restore {path.parent}" if packed else "delete the file and run again"
        super().__init__(f"run record {path} is damaged ({reason}); {way_out}")


class EarlierRecord(DamagedRecord):
    """A record of schema 1, which had no checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ValueError.__init__(
            self, f"run record {path} was made by an earlier version and has no checksum; run again"
        )


def read_record(path: Path, known: RunSpec | None = None) -> RunRecord:
    """Read one record file; DamagedRecord says what is wrong with it, and the way out.

    Raises OSError where the machine does not let it be read, which says nothing of the record.
    """
    try:
        text = read_text(path)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and not holds_none(error):
            raise
        raise DamagedRecord(path, error) from None
    return record_of(text, path, known)


def record_of(text: str, path: Path, known: RunSpec | None = None) -> RunRecord:
    """Return the record of a text that was found at `path`; DamagedRecord as `read_record`."""
    if text.startswith('{\n "schema": 1,'):
        raise EarlierRecord(path)
    try:
        record = RunRecord.from_json(text, known)
        _check_name(path, record.key)
    except (ValueError, TypeError, ArithmeticError, RecursionError, SyntaxError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise DamagedRecord(path, reason) from None
    return record


def _check_name(path: Path, key: str | None) -> None:
    """A copy that a file manager made beside a record would count its run twice."""
    if path.stem != key:
        raise ValueError(f"the file's name is not its key {key}")
