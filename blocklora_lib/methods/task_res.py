"""TaskRes: a trained residual on each class's text row.

    logits = τ f t'ᵀ,   t'_k = unit(t_k + α x_k)

f: (B, d) unit rows of images; t: (K, d) rows of prompts as long as the tower gives them; x: (K, d),
trained from zero, d K numbers, by cross-entropy.

Source: Yu et al. 2023, arXiv 2211.10277; geekyutao/TaskRes@5195359 trainers/taskres.py,
train_regular.sh. The 'regular base': its 'enhanced' ones need text projections trained elsewhere.
Run beside it on given features: logits after 100 epochs are the same within rounding.

| | paper and code | here |
|---|---|---|
| α | 0.5, Flowers102 1.0 | 0.5 everywhere |
| t | mean of raw rows over templates; class names with underscores as they are | one template; \
underscores are blanks, for all methods alike |
| training | Adam 2e-3 (ImageNet 2e-4), L2 5e-4 in the gradient, batches of 256, 100 epochs up \
to 4 \
shots and 200 from 8 on, a cosine by epochs after one at 1e-5 | the same; 2e-4 from 1000 \
classes on |
| images | a random view of each every epoch, area from 0.08 on | of `views`, area from 0.5 on, in \
turn; 0: the images as evaluated |
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
    """epochs: up to 4 shots, and from 5 on; many: a factor on the rate from 1000 classes on."""

    grid: ClassVar = ("lr",)
    alpha: float = Field(0.5, ge=0)
    lr: Positive = (2e-3,)
    many: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: tuple[Whole, Whole] = (100, 200)
    batch_size: Whole = 256
    views: Natural = 0


class Method(FeatureMethod):
    """One residual for each class."""

    name = "task_res"
    label = "TaskRes"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Train the residual."""
        import torch
        import torch.nn.functional as F

        from ..learning.feature_fit import (
            all_views,
            dassl_cosine,
            descend,
            epochs_of,
            fit_best,
            parameter,
            scaled_cosines,
        )

        s = self.settings
        shown, labels = all_views(context, s.views)
        base, cosines = context.prompts(context.tokens), scaled_cosines(context)
        epochs = s.epochs[context.shots > 4]
        order = epochs_of(context, s.batch_size, epochs, s.views, drop_last=True)

        def scores(trained: list[Tensor]) -> Callable[[], Score]:
            return lambda: (
                lambda features, prompts: cosines(features.unit, prompts + s.alpha * trained[0])
            )

        def train(lr: float) -> tuple[list[Tensor], list[float], int]:
            x = parameter(torch.zeros_like(base))
            first = lr * (s.many if len(base) >= 1000 else 1)

            def loss(index: Tensor) -> Tensor:
                logits = cosines(shown.unit[index], base + s.alpha * x)
                return F.cross_entropy(logits, labels[index])

            optimizer = torch.optim.Adam([x], lr=first, weight_decay=s.weight_decay)
            rate = dassl_cosine(epochs, len(order), first)
            losses = descend(context, optimizer, loss, order, rate)
            return [x], losses, sum(map(len, order))

        return fit_best(context, {"lr": s.lr}, train, scores)
