"""Differences on sets that share their trainings: the seeds are the units, not the sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, ttest_1samp

from blocklora_lib.analysis.comparisons import difference_by_seed


def frame(gain, seeds=(1, 2, 3)):
    """Runs of a method on three sets beside zero-shot's one run; gain: points, by (seed, set)."""
    zero = {"x": 40.0, "y": 55.0, "z": 70.0}
    rows = [("zero_shot", 0, 0, name, level) for name, level in zero.items()]
    rows += [("lora", 16, s, n, zero[n] + gain(s, n)) for s in seeds for n in zero]
    runs = pd.DataFrame(rows, columns=["method", "shots", "seed", "evaluated_on", "accuracy"])
    return runs.assign(dataset="s", accuracy=runs["accuracy"] / 100)


def test_every_seed_is_compared_with_zero_shots_one_run():
    gains = {1: (1.0, 2.0, 6.0), 2: (-1.0, 0.0, 1.0), 3: (2.0, 2.0, 2.0)}
    found = difference_by_seed(frame(lambda s, n: gains[s]["xyz".index(n)]), "lora", "zero_shot")
    means = [3.0, 0.0, 2.0]
    reference = ttest_1samp(means, 0)
    assert found.mean == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert (found.n, found.expected, found.told("seeds")) == (3, 3, "3 seeds, 9 pairs of runs")
    assert found.complete


def test_a_seed_that_lacks_a_set_is_in_no_mean():
    runs = frame(lambda s, n: float(s))
    found = difference_by_seed(
        runs[(runs["seed"] != 2) | (runs["evaluated_on"] != "y")], "lora", "zero_shot"
    )
    assert found.mean == pytest.approx(2.0)  # of seeds 1 and 3
    assert (found.n, found.expected, found.complete) == (2, 3, False)


def test_a_lucky_training_is_no_gain():
    """Luck of one point a training, which all its sets share: over sets it was a gain 40% of the
    time.
    """
    random, boards, said = np.random.default_rng(5), 100, 0
    for _ in range(boards):
        luck = dict(zip((1, 2, 3), random.standard_normal(3), strict=True))
        found = difference_by_seed(
            frame(lambda s, n, luck=luck: luck[s] + 0.5 * random.standard_normal()),
            *("lora", "zero_shot"),
        )
        said += found.above() is not None
    assert said <= binom.isf(1e-3, boards, 0.05)
