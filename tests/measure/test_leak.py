"""What Tip-Adapter-F gains by looking at test images, against its training and grid in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from blocklora_lib.core.paths import ROOT
from blocklora_lib.measure.leak import METHOD, price_of_test_choice
from blocklora_lib.runs.contexts import run_context
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.workbench import Workbench

BETA, ALPHA, EPOCHS, LR = (0.5, 3.0), (0.1, 1.0, 10.0), 6, 0.05


def profile(**settings) -> Profile:
    facts = load_profile("smoke").model_dump() | {"rates": None}
    facts["methods"] = [{"name": METHOD, "settings": settings}]
    facts["experiments"] = {"comparison": {}}
    return Profile.model_validate(facts)


def unit(rows):
    return rows / (rows**2).sum(-1, keepdims=True) ** 0.5


def keys_of_epochs(f, labels, text, classes):
    """The keys after each epoch of one batch, by AdamW written out."""
    keys, values, kept = f.copy(), np.eye(classes)[labels], []
    m = v = np.zeros_like(keys)
    for step in range(1, EPOCHS + 1):
        near = np.exp(-(1 - f @ keys.T))
        error = (softmax(text + 1.17 * near @ values, 1) - values) / len(f)
        slope = (1.17 * near * (error @ values.T)).T @ f
        rate = LR * (1 + math.cos(math.pi * (step - 1) / EPOCHS)) / 2
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        keys = keys * (1 - rate * 0.01)
        keys = keys - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-4)
        kept.append(keys)
    return kept


@pytest.mark.slow
def test_it_is_what_the_test_images_would_choose(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = profile(beta=BETA, alpha=ALPHA, lr=LR, epochs=EPOCHS)
    bench, spec = Workbench("cpu"), make_spec(mine, "chess", METHOD, 2, 1)
    record = execute(spec, bench)
    (found,) = price_of_test_choice([record], bench).to_dict("records")
    result = record.result
    own = result.accuracy["chess"].accuracy
    assert found["accuracy"] == pytest.approx(own, abs=1e-6)

    context, data = run_context(spec, bench, bench.check(spec)), bench.dataset("chess")
    test = bench.features.features(context.backbone, bench.source(data, "test"))
    f, x = (unit(rows.double().numpy()) for rows in (context.features().rows, test.rows))
    prompts = unit(context.prompts(context.tokens).double().numpy())
    scale, labels = context.backbone.logit_scale.item(), context.labels.numpy()
    truth, values = data.labels("test").numpy(), np.eye(len(prompts))[labels]

    def accuracy(keys, beta, alpha):
        scores = scale * x @ prompts.T + alpha * np.exp(-beta * (1 - x @ keys.T)) @ values
        return (scores.argmax(1) == truth).mean()

    kept = keys_of_epochs(f, labels, scale * f @ prompts.T, len(prompts))
    chosen = [result.choice.settings[name] for name in ("beta", "alpha")]
    off = 1.5 / len(truth)  # an answer may fall the other way in float32
    assert found["epoch"] == pytest.approx(max(accuracy(k, *chosen) for k in kept), abs=off)
    best = max(accuracy(k, b, a) for k in kept for b in BETA for a in ALPHA)
    assert found["both"] == pytest.approx(best, abs=off)
    assert own <= found["epoch"] + 1e-6 <= found["both"] + 2e-6


def test_chess_is_validated_on_two_sets_of_pieces():
    """Why looking at its test images gains so much there: its validation images tell little."""
    rows = pq.read_table(ROOT / "pocket/images/chess.parquet", columns=["split", "group"])
    rows = rows.to_pandas()
    groups = {split: set(of["group"]) for split, of in rows.groupby("split")}
    assert len(groups["val"]) == 2
    assert (rows["split"] == "val").sum() == 24
    assert not groups["val"] & (groups["train"] | groups["test"])


@pytest.mark.slow
def test_where_nothing_is_chosen_nothing_is_gained(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = profile(beta=1.0, alpha=1.0, epochs=1)
    bench = Workbench("cpu")
    records = [execute(spec, bench) for spec in expand(mine, "comparison", "chess")]
    found = price_of_test_choice(records, bench)
    assert len(found) == len(records)
    assert (found["accuracy"] == found["epoch"]).all()
    assert (found["epoch"] == found["both"]).all()
