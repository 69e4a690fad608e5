"""What is left beyond the trivial: accuracy above chance, and error beyond that of the width.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..runs.results import PLANNED
from .comparisons import matched


def above_chance(
    runs: pd.DataFrame, diverged: pd.DataFrame, classes: Mapping[str, int]
) -> pd.DataFrame:
    """Return lr, init_scale, seed, test, train: points above chance, the means over the sets.

    test, train: on test images, and on the images that were trained on; test_unit, train_unit: what
    one image of one set makes of them. A run that diverged is at chance. A seed that lacks a set of
    its setting is left out.
    """
    at = ["lr", "init_scale", "seed", "dataset"]
    chance = runs["dataset"].map(lambda name: 1 / classes[name])
    named = {"test": runs["accuracy"] - chance, "train": runs["train_accuracy"] - chance}
    rows = runs[at].assign(**{name: 100 * excess for name, excess in named.items()})
    if len(diverged):
        rows = pd.concat([rows, diverged[at].assign(test=0.0, train=0.0)])
    over = rows.groupby(at[:3])
    whole = over["dataset"].count() == rows["dataset"].nunique()
    images = runs["dataset"].map(classes) * runs["shots"]
    units = {"test_unit": 100 / runs["total"], "train_unit": 100 / images}
    units = {name: unit.max() / rows["dataset"].nunique() for name, unit in units.items()}
    return over[["test", "train"]].mean()[whole].reset_index().assign(**units)


def planned_seeds(runs: pd.DataFrame) -> int:
    """Return how many seeds each setting should have."""
    return int(max(runs["seed"].nunique(), runs[PLANNED].max() if PLANNED in runs else 0))


def sharing_beyond_width(task: pd.DataFrame) -> pd.DataFrame:
    """Return samples, n_blocks, seed, excess: Block-LoRA's error minus that of LoRA of its width.

    task: the trainings on few noisy samples of one direction, a row each, with form, samples,
    n_blocks, seed, error; n = 1 is LoRA itself and is left out.
    """
    cut = task[(task["task"] == "helps") & (task["n_blocks"] > 1)]
    over = ["samples", "n_blocks", "seed"]
    values = matched(cut, over, ["block_lora", "lora"], column="form", value="error").values
    return (values["block_lora"] - values["lora"]).rename("excess").reset_index()
