"""With dropout on, this library and CLIP-LoRA's re-statement draw from one distribution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clip_lora_case import SEED, Case, gradients, large_updates, normalise, put, tiny_case
from torch import Tensor

from blocklora_lib.adapters.attach import attach
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.seeding import generator
from blocklora_lib.layers import dropped as dropout
from blocklora_lib.learning.adapter_fit import AdapterPredictor

pytestmark = pytest.mark.slow

DRAWS = 600
# Root mean squares of 10^3 and more z values, which are correlated: equal distributions gave 0.93
# to 1.16.
SAME, OTHER = 1.3, 2.0

Draws = dict[tuple, Tensor]  # {("logits",) or (tower, layer, target, "A" or "B"): (DRAWS, numbers)}


def our_draws(case: Case, dropout: float = 0.25) -> Draws:
    """Logits, and gradients of A and B of every adapter, of DRAWS passes."""
    config = AdapterConfig(kind="lora", rank=2, dropout=dropout)
    adapters = attach(case.backbone.model, config, generator(SEED, "adapter"))
    try:
        for adapter in adapters.adapters.values():
            adapter.train()
        logits, images = (
            AdapterPredictor(case.context(), adapters).training_logits(),
            case.images.float(),
        )
        return draws(lambda: logits(images), case, case.adapters(), seed=11)
    finally:
        adapters.detach()


def their_draws(case: Case) -> Draws:
    theirs, images = case.theirs(dropout=0.25).train(), normalise(case.images.float())
    return draws(lambda: theirs.logits(images, case.tokens), case, theirs.adapters(), seed=12)


def draws(logits, case: Case, adapters: dict, seed: int) -> Draws:
    given = large_updates(case, std=0.02)  # the mask weighs more than what it does downstream
    # q, k and v of a layer get one A, so that one mask for the three would make their noise alike
    put(
        adapters,
        {(t, layer, x): (given[t, layer, "q"][0], b) for (t, layer, x), (_, b) in given.items()},
    )
    found: dict[tuple, list[Tensor]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(DRAWS):
            for adapter in adapters.values():
                adapter.zero_grad()
            scores = logits()
            F.cross_entropy(scores, case.labels).backward()
            found.setdefault(("logits",), []).append(scores.detach().flatten())
            for key, pair in gradients(adapters).items():
                for name, gradient in zip("AB", pair, strict=True):
                    found.setdefault((*key, name), []).append(gradient.flatten())
    return {key: torch.stack(rows).double() for key, rows in found.items()}


def moments_apart(a: Draws, b: Draws) -> dict[str, float]:
    """Root mean squares, over all numbers, of their moments' differences in standard errors."""
    keys = sorted(a, key=str)
    # the same entry of A's gradient for two of q, k and v of one layer
    pairs = [
        (x, y)
        for x in keys
        for y in keys
        if x[-1] == y[-1] == "A" and x[:2] == y[:2] and x[2] < y[2]
    ]

    def moments(d: Draws) -> dict[str, Tensor]:
        off = {key: values - values.mean(0) for key, values in d.items()}
        return {
            "mean": torch.cat([d[key] for key in keys], 1),
            "variance": torch.cat([off[key] ** 2 for key in keys], 1),
            "covariance": torch.cat([off[x] * off[y] for x, y in pairs], 1),
        }

    found = {}
    ours, theirs = moments(a), moments(b)
    for name, x in ours.items():
        y = theirs[name]
        z = (x.mean(0) - y.mean(0)) / ((x.var(0) + y.var(0)) / DRAWS).sqrt()
        found[name] = float(z.square().mean().sqrt())
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Case:
    return tiny_case(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def their_noise(tiny) -> Draws:
    return their_draws(tiny)


def test_with_dropout_logits_and_gradients_have_their_distribution(tiny, their_noise):
    found = moments_apart(our_draws(tiny), their_noise)
    assert all(value < SAME for value in found.values()), found


@pytest.mark.rare  # what the first test would see, were it so
def test_another_rate_of_dropout_is_seen(tiny, their_noise):
    assert moments_apart(our_draws(tiny, dropout=0.1875), their_noise)["variance"] > OTHER


@pytest.mark.rare
def test_one_mask_for_q_k_and_v_is_seen(tiny, their_noise, monkeypatch):
    draw_noise = dropout.draw_noise

    def one_mask(shape, p, device):
        noise, threshold, p = draw_noise((1, *shape[1:]), p, device)
        return noise.expand(shape).contiguous(), threshold, p

    monkeypatch.setattr(dropout, "draw_noise", one_mask)
    assert moments_apart(our_draws(tiny), their_noise)["covariance"] > OTHER
