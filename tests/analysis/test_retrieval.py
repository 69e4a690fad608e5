"""Runs of retrieval as summaries of classification read them."""

from __future__ import annotations

import pandas as pd
import pytest

from blocklora_lib.analysis.retrieval import by_way
from blocklora_lib.analysis.summaries import gains


def test_each_way_of_looking_is_a_set_of_its_own():
    rows = [
        dict(method=m, method_label=m, dataset="a", evaluated_on=name, shots=shots, seed=seed,
             accuracy=first, status="done",
             **{"image to text, first 1": first, "text to image, first 5": first + 0.2})
        for name, away in (("a", 0.0), ("b", 0.1))
        for m, shots, seeds, first in (("zero_shot", 0, (0,), 0.3 - away),
                                       ("lora", 2, (1, 2), 0.5 - 2 * away))
        for seed in seeds
    ]  # fmt: skip
    found = by_way(pd.DataFrame(rows), {"a": "Known", "b": "New"})
    assert len(found) == 2 * len(rows)
    assert (found["dataset"] == found["evaluated_on"]).all()
    gained = gains(found).set_index("dataset")["mean"]
    assert gained["Known: image to text, first 1"] == pytest.approx(20)
    assert gained["New: text to image, first 5"] == pytest.approx(10)
