"""Prompt methods against their equations, written plainly over all positions of open_clip's towers:
logits, loss, gradient by the steps that it makes; what each is at its start; how many numbers it
trains of ViT-B/16.
"""

from __future__ import annotations

import pytest
import torch
from plain_towers import cosines
from prompt_case import STEPS, Case, adamw_steps, entropy, slopes_of

from blocklora_lib.core.seeding import generator
from blocklora_lib.learning.spec import DasslSchedule
from blocklora_lib.methods import MethodSpec

CLOSE = dict(rtol=1e-3, atol=1e-3)  # float32, logits up to 14, after a few steps


@pytest.fixture(scope="module")
def case(tiny_clip):
    return Case(tiny_clip)


def drawn(purpose, *shape):
    return 0.02 * torch.randn(shape, generator=generator(1, purpose))


def words(case, text):
    """Embeddings of words."""
    tokens = case.backbone.tokenize([text])
    return case.model.token_embedding(tokens[0, 1 : 1 + len(text.split())]).detach().clone()


# CoOp


@pytest.mark.parametrize("context", [3, "a photo of a"])
def test_coop_takes_the_steps_of_its_equation(case, context):
    v = drawn("prompts", 3, 16) if context == 3 else words(case, context)
    v.requires_grad_()
    tokens = case.tokens("x x x" if context == 3 else context)

    def logits(pixels):
        return cosines(case.model, pixels, tokens, [v])

    losses = adamw_steps([v], slopes_of(lambda: entropy(logits(case.pixels), case.labels), [v]))
    predictor, found, passes = case.fit("coop", context=context)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    assert abs(losses[0] - losses[-1]) > 0.05
    torch.testing.assert_close(found, logits(case.test).detach(), **CLOSE)
    assert predictor.trainable_parameters == v.numel()
    assert passes == {"image": STEPS * len(case.labels), "text": STEPS * len(case.names)}
    assert (predictor.updates, predictor.images_seen) == (STEPS, STEPS * len(case.labels))


def test_coop_starts_as_zero_shot(case):
    still = case.training.model_copy(update={"lr": 1e-30, "lr_min": 0.0})
    predictor, found, _ = case.fit("coop", {"training": still}, context="a photo of a")
    torch.testing.assert_close(found, case.zero_shot(), rtol=1e-5, atol=1e-5)
    assert predictor.loss[0] == pytest.approx(
        float(entropy(case.zero_shot(case.pixels), case.labels)), rel=1e-5
    )


def test_coops_own_schedule_is_sgd_by_epochs(case):
    """Epochs of two batches of two, the rest of five images left out; the first at 1e-5."""
    v, tokens = drawn("prompts", 3, 16).requires_grad_(), case.tokens("x x x")
    order = torch.cat([torch.randperm(5, generator=generator(1, "shuffle"))])
    random, speed, losses = generator(1, "shuffle"), 0.0, []
    for lr in (1e-5, 0.01, 0.01 * (1 + 0.5) / 2):  # e = 1, 2, 3: cosines of 0 and π/3
        order = torch.randperm(5, generator=random)
        for index in (order[:2], order[2:4]):
            loss = entropy(cosines(case.model, case.pixels[index], tokens, [v]), case.labels[index])
            (slope,) = torch.autograd.grad(loss, [v])
            speed = 0.9 * speed + slope + 5e-4 * v.detach()
            losses.append(loss.item())
            with torch.no_grad():
                v -= lr * speed
    schedule = dict(lr=0.01, epochs=(9, 3, 9), batch_size=2, augment="none")
    few = {"images": case.images[:5], "labels": case.labels[:5], "training": None}
    predictor, found, passes = case.fit("coop", few, context=3, schedule=schedule)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found, cosines(case.model, case.test, tokens, [v]).detach(), **CLOSE)
    assert passes == {"image": 12, "text": 6 * 3}
    assert (predictor.updates, predictor.images_seen) == (6, 12)


@pytest.mark.parametrize(
    ("shots", "classes", "epochs"),
    [(1, 10, 50), (2, 10, 100), (4, 10, 100), (8, 10, 200), (16, 10, 200), (16, 1000, 50)],
)
def test_published_epochs(shots, classes, epochs):
    assert DasslSchedule().of(shots, classes) == epochs


# what all have in common


def test_classes_at_a_time_and_blocks_computed_again_change_nothing(case):
    _, plain, _ = case.fit("coop", context=3)
    saving = case.training.model_copy(update={"class_chunk": 2, "checkpointing": True})
    _, found, _ = case.fit("coop", {"training": saving}, context=3)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_the_tokens_stand_before_other_classes_too(case):
    predictor, found, _ = case.fit("coop", context=3)
    other = case.scores(predictor, ("red fox", "ox", "small cat", "owl"))
    assert other.shape == (len(case.test), 4)
    torch.testing.assert_close(other[:, 1], found[:, 2], rtol=1e-4, atol=1e-4)


def test_nothing_is_left_on_the_backbone(case):
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    case.fit("coop", context=3)[0].close()
    assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())
    assert all(p.grad is None for p in case.model.parameters())


def test_the_seed_draws_the_start(case):
    starts = [case.fit("coop", {"seed": seed}, context=3)[1] for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("coop", dict(context=0), "greater than or equal to 1"),
        ("coop", dict(context=""), "at least 1 character"),
        ("coop", dict(depth=3), "unknown key 'depth'"),
        ("coop", dict(schedule=dict(epoch=3)), "unknown key 'epoch'; did you mean 'epochs'"),
    ],
)
def test_bad_settings_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name=name, settings=settings)


def test_a_schedule_of_its_own_takes_the_place_of_training_settings():
    assert MethodSpec(name="coop").scheduled
    own = MethodSpec(name="coop", settings={"schedule": {}})
    assert not own.scheduled
    assert own.settings["schedule"]["epochs"] == (50, 100, 200)
    assert own.load().settings.schedule == DasslSchedule()


def test_prompts_longer_than_the_context_are_refused(case):
    method = MethodSpec(name="coop", settings={"context": 12}).load()
    method.check(case.backbone, ("ox",))
    with pytest.raises(
        ValueError,
        match=r"method coop with context=12: prompt 'X .* yellow submarine\.' has 17 tokens.* "
        r"reads 16; shorten the class name .*, or learn fewer tokens",
    ):
        method.check(case.backbone, ("ox", "yellow submarine"))
