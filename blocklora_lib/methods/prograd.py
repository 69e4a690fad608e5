"""ProGrad: CoOp that never steps against what the hand-written prompt knows.

    G_d = ∇ CE(τ f wᵀ),   G_g = ∇ mean_i -Σ_k p⁰_ik log p_ik
    G = G_d where G_d·G_g ≥ 0, else G_d - λ (G_d·Ĝ) Ĝ,   Ĝ = G_g/‖G_g‖

f: (B, d) unit rows of images; w: (K, d) unit rows of the classes by learnt tokens, as in `coop`; p:
softmax of their logits, p⁰: of those of the set's own template. M E numbers are trained. Where p is
p⁰, as at the template's own words, G_g is zero and G is G_d: logits that differ by rounding alone
are taken for the same, or G would lose a part along what rounding leaves of G_g.

Source: Zhu et al. 2023, arXiv 2205.14865; BeierZhu/Prompt-align@1b76203 trainers/prograd.py and its
Dassl.ProGrad, whose gradient is by parameter: of one tensor that is the same. Run beside both on
four blocks of a ViT-B/16 of random weights: logits and gradients are the same within rounding.

| | paper and code | here |
|---|---|---|
| v | M = 16: zeros, and last of all the embeddings of a template's words | from N(0, 0.02²), as \
CoOp |
| λ | 1; 0.8 for Flowers102, DTD and EuroSAT from 8 shots on | 1 everywhere |
| p⁰ | templates in reversed order, as 'a type of pet, a photo of a {}.' | the set's own |
| training | as CoOp, on ResNet-50 alone | `schedule: {}` is CoOp's; without it the profile's \
training settings |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..learning.prompt_method import PromptMethod, PromptSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context
    from ..learning.prompt_fit import PromptPredictor, Seen


# of cosines: two orders of sums differ by a few units of float32. Rows of 16 bits make them differ
# by a quarter of a unit of theirs; a whole one is allowed, and what a few steps move is little more
ROUNDING = 16 * 2.0**-23


class Settings(PromptSettings):
    """strength: λ."""

    strength: float = Field(1.0, ge=0)


class Method(PromptMethod):
    """One context, whose gradient loses the part that conflicts."""

    name = "prograd"
    label = "ProGrad"
    Settings = Settings
    backwards = 2

    def fit(self, context: Context) -> PromptPredictor:
        """Train the context; two backward passes a step."""
        import torch
        import torch.nn.functional as F

        from ..learning.prompt_fit import classes_of, entropy, fit_prompts, shallow

        learner, known = shallow(context, self), classes_of(context)
        scale = context.backbone.logit_scale
        rounding = max(ROUNDING, torch.finfo(context.backbone.dtype).eps) * scale
        (v,) = learner.parameters

        def losses(seen: Seen, labels: Tensor) -> Tensor:
            teacher = scale * seen.images @ known.T
            apart = (seen.logits - teacher).abs().max() > rounding
            general = F.cross_entropy(seen.logits, teacher.softmax(-1))
            return torch.stack([entropy(seen, labels), apart * general])

        def backward(losses: Tensor) -> None:
            (own,) = torch.autograd.grad(losses[0], [v], retain_graph=True)
            (general,) = torch.autograd.grad(losses[1], [v])
            v.grad = without_conflict(own, general, self.settings.strength)

        return fit_prompts(context, self, learner, losses, backward)


def without_conflict(own: Tensor, general: Tensor, strength: float) -> Tensor:
    """G of G_d and G_g, of one shape; no number is read, for which a GPU would be waited."""
    along = (own * general).sum()
    without = own - strength * along / general.square().sum() * general
    return own.where(along >= 0, without)
