"""What the pocket families are trained for, held against open_clip's own losses.

Objectives compute under bfloat16 autocast, whose 8 bits leave errors of some 0.4% a product.
"""

from __future__ import annotations

import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss, SigLipLoss

from blocklora_lib.core.paths import POCKET_MODEL, ROOT

sys.path.insert(0, str(ROOT / "tools" / "pocket"))
from objectives import captioning, contrastive, sigmoid
from objectives.batch import Batch, of_text_tower, trained

CAPTIONS = ["a photo of a dog.", "a photo of a red hot pepper.", "a cat", "a photo of a wheel."]


def tiny(name):
    """The family's model with one layer a tower, and a batch of four images with four captions."""
    if name not in open_clip.list_models():
        open_clip.add_model_config(POCKET_MODEL / f"{name}.json")
    torch.manual_seed(0)
    layers = {"layers": 1}
    config = open_clip.get_model_config(name)
    parts = {k: v | layers for k, v in config.items() if k.endswith("_cfg")}
    model = open_clip.create_model(name, **parts)
    tokens = open_clip.get_tokenizer(name)(CAPTIONS)
    words = tokens.unique()[1:]
    if hasattr(model, "text_decoder"):
        table = torch.zeros_like(model.text_decoder.text_projection)
        table[:, words] = torch.randn(len(table), len(words)) / 8
        model.text_decoder.text_projection.data.copy_(table)
    captions = F.normalize(model.encode_text(tokens), dim=-1).detach()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    no = torch.zeros(4, 4, dtype=torch.bool)
    return model, Batch(images, captions, torch.arange(4), no, tokens, words)


def test_the_sigmoid_loss_is_siglips():
    model, batch = tiny("pocketsigmoid")
    features = F.normalize(model.encode_image(batch.images), dim=-1)
    scale, bias = model.logit_scale.exp(), model.logit_bias
    expected = SigLipLoss()(features, batch.captions, scale, bias).item()
    assert sigmoid.loss(model, batch).item() == pytest.approx(expected, rel=0.02)
    # a caption that is true as well is neither a yes nor a no
    masked = batch._replace(also_true=~torch.eye(4, dtype=torch.bool))
    alone = -F.logsigmoid(scale * (features * batch.captions).sum(1) + bias).mean().item()
    assert sigmoid.loss(model, masked).item() == pytest.approx(alone, rel=0.02)


def test_the_captioners_loss_is_cocas_over_all_words():
    model, batch = tiny("pocketcoca")
    out = model(batch.images, batch.tokens)
    loss = CoCaLoss(caption_loss_weight=captioning.CAPTION_WEIGHT, clip_loss_weight=1.0)
    given = {k: v for k, v in out.items() if k in ("logits", "labels", "logit_scale")}
    contrast, said = loss(out["image_features"], out["text_features"], **given)
    # ours contrasts an image with captions, not a caption with images
    one_way = F.cross_entropy(out["logit_scale"] * out["image_features"] @ batch.captions.T,
                              batch.own)  # fmt: skip
    assert contrastive.loss(model, batch).item() == pytest.approx(one_way.item(), rel=0.02)
    expected = (one_way + said).item()
    assert captioning.loss(model, batch).item() == pytest.approx(expected, rel=0.02)
    assert said > contrast / 10, "both parts count"


@pytest.mark.parametrize(("name", "loss"), [("pocketsigmoid", sigmoid), ("pocketcoca", captioning)])
def test_all_but_the_text_tower_learns(name, loss):
    model, batch = tiny(name)
    for part, parameter in model.named_parameters():
        parameter.requires_grad_(not of_text_tower(part))
    loss.loss(model, batch).backward()
    still = [part for part, p in trained(model) if p.grad is None]
    assert not still
    names = {part.partition(".")[0] for part, _ in trained(model)}
    assert {"visual", "logit_scale"} <= names
    assert "text" not in names
