"""LoRA, and Block-LoRA with n = 1, against an independent re-statement of CLIP-LoRA's code."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_lora_case import (
    BARS,
    CLASS_NAMES,
    SEED,
    STD,
    TINY_BARS,
    Case,
    apart,
    centred,
    evaluation_transform,
    gradients,
    large_updates,
    normalise,
    pictures,
    predict,
    prompts,
    put,
    recorded_rates,
    steps_apart,
    tiny_case,
    values,
)
from PIL import Image
from torchvision.transforms import RandomResizedCrop

import blocklora_lib.learning.loop
from blocklora_lib.core.seeding import generator
from blocklora_lib.data.augment import random_boxes
from blocklora_lib.learning.adapter_fit import AdapterPredictor
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.evaluation import evaluate_images
from blocklora_lib.learning.loop import train
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.measure.other_code import clip_lora as reference

# At the size of ViT-B/16


@pytest.fixture(scope="module")
def vit_b16():
    case = Case("ViT-B-16-quickgelu")
    assert case.backbone.resolution == 224
    assert case.tokens.shape == (4, 77)
    start = values(case.theirs().adapters())
    model, theirs = case.train_theirs()
    return case, start, model, theirs


@pytest.mark.rare  # half a minute; the tiny model's steps below see the same
@pytest.mark.parametrize(
    ("method", "settings"), [("lora", {"rank": 2}), ("block_lora", {"rank": 2, "n_blocks": 1})]
)
def test_five_steps_stay_together_at_vit_b16_size(vit_b16, method, settings):
    case, start, theirs, their_steps = vit_b16
    predictor, our_steps = case.fit(method, **settings)
    try:
        assert predictor.trainable_parameters == sum(p.numel() for p in theirs.parameters())
        found = steps_apart(our_steps, their_steps, start)
        assert all(found[what] < BARS[what] for what in found), found
        if method == "lora":
            check_one_pass_with_large_updates(case, predictor)
    finally:
        predictor.close()


def check_one_pass_with_large_updates(case: Case, predictor: AdapterPredictor) -> None:
    """Logits, loss and gradients away from B = 0; then the merged weights that inference uses."""
    given, theirs, ours = large_updates(case), case.theirs().train(), case.adapters()
    put(ours, given)
    put(theirs.adapters(), given)
    images, labels = case.images[:2], case.labels[:2]
    with torch.inference_mode(), predictor.inference():
        merged = predictor.logits(
            case.backbone.preprocess(images), predictor.classifier(case.tokens)
        ).clone()
    our_logits = predictor.training_logits()(images.float())
    their_logits = theirs.logits(normalise(images.float()), case.tokens)
    losses = [F.cross_entropy(logits, labels) for logits in (our_logits, their_logits)]
    for loss, adapters in zip(losses, (ours, theirs.adapters()), strict=True):
        for adapter in adapters.values():
            adapter.zero_grad()
        loss.backward()
    their_gradients = gradients(theirs.adapters())
    found = {
        "logits": max(apart(centred(x), centred(their_logits)) for x in (our_logits, merged)),
        "loss": abs(losses[0].item() / losses[1].item() - 1),
        "gradient": max(
            apart(mine, their)
            for key, pair in gradients(ours).items()
            for mine, their in zip(pair, their_gradients[key], strict=True)
        ),
    }
    assert all(found[what] < BARS[what] for what in found), found


# On a tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Case:
    return tiny_case(tmp_path_factory.mktemp("clip"))


def off_by_one(step: int, steps: int, lr: float, lr_min: float) -> float:
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * (step + 1) / steps)) / 2


@pytest.mark.parametrize(
    ("ours", "theirs", "seen_in"),
    [
        ({}, {}, set()),
        ({"scaling": "rank"}, {}, {"loss", "gradient"}),
        ({"alpha": 1.01}, {}, {"gradient"}),
        ({"training": {"weight_decay": 0.0}}, {}, {"decay"}),
        ({}, {"weight_decay": 0.0}, {"decay"}),
        ({"training": {"lr_min": 0.0}}, {}, {"lr"}),
        ({"training": {"betas": (0.9, 0.99)}}, {}, {"change"}),
        pytest.param(
            *({}, {"scheduler_first": True}, {"lr", "change", "loss"}),
            marks=pytest.mark.filterwarnings("ignore:Detected call of"),
        ),
        ({"cosine_lr": off_by_one}, {}, {"lr", "change", "loss"}),
    ],
)
def test_a_changed_setting_is_seen(tiny, monkeypatch, ours, theirs, seen_in):
    ours = dict(ours)
    if schedule := ours.pop("cosine_lr", None):
        monkeypatch.setattr(blocklora_lib.learning.loop, "cosine_lr", schedule)
    start = values(tiny.theirs().adapters())
    _, their_steps = tiny.train_theirs(**theirs)
    predictor, our_steps = tiny.fit(**ours)
    predictor.close()
    found = steps_apart(our_steps, their_steps, start)
    beyond = {what for what in found if found[what] >= TINY_BARS[what]}
    assert beyond >= seen_in if seen_in else not beyond, found


def test_the_activation_is_seen(tiny):
    """GELU in place of QuickGELU: what a wrong name of the backbone would do."""
    theirs = tiny.theirs().eval()
    images = tiny.images[:2]
    right = tiny.backbone.encode_images(tiny.backbone.preprocess(images))
    blocks = [b for t in (tiny.backbone.model.visual.transformer,) for b in t.resblocks]
    quick = [block.mlp.gelu for block in blocks]
    for block in blocks:
        block.mlp.gelu = torch.nn.GELU()
    wrong = tiny.backbone.encode_images(tiny.backbone.preprocess(images))
    for block, activation in zip(blocks, quick, strict=True):
        block.mlp.gelu = activation
    with torch.no_grad():
        expected = F.normalize(theirs.encode_image(normalise(images.float())), dim=-1)
    assert apart(right, expected) < 1e-5
    assert apart(wrong, expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 4])
def test_every_learning_rate_of_a_run_is_theirs(shots):
    spec = TrainingSpec(augment="none")  # the defaults are CLIP-LoRA's
    steps = spec.steps(shots)
    assert steps == 500 * shots
    assert TrainingSpec().steps(16) == 8000
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    ours: list[float] = []
    with recorded_rates(ours):
        groups = [{"params": [weight], "lr": spec.lr, "weight_decay": spec.weight_decay}]
        images = torch.rand(2, 3, 2, 2) * 255
        context = Context(None, None, images, torch.arange(2), spec, shots, seed=1)
        train(context, groups, lambda x: x.mean((2, 3)) @ weight.T)
    optimizer, scheduler = reference.optimisation([torch.nn.Parameter(torch.zeros(1))], 2e-4, steps)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # CosineAnnealingLR multiplies its way along the cosine: rounding errors of float64 add up
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours[0] == 2e-4
    assert ours[1:] != pytest.approx(theirs[:-1], rel=1e-9)


# Evaluation, preprocessing, crops


def test_evaluation_takes_the_largest_cosine_as_they_do(tiny):
    predictor, _ = tiny.fit()
    try:
        theirs, given = tiny.theirs(), large_updates(tiny)
        put(tiny.adapters(), given)
        put(theirs.adapters(), given)
        images = pictures(64, tiny.backbone.resolution, seed=3)
        predicted = predict(theirs, normalise(images.float()), tiny.tokens)
        assert len(predicted.unique()) > 1
        labels = predicted.clone()
        labels[:5] = (labels[:5] + 1) % len(CLASS_NAMES)
        dataset = SimpleNamespace(prompts=prompts(CLASS_NAMES))
        count = evaluate_images(predictor, tiny.backbone, dataset, images, labels)
        assert (count.correct, count.total) == (59, 64)
    finally:
        predictor.close()


@pytest.mark.parametrize("side", [20, 32, 96, 300])
def test_square_images_are_read_as_theirs(tiny, side):
    """PIL rounds and clips to 8 bits after each of the two passes of a resize; the library clips,
    once.
    """
    image = pictures(1, side, seed=side)[0]
    pil = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    theirs = evaluation_transform(tiny.backbone.resolution)(pil)
    ours = tiny.backbone.preprocess(image[None])[0]
    levels = (ours - theirs) * torch.tensor(STD).view(3, 1, 1) * 255
    assert float(levels.abs().max()) < (3 if side != 32 else 1e-3)  # of 255
    assert float(levels.abs().mean()) < 0.5


@pytest.mark.slow
def test_crop_boxes_of_square_images_have_their_distribution():
    n, side = 4000, 4000  # the boxes of torchvision are whole pixels
    width, height, left, top = random_boxes(n, 0.08, generator(SEED, "augmentation"))
    blank = torch.empty(1, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = [RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    top_, left_, height_, width_ = (torch.tensor(x) / side for x in zip(*drawn, strict=True))
    ours, theirs = (
        torch.stack([w * h, (w / h).log(), x, y, (x - y).abs()], 1).double()
        for w, h, x, y in ((width, height, left, top), (width_, height_, left_, top_))
    )
    for power in (1, 2):
        a, b = ours**power, theirs**power
        z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / n).sqrt()
        assert float(z.abs().max()) < 4, z
