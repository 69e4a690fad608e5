"""A few images and classes of a tiny CLIP, and the steps of a prompt method written out by hand."""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.nn.functional as F

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.methods import MethodSpec

NAMES = ("cat", "yellow submarine", "ox")
TRAINING = TrainingSpec(
    steps_per_shot=2, batch_size=6, lr=0.05, lr_min=1e-3, weight_decay=0.1, augment="none"
)
STEPS, SHOTS = 4, 2  # one batch, all images: their order is of no account


class Case:
    """Two images of each class, one batch of all, four steps."""

    def __init__(self, model, names=NAMES, seed=0, training=TRAINING, precision="fp32"):
        weights = "bundled" if model == "PocketCLIP" else "none"
        spec = BackboneSpec(name=model, pretrained=weights, precision=precision)
        self.backbone = load_backbone(spec, "cpu")
        self.names, self.training, side = names, training, self.backbone.resolution
        random = torch.Generator().manual_seed(seed)
        n = SHOTS * len(names)
        self.images, self.test = (
            torch.randint(256, (n, 3, side, side), generator=random).float() for _ in range(2)
        )
        self.labels = torch.arange(n) % len(names)
        self.pixels, self.test = map(self.backbone.normalise, (self.images, self.test))

    @property
    def model(self):
        return self.backbone.model

    @property
    def scale(self):
        return self.model.logit_scale.exp()

    def context(self, **changes) -> Context:
        facts = dict(
            backbone=self.backbone,
            tokens=self.tokens("a photo of a"),
            images=self.images,
            labels=self.labels,
            training=self.training,
            shots=SHOTS,
            seed=1,
            names=self.names,
        )
        return Context(**facts | changes)

    def tokens(self, words, names=None):
        return self.backbone.tokenize([f"{words} {name}." for name in names or self.names])

    def fit(self, name, changes=None, **settings):
        """The predictor, its logits of other images, and the passes of each tower in training."""
        self.backbone.passes = Counter()
        predictor = (
            MethodSpec(name=name, settings=settings).load().fit(self.context(**changes or {}))
        )
        passes = dict(self.backbone.passes)
        return predictor, self.scores(predictor), passes

    def scores(self, predictor, names=None):
        tokens = self.backbone.tokenize(predictor.prompts(names or self.names))
        with torch.inference_mode(), predictor.inference():
            return predictor.logits(self.test, predictor.classifier(tokens)).clone()

    def zero_shot(self, pixels=None):
        """Logits by open_clip's own forward."""
        with torch.no_grad():
            f = self.model.encode_image(self.test if pixels is None else pixels, normalize=True)
            return self.scale * f @ self.unit_rows("a photo of a").T

    def unit_rows(self, words):
        with torch.no_grad():
            return self.model.encode_text(self.tokens(words), normalize=True)


def adamw_steps(parameters, gradients, training=TRAINING, steps=STEPS, after=lambda step: None):
    """AdamW on a cosine, in float64, by its formulas; gradients() -> (loss, slopes). The losses."""
    m = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    v, losses = [x.clone() for x in m], []
    exact = [p.detach().double() for p in parameters]
    for step in range(1, steps + 1):
        loss, slopes = gradients()
        losses.append(float(loss))
        cosine = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        lr = training.lr_min + (training.lr - training.lr_min) * cosine
        for i, slope in enumerate(slopes):
            g = slope.double()
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            exact[i] = exact[i] * (1 - lr * training.weight_decay)
            root = (v[i] / (1 - 0.999**step)).sqrt() + 1e-8
            exact[i] = exact[i] - lr * m[i] / (1 - 0.9**step) / root
            with torch.no_grad():
                parameters[i].copy_(exact[i])
        after(step)
    return losses


def slopes_of(loss, parameters):
    """A step's loss and its gradient."""

    def gradients():
        value = loss()
        return value.detach(), torch.autograd.grad(value, parameters)

    return gradients


def entropy(logits, labels):
    """Mean of -log p(label), by the definition."""
    p = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
    return -p[torch.arange(len(labels)), labels].log().mean()


def unit(x):
    return F.normalize(x, dim=-1)
