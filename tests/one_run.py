"""A spec, its record and its failure, small and made up, for tests of what is stored."""

from __future__ import annotations

from blocklora_lib.learning.count import Count
from blocklora_lib.runs.record import (
    BackboneSpec,
    Cost,
    Failure,
    MethodSpec,
    Result,
    RunRecord,
    RunSpec,
    TrainingSpec,
)


def make_spec(**changes) -> RunSpec:
    facts = {
        "dataset": "squares",
        "data_checksum": "ab" * 32,
        "shots": 4,
        "seed": 1,
        "draw": "nested",
        "backbone": BackboneSpec(name="PocketCLIP", pretrained="none"),
        "method": MethodSpec(
            name="block_lora", settings={"rank": 2, "n_blocks": 2, "targets": ["q", "k"]}
        ),
        "training": TrainingSpec(max_steps=2),
        "evaluate_on": ("squares", "dots"),
    }
    return RunSpec(**(facts | changes))


def make_record(spec: RunSpec | None = None, correct: int = 7) -> RunRecord:
    spec = spec or make_spec()
    counts = {name: Count(correct=correct, total=10) for name in spec.evaluate_on}
    return RunRecord(
        key=spec.key,
        spec=spec,
        status="done",
        result=Result(
            accuracy=counts,
            train=Count(correct=3, total=4),
            loss=(0.1, 1 / 3),
            trainable_parameters=12,
        ),
        cost=Cost(seconds={"load": 0.5, "train": 1.0, "evaluate": 0.25}, peak_memory_bytes=1 << 20),
        provenance={"method_label": "Block-LoRA"},
    )


def make_failure(spec: RunSpec) -> RunRecord:
    error = Failure(
        kind="diverged", message="loss nan at step 3", retry="lower lr", step=3, loss="nan", lr=1.0
    )
    return RunRecord(key=spec.key, spec=spec, status="failed", error=error)
