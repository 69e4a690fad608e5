"""What `nn.MultiheadAttention` does between its projections: batches, masks, attention weights.

N sequences of L queries and L_k keys, H heads of width D; E = H D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def as_batches(
    query: Tensor, key: Tensor, value: Tensor, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L, E), or (L, N, E) unless batch_first, or one sequence (L, E) -> (N, L, E), each."""

    def as_batch(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if batch_first else x.transpose(0, 1)

    if query.dim() in (2, 3) and query.dim() == key.dim() == value.dim():
        q = as_batch(query)
        if query is key and key is value:
            return q, q, q
        k, v = as_batch(key), as_batch(value)
        if q.shape[0] == k.shape[0] and k.shape[:2] == v.shape[:2]:
            return q, k, v
    raise RuntimeError(
        f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not "
        "fit each other: all are batches of as many sequences or all are one sequence, and there "
        "is a value for each key"
    )


def additive_mask(
    attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int
) -> Tensor | None:
    """Return both masks as one that is added to the scores, (N or 1, H or 1, L or 1, L_k).

    attn_mask (L, L_k) or (N H, L, L_k), padding (N, L_k); boolean masks say True where attention is
    barred.
    """
    n, heads, length, _ = q.shape
    mask = None
    if attn_mask is not None:
        if attn_mask.shape not in ((length, keys), (n * heads, length, keys)):
            raise RuntimeError(
                f"attn_mask has shape {tuple(attn_mask.shape)}; "
                f"expected {(length, keys)} or {(n * heads, length, keys)}"
            )
        mask = as_float("attn_mask", attn_mask, q.dtype)
        if mask.dim() == 3:
            mask = mask.view(n, heads, length, keys)
    if padding is not None:
        if padding.shape != (n, keys):
            raise RuntimeError(
                f"key_padding_mask has shape {tuple(padding.shape)}; expected {(n, keys)}"
            )
        padding = as_float("key_padding_mask", padding, q.dtype).view(n, 1, 1, keys)
        mask = padding if mask is None else mask + padding
    return mask


def as_float(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores: -inf where a boolean mask says True."""
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise RuntimeError(
            f"{name} is {mask.dtype}: give a boolean one, True where attention is barred (of a "
            "tokenizer's attention_mask: attention_mask == 0), or one of floats, which is added"
        )
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def attention_with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt D + mask) v, (N, H, L, D), and the attention weights, (N, H, L, L_k)."""
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
    weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
    return weights @ v, weights
