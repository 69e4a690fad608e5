"""KgCoOp: CoOp whose class rows stay near those of the hand-written prompt.

    loss = CE(τ f wᵀ) + λ (1 - mean_k w_k w⁰_kᵀ)

f: (B, d) unit rows of images; w: (K, d) unit rows of the classes by learnt tokens, as in `coop`;
w⁰: (K, d), those of the frozen tower by the set's own template. M E numbers are trained.

Source: Yao et al. 2023, arXiv 2303.13283; htyao89/KgCoOp@c43ccc3 trainers/kgcoop.py. The meta-net,
biases and adapter that its class also makes are never trained. Run beside it on four blocks of a
ViT-B/16 of random weights: logits, loss and gradients are the same within rounding.

| | paper and code | here |
|---|---|---|
| v | M = 4 from the embeddings of 'a photo of a' | the same |
| λ | 8 (the script's; the program's default is 1) | 8 |
| w⁰ | CoOp's template of each set, 'a photo of a {}, a type of texture.' for DTD | the set's own |
| training | as CoOp, 100 epochs; batches of 128 in the configuration for base-to-new, of 32 as \
the author says for few shots (issue 4) | `schedule: {}`: batches of 32, 100 epochs; without it \
the profile's training settings |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..learning.prompt_method import WORDS, Epochs, PromptMethod, PromptSettings, Tokens
from ..learning.spec import DasslSchedule

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor, Seen


class Schedule(DasslSchedule):
    """100 epochs at any number of shots."""

    epochs: Epochs = (100, 100, 100)


class Settings(PromptSettings):
    """strength: λ."""

    context: Tokens = WORDS
    strength: float = Field(8.0, ge=0)
    schedule: Schedule | None = None


class Method(PromptMethod):
    """One context, held near what the template knows."""

    name = "kgcoop"
    label = "KgCoOp"
    Settings = Settings

    def fit(self, context: Context) -> PromptPredictor:
        """Train the context."""
        from ..learning.prompt_fit import classes_of, entropy, fit_prompts, shallow

        known = classes_of(context)

        def loss(seen: Seen, labels: Tensor) -> Tensor:
            apart = 1 - (seen.classes * known).sum(-1).mean()
            return entropy(seen, labels) + self.settings.strength * apart

        return fit_prompts(context, self, shallow(context, self), loss)
