"""One curve for all cuts: against decimals of 50 digits, Adam by hand, and where it must part."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import partial
from itertools import chain

import pytest
import torch

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.theory import one_curve as one
from blocklora_lib.theory import trajectories as tr

TASK = tr.linear_task(1)
TAU, RATE, DECAY = 0.03, 0.02, 0.1
ADAMW = partial(torch.optim.AdamW, eps=1e-30)  # 0 would make 0/0 of the first step of A
BASE = AdapterConfig(reading="block_rank", rank=2, n_blocks=1, dropout=0.0)


# whole trainings in decimals, without torch and without the library


def by_hand(n, s, sigma, rate_a, rate_b, decays=(0, 0), eps=(0, 0), adam=True, steps=8):
    """Fit y = ΔW x, ΔW = s ΣB_i A of one row and width 1; return ΔW after every step."""
    with localcontext() as context:
        context.prec = 50
        samples = [((2, -1), 1), ((1, 3), -2), ((-1, 1), 4)]
        a = [sigma * Decimal("0.3"), sigma * Decimal("-0.7")]
        blocks, moments, path = [Decimal(0)] * n, {}, []

        def step(name, g, epsilon, t):
            if not adam:
                return g
            first, second = moments.get(name, (Decimal(0), Decimal(0)))
            b1, b2 = Decimal("0.9"), Decimal("0.999")
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
            moments[name] = first, second
            size = (second / (1 - b2**t)).sqrt() + epsilon
            return first / (1 - b1**t) / size if size else Decimal(0)

        for t in range(1, steps + 1):
            total = s * sum(blocks)
            errors = [(total * (a[0] * x[0] + a[1] * x[1]) - y, x) for x, y in samples]
            of_b = s * sum(e * (a[0] * x[0] + a[1] * x[1]) for e, x in errors)
            of_a = [total * sum(e * x[i] for e, x in errors) for i in (0, 1)]
            for i in (0, 1):
                move = step(f"a{i}", of_a[i], eps[0], t)
                a[i] = (1 - rate_a * decays[0]) * a[i] - rate_a * move
            moves = [step(f"b{i}", of_b, eps[1], t) for i in range(n)]
            blocks = [
                (1 - rate_b * decays[1]) * b - rate_b * m
                for b, m in zip(blocks, moves, strict=True)
            ]
            path.append([s * sum(blocks) * entry for entry in a])
        return path


def at(n, s, sigma, tau="0.05", rate="0.02", decay="0.1", epsilon="0", **more):
    """The rates, decays and ε by which the statement makes all of one τ the same."""
    with localcontext() as context:
        context.prec = 50
        s, sigma, tau, rate, decay = map(Decimal, (s, sigma, tau, rate, decay))
        epsilon = Decimal(epsilon)
        rate_a, rate_b = rate * sigma, tau / (n * s * sigma)
        given = dict(rate_a=rate_a, rate_b=rate_b, eps=(epsilon / sigma, epsilon * s * sigma))
        given |= dict(decays=(decay / sigma, decay * rate / rate_b))
    return by_hand(n, s, sigma, **(given | more))


def apart(ours, theirs):
    pairs = zip(chain(*ours), chain(*theirs), strict=True)
    return max(float(abs(x - y)) for x, y in pairs)


@pytest.mark.parametrize("form", [(2, "0.7", 1), (8, 1, 1), (3, "0.25", 1), (1, "0.3", 10)])
def test_of_one_tau_all_are_one_training_to_forty_digits(form):
    one_b = at(1, 1, 1)
    assert apart(at(*form), one_b) < 1e-40
    assert apart(at(*form, epsilon="0.01"), at(1, 1, 1, epsilon="0.01")) < 1e-40
    assert apart(at(*form, tau="0.051"), one_b) > 1e-5
    assert apart(at(*form, rate="0.021"), one_b) > 1e-5
    assert apart(at(*form, decays=(Decimal("0.1"), Decimal("0.1"))), one_b) > 1e-5  # as it is
    fixed = dict(eps=(Decimal("0.01"), Decimal("0.01")))
    if Decimal(form[1]) * form[2] != 1:
        assert apart(at(*form, adam=False), at(1, 1, 1, adam=False)) > 1e-5
        assert apart(at(*form, **fixed), at(1, 1, 1, **fixed)) > 1e-5


def test_sgd_has_a_law_with_the_square_of_the_scale():
    """Its step reads the gradient, s G: T moves by n s² η_B."""
    rate = Decimal("0.02")

    def sgd(n, s):
        s = Decimal(s)
        return by_hand(n, s, 1, rate, Decimal("0.01") / (n * s * s), adam=False)

    assert apart(sgd(4, "0.5"), sgd(1, 1)) < 1e-40


# the library's learners


def compared(config, optimizer=ADAMW, tau=TAU, rate=RATE, other=None, **more):
    """Largest relative difference in ΔW to BASE at τ, over 20 steps in float64."""
    ours, theirs = (
        tr.make_learner(TASK, c, o, **(one.rates(c, t, r, DECAY) | extra))
        for c, o, t, r, extra in (
            (config, optimizer, tau, rate, more),
            (BASE, other or optimizer, TAU, RATE, {}),
        )
    )
    return tr.follow(ours, theirs, 20)["difference"].max()


FORMS = [
    dict(reading="block_rank", rank=2, n_blocks=8),
    dict(rank=6, n_blocks=3),
    dict(rank=6, n_blocks=3, scaling="rank"),
    dict(rank=10, n_blocks=5, alpha=3.0),
    dict(kind="lora", rank=2, alpha=0.1),
    dict(kind="collapsed", rank=6, n_blocks=3),
    dict(rank=6, n_blocks=3, init_scale=10.0),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_learners_of_one_tau_coincide(form):
    config = AdapterConfig(**({"n_blocks": 1, "dropout": 0.0} | form))
    # float64; a start of A ten times as large is drawn in float32, another number by a rounding
    bar = 1e-5 if "init_scale" in form else 1e-12
    assert compared(config) < bar
    assert compared(config, tau=1.01 * TAU) > 1e-4
    assert compared(config, rate=1.01 * RATE) > 1e-4


def test_learners_part_where_a_hypothesis_fails():
    config = AdapterConfig(rank=6, n_blocks=3, dropout=0.0)
    assert compared(config, "SGD") > 1e-2
    assert compared(config, partial(torch.optim.AdamW, eps=1e-2)) > 1e-4  # of one size for all
    ratio = one.rates(config, TAU, RATE, DECAY)["ratios"][0]
    assert compared(config, ratios=(ratio, 1.0)) > 1e-4  # the decay as it is
    assert compared(AdapterConfig(reading="input", rank=2, n_blocks=2, dropout=0.0)) > 1e-2
    assert compared(AdapterConfig(rank=9, n_blocks=3, dropout=0.0)) > 1e-2  # another width


# the first step


def at_the_start(task, config):
    learner = tr.make_learner(task, config, ADAMW, **one.rates(config, TAU, RATE))
    return learner, lambda: task.loss(learner.adapters.model, 0)


@pytest.mark.parametrize("form", FORMS[:-1], ids=str)
def test_the_first_step_of_adam_goes_along_the_line_by_tau(form):
    config = AdapterConfig(**({"n_blocks": 1, "dropout": 0.0} | form))
    learner, loss = at_the_start(TASK, config)
    along = one.line(learner.adapters, loss)[1]
    expected = along(TAU)
    learner.step(0)
    assert loss().item() == pytest.approx(expected, rel=1e-12)
    assert loss().item() != pytest.approx(along(1.01 * TAU), rel=1e-6)


def test_on_a_quadratic_loss_the_threshold_is_where_a_step_stops_helping():
    config = AdapterConfig(rank=6, n_blocks=3, dropout=0.0)
    learner, loss = at_the_start(TASK, config)
    start = loss().item()
    found = one.first_step(learner.adapters, loss)
    assert found.crossing == pytest.approx(found.threshold, rel=1e-5)  # 20 halvings
    assert loss().item() == start  # left as it was
    for factor, helps in ((0.999, True), (1.001, False)):
        learner, loss = at_the_start(TASK, config)
        given = one.rates(config, factor * found.threshold, RATE)
        learner = tr.make_learner(TASK, config, ADAMW, **given)
        learner.step(0)
        assert (TASK.loss(learner.adapters.model, 0).item() < start) is helps


@pytest.mark.parametrize("at", [0.2, 120.0])
def test_a_crossing_is_found_far_below_and_far_above_the_threshold(monkeypatch, at):
    """Of τ* near 2: a crossing at 0.1 τ* was told as 0.23 τ*, one at 60 τ* as none."""
    steep = (1 - at / 2) / at**3 if at < 1 else 0.0

    def along(t):
        if at > 1 and t > 1:
            return 0.5 if t < at else 1.5
        return 1 - t + t**2 / 2 + steep * t**4

    monkeypatch.setattr(one, "line", lambda adapters, loss: (1.0, along))
    found = one.first_step(None, None)
    assert found.crossing == pytest.approx(at, rel=1e-4)
    assert not 0.25 < found.crossing / found.threshold < 47


def test_slope_and_curvature_are_those_of_autograd():
    """The loss as a function of ΔW alone, through a Hessian-vector product."""
    task = tr.attention_task(1)
    config = AdapterConfig(rank=6, n_blocks=3, dropout=0.0)
    learner, loss = at_the_start(task, config)
    found = one.first_step(learner.adapters, loss)
    ups = tr.split_parameters(learner.adapters)[1]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(loss(), ups, create_graph=True)
        signs = [gradient.detach().sign() for gradient in first]
        dot = sum((g * v).sum() for g, v in zip(first, signs, strict=True))
        second = torch.autograd.grad(dot, ups)
    # all blocks move together: a step t of T is one of t/(n s) in each
    unit = 3 * config.scale
    assert found.slope == pytest.approx(dot.item() / unit, rel=1e-10)
    h = sum((g * v).sum().item() for g, v in zip(second, signs, strict=True)) / unit**2
    assert found.curvature == pytest.approx(h, rel=0.02)  # a difference over a finite step


def test_a_loss_that_bends_down_is_told():
    learner, loss = at_the_start(TASK, BASE)
    with pytest.raises(ValueError, match="look at another start"):
        one.first_step(learner.adapters, lambda: 100 - loss())


# what training can reach


def test_no_gradients_take_adam_further_and_some_take_it_there():
    draws = torch.Generator().manual_seed(1)
    steps, betas = 12, (0.9, 0.999)
    factors = [1 - t / steps for t in range(steps)]
    bound = one.reach(factors, betas)
    assert 1 <= bound / sum(factors) < 1.1
    farthest = 0.0
    for _ in range(20):
        entry = torch.zeros(64, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([entry], lr=1.0, betas=betas, eps=1e-30)
        for factor in factors:
            size = torch.randn(64, generator=draws, dtype=torch.float64).exp()
            entry.grad = -size * (torch.rand(64, generator=draws) < 0.95)
            optimizer.param_groups[0]["lr"] = factor
            optimizer.step()
        farthest = max(farthest, entry.abs().max().item())
    assert sum(factors) / 2 < farthest <= bound
    last = [0.0] * (steps - 1) + [1.0]
    entry = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([entry], lr=1.0, betas=betas, eps=1e-30)
    for t, factor in enumerate(last):
        age = steps - 1 - t
        entry.grad = torch.tensor([-((betas[0] / betas[1]) ** age)], dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = factor
        optimizer.step()
    assert entry.item() == pytest.approx(one.reach(last, betas), rel=1e-12)  # equality
    assert math.isclose(one.reach([1.0]), 1.0)


def test_half_of_the_gain_is_lost_between_two_points_by_the_logarithm():
    points = [(1.0, 20.0), (2.0, 40.0), (4.0, 35.0), (16.0, 15.0), (64.0, 39.0)]
    # best 40, start 10: half is 25, midway between 35 and 15
    assert one.half_lost(points, 10.0) == pytest.approx(8.0, rel=1e-12)
    assert math.isnan(one.half_lost(points[:3], 10.0))
    assert math.isnan(one.half_lost([(1.0, 20.0), (2.0, 40.0)], 10.0))  # a rise is no loss


# on a CLIP


@pytest.mark.slow
def test_at_its_own_tau_it_is_the_profiles_run_and_at_another_it_is_not():
    smoke, bench = load_profile("smoke"), Workbench("cpu")
    spec = next(
        s
        for s in expand(smoke, "few_shot")
        if (s.dataset, s.shots, s.seed, s.method.name) == ("chess", 1, 1, "block_lora")
    )
    reference = execute(spec, bench).result.accuracy["chess"].accuracy
    data, context = one.few_shots(bench, smoke, "chess", 1, 1)
    config = smoke.entry("block_lora").adapter_config()
    lr = context.to_train()[2].lr
    own = one.per_rate(config) * lr
    assert one.accuracy(data, context, config, own, lr) == reference
    other = AdapterConfig(reading="block_rank", rank=1, n_blocks=4)
    assert one.accuracy(data, context, other, own, lr) == reference
    assert one.accuracy(data, context, config, 20 * own, lr) != reference
