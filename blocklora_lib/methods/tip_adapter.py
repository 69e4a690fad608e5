"""Tip-Adapter and Tip-Adapter-F: a cache of the few images beside the text classifier.

    logits = τ f tᵀ + α exp(-β (1 - f Fᵀ)) L

f: (B, d) unit rows of images, t: (K, d) of prompts, F: (N, d) keys, the few images' own unit rows,
L: (N, K) their labels, one-hot. Tip-Adapter trains nothing; Tip-Adapter-F trains F, d N numbers.

Source: Zhang et al. 2022, arXiv 2207.09519; gaopengcuhk/Tip-Adapter@d0e2d6f main.py, utils.py. Run
beside it on given features: logits are the same within rounding, after 20 epochs too.

| | paper and code | here |
|---|---|---|
| keys | mean of 10 random views, made unit | `views` of them, 0: the images as evaluated |
| α, β | grids of 20 and 200 values with ranges tuned for each dataset, on the full val split (on \
ImageNet, on test) | one grid for all, on min(shots, 4) validation images a class |
| α, β while F trains | β 1, an α for each dataset | 1.17 and 1, what four of its eleven have |
| F | AdamW 1e-3, eps 1e-4, decay 0.01, cosine by step, 20 epochs (EuroSAT 100), batches of 256; \
the epoch that is best on test, or the pair that is | the same, 20 epochs; the last epoch |
| images while F trains | a random view of each, new in each epoch | of `views`, in turn; 0: the \
images as evaluated |
| t | mean of unit rows over templates, on ImageNet of seven | one template |
| numbers | float16 on a GPU, F too | float32 |
| τ | 100 | the model's own, which OpenAI's models have at 100 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ..core.schema import Natural, Whole
from ..learning.feature_method import FeatureMethod, FeatureSettings, Grid, Positive, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """α weighs the cache, β is its sharpness; views: random views a key is the mean of."""

    grid: ClassVar[tuple[str, ...]] = ("beta", "alpha")
    beta: Grid = spread(0.1, 10, 20)
    alpha: Grid = spread(0.1, 10, 20)
    views: Natural = 0


class TrainedSettings(Settings):
    """Settings of Tip-Adapter-F: those of its training besides."""

    grid: ClassVar = ("lr", "beta", "alpha")
    train_beta: float = Field(1.0, gt=0)
    train_alpha: float = Field(1.17, gt=0)
    lr: Positive = (1e-3,)
    weight_decay: float = Field(0.01, ge=0)
    eps: float = Field(1e-4, gt=0)
    epochs: Whole = 20
    batch_size: Whole = 256


class TipAdapter(FeatureMethod):
    """The keys are the few images' rows."""

    name = "tip_adapter"
    label = "Tip-Adapter"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Choose α and β; nothing is trained."""
        from ..learning.feature_fit import FeaturePredictor, mean_view, select

        grid = {"beta": self.settings.beta, "alpha": self.settings.alpha}
        score = self.scores(context, mean_view(context, self.settings.views))
        chosen, choice = select(context, grid, score)
        return FeaturePredictor(context, score(**chosen), choice=choice)

    def scores(self, context: Context, keys: Tensor) -> Callable[..., Score]:
        """Scores of β and α with these keys."""
        from ..learning.feature_fit import Last, one_hot, zero_shot

        values = one_hot(context, len(context.tokens))
        near = Last(lambda features, beta: cache_logits(features.unit, keys, values, beta))
        plain = Last(zero_shot(context))

        def score(beta: float, alpha: float) -> Score:
            return lambda features, prompts: plain(features, prompts) + alpha * near(features, beta)

        return score


class TipAdapterF(TipAdapter):
    """The keys start there and are trained; α and β are chosen afterwards."""

    name = "tip_adapter_f"
    label = "Tip-Adapter-F"
    Settings = TrainedSettings

    def fit(self, context: Context) -> FeaturePredictor:
        """Train the keys, then choose α and β."""
        from ..learning.feature_fit import fit_best

        s = self.settings
        grid = {"lr": s.lr, "beta": s.beta, "alpha": s.alpha}
        return fit_best(
            context,
            grid,
            lambda lr: self.train(context, lr),
            lambda keys: self.scores(context, keys[0].detach()),
        )

    def train(
        self, context: Context, lr: float, after: Callable[[int, Tensor], None] | None = None
    ) -> tuple[list[Tensor], list[float], int]:
        """Train the keys; after(step, keys) is called after each step, counted from 1."""
        import torch
        import torch.nn.functional as F

        from ..learning.feature_fit import (
            all_views,
            cosine,
            descend,
            epochs_of,
            mean_view,
            one_hot,
            parameter,
            zero_shot,
        )

        s = self.settings
        keys = parameter(mean_view(context, s.views))
        values = one_hot(context, len(context.tokens))
        shown, labels = all_views(context, s.views)
        text = zero_shot(context)(shown, context.prompts(context.tokens))

        def loss(index: Tensor) -> Tensor:
            cached = cache_logits(shown.unit[index], keys, values, s.train_beta)
            return F.cross_entropy(text[index] + s.train_alpha * cached, labels[index])

        order = epochs_of(context, s.batch_size, s.epochs, s.views)
        optimizer = torch.optim.AdamW([keys], lr=lr, eps=s.eps, weight_decay=s.weight_decay)
        told = (lambda step: after(step, keys.detach())) if after else (lambda step: None)
        losses = descend(context, optimizer, loss, order, cosine(len(order)), told)
        return [keys], losses, sum(map(len, order))


METHODS = (TipAdapter, TipAdapterF)


def cache_logits(unit: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """exp(-β (1 - f Fᵀ)) L.  unit: (B, d), keys: (N, d), values: (N, K) -> (B, K)."""
    return (-beta * (1 - unit @ keys.T)).exp() @ values
