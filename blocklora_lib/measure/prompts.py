"""Prompts to measure with, and how many tokens they have: padded, packed, the beginning once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of `prompts` prompts: all positions (`padded`), and up to each end of text (`packed`).

    longest: tokens of the longest one. prefix: tokens with which all of them begin.
    """

    prompts: int
    padded: int
    packed: int
    longest: int
    prefix: int

    @property
    def sharing_the_prefix(self) -> int:
        """Packed tokens where the common prefix stands once."""
        return self.packed - (self.prompts - 1) * self.prefix

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts: {self.packed} tokens, longest {self.longest}, "
            f"the first {self.prefix} shared; padded {self.padded}"
        )


def prompt_lengths(tokens: Tensor) -> PromptLengths:
    """Count token ids (prompts, context length), whose highest id is the end of text as in CLIP."""
    lengths = tokens.argmax(-1) + 1
    prefix = (tokens == tokens[0]).all(0).long().cumprod(0).sum()  # how all prompts begin
    return PromptLengths(
        len(tokens), tokens.numel(), int(lengths.sum()), int(lengths.max()), int(prefix)
    )


def imagenet_prompts(model: str = "ViT-B-16-quickgelu") -> PromptLengths:
    """Count 'a photo of a {class}.' for the 1000 classes of ImageNet, by the model's tokenizer."""
    from open_clip import get_tokenizer

    return prompt_lengths(get_tokenizer(model)(class_prompts(1000)))


def class_prompts(classes: int) -> list[str]:
    """Return CLIP-LoRA's prompts of the first ImageNet classes, 9.17 tokens each on average."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as NAMES

    if not 1 <= classes <= len(NAMES):
        raise ValueError(f"classes={classes}: ImageNet names are taken; use 1 to {len(NAMES)}")
    return [f"a photo of a {name}." for name in NAMES[:classes]]


def made_up_prompts(classes: int) -> list[str]:
    """Return prompts that need no list of names: 10.9 tokens of CLIP's each for 1000 classes, where
    ImageNet's have 9.17, so that what is measured with them is rather more.
    """
    return [f"a photo of a thing {i}." for i in range(1, classes + 1)]
