"""Zero-shot CLIP: the nearest class embedding, nothing trained.

    logits = τ f tᵀ            f: (N, d) unit rows of images, t: (K, d) unit rows of prompts

τ: the model's own exp(logit_scale), 100 in OpenAI's models (Radford et al. 2021, arXiv 2103.00020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..learning.feature_method import FeatureMethod

if TYPE_CHECKING:
    from ..learning.contract import Context
    from ..learning.feature_fit import FeaturePredictor


class Method(FeatureMethod):
    """Cosine logits of the frozen towers."""

    name = "zero_shot"
    label = "Zero-shot CLIP"
    trains = False
    own_classes = False

    def fit(self, context: Context) -> FeaturePredictor:
        """Return the predictor; there is nothing to fit."""
        from ..learning.feature_fit import FeaturePredictor, zero_shot

        return FeaturePredictor(context, zero_shot(context))
