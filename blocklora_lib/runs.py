"""Run records and the store that keeps them: one JSON file a run, written whole or not at all.

What is read is checked: a file that was cut short, changed by hand or filled with impossible values is named
(DamagedRecord) and never counted.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import math
import os
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .files import holds_none, is_there, read_text, same_error, write_whole
from .sealed import seal, unseal
from .specs import BackboneSpec, MethodSpec, RunSpec, TrainingSpec, key_of
from .strict import explain

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "BackboneSpec",
    "Cost",
    "Count",
    "DamagedRecord",
    "EarlierRecord",
    "Failure",
    "MachineFailure",
    "MethodSpec",
    "Result",
    "RunRecord",
    "RunSpec",
    "RunStore",
    "TrainingSpec",
]

_COLUMNS = [
    "key",
    "dataset",
    "evaluated_on",
    "shots",
    "seed",
    "method",
    "method_label",
    "accuracy",
    "correct",
    "total",
    "train_accuracy",
    "trainable_parameters",
    "unreadable",
    "seconds_train",
    "seconds_total",
    "peak_memory_bytes",
    "status",
    "miniature",
]


class Recorded(BaseModel):
    """Strict as `Strict` is, for what the library alone writes: no near names for a key that nobody types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Listed = Field(strict=False)  # a list, all that JSON has, for a tuple; what is in it stays strict


class Count(Recorded):
    """Correct of how many."""

    correct: NonNegativeInt
    total: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Count:
        if self.correct > self.total:
            raise ValueError(f"{self.correct} correct answers of {self.total} are more than there are")
        return self

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.correct / self.total


class Result(Recorded):
    """What the spec determines: on the same machine with the same threads, the same bits.

    draw_checksum: of the images drawn, as `blocklora data draw` prints it; '' without training.
    unreadable: the images of each set that the run left out, by path in the set's folder (see
    RunSpec.skip_unreadable); they are in no count.  overflows: steps (from 1) whose update was left out
    because a scaled float16 gradient overflowed.
    """

    accuracy: dict[str, Count]
    train: Count | None  # on the few-shot images; None for a method without training
    loss: Annotated[tuple[FiniteFloat, ...], Listed]  # one value a step
    trainable_parameters: NonNegativeInt
    draw_checksum: str = ""
    unreadable: dict[str, Annotated[tuple[str, ...], Listed]] = Field({})
    overflows: Annotated[tuple[PositiveInt, ...], Listed] = ()


class Cost(Recorded):
    """What was measured: seconds by phase (load, train, evaluate) and the peak of memory."""

    seconds: dict[str, Annotated[FiniteFloat, Field(ge=0)]]
    peak_memory_bytes: NonNegativeInt


class MachineFailure(RuntimeError):
    """A run that ended without saying anything of its spec: out of memory, a full disk, an unknown error.

    Nothing is stored: the same run may end well on another try.
    """


class Failure(Recorded):
    """Why a spec has no result, wherever it is run, and what to try: training diverged, or settings were
    refused.  What a machine does to a run is no such reason (see MachineFailure).
    """

    kind: Literal["diverged", "refused"]
    message: str
    retry: str
    step: PositiveInt | None = None
    loss: str | None = None  # text, since JSON has no NaN
    lr: float | None = None


class RunRecord(Recorded):
    """A finished or failed run.

    code: digest of the part of the library that computed it (see code_digest), '' where none was kept.
    images: SHA-256 of the image files that it read (see data.content), '' where all are in bundles, which the
    key covers.
    """

    schema_version: Literal[2] = Field(2, alias="schema")
    key: str
    spec: RunSpec
    status: Literal["done", "failed"]
    result: Result | None = None
    cost: Cost | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None
    code: str = ""
    images: str = ""

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> RunRecord:
        key = info.context or self.spec.key  # of a file, see from_json
        if self.key != key:
            raise ValueError(f"key {self.key} is not the key {key} of its own spec")
        if (self.status == "done") != (self.result is not None) or (self.status == "failed") != (
            self.error is not None
        ):
            raise ValueError("a done record has a result and no error, a failed one an error and no result")
        if self.result:
            _check_result(self.result, self.spec)
        return self

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read the file's text; ValueError where it is not what was written or cannot be true."""
        facts, key = unseal(text), None
        if isinstance(spec := facts.get("spec"), dict):
            key = key_of(spec)
            facts["spec"] = spec | {
                name: _part(name, repr(part)) for name in _PARTS if isinstance(part := spec.get(name), dict)
            }
        return cls.model_validate(facts, context=key)

    def to_json(self) -> str:
        """The file's text."""
        return seal(self.model_dump(mode="json", by_alias=True, exclude_none=False))

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each evaluated set (a failed run: one row without accuracy)."""
        spec, cost = self.spec, self.cost
        row = {
            "key": self.key,
            "dataset": spec.dataset,
            "shots": spec.shots,
            "seed": spec.seed,
            "method": spec.method.name,
            "method_label": self.provenance.get("method_label", spec.method.name),
            "seconds_train": cost.seconds.get("train", 0.0) if cost else None,
            "seconds_total": sum(cost.seconds.values()) if cost else None,
            "peak_memory_bytes": cost.peak_memory_bytes if cost else None,
            "status": self.status,
            "miniature": self.provenance.get("miniature", False),
        }
        row = _settings(spec.method, spec.training) | row
        if self.result is None:
            return [
                row
                | {
                    "evaluated_on": None,
                    "accuracy": None,
                    "correct": None,
                    "total": None,
                    "train_accuracy": None,
                    "trainable_parameters": None,
                    "unreadable": None,
                }
            ]
        train = self.result.train.accuracy if self.result.train else None
        row |= {
            "train_accuracy": train,
            "trainable_parameters": self.result.trainable_parameters,
            "unreadable": sum(map(len, self.result.unreadable.values())),  # images that the run left out
        }
        return [
            row
            | {
                "evaluated_on": name,
                "accuracy": count.accuracy,
                "correct": count.correct,
                "total": count.total,
            }
            for name, count in self.result.accuracy.items()
        ]


# the parts of a spec that most records of a store share, validated once
_PARTS = {"backbone": BackboneSpec, "method": MethodSpec, "training": TrainingSpec}


@lru_cache(4096)
def _part(name: str, written: str) -> BackboneSpec | MethodSpec | TrainingSpec:
    return _PARTS[name].model_validate(ast.literal_eval(written))


@lru_cache(4096)
def _settings(method: MethodSpec, training: TrainingSpec | None) -> dict[str, Any]:
    """The columns of a frame that settings make."""
    settings = {**method.settings, **(training.model_dump() if training else {})}
    return {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in settings.items()}


def _check_result(result: Result, spec: RunSpec) -> None:
    """ValueError where a result cannot be this spec's."""
    steps = spec.training.steps(spec.shots) if spec.training else 0
    if set(result.accuracy) != set(spec.evaluate_on):
        raise ValueError(
            f"it counts {', '.join(result.accuracy)}, its spec asks for {', '.join(spec.evaluate_on)}"
        )
    if (result.train is None) != (spec.shots == 0):
        raise ValueError(f"shots={spec.shots} and train={result.train} do not go together")
    if len(result.loss) != steps:
        raise ValueError(f"it has {len(result.loss)} losses for {steps} steps")
    if result.overflows and max(result.overflows) > steps:
        raise ValueError(f"step {max(result.overflows)} overflowed, of {steps}")
    if spec.draw_checksum and result.draw_checksum != spec.draw_checksum:
        raise ValueError(f"it trained on the draw {result.draw_checksum[:12]}, not {spec.draw_checksum[:12]}")


class RunStore:
    """A folder of records.  Its readers never see half a record: a file gets its name when it is complete."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of this spec is or will be."""
        return self.folder / f"{spec.key}.json"

    def check_writable(self) -> None:
        """Fail now, with one sentence, rather than after hours of training."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a name that no process of another machine has; and more than nothing, which a full disk takes
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".writable-", buffering=0) as probe:
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
        """Move the file of this spec to runs/damaged, under a name that is free, and return that place."""
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
        """All records, sorted by what they ran; `status` keeps one kind.  DamagedRecord names the first."""
        found, damaged = self.read()
        if damaged:
            raise damaged[0]
        return [r for r in found if status in (None, r.status)]

    def frame(self, include_failed: bool = False) -> DataFrame:
        """One row for each (record, evaluated set).  Failed runs are no results; they are left out."""
        return frame(self.records(None if include_failed else "done"))


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Records sorted by what they ran."""
    keyed = {(s.dataset, s.method.name, s.shots, s.seed, r.key): r for r in records for s in (r.spec,)}
    return [keyed[key] for key in sorted(keyed)]


def frame(records: Iterable[RunRecord]) -> DataFrame:
    """One row for each (record, evaluated set)."""
    import pandas as pd

    rows = [row for record in records for row in record.rows()]
    names = _COLUMNS + sorted({name for row in rows for name in row} - set(_COLUMNS))
    return pd.DataFrame({name: [row.get(name, math.nan) for row in rows] for name in names}, columns=names)


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
