"""CLIP-Adapter: two small layers on the image row, blended with it.

    logits = τ g tᵀ,   g = unit(r A(x) + (1 - r) x),   A(x) = relu(relu(x W₁ᵀ) W₂ᵀ)

x: (B, d) rows of images as long as the tower gives them; t: (K, d) unit rows of prompts; W₁: (d/4,
d), W₂: (d, d/4), without biases: d²/2 numbers are trained, whatever K, by cross-entropy. So it can
tell classes that it was not trained on.

Source: Gao et al., arXiv 2110.04544; gaopengcuhk/CLIP-Adapter@08d07f8 clip_adapter.py. It has r =
0.2, the width of ResNet-50 and no training settings ('follow CoOp's command'); its author did not
give r for each dataset (issue 8).  Here r = 0.2 for all, and CoOp's schedule: SGD with momentum 0.9
and L2 5e-4, batches of 32, 50, 100 or 200 epochs (1; 2 to 4; more shots; on ImageNet 50 at any), a
cosine by epochs after one at 1e-5, and the rate chosen from a grid on validation images. This grid
is ours.
Start: kaiming-uniform (a = √5), the default of a linear layer, as there. Images: of `views` random
ones, area from 0.5 on, in turn, where CoOp's are new each epoch and from 0.08 on; 0: the images as
evaluated. Run beside its model on given features, from one start: logits are the same within
rounding, after 100 epochs too.
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
    from ..learning.feature_cache import Features
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """ratio: r; reduction: of the inner width; epochs: as `epochs_at` has them."""

    grid: ClassVar = ("lr",)
    lr: Positive = (1e-3, 2e-3, 1e-2)
    ratio: float = Field(0.2, ge=0, le=1)
    reduction: Whole = 4
    weight_decay: float = Field(5e-4, ge=0)
    epochs: tuple[Whole, Whole, Whole] = (50, 100, 200)
    batch_size: Whole = 32
    views: Natural = 0


class Method(FeatureMethod):
    """Two layers that all classes share."""

    name = "clip_adapter"
    label = "CLIP-Adapter"
    Settings = Settings
    own_classes = False

    def fit(self, context: Context) -> FeaturePredictor:
        """Train at each rate of the grid and choose."""
        from ..learning.feature_fit import fit_best

        def scores(layers: list[Tensor]) -> Callable[[], Score]:
            return lambda: self._score(context, layers)

        return fit_best(
            context, {"lr": self.settings.lr}, lambda lr: self._train(context, lr), scores
        )

    def _score(self, context: Context, layers: list[Tensor]) -> Score:
        import torch.nn.functional as F

        from ..learning.feature_fit import scaled_cosines

        cosines = scaled_cosines(context)

        def score(features: Features, prompts: Tensor) -> Tensor:
            rows = adapted(features.rows, layers, self.settings.ratio)
            return cosines(F.normalize(rows, dim=-1), prompts)

        return score

    def _train(self, context: Context, lr: float) -> tuple[list[Tensor], list[float], int]:
        import torch
        import torch.nn.functional as F

        from ..core.seeding import generator
        from ..learning.feature_fit import (
            all_views,
            dassl_cosine,
            descend,
            epochs_of,
            parameter,
            scaled_cosines,
        )
        from ..learning.spec import epochs_at

        s = self.settings
        shown, labels = all_views(context, s.views)
        d, device = shown.rows.shape[1], shown.rows.device
        random, inner = generator(context.seed, "adapter"), max(d // s.reduction, 1)
        layers = []
        for shape in ((inner, d), (d, inner)):
            bound = shape[1] ** -0.5  # kaiming-uniform with a = √5
            start = (2 * torch.rand(shape, generator=random) - 1) * bound
            layers.append(parameter(start.to(device)))
        cosines, prompts = scaled_cosines(context), context.prompts(context.tokens)

        def loss(index: Tensor) -> Tensor:
            g = F.normalize(adapted(shown.rows[index], layers, s.ratio), dim=-1)
            return F.cross_entropy(cosines(g, prompts), labels[index])

        epochs = epochs_at(s.epochs, context.shots, len(context.tokens))
        order = epochs_of(context, s.batch_size, epochs, s.views, drop_last=True)
        optimizer = torch.optim.SGD(layers, lr=lr, momentum=0.9, weight_decay=s.weight_decay)
        losses = descend(context, optimizer, loss, order, dassl_cosine(epochs, len(order), lr))
        return layers, losses, sum(map(len, order))


def adapted(x: Tensor, layers: list[Tensor], ratio: float) -> Tensor:
    """r relu(relu(x W₁ᵀ) W₂ᵀ) + (1 - r) x.  x: (B, d), layers: (d/4, d), (d, d/4) -> (B, d)."""
    down, up = layers
    return ratio * ((x @ down.T).relu() @ up.T).relu() + (1 - ratio) * x
