"""ZS-LP and CLAP: a linear classifier of cosines that starts from the text classifier.

    logits = τ f unit(w)ᵀ
    ZS-LP: cross-entropy;   CLAP: cross-entropy + mean_k λ_k ‖w_k - t_k‖²

f: (B, d) unit rows of images; t: (K, d) rows of prompts as long as the tower gives them; w: (K, d),
trained from t, d K numbers; λ_k: the mean probability that zero-shot CLIP gives to class k on its
own few images. With one rate, as published, neither reads validation images.

Source: Silva-Rodríguez et al. 2024, arXiv 2312.12730; jusiro/CLAP@dbdf409 trainers/adapters.py.
(Its Tip-Adapter has a defect and its grids look at test: only these two are taken from it.) Run
beside its model on given features: logits after 300 epochs are the same within rounding.

| | code | here |
|---|---|---|
| images | 20 random views of each, of an area from 0.08 on (here 0.5), kept; an epoch \
is as many batches as one pass over the images themselves has, drawn from all views | the same of \
`views`; 0: the images as evaluated |
| t | mean of raw rows over templates | one template |
| training | SGD 0.1 with momentum 0.9, no decay, batches of 256, 300 epochs, a cosine by epochs \
after one at 1e-5 | the same |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ..core.schema import Natural, Whole
from ..learning.feature_method import FeatureMethod, FeatureSettings, Positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """How the classifier is trained; views: random views of each image."""

    grid: ClassVar = ("lr",)
    lr: Positive = (0.1,)
    epochs: Whole = 300
    batch_size: Whole = 256
    views: Natural = 0


class ConstrainedSettings(Settings):
    """strength: what all λ_k are multiplied by."""

    strength: float = Field(1.0, ge=0)


class ZeroShotProbe(FeatureMethod):
    """Cross-entropy alone."""

    name = "zs_lp"
    label = "ZS-LP"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Train the classifier from the text classifier on."""
        import torch
        import torch.nn.functional as F

        from ..learning.feature_fit import (
            all_views,
            dassl_cosine,
            descend,
            fit_best,
            parameter,
            pooled_epochs,
            scaled_cosines,
        )

        s, strength = self.settings, getattr(self.settings, "strength", 0.0)
        shown, labels = all_views(context, s.views)
        text, cosines = context.prompts(context.tokens), scaled_cosines(context)
        penalty = strength * multipliers(cosines(shown.unit, text), labels)
        order = pooled_epochs(context, s.batch_size, s.epochs, s.views)

        def train(lr: float) -> tuple[list[Tensor], list[float], int]:
            weight = parameter(text)

            def loss(index: Tensor) -> Tensor:
                entropy = F.cross_entropy(cosines(shown.unit[index], weight), labels[index])
                return entropy + constraint(weight, text, penalty) if strength else entropy

            optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.9)
            rate = dassl_cosine(s.epochs, len(order), lr)
            losses = descend(context, optimizer, loss, order, rate)
            return [weight], losses, sum(map(len, order))

        def scores(trained: list[Tensor]) -> Callable[[], Score]:
            return lambda: lambda features, _: cosines(features.unit, trained[0])

        return fit_best(context, {"lr": s.lr}, train, scores)


class Clap(ZeroShotProbe):
    """Classes that zero-shot CLIP knows well stay near it."""

    name = "clap"
    label = "CLAP"
    Settings = ConstrainedSettings


METHODS = (ZeroShotProbe, Clap)


def multipliers(logits: Tensor, labels: Tensor) -> Tensor:
    """λ_k, the mean of p(k) over class k's images.  logits: (N, K), labels: (N,) -> (K,)."""
    import torch

    classes = logits.shape[1]
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return torch.stack([p[labels == k].mean() for k in range(classes)])


def constraint(weight: Tensor, text: Tensor, penalty: Tensor) -> Tensor:
    """mean_k λ_k ‖w_k - t_k‖².  weight, text: (K, d), penalty: (K,)."""
    return (penalty * (weight - text).square().sum(-1)).mean()
