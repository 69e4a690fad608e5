"""Attach adapters, train them on cosine logits, merge them for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..core.seeding import generator
from ..layers.side_by_side import FactorsAhead
from .contract import Context
from .feature_cache import BATCH
from .loop import settings_plan, train
from .method import Predictor
from .texts import TextBackbone


def fit_adapters(context: Context, config: AdapterConfig) -> AdapterPredictor:
    """Attach adapters to the context's backbone and train them; on errors it is as before."""
    backbone, (_, _, training) = context.backbone, context.to_train()
    adapters = attach(backbone.model, config, generator(context.seed, "adapter"))
    predictor = AdapterPredictor(context, adapters)
    try:
        for adapter in adapters.adapters.values():
            adapter.train()  # dropout on its input; the frozen model stays in eval mode
        context, encoded = predictor.to_train(context)
        plan = settings_plan(context)
        predictor.images_seen = plan.images_seen
        with backbone.training_kernels():
            predictor.loss, predictor.overflows = train(
                context,
                adapters.parameter_groups(lr=training.lr, weight_decay=training.weight_decay),
                predictor.training_logits(encoded),
                scaled=backbone.dtype == torch.float16,
                plan=plan,
                replays=predictor.replays,
            )
    except BaseException:
        predictor.close()
        raise
    for adapter in adapters.adapters.values():
        adapter.eval()
    return predictor


class AdapterPredictor(Predictor):
    """Cosine logits of the adapted towers."""

    def __init__(self, context: Context, adapters: AdapterSet) -> None:
        self.backbone, self.tokens, self.adapters = context.backbone, context.tokens, adapters
        _, _, self.training = context.to_train()
        self.replays = context.replays(self.training)
        self.trainable_parameters = adapters.num_parameters()

    def to_train(self, context: Context) -> tuple[Context, bool]:
        """Return what is trained on, and whether its images are given as unit rows.

        To a frozen image tower, images that are not augmented look the same at every step.
        """
        backbone, (images, _, training) = self.backbone, context.to_train()
        through = "text" if isinstance(backbone, TextBackbone) else "vision"
        if through in self.adapters.config.towers or training.augment != "none":
            return context, False
        with torch.no_grad():
            parts = [backbone.encode_images(backbone.preprocess(x)) for x in images.split(BATCH)]
        return replace(context, images=torch.cat(parts)), True

    def training_logits(self, encoded: bool = False, runs: int = 1) -> Callable[[Tensor], Tensor]:
        """Return logits(images), pixels 0..255; prompts are encoded once if their tower is frozen.

        encoded: images are given as unit rows. runs: of a stack, whose images follow each other;
        with more than one the logits are (runs, B, C).
        """
        backbone, training, fixed = self.backbone, self.training, None
        prompts = backbone.pack(
            self.tokens, share_prefix=training.share_prefix, class_chunk=training.class_chunk
        )
        if runs > 1 and "text" in self.adapters.config.towers:
            packed: Any = prompts  # as `stacked.can_stack` asks
            prompts = tuple(part.repeated(runs) for part in packed)  # each run's are its own

        def rows(images: Tensor) -> Tensor:
            if encoded:
                return images
            pixels = backbone.normalise(images)
            return backbone.encode_images(pixels, checkpoint=training.checkpointing)

        def classes() -> Tensor:
            return backbone.encode_prompts(prompts, checkpoint=training.checkpointing)

        if "text" not in self.adapters.config.towers:
            with torch.no_grad():
                fixed = classes()
            # a run's budget is what it takes alone
            backbone.passes["text"] += (runs - 1) * len(self.tokens)

        ahead = FactorsAhead()

        def logits(images: Tensor) -> Tensor:
            with ahead:
                seen = backbone.logit_scale * rows(images)
                known = classes() if fixed is None else fixed
            if runs == 1:
                return seen @ known.T
            own = known.unflatten(0, (-1, len(self.tokens)))  # (runs, C, d), or (1, ..) if frozen
            return seen.unflatten(0, (runs, -1)) @ own.mT

        return logits

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Fold ΔW into W; afterwards the frozen weights are the very same bits again."""
        self.adapters.merge()
        try:
            yield
        finally:
            self.adapters.unmerge()

    def classifier(self, tokens: Tensor) -> Tensor:
        return self.backbone.encode_prompts(tokens)

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        return self.backbone.logit_scale * self.backbone.encode_images(images) @ classifier.T

    def close(self) -> None:
        self.adapters.detach()
