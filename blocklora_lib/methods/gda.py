"""GDA: Gaussian discriminant analysis of the few images beside the text classifier.

    logits = τ f tᵀ + a (f Wᵀ + b)
    P = d ((n - 1) Σ + tr(Σ) I)⁺,   w_k = P μ_k,   b_k = log(1/K) - μ_kᵀ P μ_k / 2

f: (B, d) unit rows of images, t: (K, d) of prompts; μ_k: (d,), mean of class k's few unit rows; Σ:
(d, d), the covariance of all n of them about their class means. Nothing is trained.

Source: Wang et al. 2024, arXiv 2402.04087; mrflogs/ICLR24@560fe21 main_few_shots.py. Its formula on
given features: logits are the same within rounding, at one shot zero-shot CLIP's.

| | paper and code | here |
|---|---|---|
| rows | of 10 random views each | of `views`, 0: the images as evaluated |
| a | 1e-4 to 1e2 on the full val split (on ImageNet, on test) | the same grid, on min(shots, 4) \
validation images a class |
| numbers | float32, a pseudoinverse | float64, a solve: the same, since tr(Σ) > 0; where Σ = 0, \
as \
at one shot and one view, P = 0 and the method is zero-shot CLIP |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ..core.schema import Natural
from ..learning.feature_method import FeatureMethod, FeatureSettings, Grid

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """a weighs the Gaussian classifier; views: random views of each image."""

    grid: ClassVar = ("a",)
    a: Grid = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    views: Natural = 0


class Method(FeatureMethod):
    """A closed form; a is chosen."""

    name = "gda"
    label = "GDA"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Form the classifier and choose a."""
        from ..learning.feature_fit import FeaturePredictor, all_views, select, zero_shot

        shown, labels = all_views(context, self.settings.views)
        weight, bias = gaussian_classifier(shown.unit, labels, len(context.tokens))
        text = zero_shot(context)

        def score(a: float) -> Score:
            return lambda features, prompts: (
                text(features, prompts) + a * (features.unit @ weight.T + bias)
            )

        chosen, choice = select(context, {"a": self.settings.a}, score)
        return FeaturePredictor(context, score(**chosen), choice=choice)


def gaussian_classifier(unit: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """W: (K, d) and b: (K,) of the few images' unit rows (n, d) and labels (n,)."""
    import torch

    x, d = unit.double(), unit.shape[1]
    means = torch.stack([x[labels == k].mean(0) for k in range(classes)])
    spread = x - means[labels]
    scatter = spread.T @ spread  # (n - 1) Σ
    trace = scatter.trace() / max(len(x) - 1, 1)
    if trace == 0:
        weight = torch.zeros_like(means)
    else:
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        weight = d * torch.linalg.solve(scatter + trace * eye, means.T).T
    bias = -math.log(classes) - (weight * means).sum(1) / 2
    return weight.to(unit.dtype), bias.to(unit.dtype)
