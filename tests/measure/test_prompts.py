"""Tokens of prompts, against what the packed text tower computes."""

from __future__ import annotations

import pytest
import torch
from open_clip import get_tokenizer

from blocklora_lib.clip.packing import pack
from blocklora_lib.measure.prompts import imagenet_prompts, prompt_lengths


@pytest.mark.parametrize(
    "texts",
    [
        ("a photo of a cat.", "a photo of a dog.", "a photo of a very long-haired guinea pig."),
        ("a cat", "dogs"),  # they share the start of text alone
        ("one alone",),
    ],
)
def test_the_counts_are_what_the_packed_tower_computes(texts):
    tokens = get_tokenizer("ViT-B-16")(list(texts))
    end = (tokens == tokens.max()).int().argmax(-1)
    found, packed = prompt_lengths(tokens), pack(tokens, end)
    assert found.packed == len(packed.ids)
    assert found.longest == max(length for _, length in packed.layout.groups)
    assert (found.prompts, found.padded) == (len(texts), 77 * len(texts))
    shared = pack(tokens, end, share_prefix=True)
    if len(texts) > 1:
        assert found.prefix == shared.layout.prefix
        assert found.sharing_the_prefix == len(shared.ids)
    else:
        assert torch.equal(tokens[0, : found.packed], packed.ids)


def test_the_prompts_of_imagenet():
    found = imagenet_prompts()
    assert (found.prompts, found.padded) == (1000, 77_000)
    assert str(found).startswith(f"1000 prompts: {found.packed} tokens, longest {found.longest}")
