"""ProLIP: the image tower's projection is trained, and held near where it was.

    logits = τ unit(h W) tᵀ,   loss = cross-entropy + λ ‖W - W₀‖²

h: (B, p) the image tower's pooled rows before its projection W: (p, d), p d numbers that are
trained; t: (K, d) unit rows of prompts. Without a class's own numbers, so that it can tell classes
that it was not trained on. Needs a tower that ends in such a projection.

Source: Fahes et al., arXiv 2410.05270; astra-vision/ProLIP@b43e795 methods/ProLIP.py, configs/. Run
beside it on given features: logits after 300 steps are the same.

| | code | here |
|---|---|---|
| λ | 1/shots; 1/shots² and a grid on validation images are options | 1/shots |
| training | Adam 1e-5, eps 1e-4, 300 steps on all images at once, a cosine to 0 | the same |
| images | a random view of each, another one of 300 at each step, kept | of `views`, in turn; \
0: the \
images as evaluated |
| t | mean of unit rows over templates, on ImageNet of seven | one template |
| numbers | the float16 weights as loaded | float32 |
| τ | 100 | the model's own, which OpenAI's models have at 100 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ..core.schema import Natural, Whole
from ..learning.feature_method import FeatureMethod, FeatureSettings, Positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ..clip.backbone import Backbone
    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor, Score


class Settings(FeatureSettings):
    """strength: λ times shots."""

    grid: ClassVar = ("lr",)
    strength: float = Field(1.0, ge=0)
    lr: Positive = (1e-5,)
    eps: float = Field(1e-4, gt=0)
    steps: Whole = 300
    views: Natural = 0


class Method(FeatureMethod):
    """One matrix."""

    name = "prolip"
    label = "ProLIP"
    Settings = Settings
    own_classes = False

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, before any training, for an image tower that ends in no projection."""
        from ..clip.towers import image_projection

        if image_projection(backbone.model) is None:
            raise ValueError(
                "method prolip trains the last projection of the image tower, and that of "
                f"{backbone.spec.name} has none of its own; use a CLIP whose image tower is a "
                "vision transformer, such as ViT-B-16, or method clip_adapter"
            )

    def fit(self, context: Context) -> FeaturePredictor:
        """Train the projection."""
        import torch
        import torch.nn.functional as F

        from ..clip.towers import image_projection
        from ..learning.feature_fit import (
            all_views,
            cosine,
            descend,
            fit_best,
            parameter,
            scaled_cosines,
        )

        s = self.settings
        first = image_projection(context.backbone.model)
        assert first is not None  # as `check` saw to
        shown, labels = all_views(context, s.views)
        n = len(labels) // max(s.views, 1)
        first, cosines = first.detach().float(), scaled_cosines(context)
        text = context.prompts(context.tokens)
        few = torch.arange(n, device=first.device)
        order = [few + n * (step % max(s.views, 1)) for step in range(s.steps)]

        def scores(trained: list[Tensor]) -> Callable[[], Score]:
            return lambda: (
                lambda features, prompts: cosines(
                    F.normalize(features.pooled @ trained[0], dim=-1), prompts
                )
            )

        def train(lr: float) -> tuple[list[Tensor], list[float], int]:
            weight = parameter(first)
            score = scores([weight])()

            def loss(index: Tensor) -> Tensor:
                entropy = F.cross_entropy(score(shown[index], text), labels[index])
                return entropy + s.strength / context.shots * (weight - first).square().sum()

            optimizer = torch.optim.Adam([weight], lr=lr, eps=s.eps)
            losses = descend(context, optimizer, loss, order, cosine(s.steps))
            return [weight], losses, n * s.steps

        return fit_best(context, {"lr": s.lr}, train, scores)
