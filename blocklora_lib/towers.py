"""The towers of open_clip models, run no further than the pooled token needs: same features, same gradients.

Two savings, both exact.  Text stops at the longest prompt: behind a causal mask no later token reaches the
end-of-text token.  The last block computes its output for the pooled token alone, since no other one is read.
Where a model's structure does not allow one of them, open_clip's own forward is taken.
"""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn


def encode_images(model: nn.Module, images: Tensor) -> Tensor:
    """model.encode_image: (B, 3, H, W) -> (B, d)."""
    visual = model.visual
    if not (_reads_class_token(visual) and _blocks_are_plain(visual.transformer)):
        return model.encode_image(images)
    x = _before_last(visual.transformer, visual._embeds(images), None)
    first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    pooled = visual.ln_post(_last_block(visual.transformer.resblocks[-1], x, first, None))
    return pooled if visual.proj is None else pooled @ visual.proj


class TextTower:
    """The parts of a text tower, which CLIP keeps itself and CustomTextCLIP in its .text."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts = getattr(model, "text", model)
        self.pool = getattr(self.parts, "text_pool_type", getattr(self.parts, "pool_type", None))
        self.eos_id = getattr(self.parts, "text_eos_id", getattr(self.parts, "eos_id", None))

    @property
    def can_stop_early(self) -> bool:
        """Whether what follows the end-of-text token cannot reach the pooled one."""
        return (
            getattr(self.parts, "attn_mask", None) is not None  # causal
            and getattr(self.parts, "cls_emb", None) is None
            and self.pool in ("argmax", "eos")  # pooled at the end of text
            and isinstance(getattr(self.parts, "transformer", None), Transformer)
        )

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Position of the pooled token: (C,)."""
        # CLIP's end-of-text token has the highest id; towers with 'eos' pooling name it
        return tokens.argmax(-1) if self.pool == "argmax" else (tokens == self.eos_id).int().argmax(-1)

    def encode(self, tokens: Tensor) -> Tensor:
        """model.encode_text: token ids (C, context length) -> (C, d)."""
        if not self.can_stop_early:
            return self.model.encode_text(tokens)
        parts, end = self.parts, self.end_of_text(tokens)
        length = int(end.max()) + 1
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens[:, :length]).to(dtype) + parts.positional_embedding[:length].to(
            dtype
        )
        mask = parts.attn_mask[:length, :length]
        if _blocks_are_plain(parts.transformer):
            x = _before_last(parts.transformer, x, mask)
            pooled = _last_block(parts.transformer.resblocks[-1], x, end, mask)
        else:
            pooled = parts.transformer(x, attn_mask=mask)[torch.arange(len(x), device=x.device), end]
        pooled = parts.ln_final(pooled)
        projection = parts.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _reads_class_token(visual: nn.Module) -> bool:
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
    )


def _blocks_are_plain(transformer: nn.Module) -> bool:
    return (
        isinstance(transformer, Transformer)
        and transformer.batch_first
        and not transformer.grad_checkpointing
        and all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
        and not hasattr(transformer.resblocks[-1], "ln_1_kv")
    )


def _before_last(transformer: Transformer, x: Tensor, mask: Tensor | None) -> Tensor:
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return x


def _last_block(block: ResidualAttentionBlock, x: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
    """The block's output at one position a sequence.  x: (N, L, E), at: (N,), mask: (L, L) -> (N, E)."""
    rows = torch.arange(len(x), device=x.device)
    normed = block.ln_1(x)
    if mask is not None:  # each sequence has its own query, so its own row of the mask, for every head
        mask = mask[at].unsqueeze(1).repeat_interleave(block.attn.num_heads, dim=0)  # (N * heads, 1, L)
    context = block.attention(normed[rows, at].unsqueeze(1), normed, normed, attn_mask=mask).squeeze(1)
    x = x[rows, at] + block.ls_1(context)
    return x + block.ls_2(block.mlp(block.ln_2(x)))
