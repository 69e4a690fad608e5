"""Attach adapters, train them on cosine logits, merge them for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..adapter_config import AdapterConfig
from ..inject import AdapterSet, attach
from ..seeding import generator
from ..training import train
from ._context import Context


def fit_adapters(context: Context, config: AdapterConfig) -> AdapterPredictor:
    """Attach adapters to the context's backbone and train them; on any error the backbone is as before."""
    backbone, training = context.backbone, context.training
    adapters = attach(backbone.model, config, generator(context.seed, "adapter"))
    predictor = AdapterPredictor(context, adapters)
    try:
        for adapter in adapters.adapters.values():
            adapter.train()  # dropout on its input; the frozen model stays in eval mode
        with backbone.training_kernels():
            predictor.loss = train(
                adapters.parameter_groups(lr=training.lr, weight_decay=training.weight_decay),
                predictor.training_logits(),
                backbone.normalise,
                context.images,
                context.labels,
                training,
                context.shots,
                context.seed,
                context.on_step,
            )
    except BaseException:
        predictor.close()
        raise
    for adapter in adapters.adapters.values():
        adapter.eval()
    return predictor


class AdapterPredictor:
    """Cosine logits of the adapted towers."""

    def __init__(self, context: Context, adapters: AdapterSet) -> None:
        self.backbone, self.tokens, self.adapters = context.backbone, context.tokens, adapters
        self.trainable_parameters = adapters.num_parameters()
        self.loss: tuple[float, ...] = ()

    def training_logits(self) -> Callable[[Tensor], Tensor]:
        """Return logits(images).  Prompts are encoded at every step if the text tower is adapted."""
        backbone, fixed = self.backbone, None
        if "text" not in self.adapters.config.towers:
            with torch.no_grad():
                fixed = backbone.encode_prompts(self.tokens)

        def logits(images: Tensor) -> Tensor:
            classes = backbone.encode_prompts(self.tokens) if fixed is None else fixed
            return backbone.logit_scale * backbone.encode_images(images) @ classes.T

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
