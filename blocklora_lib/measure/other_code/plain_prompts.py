"""CLIP with learnt tokens, written plainly: open_clip's own modules over all positions.

As the released code of CoOp, MaPLe and PromptSRC does it: every block over every token of every
padded prompt. Learnt tokens are a list with (M, E) of each block from the first on; the text
tower's stand after the start of text, the image tower's after all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(
    model: Any, images: Tensor, tokens: Tensor, text: Sequence[Tensor], image: Sequence[Tensor] = ()
) -> Tensor:
    """τ f tᵀ of normalised images (B, 3, H, W) and token ids (C, context length): (B, C)."""
    f = F.normalize(image_rows(model, images, image), dim=-1)
    t = F.normalize(text_rows(model, tokens, text), dim=-1)
    return model.logit_scale.exp() * f @ t.T


def text_rows(model: Any, tokens: Tensor, learnt: Sequence[Tensor]) -> Tensor:
    """Rows (C, d) of token ids (C, context length), as long as the tower gives them."""
    x = put(model.token_embedding(tokens), learnt[0], 1) + model.positional_embedding
    x = model.ln_final(_blocks(model.transformer, x, learnt, 1, model.attn_mask))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def image_rows(model: Any, images: Tensor, learnt: Sequence[Tensor] = ()) -> Tensor:
    """Rows (B, d) of normalised images (B, 3, H, W), as long as the tower gives them."""
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([first, patches], dim=1) + visual.positional_embedding
    start = x.shape[1]
    if len(learnt):
        x = torch.cat([x, learnt[0].expand(len(x), -1, -1)], dim=1)
    x = _blocks(visual.transformer, visual.ln_pre(x), learnt, start)
    return visual.ln_post(x)[:, 0] @ visual.proj


def put(x: Tensor, vectors: Tensor, start: int) -> Tensor:
    """x with vectors (M, E), or (N, M, E), at its tokens from `start` on. x: (N, L, E)."""
    m = vectors.shape[-2]
    return torch.cat([x[:, :start], vectors.expand(len(x), m, -1), x[:, start + m :]], dim=1)


def _blocks(
    transformer: Any, x: Tensor, learnt: Sequence[Tensor], start: int, mask: Tensor | None = None
) -> Tensor:
    for i, block in enumerate(transformer.resblocks):
        if 0 < i < len(learnt):
            x = put(x, learnt[i], start)
        x = block(x, attn_mask=mask)
    return x
