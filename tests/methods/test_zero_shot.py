"""Zero-shot by an ensemble of templates: its row of each class written out, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.learning.contract import Context
from blocklora_lib.methods import MethodSpec, get_method
from blocklora_lib.methods.zero_shot import TEMPLATES

NAMES = ("cat", "small yellow submarine", "ox")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(BackboneSpec(name="PocketCLIP", pretrained="bundled"), "cpu")


def fit(backbone, name, **settings):
    method = get_method(name)
    tokens = backbone.tokenize([f"a photo of a {n}." for n in NAMES])
    context = Context(backbone, tokens, None, None, None, 0, 0)
    return method(method.Settings(**settings)).fit(context), tokens


def scores(backbone, predictor, tokens):
    side = backbone.resolution
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    return predictor.logits(images, predictor.classifier(tokens)), images


@pytest.mark.parametrize("templates", [TEMPLATES, ("{}.", "not a {}.")])
def test_a_class_is_the_mean_of_its_unit_rows(backbone, templates):
    predictor, _ = fit(backbone, "zero_shot_ensemble", templates=templates)
    tokens = backbone.tokenize(predictor.prompts(NAMES))
    found, images = scores(backbone, predictor, tokens)
    rows = []
    with torch.no_grad():
        for name in NAMES:
            prompts = backbone.tokenize([template.format(name) for template in templates])
            each = backbone.model.encode_text(prompts).double()
            row = (each / each.norm(dim=-1, keepdim=True)).mean(0)
            rows.append(row / row.norm())
        image = F.normalize(backbone.model.encode_image(images).double(), dim=-1)
    expected = backbone.logit_scale.double() * image @ torch.stack(rows).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)  # logits up to 100


def test_one_template_is_zero_shot(backbone):
    single, tokens = fit(backbone, "zero_shot")
    assert single.prompts is None
    ensemble, _ = fit(backbone, "zero_shot_ensemble", templates=("a photo of a {}.",))
    assert torch.equal(backbone.tokenize(ensemble.prompts(NAMES)), tokens)
    found, expected = (scores(backbone, p, tokens)[0] for p in (ensemble, single))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert ensemble.trainable_parameters == 0


def test_the_list_is_clips_own_for_imagenet():
    assert len(TEMPLATES) == 7
    assert MethodSpec(name="zero_shot_ensemble").settings["templates"] == TEMPLATES
    # the row of one template keeps the name of its records
    assert MethodSpec(name="zero_shot").model_dump() == {"name": "zero_shot", "settings": {}}


def test_a_prompt_longer_than_the_context_is_refused(backbone):
    method = get_method("zero_shot_ensemble")
    long = method(method.Settings(templates=("{}.", "a photo of the " + "very " * 99 + "big {}.")))
    with pytest.raises(ValueError, match=r"has 10\d tokens, .* PocketCLIP .* or the template"):
        long.check(backbone, NAMES)
    method(method.Settings()).check(backbone, NAMES)


@pytest.mark.parametrize(
    ("templates", "says"),
    [
        ([], "at least 1 item"),
        (["a photo."], "must contain {} once"),
        (["{} {}."], "must contain {} once"),
        (["a {}.", "a {}."], "templates lists 'a {}.' twice; list each once"),
    ],
)
def test_bad_templates_are_refused(templates, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name="zero_shot_ensemble", settings={"templates": templates})
