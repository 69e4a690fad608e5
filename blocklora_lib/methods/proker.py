"""ProKeR: kernel ridge regression of what the text classifier leaves over.

    logits = f tᵀ + k(f, F) c,   k(x, x') = exp(-β (1 - xᵀ x')),   c = (k(F, F)/λ + I)⁻¹ (L - F tᵀ)

f: (B, d) unit rows of images, t: (K, d) of prompts, F: (N, d) of the few images, L: (N, K) their
labels, one-hot. No temperature: cosines are compared with 0 and 1. Nothing is trained.

Source: Bendou et al. 2025, arXiv 2501.11175, read through omarnust/BReg-Adapter@c89ce54
trainers/proker.py, a copy by others.

| | code | here |
|---|---|---|
| form | as above: it leaves out the 1/λ that ridge regression has in front of the inverse, so \
that \
λ → 0 is zero-shot CLIP | the same |
| F | 10 random views of each image, all of them rows | the images as evaluated, one row each: \
with \
16 shots of ImageNet the kernel of all views does not fit a GPU |
| β, λ | grids of each dataset, on the full val split | one grid for all, on min(shots, 4) \
validation images a class |
| numbers | float32 | the solve in float64 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..learning.feature_method import FeatureMethod, FeatureSettings, Grid, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_cache import Features
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """β is the kernel's sharpness, λ how much of the residual is fitted."""

    grid: ClassVar = ("beta", "lam")
    beta: Grid = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
    lam: Positive = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


class Method(FeatureMethod):
    """A closed form; β and λ are chosen."""

    name = "proker"
    label = "ProKeR"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Solve for the coefficients under each β and λ, and choose."""
        import torch.nn.functional as F

        from ..learning.feature_fit import FeaturePredictor, Last, one_hot, select

        keys = context.features().unit
        text = F.normalize(context.prompts(context.tokens), dim=-1)
        residual = one_hot(context, len(text)) - keys @ text.T
        among = Last(lambda keys, beta: kernel(keys, keys, beta).double())
        between = Last(lambda features, beta: kernel(features.unit, keys, beta))

        def score(beta: float, lam: float) -> Score:
            solved = coefficients(among(keys, beta), residual, lam)

            def logits(features: Features, prompts: Tensor) -> Tensor:
                return features.unit @ F.normalize(prompts, dim=-1).T + (
                    between(features, beta) @ solved
                )

            return logits

        grid = {"beta": self.settings.beta, "lam": self.settings.lam}
        chosen, choice = select(context, grid, score)
        return FeaturePredictor(context, score(**chosen), choice=choice)


def kernel(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """exp(-β (1 - x yᵀ)).  x: (A, d), y: (B, d), unit rows -> (A, B)."""
    return (-beta * (1 - x @ y.T)).exp()


def coefficients(among: Tensor, residual: Tensor, lam: float) -> Tensor:
    """(k/λ + I)⁻¹ r, nan where rounding leaves no inverse.

    among: (N, N), float64, residual: (N, K) -> (N, K).
    """
    import torch

    system = among / lam
    system.diagonal().add_(1)
    factor, failed = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(residual.double(), factor).where(failed == 0, torch.nan)
    return solved.to(residual.dtype)
