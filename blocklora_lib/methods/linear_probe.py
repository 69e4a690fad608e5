"""Linear probe: logistic regression on the frozen image tower's rows; the prompts are not read.

    logits = x Wᵀ + b,   (W, b) = argmin  C Σ_i CE_i + ‖W‖²/2

x: (B, d) rows as long as the tower gives them, not made unit; W: (K, d), b: (K,), from zero by
L-BFGS, at most 1000 iterations, to a gradient of 1e-4 of the mean loss, as scikit-learn does it.
(d + 1) K numbers are trained. C: the best of a grid on validation images, then a search in ten
times less to ten times more, each step keeping the better half of the interval on a log scale. The
last step's C is taken, which need not be the best that was seen.

Source: the protocol of CLIP (Radford et al. 2021, arXiv 2103.00020) as CoOp runs it, KaiyangZhou/
CoOp@ff61507 lpclip/linear_probe.py; there, too, on min(shots, 4) validation images a class, but of
ImageNet's test set, where ours come from its training images.  Of equal values of C it takes the
first of a falling list; so does this. With two classes scikit-learn fits one row and not two: the
same predictions at twice the C.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.schema import Natural, Whole
from ..learning.feature_method import FeatureMethod, FeatureSettings, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """c: scikit-learn's C, a grid that falls; halvings: steps of the search around its best."""

    grid: ClassVar = ("c",)
    c: Positive = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
    halvings: Natural = 8
    iterations: Whole = 1000


class Method(FeatureMethod):
    """A convex fit for each C that is tried."""

    name = "linear_probe"
    label = "Linear probe"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Fit at each C of the grid and of the search, and keep the last one's."""
        from ..learning.feature_fit import FeaturePredictor, labels_of, select

        x, labels, classes = context.features().rows, labels_of(context), len(context.tokens)

        fitted: dict[float, tuple[Tensor, Tensor, list[float]]] = {}

        def score(c: float) -> Score:
            if c not in fitted:
                iterations = self.settings.iterations
                fitted[c] = logistic_regression(x, labels, classes, c, iterations)
            weight, bias, _ = fitted[c]
            return lambda features, prompts: features.rows @ weight.T + bias

        chosen, choice = select(context, {"c": self.settings.c}, score)
        low, high = chosen["c"] / 10, chosen["c"] * 10
        for _ in range(self.settings.halvings if choice else 0):
            chosen, choice = select(context, {"c": (low, high)}, score)
            middle = 10 ** ((math.log10(low) + math.log10(high)) / 2)
            low, high = (low, middle) if chosen["c"] == low else (middle, high)
        final = score(**chosen)
        weight, bias, losses = fitted[chosen["c"]]
        updates = sum(len(losses) for _, _, losses in fitted.values())
        seen = updates * len(x)
        return FeaturePredictor(context, final, [weight, bias], losses, seen, choice, updates)


def logistic_regression(
    x: Tensor, labels: Tensor, classes: int, c: float, iterations: int
) -> tuple[Tensor, Tensor, list[float]]:
    """W: (K, d), b: (K,) and the objective, over C N, after each iteration. x: (N, d)."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from scipy.optimize import minimize

    wide = F.pad(x.double(), (0, 1), value=1.0)
    truth = F.one_hot(labels, classes).double()
    penalty, losses = 1 / (c * len(x)), []

    def objective(flat: Any) -> tuple[float, Any]:
        weight = torch.from_numpy(flat).to(wide.device).view(classes, -1)
        log_p = (wide @ weight.T).log_softmax(1)
        kept = weight.clone()
        kept[:, -1] = 0  # the bias is free
        value = -(log_p * truth).sum() / len(x) + penalty * kept.square().sum() / 2
        slope = (log_p.exp() - truth).T @ wide / len(x) + penalty * kept
        return value.item(), slope.flatten().cpu().numpy()

    found = minimize(
        objective,
        np.zeros(classes * wide.shape[1]),
        method="L-BFGS-B",
        jac=True,
        callback=lambda intermediate_result: losses.append(float(intermediate_result.fun)),
        options={
            "maxiter": iterations,
            "maxls": 50,
            "gtol": 1e-4,
            "ftol": 64 * np.finfo(float).eps,
        },
    )
    weight = torch.from_numpy(found.x).to(x).view(classes, -1)
    return weight[:, :-1], weight[:, -1], losses
