"""The towers of open_clip models, run as far as the pooled token needs: features, gradients alike.

Three savings, all exact. A prompt ends with its end-of-text token: behind a causal mask no later
token reaches it, so prompts are packed without padding. The last block computes its output for the
pooled token alone, since no other one is read. Frozen weights get no gradient, and nothing does
below the first adapted layer. Where a model's structure does not allow this, where someone changed
what it runs (`untouched.py`), and while it is traced, compiled or transformed, open_clip's own
forward is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from ..adapters.attention import can_project, output_projection, qkv_projection
from ..layers.eager import is_eager, on_gpu
from ..layers.frozen import frozen_mlp, frozen_norm
from ..layers.sequences import Layout, attend
from .learnt import Learnt
from .packing import PackedPrompts, pack
from .recomputation import recomputed
from .untouched import has_own_encoders, untouched


def encode_images(
    model: Any,
    images: Tensor,
    checkpointing: bool = False,
    projected: bool = True,
    learnt: Learnt | None = None,
) -> Tensor:
    """model.encode_image: (B, 3, H, W) -> (B, d).

    checkpointing: keep only the input of each block for the backward pass, and compute the block
    again there. projected False: what `image_projection` takes, (B, p); where that is None, as
    projected. learnt: tokens after all others; ValueError where the tower has no place for them.
    """
    # open_clip's own forward takes one at least; of none there is a gradient too, zero
    if len(images) == 0:
        one = images.new_zeros(1, *images.shape[1:])
        return encode_images(model, one, checkpointing, projected, learnt)[:0]
    visual: Any = model.visual
    if not images_are_plain(model):
        _refuse("image", learnt)
        return model.encode_image(images)
    x, put = visual._embeds(images), None
    if learnt:
        prompts = visual.ln_pre(learnt.blocks[0].to(x.dtype))
        x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
    n, length, _ = x.shape
    first = torch.arange(0, n * length, length, device=x.device)
    if learnt:
        last = torch.arange(length - len(prompts), length, device=x.device)
        put = partial(learnt.put, rows=first[:, None] + last)
    x = _run(visual.transformer, x.flatten(0, 1), first, Layout(((n, length),)), checkpointing, put)
    pooled = visual.ln_post(x)
    return pooled @ visual.proj if projected and visual.proj is not None else pooled


def image_projection(model: Any) -> Tensor | None:
    """The matrix (p, d) by which the image tower multiplies last; None if it has no such one."""
    return model.visual.proj if images_are_plain(model) else None


class TextTower:
    """The parts of a text tower, which CLIP keeps itself and CustomTextCLIP in its .text."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parts = getattr(model, "text", model)
        self.pool = getattr(self.parts, "text_pool_type", getattr(self.parts, "pool_type", None))
        self.eos_id: Any = getattr(self.parts, "text_eos_id", getattr(self.parts, "eos_id", None))

    @property
    def can_pack(self) -> bool:
        """Whether what follows the end-of-text token cannot reach the pooled one: plain blocks."""
        return (
            self._is_plain
            and _is_causal(getattr(self.parts, "attn_mask", None))
            and getattr(self.parts, "cls_emb", None) is None
            and not getattr(self.parts, "use_pad_mask", False)
            and self.pool in ("argmax", "eos")  # pooled at the end of text
        )

    @property
    def _is_plain(self) -> bool:
        """Whether encode_text is nothing but what `encode` stands in for."""
        parts, own = self.parts, dict(self.parts.named_children())
        if parts is self.model:
            own.pop("visual", None)  # CLIP holds the image tower beside the parts of its text tower
            whole = list(own.values())
        else:
            whole = [parts]
        return (
            is_eager()
            and has_own_encoders(self.model)
            and _blocks_are_plain(own.get("transformer"))
            and untouched(*whole)
        )

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Position of the pooled token: (C,)."""
        # CLIP's end-of-text token has the highest id; towers with 'eos' pooling name it
        return (
            tokens.argmax(-1) if self.pool == "argmax" else (tokens == self.eos_id).int().argmax(-1)
        )

    def pack(self, tokens: Tensor, share_prefix: bool = False) -> Tensor | PackedPrompts:
        """Prepare token ids (C, context length) for `encode`, once for many calls."""
        if len(tokens) == 0 or not self.can_pack:
            return tokens
        return pack(tokens, self.end_of_text(tokens), share_prefix)

    def encode(
        self,
        prompts: Tensor | PackedPrompts,
        checkpointing: bool = False,
        learnt: Learnt | None = None,
    ) -> Tensor:
        """model.encode_text: token ids (C, context length), or packed prompts -> (C, d).

        learnt: in place of the tokens after the start; ValueError where they have no place.
        """
        if isinstance(prompts, Tensor):
            prompts = self.pack(prompts)
        if isinstance(prompts, Tensor) or not self._is_plain:  # no more, it may be
            _refuse("text", learnt)
            return self.model.encode_text(
                prompts if isinstance(prompts, Tensor) else prompts.tokens
            )
        parts, dtype = self.parts, self.parts.transformer.get_cast_dtype()
        if learnt and learnt.sets:
            prompts = prompts.in_sets(learnt.sets)
        x, put = parts.token_embedding(prompts.ids).to(dtype), None
        if learnt:
            put = partial(learnt.put, rows=prompts.after_start(learnt.blocks[0].shape[-2]))
            x = put(x, block=0)
        x = x + parts.positional_embedding[prompts.positions].to(dtype)
        x = _run(parts.transformer, x, prompts.pooled, prompts.layout, checkpointing, put)
        pooled = parts.ln_final(x)[prompts.places]
        if learnt and learnt.sets:
            pooled = pooled.unflatten(0, (learnt.sets, -1))
        projection = parts.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _refuse(tower: str, learnt: Learnt | None) -> None:
    if learnt:
        what = f"learnt tokens have no place in this {tower} tower, which does not run open_clip's "
        raise ValueError(
            f"{what}plain transformer; use one that does, as ViT-B-16's, without hooks"
        )


def _run(
    transformer: Transformer,
    x: Tensor,
    pooled: Tensor,
    layout: Layout,
    checkpointing: bool,
    put: Callable[..., Tensor] | None,
) -> Tensor:
    """All blocks, the last at the pooled tokens only. x: (T, E), pooled: (N,) rows -> (N, E).

    put(x, block=i): x with what is learnt at the input of block i, from 1 on.
    """
    *blocks, last = transformer.resblocks
    for i, block in enumerate(blocks):
        x, run = put(x, block=i) if put and i else x, partial(_block, block, layout=layout)
        x = recomputed(run, x, device=x.device) if checkpointing else run(x)
    x = put(x, block=len(blocks)) if put and blocks else x
    return _last_block(last, x, pooled, layout)


def _block(block: ResidualAttentionBlock, x: Tensor, layout: Layout) -> Tensor:
    """x + attention(norm x), then x + MLP(norm x), of all tokens. x: (T, E) -> (T, E)."""
    heads = block.attn.num_heads
    qkv = qkv_projection(block.attn, frozen_norm(block.ln_1, x)).unflatten(-1, (3, heads, -1))
    return _rest_of_block(block, x, attend(qkv, layout))


def _last_block(block: ResidualAttentionBlock, x: Tensor, pooled: Tensor, layout: Layout) -> Tensor:
    """The block's output at one token a sequence. x: (T, E), pooled: (N,) rows -> (N, E)."""
    heads, normed = block.attn.num_heads, frozen_norm(block.ln_1, x)
    if on_gpu(x):  # q of all tokens: fewer kernels, and a hundredth more to compute
        qkv = qkv_projection(block.attn, normed).unflatten(-1, (3, heads, -1))
        context = attend(qkv, layout, pooled)
        return _rest_of_block(block, x[pooled], context)
    q = qkv_projection(block.attn, normed[pooled], "q").unflatten(-1, (heads, -1))
    kv = qkv_projection(block.attn, normed, "kv").unflatten(-1, (2, heads, -1))
    return _rest_of_block(block, x[pooled], attend(kv, layout, q))


def _rest_of_block(block: ResidualAttentionBlock, x: Tensor, context: Tensor) -> Tensor:
    x = x + block.ls_1(output_projection(block.attn, context))
    return x + block.ls_2(_mlp(block, x))


def _mlp(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    return frozen_mlp(
        block.mlp,
        frozen_norm(block.ln_2, x),
        quick=any(type(part) is QuickGELU for part in block.mlp),
    )


def images_are_plain(model: Any) -> bool:
    """Whether encode_image is nothing but what `encode_images` stands in for."""
    visual = model.visual
    return (
        is_eager()
        and has_own_encoders(model)
        and _reads_class_token(visual)
        and untouched(visual)
        and _blocks_are_plain(visual.transformer)
    )


def _reads_class_token(visual: nn.Module) -> bool:
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
    )


def _blocks_are_plain(transformer: nn.Module | None) -> bool:
    return (
        isinstance(transformer, Transformer)
        and not transformer.grad_checkpointing
        and len(transformer.resblocks) > 0
        and all(isinstance(block, ResidualAttentionBlock) for block in transformer.resblocks)
        and not any(hasattr(block, "ln_1_kv") for block in transformer.resblocks)
        and all(can_project(block.attn) for block in transformer.resblocks)
    )


def _is_causal(mask: Tensor | None) -> bool:
    """Whether a mask of scores bars what comes later and nothing else."""
    if mask is None or mask.is_meta:
        return mask is not None
    return torch.equal(mask, torch.full_like(mask, -math.inf).triu(1))
