"""CoOp: tokens before the class name that are learnt, the same for all classes.

    logits = τ f tᵀ,   t_k = unit(text([start] v₁ .. v_M [class k] . [end]))

f: (B, d) unit rows of images by the frozen tower; v: (M, E), M E numbers, trained by cross-entropy
through the frozen text tower, at its input.

Source: Zhou et al. 2022, arXiv 2109.01134; KaiyangZhou/CoOp@ff61507 trainers/coop.py. Run beside
it on a ViT-B/16 of random weights: logits and gradients are the same within rounding.

| | paper and code | here |
|---|---|---|
| v | M = 16 from N(0, 0.02²); M = 4 from the embeddings of 'a photo of a' | `context`: 16, or \
those words |
| place | before the class name, for all classes alike; also in the middle, or a class's own | the \
first |
| training | SGD 2e-3 with momentum 0.9 and L2 5e-4, batches of 32, 50 epochs at 1 shot, 100 up to \
4, 200 from 8 on (ImageNet 50), a cosine by epochs after one at 1e-5; the last epoch | `schedule: \
{}` is the same; without it the profile's training settings |
| v in half precision | where the towers are | always float32 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..learning.prompt_method import PromptMethod, PromptSettings

if TYPE_CHECKING:
    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor


class Method(PromptMethod):
    """One context for all classes."""

    name = "coop"
    label = "CoOp"
    Settings = PromptSettings

    def fit(self, context: Context) -> PromptPredictor:
        """Train the context."""
        from ..learning.prompt_fit import fit_prompts, shallow

        return fit_prompts(context, self, shallow(context, self))
