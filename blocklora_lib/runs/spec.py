"""What a run is: the frozen, complete and hashable description whose hash names the record.

Nothing that changes a result by more than rounding lives outside RunSpec. What moves its last bits
and its cost (device, threads, machine, versions) does, and the record says it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_serializer, model_validator

from ..adapters.config import AdapterConfig
from ..core.schema import Strict, canonical
from ..data.manifest import Manifest
from ..learning.spec import TrainingSpec
from ..methods import MethodSpec, get_method
from ..weights.spec import BackboneSpec

Task = Literal["classification", "retrieval", "texts"]


class RunSpec(Strict):
    """One run: fit `method` on a few images of `dataset`, count correct answers on `evaluate_on`.

    `data_checksum` covers the images, class names and templates of the dataset and of every
    evaluated set. `shots`: images a class. A method that needs no training has shots = 0, seed = 0
    and neither draw nor training settings; one with a schedule of its own, as all on features have,
    has none of the latter. draw 'imported': the images that a file names (see
    data.draw_files); the spec holds the checksum of what is drawn, not the file's place.
    skip_unreadable: leave out images that are missing or do not decode.
    task: what is learnt and counted. 'retrieval': each class is a caption, and images and captions
    are looked for by one another (see learning.evaluation). 'texts': texts are classified, which go
    through the text tower as the class names do.
    deterministic False: a GPU may use kernels that do not repeat bit for bit; written and hashed
    only then, and so is a task other than classification, so that the keys of all other runs are
    what they were before there was a choice.
    """

    dataset: str
    data_checksum: str
    shots: int = Field(ge=0)
    seed: int = Field(ge=0)
    draw: Literal["nested", "coop", "clip_lora", "imported"] | None
    draw_checksum: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    # 'val' is for choosing hyper-parameters: they never see the test images
    split: Literal["test", "val"] = "test"
    backbone: BackboneSpec
    method: MethodSpec
    training: TrainingSpec | None
    evaluate_on: tuple[str, ...] = Field(min_length=1)
    skip_unreadable: bool = False
    deterministic: bool = True
    task: Task = "classification"

    @model_serializer(mode="wrap")
    def _without_the_default(self, handler: Callable[[RunSpec], dict[str, Any]]) -> dict[str, Any]:
        data = handler(self)
        for name, usual in _UNSAID.items():
            if data[name] == usual:
                del data[name]
        return data

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> RunSpec:
        if self.shots == 0 and (self.seed or self.draw or self.training):
            raise ValueError(
                f"shots=0 means no training, but seed={self.seed}, draw={self.draw!r} and training "
                "settings were given; use shots >= 1, or seed=0, draw=None, training=None"
            )
        if self.shots > 0 and self.draw is None:
            raise ValueError(
                f"shots={self.shots} needs draw ('nested', 'coop', 'clip_lora' or 'imported')"
            )
        # a record's method, which a validation context tells of, may be one that is no more
        if not info.context:
            self._check_method(get_method(self.method.name))
        if (self.draw == "imported") != bool(self.draw_checksum):
            raise ValueError(
                f"draw={self.draw!r} with draw_checksum={self.draw_checksum!r}: an imported draw, "
                "and only such a one, is named by its checksum; `blocklora data draw` prints it"
            )
        if len(set(self.evaluate_on)) != len(self.evaluate_on):
            raise ValueError(f"evaluate_on={self.evaluate_on} names a set twice; name each once")
        return self

    def _check_method(self, method: Any) -> None:
        if method.trains != (self.shots > 0):
            needs = "at least 1 shot" if self.shots == 0 else "shots=0: it does not train"
            raise ValueError(
                f"shots={self.shots} with method {self.method.name}, which needs {needs}"
            )
        if self.method.scheduled and self.training is None:
            raise ValueError(
                f"method {self.method.name} needs draw and training settings; training=None was "
                "given"
            )
        if self.training is not None and not self.method.scheduled:
            raise ValueError(
                f"training settings are given, but method {self.method.name} has a way of its own; "
                "use training=None"
            )

        if self.task != "classification" and method.trains:
            self._check_task(method)

    def _check_task(self, method: Any) -> None:
        if not issubclass(method.Settings, AdapterConfig):
            raise ValueError(
                f"method {self.method.name} is for the classification of images; for task "
                f"{self.task} use zero_shot or a method of adapters, such as lora or block_lora"
            )
        towers = list(self.method.settings["towers"])
        assert self.training is not None  # as `_check_method` has seen
        if self.task == "texts" and (self.training.augment != "none" or towers != ["text"]):
            raise ValueError(
                f"task texts with augment={self.training.augment!r} and towers={towers}: texts are "
                "not cropped and go through the text tower; use augment: none and towers: [text]"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        """Every set that the run reads, the training set first; what data_checksum covers."""
        return tuple(dict.fromkeys((self.dataset, *self.evaluate_on)))

    @cached_property
    def canonical(self) -> str:
        """The JSON text that is hashed; a grid's runs share the texts of their parts."""
        return self._written()

    def _written(self, **instead: Any) -> str:
        """The same with other facts in place of its own."""
        facts = {name: getattr(self, name) for name in _FIELDS} | instead
        for name, usual in _UNSAID.items():
            if facts[name] == usual:
                del facts[name]
        written = (
            f'"{name}":{value.canonical if hasattr(value, "canonical") else _text(value)}'
            for name, value in facts.items()
        )
        return f"{{{','.join(written)}}}"

    @cached_property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return _short(self.canonical)

    @cached_property
    def fit_key(self) -> str:
        """What names all that is trained: one for runs that differ in their evaluated sets alone.

        With one block Block-LoRA is LoRA, by any reading of (r, n), to the bit. A run that trains
        nothing has its own.
        """
        return self._training_key() if self.shots else self.key

    @cached_property
    def stack_key(self) -> str:
        """One for runs that differ in their seed, or in their evaluated sets, alone."""
        return self._training_key(seed=None) if self.shots else self.key

    def _training_key(self, **instead: Any) -> str:
        trained: Any = self.method
        settings = trained.settings
        if settings.get("kind") in ("lora", "block_lora") and settings["n_blocks"] == 1:
            trained = {**settings, "kind": "lora", "reading": "total_rank"}
        instead |= {"method": trained, "evaluate_on": None, "data_checksum": None}
        return _short(self._written(**instead))

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        shots = f" shots={self.shots} seed={self.seed}" if self.shots else ""
        r, n = (self.method.settings.get(key) for key in ("rank", "n_blocks"))  # the paper's (r, n)
        method = self.method.name + (f"({r})" if r and n == 1 else f"({r}, {n})" if r else "")
        return f"{self.dataset} {method}{shots}"


def refuse_other_content(manifest: Manifest, task: Task) -> None:
    """ValueError for a set of texts where images are classified or looked for, and the reverse."""
    wanted, other = ("texts", "another task") if task == "texts" else ("images", "task: texts")
    if manifest.holds != wanted:
        raise ValueError(
            f"{manifest.name} holds {manifest.holds}, and task {task} takes {wanted}; "
            f"give sets of {wanted}, or this one to an experiment of {other}"
        )


def _text(value: Any) -> str:
    """The same of a value that the runs of a grid share; what cannot be looked up is written."""
    return canonical(value) if isinstance(value, dict) else _shared_text(value)


_shared_text = lru_cache(2**12, typed=True)(canonical)  # typed, since 1 == True
_FIELDS = sorted(RunSpec.model_fields)
_UNSAID = {"deterministic": True, "task": "classification"}  # written where they are another


def key_of(spec: dict[str, Any]) -> str:
    """Return RunSpec.key of a spec's JSON, as a record holds it, without making the spec."""
    return _short(canonical(spec))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
