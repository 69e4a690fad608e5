"""Closed forms of a step that trains tokens at the input of towers, or their norms. No torch.

Gradients go down to the first block of each tower that something is trained in; the other one runs
forward alone. A norm's own gradient is no product. Prompts of all classes begin with the same
learnt tokens, which are run once; where each image has prompts of its own, once an image.
"""

from __future__ import annotations

from ..adapters.config import AdapterConfig
from ..clip.architectures import ClipArchitecture, Tower
from .step import Work, frozen_work, whole_work


def forward_work(tower: Tower, sequences: int, tokens: int | None = None) -> Work:
    """A tower with nothing to train in it."""
    return Work(frozen_work(tower, AdapterConfig(kind="lora"), sequences, tokens).forward)


def prompt_work(
    architecture: ClipArchitecture,
    images: int,
    classes: int,
    context: int,
    rest: int,
    image_tokens: bool = False,
    own_prompts: bool = False,
    plain_images: bool = False,
    backwards: int = 1,
) -> Work:
    """Multiply-adds of a step of a prompt method on so many images.

    context: learnt tokens; rest: of a prompt behind them, the name and the end. image_tokens: they
    stand in the image tower, too (and are left out of its length); own_prompts: each image has its
    own; plain_images: the images are encoded without them as well; backwards: passes.
    """
    text = whole_work(architecture.text, classes, 1 + context + rest, 1 + context)
    if own_prompts:
        text = Work(text.forward * images, text.backward * images)
    whole = whole_work if image_tokens else forward_work
    towers = text + whole(architecture.vision, images)
    if plain_images:
        towers += forward_work(architecture.vision, images)
    logits = images * classes * architecture.vision.embed_dim
    step = towers + Work(logits, logits * (1 + image_tokens))
    return Work(step.forward, step.backward * backwards)


def norms_work(architecture: ClipArchitecture, images: int, classes: int, tokens: int) -> Work:
    """Multiply-adds of a step that trains the norms of both towers; tokens: of a prompt."""
    logits = images * classes * architecture.vision.embed_dim
    return (
        whole_work(architecture.vision, images)
        + whole_work(architecture.text, classes, tokens)
        + Work(logits, 2 * logits)
    )
