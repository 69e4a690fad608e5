"""CoCoOp: CoOp whose tokens move with the image.

    logits_ik = τ f_i t_k(f_i)ᵀ,   t_k(f) = unit(text([start] v₁+π .. v_M+π [class k] . [end]))
    π = relu(f W₁ᵀ + b₁) W₂ᵀ + b₂

f: (B, d) unit rows of images by the frozen tower; v: (M, E); W₁: (d/16, d), W₂: (E, d/16): M E +
d²/16 + d/16 + E d/16 + E numbers, trained by cross-entropy. Each image has prompts of its own, so
that the text tower reads B K of them.

Source: Zhou et al. 2022, arXiv 2203.05557; KaiyangZhou/CoOp@ff61507 trainers/cocoop.py. Run
beside it on four blocks of a ViT-B/16 of random weights: logits and gradients are the same within
rounding.

| | paper and code | here |
|---|---|---|
| v | M = 4 from the embeddings of 'a photo of a' | the same |
| W, b | a linear layer's default | the same |
| training | SGD 2e-3, batches of one image, 10 epochs, at 16 shots of half of the classes; few \
shots of all classes: none released | `schedule: {}` is the same; without it the profile's \
training settings |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.schema import Whole
from ..learning.prompt_method import WORDS, Epochs, PromptMethod, PromptSettings, Tokens
from ..learning.spec import DasslSchedule

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor


class Schedule(DasslSchedule):
    """10 epochs of single images."""

    epochs: Epochs = (10, 10, 10)
    batch_size: Whole = 1


class Settings(PromptSettings):
    """reduction: of the inner width."""

    context: Tokens = WORDS
    reduction: Whole = 16
    schedule: Schedule | None = None


class Method(PromptMethod):
    """A context, and a small network that moves it."""

    name = "cocoop"
    label = "CoCoOp"
    Settings = Settings
    reads_images = True

    def fit(self, context: Context) -> PromptPredictor:
        """Train the context and the network."""
        import torch.nn.functional as F

        from ..clip.learnt import Learnt
        from ..learning.feature_fit import parameter
        from ..learning.prompt_fit import (
            Learner,
            fit_prompts,
            output_width,
            start,
            text_width,
            uniform,
        )

        backbone, v = context.backbone, parameter(start(context, self))
        d, wide = output_width(backbone), text_width(backbone)
        inner = max(d // self.settings.reduction, 1)
        net = [
            parameter(uniform(context, f"network/{i}", came**-0.5, *shape).to(backbone.device))
            for i, (came, shape) in enumerate(
                [(d, (inner, d)), (d, (inner,)), (inner, (wide, inner)), (inner, (wide,))]
            )
        ]

        def text(images: Tensor | None) -> Learnt:
            assert images is not None
            moved = F.linear(F.linear(images, net[0], net[1]).relu(), net[2], net[3])
            return Learnt((v + moved[:, None],))

        return fit_prompts(context, self, Learner([v, *net], text))
