"""The training loop: its schedule, its batches, what it optimises, when it stops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from overflow import Overflowing

from blocklora_lib.core.seeding import derive_seed, generator, seeded_torch
from blocklora_lib.data.augment import augment, random_boxes
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import TrainingDiverged, batches, cosine_lr, train
from blocklora_lib.learning.spec import TrainingSpec


def test_cosine_is_pytorchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=1e-6)
    for step in range(50):
        assert cosine_lr(step, 50, 2e-4, 1e-6) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        scheduler.step()


@given(n=st.integers(1, 40), size=st.integers(1, 16), seed=st.integers(0, 99))
def test_an_epoch_shows_every_image_once(n, size, seed):
    per_epoch = math.ceil(n / size)
    drawn = list(
        itertools.islice(batches(n, size, torch.Generator().manual_seed(seed)), 2 * per_epoch)
    )
    for epoch in (drawn[:per_epoch], drawn[per_epoch:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(n))
        assert all(len(b) == size for b in epoch[:-1])


def problem(n: int = 24, classes: int = 3, seed: int = 0):
    """Images whose class is their brightest channel, and a linear classifier of their channel
    means.
    """
    images = torch.randint(100, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).float()
    labels = torch.arange(n) % classes
    images[torch.arange(n), labels] += 100
    weight = torch.nn.Parameter(torch.zeros(classes, 3))
    return images, labels, weight


def fit(spec: TrainingSpec, seed: int = 1, groups=None, logits=None, **options):
    losses, _, weight = fit_and_skip(spec, seed, groups, logits, **options)
    return losses, weight


def fit_and_skip(spec: TrainingSpec, seed: int = 1, groups=None, logits=None, **options):
    """(losses, skipped steps, weight) of the problem."""
    images, labels, weight = problem()
    logits = logits or (lambda x, weight: x.mean((2, 3)) @ weight.T)
    found = train(
        Context(None, None, images, labels, spec, shots=1, seed=seed),
        groups(weight)
        if groups
        else [{"params": [weight], "lr": spec.lr, "weight_decay": spec.weight_decay}],
        lambda pixels: logits(pixels / 255, weight),
        **options,
    )
    return *found, weight.detach()


def test_the_loop_is_adamw_on_the_cosine():
    spec = TrainingSpec(steps_per_shot=12, batch_size=24, lr=0.05, weight_decay=0.1, augment="none")
    losses, weight = fit(spec)
    images, labels, expected = problem()
    optimizer = torch.optim.AdamW(
        [expected], lr=0.05, weight_decay=0.1
    )  # the whole set is one batch
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=1e-6)
    for loss_here in losses:
        loss = F.cross_entropy((images / 255).mean((2, 3)) @ expected.T, labels)
        assert loss_here == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert torch.allclose(weight, expected, atol=1e-6)


def test_groups_keep_their_ratio_to_the_schedule():
    spec = TrainingSpec(steps_per_shot=1, lr=0.01, weight_decay=0.0, augment="none")
    _, slow = fit(spec)
    _, fast = fit(spec, groups=lambda w: [{"params": [w], "lr": 0.04, "weight_decay": 0.0}])
    assert torch.allclose(fast, 4 * slow, rtol=1e-5)  # the first step of Adam is lr times a sign


def test_the_same_seed_gives_the_same_bits_whatever_ran_before_and_gives_torchs_stream_back():
    spec = TrainingSpec(steps_per_shot=9, batch_size=5, lr=0.1, augment="clip_lora")

    def noisy(x, weight):  # dropout draws from torch's global stream
        return F.dropout(x.mean((2, 3)), 0.25) @ weight.T

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = fit(spec, logits=noisy)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1000)
    second = fit(spec, logits=noisy)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert fit(spec, seed=2, logits=noisy)[0] != first[0]


@pytest.mark.parametrize(
    ("logits", "says", "step"),
    [
        (lambda x, w: x.mean((2, 3)) @ w.T * float("nan"), "loss is not finite", 1),
        (lambda x, w: x.mean((2, 3)) @ (w * 1e30).T * 1e30, "not finite", 2),
    ],
)
def test_nan_ends_training_with_step_loss_rate_and_advice(logits, says, step):
    spec = TrainingSpec(steps_per_shot=50, lr=0.5, augment="none")
    with pytest.raises(TrainingDiverged, match=says) as error:
        fit(spec, logits=logits)
    assert error.value.step == step
    assert not math.isfinite(error.value.loss)
    assert error.value.lr == pytest.approx(cosine_lr(step - 1, 50, 0.5, 1e-6))
    assert "lower lr (for example 5.0e-02)" in str(error.value)


def test_advice_is_by_the_rate_of_the_settings_however_late_it_diverges():
    steps = iter([1.0] * 29 + [math.nan])
    with pytest.raises(TrainingDiverged) as error:
        fit(
            TrainingSpec(steps_per_shot=30, lr=0.5, augment="none"),
            logits=lambda x, w: x.mean((2, 3)) @ w.T * next(steps),
        )
    assert error.value.step == 30
    assert error.value.lr < 0.01
    assert "lower lr (for example 5.0e-02)" in str(error.value)


def test_a_loss_that_only_grows_is_divergence():
    spec = TrainingSpec(steps_per_shot=200, lr=10.0, augment="none")
    with pytest.raises(TrainingDiverged, match="mean loss of 20 steps"):
        fit(
            spec,
            logits=lambda x, w: (
                -(w.T * 1.0).sum(0).expand(len(x), 3) * x.mean((2, 3)).argmin(1)[:, None] * 10
                + (w[:, 0] * torch.tensor([-1.0, 0, 1.0])).sum() ** 2
                * F.one_hot(x.mean((2, 3)).argmin(1), 3)
            ),
        )


def test_a_parameter_that_is_not_finite_is_found_after_the_last_step():
    spec = TrainingSpec(steps_per_shot=1, lr=1e38, lr_min=0, weight_decay=10.0, augment="none")
    with pytest.raises(TrainingDiverged, match="a trained parameter is not finite"):
        fit(spec, groups=lambda w: [{"params": [w], "lr": 1e39, "weight_decay": 1.0}])


def means(dtype):
    """Logits from channel means through a frozen product in `dtype`, as a half-precision backbone
    has it.
    """

    def logits(x, weight):
        return (x.mean((2, 3)).to(dtype) @ weight.T.to(dtype)).float()

    return logits


def overflowing(*steps):
    """Logits whose backward pass overflows at these steps (from 1); keeps the weights seen at each
    step.
    """
    seen = []

    def logits(x, weight):
        seen.append(weight.detach().clone())
        return Overflowing.apply(x.mean((2, 3)) @ weight.T, len(seen) in steps)

    return logits, seen


def test_scaling_by_a_power_of_two_changes_no_bit():
    spec = TrainingSpec(steps_per_shot=30, batch_size=7, lr=0.05)
    for dtype in (
        torch.float32,
        torch.bfloat16,
    ):  # the same exponents: nothing underflows or overflows
        plain, scaled = (fit(spec, logits=means(dtype), scaled=s) for s in (False, True))
        assert plain[0] == scaled[0]
        assert torch.equal(plain[1], scaled[1])


def test_scaling_keeps_gradients_that_float16_would_lose():
    def faint(
        x, weight
    ):  # gradients of about 1e-9 pass through float16, whose least number is 6e-8
        return (x.mean((2, 3)) @ weight.T).half().float() * 1e-8

    spec = TrainingSpec(steps_per_shot=8, lr=0.05, weight_decay=0.0, augment="none")
    lost, kept = (fit(spec, logits=faint, scaled=s)[1] for s in (False, True))
    assert not lost.any()
    assert kept.abs().max() > 0.01


def test_an_overflow_skips_the_step_halves_the_factor_and_the_schedule_moves_on(monkeypatch):
    factors, rates = [], []
    scaler = torch.amp.GradScaler

    class Recorded(scaler):
        def update(self, new_scale=None):
            super().update(new_scale)
            factors.append(self.get_scale())

    step = torch.optim.AdamW.step

    def recorded(self, *given, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **options)

    monkeypatch.setattr(torch.amp, "GradScaler", Recorded)
    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    spec = TrainingSpec(steps_per_shot=6, lr=0.05, augment="none")
    logits, seen = overflowing(2, 3)
    losses, skipped, _ = fit_and_skip(spec, logits=logits, scaled=True)
    assert skipped == (2, 3)
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert torch.equal(seen[1], seen[2])  # what steps 2 and 3 saw, and step 4: no update between
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[3], seen[4])
    assert factors == [2.0**16, 2.0**15, *[2.0**14] * 4]  # GradScaler's first factor is 2 to the 16
    assert rates[-3:] == [cosine_lr(step, 6, 0.05, 1e-6) for step in (3, 4, 5)]


def test_steps_skipped_are_divergence_only_if_they_never_end():
    spec = TrainingSpec(steps_per_shot=60, lr=0.05, augment="none")
    logits, _ = overflowing(*range(5, 24))  # 19 in a row
    assert len(fit(spec, logits=logits, scaled=True)[0]) == 60
    logits, _ = overflowing(*range(5, 61))
    with pytest.raises(
        TrainingDiverged, match="the gradients of 20 steps in a row are not finite"
    ) as error:
        fit(spec, logits=logits, scaled=True)
    assert error.value.step == 24
    logits, _ = overflowing(2)
    with pytest.raises(
        TrainingDiverged, match="not finite"
    ):  # nothing is skipped where nothing is scaled
        fit(spec, logits=logits)


def test_seeds_of_purposes_are_independent():
    seeds = {
        derive_seed(seed, purpose)
        for seed in range(50)
        for purpose in ("draw", "shuffle", "dropout")
    }
    assert len(seeds) == 150
    assert derive_seed(1, "draw") == derive_seed(1, "draw")
    before = torch.get_rng_state()
    with seeded_torch(1, "dropout"):
        a = torch.rand(3)
    with seeded_torch(1, "dropout"):
        assert torch.equal(torch.rand(3), a)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_crop_of_the_whole_image_is_the_image(monkeypatch):
    import blocklora_lib.data.augment as module

    images = torch.rand(4, 3, 16, 16) * 255
    assert torch.equal(augment(images, "none", generator(1, "a")), images)
    one, zero = torch.ones(4), torch.zeros(4)
    monkeypatch.setattr(module, "random_boxes", lambda n, smallest, g: (one, one, zero, zero))
    assert torch.allclose(augment(images, "light", generator(1, "a")), images, atol=1e-3)  # of 255
    mirrored = augment(images, "clip_lora", generator(1, "a"))
    for view, image in zip(mirrored, images, strict=True):
        assert any(torch.allclose(view, x, atol=1e-3) for x in (image, image.flip(-1)))
    quarter = torch.full((4,), 0.5)
    monkeypatch.setattr(
        module, "random_boxes", lambda n, smallest, g: (quarter, quarter, quarter, zero)
    )
    upper_right = F.interpolate(images[..., :8, 8:], (16, 16), mode="bilinear", align_corners=False)
    view = augment(images, "light", generator(1, "a"))
    assert torch.allclose(
        view[..., 1:-2, 1:-1], upper_right[..., 1:-2, 1:-1], atol=1e-3
    )  # borders see neighbours


@given(seed=st.integers(0, 1000), smallest=st.sampled_from([0.08, 0.6]))
def test_crop_boxes_lie_inside_and_keep_their_area_and_shape(seed, smallest):
    width, height, left, top = random_boxes(64, smallest, torch.Generator().manual_seed(seed))
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1 + 1e-6).all()
    assert (top + height <= 1 + 1e-6).all()
    area, ratio = width * height, width / height
    assert (area >= smallest - 1e-6).all()
    assert (area <= 1 + 1e-6).all()
    assert (ratio >= 3 / 4 - 1e-5).all()
    assert (ratio <= 4 / 3 + 1e-5).all()
