"""The towers with learnt tokens, written plainly with open_clip's own modules over all positions.

An independent restatement: no packing, no shared prefix, every block over every token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def put(x, vectors, start):
    """x (N, L, E) with vectors (M, E), or (N, M, E), at its tokens from `start` on."""
    m = vectors.shape[-2]
    return torch.cat([x[:, :start], vectors.expand(len(x), m, -1), x[:, start + m :]], dim=1)


def blocks(transformer, x, deep, start, mask=None):
    for i, block in enumerate(transformer.resblocks):
        if 0 < i < len(deep):
            x = put(x, deep[i], start)
        x = block(x, attn_mask=mask)
    return x


def text_rows(model, tokens, deep):
    """Rows (C, d), not unit, of tokens (C, 77) in which deep[i] stands after the start of text."""
    x = put(model.token_embedding(tokens), deep[0], 1) + model.positional_embedding
    x = model.ln_final(blocks(model.transformer, x, deep, 1, model.attn_mask))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def image_rows(model, images, deep=()):
    """Rows (B, d), not unit, of images (B, 3, H, W) after whose patches deep[i] stands."""
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([first, patches], dim=1) + visual.positional_embedding
    start = x.shape[1]
    if len(deep):
        x = torch.cat([x, deep[0].expand(len(x), -1, -1)], dim=1)
    x = blocks(visual.transformer, visual.ln_pre(x), deep, start)
    return visual.ln_post(x)[:, 0] @ visual.proj


def cosines(model, images, tokens, text, image=()):
    """τ f tᵀ, (B, C)."""
    f = F.normalize(image_rows(model, images, image), dim=-1)
    t = F.normalize(text_rows(model, tokens, text), dim=-1)
    return model.logit_scale.exp() * f @ t.T
