"""Evidence that a test writes down, for judges of claims."""

from __future__ import annotations

import pandas as pd
from synthetic import synthetic_runs

from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults


def with_rates(name="pocket"):
    """A profile each of whose methods has a rate of its own, and Block-LoRA's control its scale."""
    profile, level = load_profile(name), {"settings": {"rank": 1, "alpha": 0.5**0.5}}
    methods = [
        m.model_copy(
            update={"training": m.training | {"lr": 2e-2}} | (level if m.name == "lora_r1" else {})
        )
        for m in profile.methods
    ]
    return profile.model_copy(update={"methods": tuple(methods)})


class Given:
    """Evidence that a test writes down."""

    own_rates = with_rates()

    def __init__(self, diverged: pd.DataFrame | None = None, **frames: pd.DataFrame) -> None:
        self.frames, self.profile = frames, self.own_rates
        self._diverged = pd.DataFrame() if diverged is None else diverged

    def runs(self, experiment: str = "few_shot") -> pd.DataFrame:
        return self.table("", experiment)

    def table(self, notebook: str, name: str, numbers=()) -> pd.DataFrame:
        if name not in self.frames:
            raise MissingResults(f"{name} is not given")
        return self.frames[name]

    def missing(self, needs):
        return []

    def diverged(self, experiment: str) -> pd.DataFrame:
        return self._diverged

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
            method=f"block_lora,reading={reading},rank=8,n_blocks={n}",
            accuracy=0.6 + 0.01 * seed - drop[n] + 0.003 * (n * (seed + i) % 3) + 1e-4 * n * i,
            trainable_parameters=parameters(reading, n),
        )
        for reading in ("total_rank", "block_rank")
        for n in (1, 2, 4, 8)
        for i, dataset in enumerate(("fashion", "flags", "textures"))
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
        away = below + 0.001 * i + 0.0005 * frame["seed"]
        frame["accuracy"] -= (frame["method"] == "block_lora") * away
    return pd.concat([runs, *shifted])


def twin_runs(apart=0, sets=("fashion", "flags", "textures", "sprites"), spread=1):
    """Runs at n = 3 and 5; LoRA+ has `apart` answers of 1000 fewer, more or less by set."""
    rows = []
    for name, off in (("block_lora", 0), ("lora_plus", apart)):
        for reading, rank, n in (("total_rank", 3, 3), ("block_rank", 2, 5)):
            for i, dataset in enumerate(sets):
                correct = 500 + 20 * i - off - (spread * (i % 2) if off else 0)
                told = f"{name},reading={reading},rank={rank},n_blocks={n}"
                rows.append(
                    dict(
                        method=told,
                        reading=reading,
                        rank=rank,
                        n_blocks=n,
                        dataset=dataset,
                        evaluated_on=dataset,
                        shots=4,
                        seed=1,
                        correct=correct,
                        total=1000,
                        accuracy=correct / 1000,
                    )
                )
    return pd.DataFrame(rows)
