"""What ends the theorem: each hook against PyTorch's own or a loop, each break against theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocklora_lib.adapters.updates import AdapterConfig
from blocklora_lib.theory import breaks as change
from blocklora_lib.theory import trajectories as tr

BAR = 1e-12  # float64
CONFIG = AdapterConfig(rank=6, n_blocks=3, dropout=0.0)
TASK = tr.linear_task(1)


def difference(
    optimizer="AdamW", lr=0.02, decay=0.01, ours=None, theirs=None, ratios=None, tasks=(TASK, TASK)
):
    block = tr.make_learner(tasks[0], CONFIG, optimizer, lr, decay, 1, **(ours or {}))
    one = tr.make_learner(
        tasks[1], tr.collapsed(CONFIG), optimizer, lr, decay, 1, ratios, **(theirs or {})
    )
    path = tr.follow(block, one, 30)
    return path["difference"].max(), path["spread"].max()


def with_gradients():
    """Adapters after a backward pass."""
    learner = tr.make_learner(TASK, CONFIG, "SGD", 0.1, 0.0, 1)
    tr.set_blocks(learner.adapters, 1.0, 0.0, 1)
    TASK.loss(learner.adapters.model, 0).backward()
    return learner.adapters


RATES, NOISE = change.block_rates((0.5, 1.0, 3.0)), change.block_noise(0.05, 3, 1)
CASES = [  # (settings, ΔW stays, blocks stay equal)
    # B moves by the sum of the rates
    (dict(ours=RATES, ratios=(4.5, 1.0), decay=0.0), True, False),
    (dict(ours=RATES, ratios=(4.5, 1 / 4.5), decay=0.5), False, False),
    # linear: the mean of the noises
    (dict(optimizer="SGD", ours=NOISE, theirs=NOISE), True, False),
    (dict(ours=NOISE, theirs=NOISE), False, False),
    (dict(optimizer="SGD", ours=change.clip(0.1), theirs=change.clip(0.1), lr=0.2), False, True),
    (dict(optimizer="SGD", ours=change.clip(0.1), theirs=change.clip(0.1, 3), lr=0.2), True, True),
    (dict(ours=change.clip_tensors(0.1, 0.1), theirs=change.clip_tensors(0.1, 0.1 / 3**0.5)),
     True, True),
    (dict(optimizer="SGD", ours=change.orthogonalised(), theirs=change.orthogonalised()),
     True, True),
    (dict(tasks=(change.altered(TASK, change.NonlinearEqual),) * 2), True, True),
    (dict(tasks=(change.altered(TASK, change.NonlinearUnequal), TASK)), False, False),
    (dict(tasks=(change.altered(TASK, change.DroppedBlocks), TASK)), False, False),
    (dict(ours=change.rounded_parameters(torch.bfloat16),
          theirs=change.rounded_parameters(torch.bfloat16)),
     False, True),  # 3 B_i is not on the grid of B_i
]  # fmt: skip


@pytest.mark.parametrize(("case", "coincides", "equal"), CASES)
def test_breaks_are_where_theory_has_them(case, coincides, equal):
    found, spread = difference(**case)
    assert bool(found <= BAR) is coincides
    assert coincides or found > 1e-7
    assert bool(spread == 0) is equal


@pytest.mark.parametrize(("ratios", "coincides"), [(None, False), ((1.0, 1.0), True)])
@pytest.mark.parametrize("optimizer", ["LARS", "LAMB", torch.optim.Adafactor])
def test_steps_in_proportion_to_the_parameter_have_ratio_one(optimizer, ratios, coincides):
    scaled = {"LARS": change.norm_scaled, "LAMB": change.adam_norm_scaled}
    hooks = scaled[optimizer]() if optimizer in scaled else {}
    chosen = "SGD" if hooks else optimizer
    ours = tr.make_learner(TASK, CONFIG, chosen, 0.02, 0.0, 1, **hooks)
    one = tr.make_learner(TASK, tr.collapsed(CONFIG), chosen, 0.02, 0.0, 1, ratios, **hooks)
    for learner in (ours, one):
        tr.set_blocks(learner.adapters, 0.1, 0.0, 1)
    assert bool(tr.follow(ours, one, 30)["difference"].max() <= BAR) is coincides


def test_clipping_is_pytorchs():
    ours, theirs = with_gradients(), with_gradients()
    change.clip(0.01)["before_update"](ours, 0)
    torch.nn.utils.clip_grad_norm_(list(theirs.parameters()), 0.01)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        # PyTorch adds 1e-6 to the norm
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=0)
    ours, theirs = with_gradients(), with_gradients()
    change.clip_tensors(0.01, 0.02)["before_update"](ours, 0)
    for p, q, c in zip(ours.parameters(), theirs.parameters(), (0.01, 0.02), strict=True):
        torch.nn.utils.clip_grad_norm_([q], c)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=0)


def test_norms_are_noted_and_large_thresholds_change_nothing():
    adapters, noted = with_gradients(), []
    before = [p.grad.clone() for p in adapters.parameters()]
    change.clip(1e9, noted=noted)["before_update"](adapters, 0)
    assert all(torch.equal(p.grad, g) for p, g in zip(adapters.parameters(), before, strict=True))
    assert sum(noted[0]) == pytest.approx(sum(g.square().sum().item() for g in before))


def test_scaled_and_orthogonalised_gradients():
    adapters = with_gradients()
    scaled = with_gradients()
    change.norm_scaled()["before_update"](scaled, 0)
    for p in scaled.parameters():
        assert p.grad.norm().item() == pytest.approx(p.norm().item())
    change.orthogonalised()["before_update"](adapters, 0)
    up = adapters.adapters["weight"].B.grad
    for block in up:
        torch.testing.assert_close(
            block.T @ block, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12
        )


def test_lamb_is_what_its_paper_says():
    """You et al. (2020), algorithm 2, in NumPy: the moments as sums over all gradients so far.

    Twice with one hook, which must not carry the moments of one training into the next.
    """
    hook, random = change.adam_norm_scaled()["before_update"], np.random.default_rng(1)
    for _ in range(2):
        adapters, seen = with_gradients(), []
        for step in range(4):
            parameters = list(adapters.parameters())
            for p in parameters:
                p.grad = torch.from_numpy(random.standard_normal(p.shape))
            seen.append([p.grad.numpy().copy() for p in parameters])
            hook(adapters, step)
            for at, p in enumerate(parameters):
                m = sum(0.1 * 0.9 ** (step - k) * g[at] for k, g in enumerate(seen))
                v = sum(0.001 * 0.999 ** (step - k) * g[at] ** 2 for k, g in enumerate(seen))
                r = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-6)
                expected = np.linalg.norm(p.detach().numpy()) / np.linalg.norm(r) * r
                np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-11)


def test_rounding_is_on_the_grid_and_at_random_without_bias():
    adapters = with_gradients()
    up = adapters.adapters["weight"].B
    with torch.no_grad():
        up.fill_(1.0 + 2.0**-9)  # between the bfloat16 numbers 1 and 1 + 2^-7, at a quarter
        change.rounded_parameters(torch.bfloat16)["after_update"](adapters, 0)
        assert (up == 1.0).all()
        means = []
        for step in range(400):
            up.fill_(1.0 + 2.0**-9)
            change.rounded_parameters(torch.bfloat16, stochastic=True)["after_update"](
                adapters, step
            )
            assert torch.equal(up, up.bfloat16().double())
            means.append(up.mean().item())
    assert sum(means) / len(means) - 1 == pytest.approx(2.0**-9, rel=0.05)


def test_dropped_blocks_are_the_blocks_on_average():
    learner = tr.make_learner(
        change.altered(TASK, change.DroppedBlocks), CONFIG, "SGD", 0.1, 0.0, 1
    )
    tr.set_blocks(learner.adapters, 1.0, 0.3, 1)
    adapter = learner.adapters.adapters["weight"]
    with torch.no_grad(), tr.same_masks(1, 0):
        drawn = torch.stack([adapter.factors()[1] for _ in range(4000)]).mean(0)
    torch.testing.assert_close(drawn, adapter.B.sum(0).detach(), rtol=0, atol=0.1)
    assert torch.equal(adapter.eval().factors()[1], adapter.B.sum(0))


@pytest.mark.parametrize(
    ("kind", "gains"),
    [(change.NonlinearEqual, (1, 1, 1)), (change.NonlinearUnequal, (0.5, 1, 1.5))],
)
def test_a_nonlinear_adapter_is_a_loop_over_blocks(kind, gains):
    learner = tr.make_learner(change.altered(TASK, kind), CONFIG, "SGD", 0.1, 0.0, 1)
    tr.set_blocks(learner.adapters, 1.0, 0.3, 1)
    adapter = learner.adapters.adapters["weight"]
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = torch.zeros(5, 16, dtype=torch.float64)
    for c, up in zip(gains, adapter.B, strict=True):
        expected = expected + adapter.scale * torch.tanh(c * (x @ adapter.A_s.T)) @ up.T
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-13)
    unit = torch.zeros(1, 24, dtype=torch.float64)
    unit[0, 3] = 1
    torch.testing.assert_close(adapter.delta_weight()[:, 3], adapter(unit)[0], rtol=0, atol=1e-14)


def test_quantisation():
    values = torch.randn(40, 3, generator=tr.generator(1, "q"), dtype=torch.float64)
    for bits in (2, 3, 8):
        rounded = change.quantise(values, bits)
        step = values.abs().max() / (2 ** (bits - 1) - 1)
        assert len(rounded.unique()) <= 2**bits - 1
        assert (rounded - values).abs().max() <= step / 2 * (1 + 1e-12)
    copies = (values / 4).expand(4, 40, 3)
    torch.testing.assert_close(
        change.quantise(copies, 3).sum(0), change.quantise(values, 3), rtol=0, atol=1e-14
    )
    draw = tr.generator(1, "dither")
    mean = torch.stack([change.quantise(values, 3, draw) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, values, rtol=0, atol=0.1)
