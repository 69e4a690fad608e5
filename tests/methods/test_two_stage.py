"""2SFS: its two stages against open_clip and torch written out, its numbers, budget and end."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import profile_facts
from open_clip.model import CLIP
from torch import nn

from blocklora_lib.clip.backbone import Backbone, BackboneSpec, load_backbone
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.core.seeding import derive_seed, generator
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import TrainingDiverged, batches
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.methods import MethodSpec, get_method
from blocklora_lib.methods.two_stage import block_norms
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.workbench import Workbench

PROMPTS = ["a photo of a cat.", "a photo of a small yellow submarine.", "a photo of an ox."]
STEPS = dict(min_steps=5, max_steps=5, batch_size=4, lr=1e-2, augment="none")


@pytest.fixture(params=["TinyCLIP", "PocketCLIP"])
def backbone(request, tiny_clip):
    tiny = request.param == "TinyCLIP"
    spec = (tiny_clip, "none") if tiny else (request.param, "bundled")
    return load_backbone(BackboneSpec(name=spec[0], pretrained=spec[1]), "cpu")


def context_of(backbone, **training) -> Context:
    side = backbone.resolution
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    return Context(
        backbone=backbone,
        tokens=backbone.tokenize(PROMPTS),
        images=images,
        labels=torch.tensor([0, 0, 1, 1, 2, 2]),
        training=TrainingSpec(**STEPS | training),
        shots=2,
        seed=3,
    )


def fit(context, **settings):
    method = get_method("two_stage")
    return method(method.Settings(**settings)).fit(context)


def bits(backbone):
    return {n: (t.clone(), t.requires_grad) for n, t in backbone.named_parameters()}


def assert_untouched(backbone, before):
    for name, p in backbone.named_parameters():
        assert torch.equal(p, before[name][0]), name
        assert p.requires_grad == before[name][1] is False, name


def by_hand(context, share):
    """Both stages by open_clip's own forward and torch's AdamW and cosine; norms are found by name.

    Returns losses, the trained norms by name, and the unit rows of w.
    """
    import copy

    backbone = context.backbone
    model, spec = copy.deepcopy(backbone.model), context.training
    names = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
    trained = {n: p for n, p in model.named_parameters() if "resblocks" in n and n.endswith(names)}
    scale, losses, n = model.logit_scale.exp(), [], len(context.images)

    def f(index):
        return F.normalize(model.encode_image(backbone.normalise(context.images[index])), dim=-1)

    def text():
        return F.normalize(model.encode_text(context.tokens), dim=-1)

    def stage(parameters, seed, steps, rows):
        optimizer = torch.optim.AdamW(
            parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, spec.lr_min)
        order = batches(n, spec.batch_size, generator(seed, "shuffle"))
        for _ in range(steps):
            index = next(order)
            loss = F.cross_entropy(scale * f(index) @ rows().T, context.labels[index])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()

    first = int(5 * share)
    for p in trained.values():
        p.requires_grad_()
    if first:
        stage(trained.values(), context.seed, first, text)
    for p in trained.values():
        p.requires_grad_(False)
    w = text().detach().clone().requires_grad_()
    if first < 5:
        seed = derive_seed(context.seed, "second stage")
        stage([w], seed, 5 - first, lambda: F.normalize(w, dim=-1))
    logits = scale * f(slice(None)) @ F.normalize(w, dim=-1).T
    return losses, trained, logits.detach()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.6, 0.0, 1.0])
def test_both_stages_are_those_written_out(backbone, share):
    context, before = context_of(backbone), bits(backbone)
    losses, norms, logits = by_hand(context, share)
    predictor = fit(context, share=share)
    torch.testing.assert_close(
        torch.tensor(predictor.loss), torch.tensor(losses), rtol=1e-4, atol=1e-4
    )
    own = dict(backbone.model.named_parameters())
    for name, p in norms.items():
        # Adam's steps have the rate's size however small a gradient is: rounding of tiny ones shows
        assert (own[name] - p).abs().mean() < 1e-4, name
        assert torch.equal(own[name], before[f"model.{name}"][0]) == (share == 0), name
    others = {f"model.{n}" for n in own} - {f"model.{n}" for n in norms}
    assert all(torch.equal(backbone.get_parameter(n), before[n][0]) for n in others)
    with torch.inference_mode():
        found = predictor.logits(
            backbone.normalise(context.images), predictor.classifier(context.tokens)
        )
    # logits up to 100, after five steps of Adam
    torch.testing.assert_close(found, logits, rtol=1e-2, atol=1e-2)
    predictor.close()
    assert_untouched(backbone, before)


@pytest.mark.parametrize("how", [{}, dict(checkpointing=True, class_chunk=2, share_prefix=True)])
def test_gradients_of_the_norms_are_open_clips(backbone, how):
    """On the packed path, of frozen products and MLPs, in each of its ways."""
    context = context_of(backbone)
    norms = [p for norm in block_norms(backbone) for p in norm.parameters()]
    for p in norms:
        p.requires_grad_()
    try:
        images, model = backbone.normalise(context.images), backbone.model
        packed = backbone.pack(
            context.tokens,
            share_prefix=how.get("share_prefix", False),
            class_chunk=how.get("class_chunk"),
        )
        again = how.get("checkpointing", False)
        ours = backbone.encode_images(images, checkpoint=again) @ (
            backbone.encode_prompts(packed, checkpoint=again).T
        )
        theirs = F.normalize(model.encode_image(images), dim=-1) @ (
            F.normalize(model.encode_text(context.tokens), dim=-1).T
        )
        found, expected = (
            torch.autograd.grad(F.cross_entropy(50 * logits, context.labels), norms)
            for logits in (ours, theirs)
        )
    finally:
        for p in norms:
            p.requires_grad_(False)
    for mine, reference in zip(found, expected, strict=True):
        assert reference.abs().max() > 0
        assert (mine - reference).norm() <= 1e-4 * reference.norm() + 1e-6


def test_step_0_is_zero_shot(backbone):
    context = context_of(backbone, lr=1e-30, lr_min=0.0)
    predictor = fit(context)
    image = F.normalize(backbone.model.encode_image(backbone.normalise(context.images)), dim=-1)
    text = F.normalize(backbone.model.encode_text(context.tokens), dim=-1)
    expected = backbone.logit_scale * image @ text.T
    found = predictor.logits(
        backbone.normalise(context.images), predictor.classifier(context.tokens)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)  # logits up to 100
    predictor.close()


def test_classes_that_were_not_trained_have_text_rows(backbone):
    context = context_of(backbone)
    predictor = fit(context)
    with torch.no_grad():
        new = backbone.tokenize(["a photo of a dog."])
        rows = predictor.classifier(torch.cat([context.tokens[2:], new, context.tokens[:1]]))
        own = predictor.classifier(context.tokens)
        torch.testing.assert_close(rows[0], own[2])
        torch.testing.assert_close(rows[2], own[0])
        torch.testing.assert_close(rows[1:2], backbone.encode_prompts(new))
        assert (own - backbone.encode_prompts(context.tokens)).abs().max() > 1e-3
    predictor.close()


def test_a_training_that_fails_leaves_the_backbone_as_it_was(backbone):
    before = bits(backbone)

    def stop(step, of, loss):
        assert of == 5
        if step == 4:
            raise KeyboardInterrupt

    context = context_of(backbone)
    object.__setattr__(context, "on_step", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(context)
    assert_untouched(backbone, before)


def test_a_second_stage_that_diverges_tells_the_step_of_both(tiny_clip):
    context = context_of(load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu"))

    def spoil(step, of, loss):
        if step == 4:
            context.images.fill_(torch.nan)

    object.__setattr__(context, "on_step", spoil)
    with pytest.raises(TrainingDiverged, match=r"at step 5 of 5: .* lower lr .for example 1.0e-03"):
        fit(context)


@pytest.mark.parametrize("classes", [10, 100])
def test_vit_b_16_has_as_many_numbers_to_train(classes):
    with torch.device("meta"):
        model = CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    spec = BackboneSpec(name="ViT-B-16-quickgelu", pretrained="none")
    norms = block_norms(Backbone(model, None, spec))
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 61_440


def test_the_classifier_has_its_own_numbers(backbone):
    predictor = fit(context_of(backbone))
    vision, text = (
        t for t in (backbone.model.visual.ln_post.weight, backbone.model.ln_final.weight)
    )
    blocks = [backbone.model.visual.transformer, backbone.model.transformer]
    norms = sum(
        4 * len(w) * len(part.resblocks) for w, part in zip((vision, text), blocks, strict=True)
    )
    d = backbone.model.visual.output_dim
    assert predictor.trainable_parameters == norms + d * len(PROMPTS)
    # steps of 4, 2, 4 images, then of 4, 2 anew
    assert (predictor.updates, predictor.images_seen) == (5, 10 + 6)
    predictor.close()


def test_a_tower_without_blocks_is_refused_by_name():
    with torch.device("meta"):
        model = CLIP(**open_clip.get_model_config("RN50"))
    backbone = Backbone(model, None, BackboneSpec(name="RN50", pretrained="none"))
    method = get_method("two_stage")
    with pytest.raises(AdapterError, match=r"the vision tower of RN50 \(ModifiedResNet\) has none"):
        method(method.Settings()).check(backbone, PROMPTS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(share=1.5), "less than or equal to 1"),
        (dict(share=-0.1), "greater than or equal to 0"),
        (dict(shares=0.5), "unknown key 'shares'; did you mean 'share'"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name="two_stage", settings=settings)


@pytest.mark.slow
def test_a_run_is_recorded_and_leaves_the_bench_as_it_was(tiny_clip, manifests):
    facts = profile_facts(tiny_clip) | {"methods": [{"name": "two_stage"}]}
    profile, bench = Profile.model_validate(facts), Workbench("cpu", manifests)
    spec = make_spec(profile, "squares", "two_stage", 2, 1, manifests=manifests)
    before = bits(bench.backbone(spec.backbone))
    record = execute(spec, bench)
    assert record.status == "done"
    assert len(record.result.loss) == spec.training.steps(2) == record.cost.budget.updates == 4
    # 2 steps on both towers, the classifier's start and its 3 classes once more for each set
    assert record.cost.budget.text_passes == 3 * 3
    # 6 images in batches of 4: 4 and 2, and anew
    assert record.cost.budget.images_seen == record.cost.budget.image_passes == 12
    assert_untouched(bench.backbone(spec.backbone), before)
    assert execute(spec, bench).result == record.result
    assert isinstance(bench.backbone(spec.backbone).model.ln_final, nn.LayerNorm)
