"""PromptSRC: tokens in both towers that regulate themselves by the frozen model.

    loss = CE(τ f wᵀ) + 25 mean|w - w⁰| + 10 mean|f - f⁰| + mean_ik p⁰_ik (log p⁰_ik - log p_ik)

f: (B, d) unit rows of images, w: (K, d) of classes, both by towers with learnt tokens, M of each
width at the input of each of the first J blocks, independent of one another: J M (E + E') numbers
are trained. f⁰: of the frozen tower, of the same views; w⁰: of the frozen tower, the mean of many
generic templates; p, p⁰: softmax of τ f wᵀ and τ f⁰ w⁰ᵀ; means are over all entries.
At the end the tokens are Σ_e g_e of what they were after epoch e, g ∝ exp(-(e - μ)²/2σ²), Σ g = 1.

Source: Khattak et al. 2023, arXiv 2307.06948; muzairkhattak/PromptSRC@bb95c77
trainers/promptsrc.py, trainers/imagenet_templates.py, clip/model.py. Run beside it on a ViT-B/16 of
random weights, in float32: logits, loss and gradients are the same within rounding.

| | paper and code | here |
|---|---|---|
| M, J | 4, 9 | the same; J at most as many as the towers have blocks |
| start | the first text tokens: embeddings of 'a photo of a'; all others N(0, 0.02²) | the same |
| w⁰ | of 60 templates, the first 60 of OpenAI's 80 for ImageNet, for every set | the same |
| μ, σ | 30, 30 of 50 epochs; 45, 5 for StanfordCars, Flowers102, FGVCAircraft, DTD, EuroSAT | \
0.6, 0.6 of the training, for all |
| from the source to other sets | J = 3, 20 epochs, μ = 6, σ = 10 | the row above; theirs is \
`{depth: 3, mean: 0.3, deviation: 0.5, schedule: {epochs: [20, 20, 20]}}` |
| averaged | the whole state, in half precision | the tokens |
| training | SGD 2.5e-3, batches of 4, 50 epochs | `schedule: {}` is the same; without it the \
profile's training settings |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from ..core.schema import Whole
from ..learning.prompt_method import DeepMethod, DeepSettings, Epochs
from ..learning.spec import DasslSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..clip.backbone import Backbone
    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor, Seen

TEMPLATES = 60


class Schedule(DasslSchedule):
    """The published one for few shots."""

    lr: float = Field(2.5e-3, gt=0)
    epochs: Epochs = (50, 50, 50)
    batch_size: Whole = 4


class Settings(DeepSettings):
    """image_tokens: M of the image tower; text, image, logits: weights of the losses.

    mean, deviation: μ and σ of the average, as shares of the training.
    """

    image_tokens: Whole = 4
    text: float = Field(25.0, ge=0)
    image: float = Field(10.0, ge=0)
    logits: float = Field(1.0, ge=0)
    mean: float = Field(0.6, ge=0)
    deviation: float = Field(0.6, gt=0)
    schedule: Schedule | None = None


class Method(DeepMethod):
    """Independent tokens in both towers, held near the frozen model and averaged over epochs."""

    name = "promptsrc"
    label = "PromptSRC"
    Settings = Settings
    plain_images = True

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, besides, where a generic prompt of a class is longer than the context."""
        super().check(backbone, names)
        for texts in generic_texts(names):
            try:
                backbone.tokenize(texts)
            except ValueError as error:
                raise ValueError(f"method {self.name} with generic templates: {error}") from None

    def fit(self, context: Context) -> PromptPredictor:
        """Train the tokens and average them."""
        import torch
        import torch.nn.functional as F

        from ..clip.learnt import Learnt
        from ..learning.feature_fit import parameter
        from ..learning.prompt_fit import (
            Learner,
            deep,
            entropy,
            fit_prompts,
            image_width,
            plan_of,
            random_tokens,
        )

        s, backbone, text = self.settings, context.backbone, deep(context, self)
        shape = s.depth, s.image_tokens, image_width(backbone)
        image = [parameter(part) for part in random_tokens(context, "image prompts", *shape)]
        learner = Learner(
            [*text, *image], lambda images: Learnt(tuple(text)), lambda: Learnt(tuple(image))
        )
        known, scale = generic_rows(context), backbone.logit_scale

        def loss(seen: Seen, labels: Tensor) -> Tensor:
            with torch.no_grad():
                plain = backbone.encode_images(seen.pixels)
                taught = (scale * plain @ known.T).log_softmax(-1)
            apart = (taught.exp() * (taught - seen.logits.log_softmax(-1))).mean()
            held = s.text * F.l1_loss(seen.classes, known) + s.image * F.l1_loss(seen.images, plain)
            return entropy(seen, labels) + held + s.logits * apart

        plan = plan_of(context, self)
        weights = gaussian(plan.epochs, s.mean * plan.epochs, s.deviation * plan.epochs)
        average = [torch.zeros_like(part) for part in learner.parameters]
        ends = {round(len(plan.order) * e / plan.epochs): e - 1 for e in range(1, plan.epochs + 1)}

        def after(step: int) -> None:
            if step in ends:
                for total, part in zip(average, learner.parameters, strict=True):
                    total += weights[ends[step]] * part.detach()

        predictor = fit_prompts(context, self, learner, loss, after=after)
        with torch.no_grad():
            for total, part in zip(average, learner.parameters, strict=True):
                part.copy_(total)
        return predictor


def gaussian(epochs: int, mean: float, deviation: float) -> list[float]:
    """g_1 .. g_E, whose sum is 1."""
    away = [abs(e - mean) / deviation for e in range(1, epochs + 1)]
    near = min(away)  # whose factor is taken out: where all are far it is 0, as is their sum
    raw = [math.exp(-0.5 * (far - near) * (far + near)) for far in away]
    return [weight / sum(raw) for weight in raw]


def generic_texts(names: Sequence[str]) -> list[list[str]]:
    """Prompts of classes by each generic template."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [[form(name) for name in names] for form in OPENAI_IMAGENET_TEMPLATES[:TEMPLATES]]


def generic_rows(context: Context) -> Tensor:
    """w⁰: unit rows (K, d) of the mean over generic templates, of rows as the tower gives them."""
    import torch
    import torch.nn.functional as F

    tokenize = context.backbone.tokenize
    rows = [context.prompts(tokenize(texts)) for texts in generic_texts(context.names)]
    return F.normalize(torch.stack(rows).mean(0), dim=-1)
