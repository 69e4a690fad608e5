"""Run records and the store that keeps them: one JSON file a run, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .files import write_whole
from .specs import BackboneSpec, MethodSpec, RunSpec, TrainingSpec
from .strict import Strict, explain

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "BackboneSpec",
    "Cost",
    "Count",
    "Failure",
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


class Count(Strict):
    """Correct of how many."""

    correct: int = Field(ge=0)
    total: int = Field(ge=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.correct / self.total


class Result(Strict):
    """What the spec determines: on the same machine with the same threads, the same bits.

    draw_checksum: of the images drawn, as `blocklora data draw` prints it; '' without training.
    unreadable: the images of each set that the run left out, by path in the set's folder (see
    RunSpec.skip_unreadable); they are in no count.  overflows: steps (from 1) whose update was left out
    because a scaled float16 gradient overflowed.
    """

    accuracy: dict[str, Count]
    train: Count | None  # on the few-shot images; None for a method without training
    loss: tuple[float, ...]  # one value a step
    trainable_parameters: int
    draw_checksum: str = ""
    unreadable: dict[str, tuple[str, ...]] = Field({})
    overflows: tuple[int, ...] = ()


class Cost(Strict):
    """What was measured: seconds by phase (load, train, evaluate) and the peak of memory."""

    seconds: dict[str, float]
    peak_memory_bytes: int


class Failure(Strict):
    """Why a run ended without a result, and what to try."""

    kind: str
    message: str
    retry: str
    where: str = ""  # of an error that nobody foresaw: the last frames
    step: int | None = None
    loss: str | None = None  # text, since JSON has no NaN
    lr: float | None = None


class RunRecord(Strict):
    """A finished or failed run."""

    schema_version: Literal[1] = Field(1, alias="schema")
    key: str
    spec: RunSpec
    status: Literal["done", "failed"]
    result: Result | None = None
    cost: Cost | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None

    @model_validator(mode="after")
    def _check(self) -> RunRecord:
        if self.key != self.spec.key:
            raise ValueError(f"key {self.key} is not the key {self.spec.key} of its own spec")
        if (self.status == "done") != (self.result is not None) or (self.status == "failed") != (
            self.error is not None
        ):
            raise ValueError("a done record has a result and no error, a failed one an error and no result")
        return self

    def to_json(self) -> str:
        """The file's text."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=False)
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

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
        training = spec.training.model_dump() if spec.training else {}
        for name, value in {**spec.method.settings, **training}.items():
            row.setdefault(name, ",".join(map(str, value)) if isinstance(value, tuple) else value)
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


class RunStore:
    """A folder of records.  Its readers never see half a record: a file gets its name when it is complete."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of this spec is or will be."""
        return self.folder / f"{spec.key}.json"

    def check_writable(self) -> None:
        """Fail now, with one sentence, rather than after hours of training."""
        probe = self.folder / f".writable-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"results folder {self.folder} cannot be written ({error.strerror or error}); "
                "make it writable or choose another one with --results"
            ) from None

    def save(self, record: RunRecord) -> Path:
        """Write the record under a temporary name, then rename it."""
        path = self.path(record.spec)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.to_json())
        return path

    def load(self, spec: RunSpec) -> RunRecord | None:
        """Return the record of this spec, done or failed, or None."""
        path = self.path(spec)
        return read_record(path) if path.is_file() else None

    def records(self, status: Literal["done", "failed"] | None = None) -> list[RunRecord]:
        """All records, sorted by what they ran; `status` keeps one kind."""
        found = [r for r in self._read_all() if status in (None, r.status)]
        return sorted(
            found, key=lambda r: (r.spec.dataset, r.spec.method.name, r.spec.shots, r.spec.seed, r.key)
        )

    def _read_all(self) -> Iterator[RunRecord]:
        for path in sorted(self.folder.glob("[0-9a-f]*.json")):
            yield read_record(path)

    def frame(self, include_failed: bool = False) -> DataFrame:
        """One row for each (record, evaluated set).  Failed runs are no results; they are left out."""
        import pandas as pd

        records = self.records(None if include_failed else "done")
        rows = [row for record in records for row in record.rows()]
        return pd.DataFrame(rows, columns=_COLUMNS + sorted({k for r in rows for k in r} - set(_COLUMNS)))


def read_record(path: Path) -> RunRecord:
    """Read one record file; a damaged one is named, with the way out."""
    try:
        record = RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
        if path.stem != record.key:
            raise ValueError(f"the file's name is not its key {record.key}")
    except (ValueError, TypeError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise ValueError(f"run record {path} is damaged ({reason}); delete the file and run again") from None
    return record
