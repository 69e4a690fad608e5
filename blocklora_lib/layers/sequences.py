"""Attention within sequences of different lengths that lie in one list of tokens, without padding.

Sequences lie sorted by length, and those of one length are a group, computed at once. On a GPU,
where a call takes longer than it computes, all groups are: there is a kernel for any lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.devices import moved
from .eager import on_gpu


@dataclass(frozen=True)
class Layout:
    """How sequences lie in a list of tokens.

    groups: (sequences, tokens of each), in order. A causal sequence sees nothing after the token
    that asks.
    prefix: so many tokens lead the list, before the groups, and every sequence begins with them.
    sets: so many prefixes lead it, each for an equal share of each group, in order.
    """

    groups: tuple[tuple[int, int], ...]
    causal: bool = False
    prefix: int = 0
    sets: int = 1

    @property
    def sizes(self) -> list[int]:
        """Tokens of the prefix, if there is one, then of each group."""
        sizes = [n * length for n, length in self.groups]
        return [self.sets * self.prefix, *sizes] if self.prefix else sizes

    @cached_property
    def _starts(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def starts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each sequence begins, (N + 1,), int32, and 0 .. N; on the device from then on."""
        if device not in self._starts:
            lengths = [length for n, length in self.groups for _ in range(n)]
            ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
            counted = torch.arange(len(ends), dtype=torch.int32)
            self._starts[device] = moved(ends, device), moved(counted, device)
        return self._starts[device]


def attend(projected: Tensor, layout: Layout, pooled: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / sqrt D) v within each sequence: (T, H D), of pooled (N, H D).

    projected: q, k, v side by side, (T, 3, H, D). pooled: one token a sequence, the last ones (or,
    not causal, any): each sees all. Their rows, (N,), or their q, (N, H, D), and then projected is
    k, v alone, (T, 2, H, D).
    """
    if pooled is not None and pooled.dim() == 1:
        q, kv = projected.split([1, 2], dim=1)
        pooled, projected = q[pooled, 0], kv
    if _any_lengths(projected) and not layout.prefix:
        return _attend_at_once(projected, layout, pooled)
    sizes = [n for n, _ in layout.groups] if pooled is not None else layout.sizes
    *asking, k, v = projected.unbind(1)
    queries = list((asking[0] if pooled is None else pooled).split(sizes))
    pairs = list(zip(k.split(layout.sizes), v.split(layout.sizes), strict=True))
    causal, contexts, before = layout.causal and pooled is None, [], None
    if layout.prefix:
        before = pairs.pop(0)
        if pooled is None:
            contexts.append(_attend(queries.pop(0), *before, layout.sets, causal))
    for (n, _), query, pair in zip(layout.groups, queries, pairs, strict=True):
        contexts.append(_attend(query, *pair, n, causal, before, layout.sets))
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


def _any_lengths(x: Tensor) -> bool:
    """Whether a GPU has a kernel for sequences of any lengths of such heads, (.., H, D)."""
    return on_gpu(x) and x.dtype != torch.float64 and x.shape[-1] % 8 == 0


def _attend_at_once(projected: Tensor, layout: Layout, pooled: Tensor | None) -> Tensor:
    """The same in one call, by the kernel that torch's own nested tensors use."""
    *asking, k, v = projected.unbind(1)
    q = asking[0] if pooled is None else pooled
    causal = layout.causal and pooled is None
    if len(layout.groups) == 1:
        return _attend(q, k, v, layout.groups[0][0], causal)
    keys, each = layout.starts(q.device)
    longest = max(length for _, length in layout.groups)
    asked = (keys, longest) if pooled is None else (each, 1)
    batch = q[None], k[None], v[None]
    logsumexp = torch.is_grad_enabled() and any(t.requires_grad for t in batch)
    context = torch.ops.aten._efficient_attention_forward(
        *batch, None, asked[0], keys, asked[1], longest, 0.0, int(causal), logsumexp
    )
    return context[0].squeeze(0).flatten(1)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n: int,
    causal: bool,
    before: tuple[Tensor, Tensor] | None = None,
    sets: int = 1,
) -> Tensor:
    """n sequences of one length; `before`: keys and values of the tokens that they begin with."""
    # (n, H, L, D); n may be 0
    q, k, v = (x.unflatten(0, (n, len(x) // max(n, 1))).transpose(1, 2) for x in (q, k, v))
    mask = None
    if before is not None:
        k, v = (
            torch.cat([_for_each(first, sets, n // sets), own], dim=2)
            for first, own in zip(before, (k, v), strict=True)
        )
        if causal:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = seen.tril(k.shape[2] - q.shape[2])
    context = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None
    )
    return context.transpose(1, 2).flatten(2).flatten(0, 1)


def _for_each(first: Tensor, sets: int, n: int) -> Tensor:
    """Each of the prefixes n times. first: (sets P, H, D) -> (sets n, H, P, D)."""
    own = first.unflatten(0, (sets, -1)).transpose(1, 2)[:, None]
    return own.expand(-1, n, -1, -1, -1).flatten(0, 1)
