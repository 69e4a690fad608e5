"""LP++: a linear probe whose classes are blended with the text classifier, class by class.

    l_k = w_kᵀ f + b_k + α_k f t_kᵀ

f: unit rows of images, t_k of prompts, without a temperature. W: (K, d), b: (K,), α: (K,) are
trained, (d + 2) K numbers, by full-batch steps on the cross-entropy of the N few images:
W and b by momentum 0.9 at 4 N / λ_max(Fᵀ F), F: (N, d); α by a plain step of N / (4 max_k Σ_i (f_i
t_kᵀ)²) every tenth time. From: w_k the sum of class k's few unit rows, α_k = 250 mean_k mean_i∈k
f_i t_kᵀ.

Source: Huang et al. 2024, arXiv 2404.02285; FereshteShakeri/FewShot-CLIP-Strong-Baseline@f81054f
methods/linear_probe_p2.py. Run beside it on given features, b from 0: logits after 300 steps are
the same within rounding.

| | code | here |
|---|---|---|
| b | from the random start of a linear layer | from 0 |
| α's step | along the sum of all gradients so far: its buffer is never cleared | `gradient: \
code` the \
same; `step`: along the last one alone, as block coordinate descent has it |
| f | one random view of each image | `views` of them, 0: the images as evaluated |
| t | mean of unit rows over templates, where several are listed | one template |
| steps | 300, of which the last that is best on as many validation images as shots is taken | \
`steps`: (300,) the last; several: the best on min(shots, 4) validation images a class, of equal \
ones \
the first named |
| numbers | float16 on a GPU | float32 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ..core.schema import Natural, Whole
from ..learning.feature_method import FeatureMethod, FeatureSettings, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.feature_cache import Features
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """steps: after which training ends, or may end; every: steps from one of α to the next."""

    grid: ClassVar = ("steps",)
    steps: Steps = (300,)
    every: Whole = 10
    gradient: Literal["code", "step"] = "code"
    views: Natural = 0


class Method(FeatureMethod):
    """Three blocks of numbers, two step sizes, both from the features."""

    name = "lp_plus"
    label = "LP++"
    Settings = Settings

    def fit(self, context: Context) -> FeaturePredictor:
        """Train, and choose after which step to stop."""
        import torch
        import torch.nn.functional as F

        from ..learning.feature_fit import (
            FeaturePredictor,
            all_views,
            descend,
            one_hot,
            parameter,
            select,
        )

        s = self.settings
        shown, labels = all_views(context, s.views)
        text = F.normalize(context.prompts(context.tokens), dim=-1)
        f, cosines = shown.unit, shown.unit @ text.T
        n, last = len(f), int(max(s.steps))
        truth = one_hot(context, len(text)).repeat(max(s.views, 1), 1)
        start = 250 * (cosines * truth).sum(0).div(truth.sum(0)).mean()
        weight, bias = parameter(truth.T @ f), parameter(f.new_zeros(len(text)))
        alpha = parameter(start.expand(len(text)))
        rate, alpha_rate = step_sizes(f, cosines)
        kept, total = {}, torch.zeros_like(alpha)
        everything = torch.arange(n, device=f.device)

        def loss(_: Tensor) -> Tensor:
            return F.cross_entropy(f @ weight.T + bias + alpha * cosines, labels)

        def after(step: int) -> None:
            assert alpha.grad is not None
            total.copy_(alpha.grad if s.gradient == "step" else total + alpha.grad)
            alpha.grad = None
            if step % s.every == 0:
                alpha.data -= alpha_rate * total
            if step in s.steps:
                kept[step] = [part.detach().clone() for part in (weight, bias, alpha)]

        optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9)
        losses = descend(context, optimizer, loss, [everything] * last, lambda _: 1.0, after)

        def score(steps: float) -> Score:
            w, b, a = kept[int(steps)]

            def logits(features: Features, prompts: Tensor) -> Tensor:
                return (
                    features.unit @ w.T + b + a * (features.unit @ F.normalize(prompts, dim=-1).T)
                )

            return logits

        chosen, choice = select(context, {"steps": s.steps}, score)
        losses = losses[: int(chosen["steps"])]
        trained = [weight, bias, alpha]
        return FeaturePredictor(context, score(**chosen), trained, losses, n * last, choice, last)


def step_sizes(f: Tensor, cosines: Tensor) -> tuple[float, float]:
    """4 N / λ_max(Fᵀ F) and N / (4 max_k Σ_i c_ik²).  f: (N, d), cosines: (N, K)."""
    import torch

    n = len(f)
    largest = torch.linalg.matrix_norm(f.double(), 2).square()
    return (4 * n / largest).item(), (n / (4 * cosines.double().square().sum(0).max())).item()
