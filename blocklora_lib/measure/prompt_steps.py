"""One training step of learnt tokens: ours, plainly over all positions, or LoRA's.

All encode images and prompts, take cross-entropy, backward to the tokens, and SGD (LoRA's: to the
adapters, and AdamW). Values cost nothing: weights are random, images noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone
from ..clip.learnt import Learnt
from ..core.seeding import generator
from .counted import attach_in_training, count_multiply_adds
from .other_code import plain_prompts
from .prompts import class_prompts
from .steps import OPTIMIZER, NotCovered, Step, our_step, random_images, twin

OURS, PLAIN, LORA = "ours", "plain", "lora"


def prompt_steps(
    backbone: Backbone,
    classes: int,
    batch: int,
    tokens: int = 16,
    depth: int = 1,
    image: int = 0,
    against: str = PLAIN,
) -> dict[str, Step]:
    """Return our step and the one it is held `against`, of the same numbers, by name.

    tokens, image: learnt ones of the text tower and of the image tower; depth: in so many blocks.
    NotCovered for a model without two plain transformers, ValueError for more blocks than it has.
    """
    words = " ".join("X" * tokens)
    prompts = [text.replace("a photo of a", words) for text in class_prompts(classes)]
    ids, pixels = backbone.tokenize(prompts), random_images(backbone, batch)
    model, name = backbone.model, backbone.spec.name
    try:
        widths = model.positional_embedding.shape[1], model.visual.positional_embedding.shape[1]
        towers = model.transformer, model.visual.transformer
        blocks = min(len(tower.resblocks) for tower in towers)
    except AttributeError:
        raise NotCovered(
            f"tokens are learnt here in a CLIP of two plain transformers, and {name} is none; give "
            "another --model, such as ViT-B-16"
        ) from None
    if depth > blocks:
        raise ValueError(
            f"depth={depth}: a tower of {name} has {blocks} blocks; say --depth {blocks}"
        )

    def trained() -> tuple[list[Tensor], list[Tensor]]:
        random = generator(1, "prompts")
        shapes = ((tokens, widths[0], depth), (image, widths[1], depth if image else 0))
        drawn = (
            [0.02 * torch.randn(m, e, generator=random) for _ in range(n)] for m, e, n in shapes
        )
        text, images = ([p.to(pixels.device).requires_grad_() for p in part] for part in drawn)
        return text, images

    def step(make: Callable[..., Callable[[], Tensor]]) -> Step:
        own, (text, images) = twin(backbone), trained()
        optimizer = torch.optim.SGD([*text, *images], lr=2e-3, momentum=0.9)
        return Step(own, ids, pixels, make(own, text, images), optimizer)

    def ours(own: Backbone, text: list[Tensor], images: list[Tensor]) -> Callable[[], Tensor]:
        packed = own.pack(ids, share_prefix=True)
        there = Learnt(tuple(images)) if images else None

        def logits() -> Tensor:
            t = own.encode_prompts(packed, learnt=Learnt(tuple(text)))
            return own.logit_scale * own.encode_images(pixels, learnt=there) @ t.T

        return logits

    def plain(own: Backbone, text: list[Tensor], images: list[Tensor]) -> Callable[[], Tensor]:
        return lambda: plain_prompts.cosines(own.model, pixels, ids, text, images)

    def lora() -> Step:
        own = twin(backbone)
        adapters = attach_in_training(own.model, AdapterConfig(kind="lora"))
        words = own.tokenize(class_prompts(classes))
        return our_step(own, adapters.parameter_groups(**OPTIMIZER), words, pixels)

    other = {PLAIN: lambda: step(plain), LORA: lora}[against]
    return {OURS: step(ours), against: other()}


def counted_flops(step: Step) -> float:
    """FLOPs of a step's products, forward and backward, as torch counts them."""
    return 2.0 * sum(count_multiply_adds(step.loss))
