"""Attach adapters, train them on cosine logits, merge them for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..core.seeding import generator
from ..data.image_files import ImageFiles
from .contract import Context
from .evaluation import BATCH
from .loop import train
from .spec import TrainingSpec

Images = Tensor | ImageFiles


def fit_adapters(context: Context, config: AdapterConfig) -> AdapterPredictor:
    """Attach adapters to the context's backbone and train them; on any error the backbone is as
    before.
    """
    backbone, training = context.backbone, context.training
    adapters = attach(backbone.model, config, generator(context.seed, "adapter"))
    predictor = AdapterPredictor(context, adapters)
    try:
        for adapter in adapters.adapters.values():
            adapter.train()  # dropout on its input; the frozen model stays in eval mode
        images, normalise, encode = context.images, backbone.normalise, None
        if "vision" not in config.towers and training.augment == "none":
            images, normalise, encode = predictor.frozen_rows(images), nn.Identity(), nn.Identity()
        with backbone.training_kernels():
            predictor.loss = train(
                adapters.parameter_groups(lr=training.lr, weight_decay=training.weight_decay),
                predictor.training_logits(training, encode),
                normalise,
                images,
                context.labels,
                training,
                context.shots,
                context.seed,
                context.on_step,
                scaled=backbone.dtype == torch.float16,
                on_skip=context.on_skip,
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

    def frozen_rows(self, images: Images) -> Tensor:
        """Encode images that always look the same to a frozen tower, once: (N, d)."""
        backbone = self.backbone
        with torch.no_grad():
            return torch.cat(
                [backbone.encode_images(backbone.preprocess(x)) for x in images.split(BATCH)]
            )

    def training_logits(
        self, training: TrainingSpec | None = None, encode: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return logits(images). Prompts are encoded at every step if the text tower is adapted,
        else once.

        encode: images -> unit rows, by default the image tower with the settings of `training`.
        """
        backbone, training, fixed = self.backbone, training or TrainingSpec(), None
        checkpoint = training.checkpointing
        encode = encode or partial(backbone.encode_images, checkpoint=checkpoint)
        prompts = backbone.pack(
            self.tokens, share_prefix=training.share_prefix, class_chunk=training.class_chunk
        )
        classes = partial(backbone.encode_prompts, prompts, checkpoint=checkpoint)
        if "text" not in self.adapters.config.towers:
            with torch.no_grad():
                fixed = classes()

        def logits(images: Tensor) -> Tensor:
            return backbone.logit_scale * encode(images) @ (classes() if fixed is None else fixed).T

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
