"""MaPLe: tokens in both towers, those of the image tower made from those of the text tower.

    logits = τ f tᵀ,   text tokens P_j, image tokens P_j W_jᵀ + b_j at the input of block j < J

f: (B, d) unit rows of images, t: (K, d) of classes, both by towers with learnt tokens; P_j: (M, E),
W_j: (E', E), b_j: (E',), of text width E and image width E'. J (M E + E' E + E') numbers are
trained, by cross-entropy. The image tokens follow all others; the text tokens stand after the
start, before what is left of the words.

Source: Khattak et al. 2023, arXiv 2210.03117; muzairkhattak/multimodal-prompt-learning@69bce21
trainers/maple.py, clip/model.py. Run beside it on four blocks of a ViT-B/16 of random weights:
logits and gradients are the same within rounding.

| | paper and code | here |
|---|---|---|
| M, J | 2, 9 | the same; J at most as many as the towers have blocks |
| P_0, others | embeddings of 'a photo'; N(0, 0.02²) | the same |
| W_j, b_j | a linear layer's default; those of j > 0 start equal | the same |
| training | SGD 3.5e-3, batches of 4, 5 epochs at 16 shots of half of the classes; few shots of \
all classes: none released, 50 epochs in PromptSRC's table | `schedule: {}`: 50 epochs, and 5 as \
`epochs: [5, 5, 5]`; without it the profile's training settings |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..core.schema import Whole
from ..learning.prompt_method import WORDS, DeepMethod, DeepSettings, Epochs
from ..learning.spec import DasslSchedule

if TYPE_CHECKING:
    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor


class Schedule(DasslSchedule):
    """PromptSRC's few-shot protocol for it."""

    lr: float = Field(3.5e-3, gt=0)
    epochs: Epochs = (50, 50, 50)
    batch_size: Whole = 4


class Settings(DeepSettings):
    """tokens: M, the first of the context's."""

    context: Annotated[str, Field(min_length=1)] = WORDS
    tokens: Whole = 2
    schedule: Schedule | None = None


class Method(DeepMethod):
    """Text tokens, and image tokens coupled to them."""

    name = "maple"
    label = "MaPLe"
    Settings = Settings

    @property
    def words(self) -> int:
        """M."""
        tokens: int = self.settings.tokens
        return tokens

    def fit(self, context: Context) -> PromptPredictor:
        """Train tokens and couplings."""
        import torch
        import torch.nn.functional as F

        from ..clip.learnt import Learnt
        from ..learning.feature_fit import parameter
        from ..learning.prompt_fit import Learner, deep, fit_prompts, image_width, uniform

        tokens = deep(context, self, self.words)
        wide, device = image_width(context.backbone), context.backbone.device
        bound = tokens[0].shape[1] ** -0.5  # a linear layer's default: kaiming-uniform, a = √5
        shapes = (wide, tokens[0].shape[1]), (wide,)
        first, later = (
            [uniform(context, f"coupling/{which}/{len(shape)}", bound, *shape) for shape in shapes]
            for which in ("first", "later")
        )
        couplings = [
            [parameter(part.to(device)) for part in (first if j == 0 else later)]
            for j in range(self.settings.depth)
        ]

        def image() -> Learnt:
            pairs = zip(tokens, couplings, strict=True)
            return Learnt(tuple(F.linear(p, weight, bias) for p, (weight, bias) in pairs))

        trained: list[torch.Tensor] = [*tokens, *(part for pair in couplings for part in pair)]
        learner = Learner(trained, lambda images: Learnt(tuple(tokens)), image)
        return fit_prompts(context, self, learner)
