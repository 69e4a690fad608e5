"""The theorem of the blocks: in exact arithmetic, against NumPy, and on what hypothesis draws."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blocklora_lib.adapters.attach import attach_linear
from blocklora_lib.adapters.updates import AdapterConfig
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.sampling import draw
from blocklora_lib.theory import trajectories as tr

BAR = 1e-12  # float64: 300 steps of a few dozen roundings of 1e-16 each
RATES = {"SGD": 0.3, "momentum": 0.05, "Nesterov": 0.05, "Adam": 1e-2, "AdamW": 1e-2}


def pair(task, config, optimizer, lr, decay, seed=1, ratios=None):
    ours = tr.make_learner(task, config, optimizer, lr, decay, seed)
    return ours, tr.make_learner(task, tr.collapsed(config), optimizer, lr, decay, seed, ratios)


# exact arithmetic: no torch, no rounding


def product(a, b):
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)]
        for row in a
    ]


def combine(a, b, c=1):
    """a + c b"""
    return [[x + c * y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def transpose(a):
    return [list(column) for column in zip(*a, strict=True)]


def exact_sgd(n, lr_b, decay_b, steps, momentum=Fraction(9, 10)):
    """Fit x A Σ B_i to y by SGD with momentum and coupled decay; return A, Σ B_i and the B_i."""
    x, y = [[Fraction(2), Fraction(-1)]], [[Fraction(1), Fraction(3)]]
    a, lr, decay = [[Fraction(1, 3)], [Fraction(2, 7)]], Fraction(1, 20), Fraction(1, 11)
    ups = [[[Fraction(0), Fraction(0)]] for _ in range(n)]
    moment_a, moments = [[Fraction(0)]] * 2, [[[Fraction(0)] * 2]] * n
    for _ in range(steps):
        total = ups[0]
        for up in ups[1:]:
            total = combine(total, up)
        residual = combine(product(product(x, a), total), y, -1)
        grad_a = product(transpose(x), product(residual, transpose(total)))
        grad_b = product(transpose(product(x, a)), residual)
        moment_a = combine(combine(grad_a, a, decay), moment_a, momentum)
        moments = [
            combine(combine(grad_b, up, decay_b), m, momentum)
            for up, m in zip(ups, moments, strict=True)
        ]
        a = combine(a, moment_a, -lr)
        ups = [combine(up, m, -lr_b) for up, m in zip(ups, moments, strict=True)]
    total = ups[0]
    for up in ups[1:]:
        total = combine(total, up)
    return a, total, ups


@pytest.mark.parametrize("n", [2, 3, 7])
def test_in_exact_arithmetic_the_two_are_equal(n):
    lr, decay = Fraction(1, 20), Fraction(1, 11)
    a, total, ups = exact_sgd(n, lr, decay, steps=5)
    one = exact_sgd(1, lr * n, decay / n, steps=5)
    assert (a, total) == one[:2]
    assert all(up == ups[0] for up in ups)
    assert exact_sgd(1, lr * n, decay, steps=5)[1] != total  # the decay left as it is: seen
    assert exact_sgd(1, lr, decay, steps=5)[1] != total


# NumPy, n matrices one by one


def test_the_learner_is_adamw_on_n_matrices_written_out():
    n, width, steps, lr, decay = 3, 2, 40, 1e-2, 0.1
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 6)), random.normal(size=(32, 5))
    tensors = torch.from_numpy(x), torch.from_numpy(y)

    def build():
        layer = nn.Linear(6, 5, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        return layer

    task = tr.Task(
        build,
        lambda model, step: (model(tensors[0]) - tensors[1]).square().mean(),
        lambda model, config, generator: attach_linear(model, "", config, generator),
    )
    config = AdapterConfig(reading="block_rank", rank=width, n_blocks=n, dropout=0.0)
    ours, one = pair(task, config, "AdamW", lr, decay)
    down = ours.adapters.adapters["weight"].A_s.detach().numpy().T.copy()
    ups = [np.zeros((width, 5)) for _ in range(n)]
    matrices = [down, *ups]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in matrices]
    for t in range(1, steps + 1):
        rate = lr * tr.cosine_lr(t - 1, steps, 1.0, 0.01)
        residual = 2 * (config.scale * x @ down @ sum(ups) - y) / y.size
        grads = [config.scale * x.T @ residual @ sum(ups).T] + [
            config.scale * (x @ down).T @ residual
        ] * n
        for p, g, (m, v) in zip(matrices, grads, moments, strict=True):
            p *= 1 - rate * decay
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= rate / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    tr.follow(ours, one, steps)
    expected = config.scale * (down @ sum(ups)).T
    for learner in (ours, one):
        np.testing.assert_allclose(learner.updates()[0].numpy(), expected, rtol=0, atol=1e-13)


# float64, any case


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(tr.OPTIMIZERS)),
    reading=st.sampled_from(("total_rank", "block_rank")),
    n=st.integers(2, 8),
    width=st.integers(1, 4),
    d_in=st.integers(4, 24),
    d_out=st.integers(3, 19),
    dropout=st.sampled_from((0.0, 0.25, 0.1)),
    decay=st.sampled_from((0.0, 1e-2, 0.3)),
    seed=st.integers(0, 10**6),
)
def test_trajectories_coincide(optimizer, reading, n, width, d_in, d_out, dropout, decay, seed):
    rank = width * n if reading == "total_rank" else width
    config = AdapterConfig(reading=reading, rank=rank, n_blocks=n, dropout=dropout)
    task = tr.linear_task(seed, d_in, d_out)
    ours, one = pair(task, config, optimizer, RATES[optimizer] / n, decay, seed)
    path = tr.follow(ours, one, 300)
    assert path["difference"].max() <= BAR
    assert path["spread"].max() == 0
    assert ours.updates()[0].norm() > 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", tr.OPTIMIZERS)
def test_attention_with_dropout_and_what_is_not_corrected(optimizer):
    task = tr.attention_task(2)
    config = AdapterConfig(rank=6, n_blocks=3, targets=("q", "k", "v", "o"))
    lr = RATES[optimizer] / 2
    assert tr.follow(*pair(task, config, optimizer, lr, 0.01), 100)["difference"].max() <= BAR
    for wrong in ((1.0, 1.0), (3.0, 1.0)):
        assert (
            tr.follow(*pair(task, config, optimizer, lr, 0.01, 1, wrong), 10)["difference"].max()
            > 1e6 * BAR
        )
    assert (
        tr.follow(*pair(task, config, optimizer, lr, 0.01, 1, (3.0, 1 / 3)), 10)["difference"].max()
        <= BAR
    )


@pytest.mark.slow
def test_a_clip_in_float64():
    backbone = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="bundled"), "cpu")
    data = load_dataset("fashion")
    shots = draw(data.labels("train"), 1, 1, "nested", data.classes)
    tokens = backbone.tokenize(data.prompts)
    task = tr.clip_task(
        backbone, data.images("train")[shots], data.labels("train")[shots], tokens, 1
    )
    ours, one = pair(task, AdapterConfig(rank=6, n_blocks=3), "AdamW", 2e-2, 1e-2)
    path = tr.follow(ours, one, 6)
    assert path["difference"].max() <= BAR
    assert path["loss"].iloc[-1] < path["loss"].iloc[0]
    # float64 all the way: the loss is float32's but for float32's rounding
    plain = backbone.logit_scale * backbone.encode_images(
        backbone.preprocess(data.images("train")[shots])
    )
    logits = plain @ backbone.encode_prompts(tokens).T
    index = tr.batches(len(shots), 8, 1)(0)
    expected = nn.functional.cross_entropy(logits[index], data.labels("train")[shots][index])
    assert path["loss"].iloc[0] == pytest.approx(expected.item(), rel=1e-5)
    assert all(p.dtype == torch.float64 for p in ours.adapters.model.parameters())


# unequal starts


@pytest.mark.parametrize(
    ("optimizer", "decay", "kept"),
    [
        ("SGD", 0.1, True),
        ("Nesterov", 0.1, True),
        ("AdamW", 1.0, True),
        ("Adam", 0.0, True),
        ("Adam", 0.1, False),
    ],
)
def test_unequal_starts_move_the_start_alone(optimizer, decay, kept):
    """Coupled decay in Adam is the exception: it puts the B_i through Adam's quotient."""
    ours, one = pair(
        tr.linear_task(3), AdapterConfig(rank=6, n_blocks=3), optimizer, RATES[optimizer], decay
    )
    for learner in (ours, one):
        tr.set_blocks(learner.adapters, total=0.1, offsets=0.5, seed=4)
    up = ours.adapters.adapters["weight"].B
    torch.testing.assert_close(up.sum(0), one.adapters.adapters["weight"].B, rtol=0, atol=1e-15)
    before = (up[0] - up[1]).detach().clone()
    path = tr.follow(ours, one, 50)
    assert bool(path["difference"].max() <= BAR) is kept
    after = before * tr.decay_alone(optimizer, RATES[optimizer], decay, 50)[-1]
    assert torch.allclose((up[0] - up[1]).detach(), after, rtol=0, atol=1e-13) is kept


def test_decay_alone_is_the_product_of_the_factors():
    factors = [1 - 0.1 * 0.5 * tr.cosine_lr(step, 20, 1.0, 0.01) for step in range(20)]
    for optimizer in ("SGD", "AdamW"):
        np.testing.assert_allclose(
            tr.decay_alone(optimizer, 0.1, 0.5, 20), np.cumprod(factors), rtol=1e-14
        )


# the parts


def test_masks_are_the_same_for_one_seed_and_torchs_generator_is_given_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen = []
    for seed, step in ((1, 0), (1, 0), (1, 1), (2, 0)):
        with tr.same_masks(seed, step):
            seen.append(torch.rand(3))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("order", [1, -1])
def test_what_diverged_coincides_with_nothing(order):
    """A nan behind another site was 0: trainings without a number could confirm O1."""
    fine, gone = torch.eye(2), torch.full((2, 2), math.nan)
    both = [fine, gone][::order]
    assert tr.relative_difference(both, both) == math.inf
    assert tr.relative_difference([fine], [fine]) == 0


def test_blocks_that_diverged_are_not_equal():
    learner = tr.make_learner(tr.linear_task(0), AdapterConfig(rank=4, n_blocks=2), "SGD", lr=50.0)
    other = tr.make_learner(tr.linear_task(0), AdapterConfig(rank=4, n_blocks=2), "SGD", lr=50.0)
    path = tr.follow(learner, other, 300)
    assert path["difference"].max() == path["spread"].max() == math.inf


def test_the_measures():
    u = [torch.eye(2), torch.zeros(2, 2)]
    assert tr.relative_difference(u, u) == 0
    assert tr.relative_difference([2 * u[0], u[1]], u) == pytest.approx(1)
    ours, one = pair(tr.linear_task(1), AdapterConfig(rank=4, n_blocks=2), "SGD", 0.1, 0.0)
    assert tr.distance_of_blocks(ours.adapters) == (0.0, 0.0)
    ours.adapters.adapters["weight"].B.data[0, 0, 0] = -2.0
    assert tr.distance_of_blocks(ours.adapters) == (2.0, 2.0)
    assert tr.distance_of_blocks(one.adapters) == (0.0, 0.0)
