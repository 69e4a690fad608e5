"""Targets, closed-form floors, many trainings at once: against optimisation and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora_lib.adapters.updates import AdapterConfig, make_adapter
from blocklora_lib.core.seeding import generator
from blocklora_lib.theory import subspaces as subspace


def test_the_targets():
    target = subspace.orthogonal_groups(12, 8, 6, 1)
    values = torch.linalg.svdvals(target)
    torch.testing.assert_close(values[:6], torch.ones(6, dtype=torch.float64))
    assert values[6:].max() < 1e-12
    repeated = subspace.repeated_along_the_input(12, 8, 3, 4, 1)
    first = repeated[:, :3]
    assert all(torch.equal(repeated[:, 3 * k : 3 * k + 3], first) for k in range(4))
    torch.testing.assert_close(
        torch.linalg.svdvals(repeated)[:3], torch.ones(3, dtype=torch.float64)
    )


def alternating_least_squares(target, n, width, rounds=200):
    """The smallest ‖[A; ..; A] B - Tᵀ‖² over A and B, by solving for one at a time: no SVD."""
    # least squares sees the mean of the blocks alone
    columns = target.T.unflatten(0, (n, -1)).mean(0)
    a = torch.randn(len(columns), width, generator=generator(1, "als"), dtype=torch.float64)
    for _ in range(rounds):
        b = torch.linalg.lstsq(a, columns).solution
        a = torch.linalg.lstsq(b.T, columns.T).solution.T
    return ((torch.cat([a] * n) @ b - target.T).square().sum() / target.square().sum()).item()


@settings(max_examples=12, deadline=None)
@given(
    reading=st.sampled_from(("total_rank", "block_rank", "input")),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_floor_is_the_best_that_least_squares_finds(reading, n, seed):
    config = AdapterConfig(
        reading=reading, rank=2 * n if reading == "total_rank" else 2, n_blocks=n
    )
    # gaps, so that the search converges
    spectrum = torch.diag(0.5 ** torch.arange(6, dtype=torch.float64))
    draw = generator(seed, "target")
    left, right = (
        torch.linalg.qr(torch.randn(d, 6, generator=draw, dtype=torch.float64))[0] for d in (9, 12)
    )
    target = left @ spectrum @ right.T
    blocks = n if reading == "input" else 1
    found = alternating_least_squares(target, blocks, config.block_rank)
    best = subspace.floor(target, config)
    assert best <= found + 1e-12
    assert found - best < 1e-2


def test_no_adapter_gets_below_its_floor():
    for reading in ("total_rank", "block_rank", "input"):
        config = AdapterConfig(reading=reading, rank=4, n_blocks=2, dropout=0.0)
        adapter = make_adapter(config, 12, 9, generator(1, "adapter")).double()
        torch.nn.init.normal_(adapter.B)
        update = adapter.delta_weight().detach()
        assert subspace.floor(update, config) < 1e-12  # what an adapter is, it can be


def test_floors_by_hand():
    target = subspace.orthogonal_groups(16, 16, 8, 1)
    for n in (1, 2, 4, 8):
        assert subspace.floor(target, AdapterConfig(rank=8, n_blocks=n)) == pytest.approx(
            1 - 1 / n, abs=1e-12
        )
    repeated = subspace.repeated_along_the_input(16, 16, 2, 8, 1)
    assert subspace.floor(repeated, AdapterConfig(reading="input", rank=2, n_blocks=8)) < 1e-12
    assert subspace.floor(repeated, AdapterConfig(rank=2, n_blocks=2)) == pytest.approx(0.5)
    assert subspace.remaining(torch.zeros(1, 16, 16), target[None]) == [pytest.approx(1)]


@pytest.mark.parametrize("kind", ["block_lora", "collapsed"])
def test_many_trainings_are_each_training(kind):
    config = AdapterConfig(kind=kind, rank=4, n_blocks=2, dropout=0.0)
    draw = generator(1, "data")
    x, y = (torch.randn(3, 20, d, generator=draw, dtype=torch.float64) for d in (6, 5))
    weights = torch.ones(3, 20, dtype=torch.float64)
    weights[1, 12:] = 0  # the second sees 12 samples
    updates = subspace.train_many(config, x, y, weights, steps=30, lr=0.02, seed=7)
    for k, samples in enumerate((20, 12, 20)):
        adapter = make_adapter(config, 6, 5, generator(7 + k, "adapter")).double()
        groups = [
            {"params": [p], "lr": 0.02 * (adapter.up_lr_ratio if name == "B" else 1)}
            for name, p in adapter.named_parameters()
        ]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        for _ in range(30):
            optimizer.zero_grad()
            (adapter(x[k, :samples]) - y[k, :samples]).square().mean().backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(updates[k], adapter.delta_weight().detach(), rtol=0, atol=1e-11)


def noise_of_a_cut(target, width, samples, sigma, draws=2000):
    """How far least squares, cut to its first singular directions, is from Z cut, in NumPy."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((draws, samples, target.shape[1]))
    y = x @ target.T + sigma * rng.standard_normal((draws, samples, len(target)))

    def cut(matrix):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        return (u[..., :width] * s[..., None, :width]) @ v[..., :width, :]

    apart = cut(np.linalg.pinv(x) @ y) - cut(target.T)
    return np.square(apart).sum((1, 2)).mean() / np.square(target).sum()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_risk_of_a_cut_is_that_of_least_squares_cut(width):
    """d_in 10, d_out 8: to first order in σ, at full rank exactly; not without "- b", or by N."""
    target, sigma, samples = subspace.orthogonal_groups(10, 8, 8, 1, 0.2), 1e-6, 40
    assert torch.linalg.svdvals(target).tolist() == pytest.approx([0.2**j for j in range(8)])
    energy = [0.04**j for j in range(8)]
    predicted = subspace.cut_risk(target, width, samples, sigma) - sum(energy[width:]) / sum(energy)
    ratio = noise_of_a_cut(target.numpy(), width, samples, sigma) / predicted
    # 2000 draws of b (18 - b) numbers, and (s_{b+1}/s_b)² = 0.04 of second order
    assert ratio == pytest.approx(1, abs=0.05)
    assert ratio != pytest.approx((samples - 11) / samples, abs=0.05)
    if width > 1:
        assert ratio != pytest.approx(18 / (18 - width), abs=0.05)


def test_a_cut_wider_than_the_target_is_none():
    """At rank 20 of 10 x 8 the risk was below 0."""
    target = subspace.orthogonal_groups(10, 8, 8, 1)
    whole = subspace.cut_risk(target, 8, 40, 0.1)
    assert whole == pytest.approx(0.1**2 * 80 / 29 / 8)
    assert subspace.cut_risk(target, 9, 40, 0.1) == subspace.cut_risk(target, 20, 40, 0.1) == whole


def test_too_few_samples_have_no_risk():
    with pytest.raises(ValueError, match="samples=11 of d_in=10"):
        subspace.cut_risk(subspace.orthogonal_groups(10, 8, 8, 1), 2, 11, 0.1)


def test_the_small_lora_keeps_the_scale():
    config = AdapterConfig(rank=8, n_blocks=4, alpha=3.0)
    small = subspace.smaller_lora(config)
    assert (small.kind, small.rank, small.n_blocks) == ("lora", 2, 1)
    assert small.scale == pytest.approx(config.scale, rel=1e-15)
