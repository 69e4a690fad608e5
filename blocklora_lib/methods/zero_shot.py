"""Zero-shot CLIP: the nearest class embedding, nothing trained.

    logits = τ f tᵀ            f: (N, d) unit rows of images, t: (K, d) unit rows of prompts

τ: the model's own exp(logit_scale), 100 in OpenAI's models (Radford et al. 2021, arXiv 2103.00020).
With an ensemble of M templates a class's row is the mean of its unit rows, made unit again:

    t_k = unit(1/M Σ_j unit(text(template_j of class k)))

The list is that of CLIP's authors for ImageNet, which Tip-Adapter and LP++ take there
(gaopengcuhk/Tip-Adapter@d0e2d6f datasets/imagenet.py); here it is the same for every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from ..data.manifest import Template
from ..learning.feature_method import FeatureMethod, FeatureSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..clip.backbone import Backbone
    from ..learning.contract import Context
    from ..learning.feature_cache import Features
    from ..learning.feature_fit import FeaturePredictor

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class EnsembleSettings(FeatureSettings):
    """templates: of prompts, {} where the class name goes."""

    templates: tuple[Template, ...] = Field(TEMPLATES, min_length=1)

    @field_validator("templates")
    @classmethod
    def _different(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({t for t in templates if templates.count(t) > 1}):
            raise ValueError(f"templates lists {twice[0]!r} twice; list each once")
        return templates


class ZeroShot(FeatureMethod):
    """Cosine logits of the frozen towers."""

    name = "zero_shot"
    label = "Zero-shot CLIP"
    trains = False
    own_classes = False

    def fit(self, context: Context) -> FeaturePredictor:
        """Return the predictor; there is nothing to fit."""
        from ..learning.feature_fit import FeaturePredictor, zero_shot

        return FeaturePredictor(context, zero_shot(context))


class Ensemble(ZeroShot):
    """Of several templates, in place of the set's own."""

    name = "zero_shot_ensemble"
    label = "Zero-shot CLIP, ensemble"
    Settings = EnsembleSettings

    def texts(self, names: Sequence[str]) -> list[str]:
        """All classes' prompts by one template after another."""
        return [t.format(name) for t in self.settings.templates for name in names]

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, before anything is encoded, for a prompt that is longer than the context."""
        backbone.tokenize(self.texts(names))

    def fit(self, context: Context) -> FeaturePredictor:
        """Return the predictor, whose prompts are `texts`."""
        from ..learning.feature_fit import FeaturePredictor, zero_shot

        templates, score = len(self.settings.templates), zero_shot(context)

        def mean(features: Features, prompts: Tensor) -> Tensor:
            return score(features, mean_row(prompts, templates))

        predictor = FeaturePredictor(context, mean)
        predictor.prompts = self.texts
        return predictor


METHODS = (ZeroShot, Ensemble)


def mean_row(rows: Tensor, templates: int) -> Tensor:
    """1/M Σ_j of unit rows.  rows: (M K, d), of any length -> (K, d)."""
    import torch.nn.functional as F

    return F.normalize(rows, dim=-1).unflatten(0, (templates, -1)).mean(0)
