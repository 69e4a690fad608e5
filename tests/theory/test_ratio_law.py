"""The law of ratios: against decimals of 50 digits, a loop over scalars, and where it must fail."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.theory import breaks as change
from blocklora_lib.theory import trajectories as tr
from blocklora_lib.theory.ratio_law import against_the_law, law, step_ratios

TASK = tr.linear_task(1)
DEGREES = (0.0, 0.5, 1.0, 2.0)
BLOCKS = (2, 3, 8)


def norm(vector):
    return sum(v * v for v in vector).sqrt()


def train(degree, n, ratio, decays, coupled=0, steps=20):
    """B of a regression in decimals, B = Σ of n blocks: u = ‖p‖^k g / ‖g‖, A fixed at 1.

    ratio: of the blocks' rate; decays: decoupled and coupled weight decay of each block.
    """
    with localcontext() as context:
        context.prec = 50
        rate, k = Decimal("0.05") * ratio, Decimal(degree)
        decay, within = decays
        target = [Decimal(3), Decimal(-1)]
        blocks = [[Decimal(1) / n, Decimal(2) / n] for _ in range(n)]
        for _ in range(steps):
            total = [sum(part) for part in zip(*blocks, strict=True)]
            gradient = [b - t for b, t in zip(total, target, strict=True)]
            for block in blocks:
                seen = [g + within * p for g, p in zip(gradient, block, strict=True)]
                size = norm(block) ** k / norm(seen)
                block[:] = [
                    (1 - rate * decay) * p - rate * size * g
                    for p, g in zip(block, seen, strict=True)
                ]
        return [sum(part) for part in zip(*blocks, strict=True)]


def apart(ours, theirs):
    return float(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)))


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("n", BLOCKS)
def test_n_blocks_are_one_b_with_the_laws_rate_and_decay(degree, n):
    """Whole trainings to 40 digits; with any other exponent they part."""
    with localcontext() as context:
        context.prec = 50
        ratio, decay = Decimal(n) ** (1 - Decimal(degree)), Decimal("0.1")
        blocks = train(degree, n, 1, (decay, 0))
        assert apart(blocks, train(degree, 1, ratio, (decay / ratio, 0))) < 1e-40
        other = ratio * Decimal(n) ** Decimal("0.25")
        assert apart(blocks, train(degree, 1, other, (decay / other, 0))) > 1e-4
        if ratio != 1:  # the decay left as it is
            assert apart(blocks, train(degree, 1, ratio, (decay, 0))) > 1e-4
        coupled = train(degree, n, 1, (0, decay))
        assert apart(coupled, train(degree, 1, ratio, (0, decay / n))) < 1e-40
        if degree:  # the gradient's decay is not the parameter's: not 1 / ratio but 1 / n
            assert apart(coupled, train(degree, 1, ratio, (0, decay / ratio))) > 1e-4


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("n", BLOCKS)
def test_a_step_of_the_hook_is_the_law_to_1e_15(degree, n):
    steps = []
    for kind in ("block_lora", "collapsed"):
        config = AdapterConfig(kind=kind, reading="block_rank", rank=2, n_blocks=n, dropout=0.0)
        learner = tr.make_learner(TASK, config, "SGD", 0.1, 0.0, 1)
        tr.set_blocks(learner.adapters, 1.0, 0.0, 1)
        up = learner.adapters.adapters["weight"].B
        for parameter in learner.adapters.parameters():
            parameter.grad = torch.ones_like(parameter)
        change.norm_scaled(degree)["before_update"](learner.adapters, 0)
        steps.append(up.grad.sum(0) if up.dim() == 3 else up.grad)
    blocks, one = steps
    expected = n * (one.norm().item() * n**-degree)  # ‖u‖ = ‖p‖^k, and ‖B/n‖ = ‖B‖/n
    assert blocks.norm().item() == pytest.approx(expected, rel=1e-14)  # a sum of 32
    assert ((blocks - law(n, degree) * one).abs().max() / blocks.abs().max()).item() <= 1e-15
    wrong = law(n, degree + 0.01) * one
    assert ((blocks - wrong).abs().max() / blocks.abs().max()).item() > 1e-3


@pytest.mark.parametrize("n", BLOCKS)
def test_measured_ratios_are_those_of_a_loop_over_blocks(n):
    """LARS by hand: n moves of ‖B/n‖ G/‖G‖ are one move of ‖B‖ G/‖G‖."""
    hooks = change.norm_scaled()
    row = against_the_law(TASK, n, 1.0, "SGD", 0.02, hooks, steps=5)
    assert row["law"] == 1
    assert (row["low"], row["high"]) == pytest.approx((1, 1), rel=1e-10)
    assert row["difference"] < 1e-13  # float64
    assert row["spread"] == 0
    assert row["control"] > 1e-2
    wrong = against_the_law(TASK, n, 0.5, "SGD", 0.02, hooks, steps=5)
    assert wrong["difference"] > 1e-2


def test_blocks_of_other_rates_have_the_ratio_of_their_sum_and_noise_has_none():
    config = AdapterConfig(rank=6, n_blocks=3, dropout=0.0)

    def learners(ours, theirs):
        one = tr.collapsed(config)
        return (
            tr.make_learner(TASK, config, "AdamW", 0.02, 0.0, 1, **ours),
            tr.make_learner(TASK, one, "AdamW", 0.02, 0.0, 1, (1.0, 1.0), **theirs),
        )

    found = step_ratios(*learners(change.block_rates((0.5, 1.0, 3.0)), {}), 5)
    assert found["ratio"].to_numpy() == pytest.approx(4.5, rel=1e-10)
    assert found["off"].max() < 1e-10
    noise = change.block_noise(0.05, 3, 1)
    assert step_ratios(*learners(noise, noise), 5)["off"].max() > 1e-2


def test_equal_blocks_stay_equal_where_tensors_are_mixed_but_blocks_are_not_told_apart():
    mixed = against_the_law(TASK, 3, 0.0, "SGD", 0.2, change.clip(0.15), steps=8)
    assert mixed["spread"] == 0
    assert mixed["difference"] > 1e-4
    noise = change.block_noise(0.1, 3, 1)
    told_apart = against_the_law(TASK, 3, 0.0, "AdamW", 0.02, noise, steps=4)
    assert told_apart["spread"] > 1e-2


def test_from_zero_adafactor_has_no_single_ratio():
    row = against_the_law(TASK, 8, 1.0, torch.optim.Adafactor, 0.3, start=0.0)
    assert row["high"] == pytest.approx(8, rel=1e-6)
    assert row["low"] < 2
    assert min(row["difference"], row["control"]) > 1e-2
