"""2SFS: first the layer norms of both towers, then a classifier that starts from the text rows.

    stage 1:  logits = τ f tᵀ,         f, t by towers whose norms' γ and β are trained
    stage 2:  logits = τ f unit(w)ᵀ,   the towers as stage 1 left them; w: (K, d), trained from t

f: (B, d), t: (K, d), unit rows of images and prompts. Trained are γ and β of the two norms in each
block, 4 E numbers a block of width E, and d K numbers of w; of ViT-B/16, 61,440 + 512 K. Of the
steps, `share` belong to stage 1; both minimise cross-entropy, each along a cosine of its own.

Source: Farina et al. 2025, arXiv 2503.11609 (CVPR); FarinaMatteo/rethinking_fewshot_vlms@64ac143
fs/twostage.py, fs/utils/model_utils.py.

| | paper and code | here |
|---|---|---|
| norms | those of all blocks; ln_pre, ln_post and ln_final are collected twice and end frozen | \
those of all blocks |
| steps | 300 a shot, int(0.6 of them) first; one whose gradients overflow is not counted | the \
profile's (say steps_per_shot: 300), int(share of them) first; all are counted |
| training | AdamW 2e-4, decay 0.01, batches of 32, a cosine to 1e-6; float16 by autocast | the \
profile's, in the backbone's number format; norms and w are float32 |
| images | augmented in both stages | the same; stage 2 draws anew |
| other classes | their rows by the adapted text tower, beside w of the known ones | the same |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..core.schema import AdapterError, Strict
from ..learning.method import BaseMethod, Predictor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..clip.backbone import Backbone
    from ..learning.contract import Context


class StageSettings(Strict):
    """share: of the steps, how many train the norms."""

    share: float = Field(0.6, ge=0, le=1)


class Method(BaseMethod):
    """Norms, then a classifier."""

    name = "two_stage"
    label = "2SFS"
    Settings = StageSettings

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """AdapterError, before any training, where a tower has no blocks with norms."""
        block_norms(backbone)

    def fit(self, context: Context) -> TwoStagePredictor:
        """Train both stages; the norms keep what they learnt until the predictor is closed."""
        predictor = TwoStagePredictor(context)
        try:
            predictor.train(self.settings.share)
        except BaseException:
            predictor.close()
            raise
        return predictor


def block_norms(backbone: Backbone) -> list[nn.LayerNorm]:
    """The layer norms in the blocks of both towers: of the image tower, then of the text tower."""
    from torch import nn

    from ..adapters.config import TOWERS
    from ..layers.attention_layers import find_towers

    found: list[nn.LayerNorm] = []
    for tower, _, module in find_towers(backbone.model, TOWERS):
        named = [(f".{name}", m) for name, m in module.named_modules()]
        norms = [m for n, m in named if ".resblocks." in n and isinstance(m, nn.LayerNorm)]
        if not norms:
            raise AdapterError(
                f"method two_stage trains the layer norms in the blocks of both towers, and the "
                f"{tower} tower of {backbone.spec.name} ({type(module).__name__}) has none; use a "
                "CLIP of two transformers, such as ViT-B-16, or method clip_adapter"
            )
        found += norms
    return found


class TwoStagePredictor(Predictor):
    """Cosines of images by the adapted tower and the trained classifier."""

    weight: Any = None  # w: (K, d), once stage 2 has begun

    def __init__(self, context: Context) -> None:
        self.context, self.backbone = context, context.backbone
        norms = block_norms(self.backbone)
        self._norms: list[Any] = [p for norm in norms for p in norm.parameters()]
        self._before = [p.detach().clone() for p in self._norms]

    def train(self, share: float) -> None:
        """Train the norms for this share of the steps, then the classifier for the rest."""
        import torch

        from ..core.seeding import derive_seed
        from ..learning.feature_fit import parameter

        context, backbone = self.context, self.backbone
        _, _, training = context.to_train()
        first = int(training.steps(context.shots) * share)
        prompts = backbone.pack(
            context.tokens, share_prefix=training.share_prefix, class_chunk=training.class_chunk
        )

        def rows(images: Tensor) -> Tensor:
            self.images_seen += len(images)
            pixels = backbone.normalise(images)
            return backbone.encode_images(pixels, checkpoint=training.checkpointing)

        def both(images: Tensor) -> Tensor:
            text = backbone.encode_prompts(prompts, checkpoint=training.checkpointing)
            return backbone.logit_scale * rows(images) @ text.T

        def last(images: Tensor) -> Tensor:
            with torch.no_grad():
                f = rows(images)
            return backbone.logit_scale * f @ torch.nn.functional.normalize(self.weight, dim=-1).T

        self._let_norms_train(True)
        self._take(first, context, self._norms, both)
        self._let_norms_train(False)
        self.weight = parameter(backbone.encode_prompts(prompts))
        anew = replace(context, seed=derive_seed(context.seed, "second stage"))
        self._take(training.steps(context.shots) - first, anew, [self.weight], last)

    def _take(self, steps: int, context: Context, trained: list[Any], logits: Any) -> None:
        """Take so many steps more."""
        from ..learning.loop import TrainingDiverged, train

        if not steps:
            return
        _, _, training = context.to_train()
        before, of, tell = len(self.loss), training.steps(context.shots), context.on_step
        spec = training.model_copy(update={"min_steps": steps, "max_steps": steps})
        on_step = tell and (lambda step, _, loss: tell(before + step, of, loss))
        groups = [{"params": trained, "lr": spec.lr, "weight_decay": spec.weight_decay}]
        half = str(self.backbone.dtype) == "torch.float16"
        with self.backbone.training_kernels():
            taken = replace(context, training=spec, on_step=on_step)
            try:
                losses, skipped = train(taken, groups, logits, scaled=half)
            except TrainingDiverged as e:  # of the steps of both stages
                step = before + e.step
                raise TrainingDiverged(step, of, e.loss, e.lr, e.reason, e.highest) from None
        self.loss += losses
        self.overflows += tuple(before + step for step in skipped)
        self.trainable_parameters += sum(p.numel() for p in trained)

    def classifier(self, tokens: Tensor) -> Tensor:
        """Unit rows (C, d): w of the classes that were trained, text rows of all others."""
        import torch

        unit = torch.nn.functional.normalize(self.weight.detach(), dim=-1)
        if torch.equal(tokens, self.context.tokens):
            return unit
        known = (tokens[:, None] == self.context.tokens[None]).all(-1)  # (C, K)
        rows, new = unit[known.int().argmax(-1)], ~known.any(-1)
        if new.any():
            rows[new] = self.backbone.encode_prompts(tokens[new])
        return rows

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        return self.backbone.logit_scale * self.backbone.encode_images(images) @ classifier.T

    def _let_norms_train(self, flag: bool) -> None:
        for p in self._norms:
            p.requires_grad_(flag)

    def close(self) -> None:
        """Give the norms their bits back."""
        self._let_norms_train(False)
        for p, bits in zip(self._norms, self._before, strict=True):
            p.data.copy_(bits)
