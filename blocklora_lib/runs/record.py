"""Run records: what a run was, what it gave, what it cost. What is read is checked."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from ..core.schema import Recorded
from ..learning.count import Choice, Count
from ..learning.spec import TrainingSpec
from ..methods import MethodSpec
from ..weights.spec import BackboneSpec
from .code_digest import code_of
from .cost import Budget, Cost
from .sealed import seal, unseal
from .spec import RunSpec, key_of

if TYPE_CHECKING:
    from pandas import DataFrame

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
    "updates",
    "images_seen",
    "image_passes",
    "text_passes",
    "seconds_train",
    "seconds_total",
    "peak_memory_bytes",
    "fit_bytes",
    "status",
    "miniature",
]


Listed = Field(strict=False)  # a list, all that JSON has, for a tuple; what is in it stays strict


class Result(Recorded):
    """What the spec determines: on the same machine with the same threads, the same bits.

    draw_checksum: of the images drawn, as `blocklora data draw` prints it; '' without training.
    unreadable: the images of each set that the run left out, by path in the set's folder (see
    RunSpec.skip_unreadable); they are in no count. overflows: steps (from 1) whose update was left
    out because a scaled float16 gradient overflowed. choice: of settings, of a method with a grid.
    recall: of retrieval, on each set by 'image to text, first 5' and so on; its accuracy is that of
    'image to text, first 1'.
    """

    accuracy: dict[str, Count]
    train: Count | None  # on the few-shot images; None for a method without training
    loss: Annotated[tuple[FiniteFloat, ...], Listed]  # one value a step
    trainable_parameters: NonNegativeInt
    draw_checksum: str = ""
    unreadable: dict[str, Annotated[tuple[str, ...], Listed]] = Field({})
    overflows: Annotated[tuple[PositiveInt, ...], Listed] = ()
    choice: Choice | None = None
    recall: dict[str, dict[str, Count]] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Callable[[Result], dict[str, Any]]) -> dict[str, Any]:
        data = handler(self)
        if self.recall is None:  # records of classification keep their bits
            del data["recall"]
        return data


class MachineFailure(RuntimeError):
    """A run that ended without saying anything of its spec: out of memory, a full disk, an unknown
    error.

    Nothing is stored: the same run may end well on another try.
    """


class NotKept(MachineFailure):
    """A run whose record is whole, and whose adapter could not be written."""


class Failure(Recorded):
    """Why a spec has no result, wherever it is run, and what to try: training diverged, or settings
    were refused. What a machine does to a run is no such reason (see MachineFailure).
    """

    kind: Literal["diverged", "refused"]
    message: str
    retry: str
    step: PositiveInt | None = None
    loss: str | None = None  # text, since JSON has no NaN
    lr: float | None = None


class RunRecord(Recorded):
    """A finished or failed run.

    code: digest of the part of the library that computed it (see code_digest), '' where none was
    kept.
    images: SHA-256 of the image files that it read (see data.content), '' where all are in bundles,
    which the key covers.
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
            raise ValueError(
                "a done record has a result and no error, a failed one an error and no result"
            )
        if self.result:
            _check_result(self.result, self.spec)
        return self

    @classmethod
    def from_json(cls, text: str, known: RunSpec | None = None) -> RunRecord:
        """Read the file's text; ValueError where it is not what was written or cannot be true.

        known: the spec that it should be of, then not read again.
        """
        facts, key = unseal(text), None
        if (schema := facts.get("schema")) != 2:
            raise ValueError(f"it has schema {schema!r} of another version; this one reads 2")
        if isinstance(spec := facts.get("spec"), dict):
            key = key_of(spec)
            facts["spec"] = known if known and key == known.key else _with_parts(spec)
        return cls.model_validate(facts, context=key)

    def to_json(self) -> str:
        """The file's text."""
        return seal(self.model_dump(mode="json", by_alias=True, exclude_none=False))

    @property
    def standing(self) -> tuple[bool, bool]:
        """(done, of the present state of the library): of two of one run the higher is kept."""
        return self.status == "done", self.code == code_of(self.spec.method.name)

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
            "fit_bytes": cost.fit_bytes if cost else None,
            "status": self.status,
            "miniature": self.provenance.get("miniature", False),
        }
        budget = cost.budget if cost else None
        row |= {name: getattr(budget, name, None) for name in Budget.model_fields}
        row = _settings(spec.method, spec.training) | row
        if self.result is None:
            counted = ("evaluated_on", "accuracy", "correct", "total", "train_accuracy")
            return [row | dict.fromkeys((*counted, "trainable_parameters", "unreadable"))]
        train = self.result.train.accuracy if self.result.train else None
        row |= {
            "train_accuracy": train,
            "trainable_parameters": self.result.trainable_parameters,
            "unreadable": sum(
                map(len, self.result.unreadable.values())
            ),  # images that the run left out
        }
        return [
            row
            | {
                "evaluated_on": name,
                "accuracy": count.accuracy,
                "correct": count.correct,
                "total": count.total,
            }
            | {key: c.accuracy for key, c in (self.result.recall or {}).get(name, {}).items()}
            for name, count in self.result.accuracy.items()
        ]


# the parts of a spec that most records of a store share, validated once
_PARTS: dict[str, Any] = {"backbone": BackboneSpec, "method": MethodSpec, "training": TrainingSpec}


def _with_parts(spec: dict[str, Any]) -> dict[str, Any]:
    given = {name: part for name in _PARTS if isinstance(part := spec.get(name), dict)}
    return spec | {name: _part(name, repr(part)) for name, part in given.items()}


@lru_cache(4096)
def _part(name: str, written: str) -> BackboneSpec | MethodSpec | TrainingSpec:
    return _PARTS[name].model_validate(ast.literal_eval(written), context="a record")


@lru_cache(4096)
def _settings(method: MethodSpec, training: TrainingSpec | None) -> dict[str, Any]:
    """The columns of a frame that settings make."""
    settings = {**method.settings, **(training.model_dump() if training else {})}
    settings |= settings.pop("schedule", None) or {}
    return {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in settings.items()}


def _check_result(result: Result, spec: RunSpec) -> None:
    """ValueError where a result cannot be this spec's."""
    steps = spec.training.steps(spec.shots) if spec.training else 0
    if spec.shots and spec.training is None:
        steps = len(result.loss)  # of a schedule of its own
    if set(result.accuracy) != set(spec.evaluate_on):
        raise ValueError(
            f"it counts {', '.join(result.accuracy)}, its spec asks for "
            f"{', '.join(spec.evaluate_on)}"
        )
    if (result.train is None) != (spec.shots == 0):
        raise ValueError(f"shots={spec.shots} and train={result.train} do not go together")
    if len(result.loss) != steps:
        raise ValueError(f"it has {len(result.loss)} losses for {steps} steps")
    if result.overflows and max(result.overflows) > steps:
        raise ValueError(f"step {max(result.overflows)} overflowed, of {steps}")
    if spec.draw_checksum and result.draw_checksum != spec.draw_checksum:
        raise ValueError(
            f"it trained on the draw {result.draw_checksum[:12]}, not {spec.draw_checksum[:12]}"
        )


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Records sorted by what they ran."""
    keyed = {
        (s.dataset, s.method.name, s.shots, s.seed, r.key): r for r in records for s in (r.spec,)
    }
    return [keyed[key] for key in sorted(keyed)]


def frame(records: Iterable[RunRecord]) -> DataFrame:
    """One row for each (record, evaluated set)."""
    import pandas as pd

    rows = [row for record in records for row in record.rows()]
    names = _COLUMNS + sorted(set().union(*rows) - set(_COLUMNS))
    return pd.DataFrame(
        {name: [row.get(name, math.nan) for row in rows] for name in names}, columns=names
    )
