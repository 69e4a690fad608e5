"""Evidence that a test writes down, for judges of claims."""

from __future__ import annotations

import pandas as pd
from synthetic import synthetic_runs

from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults


class Given:
    """Evidence that a test writes down."""

    def __init__(self, diverged: int = 0, **frames: pd.DataFrame) -> None:
        self.diverged, self.frames, self.profile, self.small_backbone = (
            diverged,
            frames,
            load_profile("pocket"),
            True,
        )

    def runs(self, experiment: str = "few_shot") -> pd.DataFrame:
        return self.table("", experiment)

    def table(self, notebook: str, name: str) -> pd.DataFrame:
        if name not in self.frames:
            raise MissingResults(f"{name} is not given")
        return self.frames[name]

    def failed(self, experiment: str, kind: str | None = None) -> int:
        return self.diverged

    def found(self, judge):
        return judge(self)

    @property
    def published(self) -> pd.DataFrame:
        return self.table("", "published")


def blocks(drop, parameters):
    rows = [
        dict(
            reading=reading,
            rank=8,
            n_blocks=n,
            dataset=dataset,
            evaluated_on=dataset,
            seed=seed,
            shots=4,
            accuracy=0.6 + 0.01 * seed - drop[n] + 0.003 * (n * seed % 3),
            trainable_parameters=parameters(reading, n),
        )
        for reading in ("total_rank", "block_rank")
        for n in (1, 2, 4, 8)
        for dataset in ("fashion", "textures")
        for seed in (1, 2, 3)
    ]
    return Given(blocks=pd.DataFrame(rows))


def shared(reading, n):
    """Parameters of a square projection of width 16: 8 (d + d/n), or 8 (d + n d)."""
    return 8 * 16 * (1 + 1 / n) if reading == "total_rank" else 8 * 16 * (1 + n)


def source_runs(others, below=0.0):
    """Runs of the source, level with LoRA there; elsewhere Block-LoRA is `below` (0 to 1) LoRA."""
    runs = synthetic_runs(sets=("emoji_source",), methods=("zero_shot", "lora"))
    block = runs[runs["method"] == "lora"].assign(method="block_lora", method_label="Block-LoRA")
    runs = pd.concat([runs, block])
    shifted = [runs.assign(evaluated_on=name) for name in others]
    for i, frame in enumerate(shifted):
        frame["accuracy"] -= (frame["method"] == "block_lora") * (below + 0.001 * i)
    return pd.concat([runs, *shifted])
