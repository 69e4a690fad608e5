"""Sequences of different lengths as one list of tokens without padding, and attention in each.

Every product with a frozen weight works on tokens one by one, so it runs on the list, (T, E).
Attention alone needs sequences: they lie sorted by length, and those of one length are a group,
computed at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts up to their end-of-text token, the shortest first.

    tokens: (C, context length), as they were given.
    ids, positions: (T,). pooled: (C,), the row of each end-of-text token; places: (C,), where in
    that order the prompts stand as they were given.
    """

    tokens: Tensor
    ids: Tensor
    positions: Tensor
    pooled: Tensor
    places: Tensor
    layout: Layout

    def after_start(self, m: int) -> Tensor:
        """Rows of tokens 1 to m of every prompt, (C, m), or of each prefix that many share."""
        first = torch.arange(self.layout.sets, device=self.pooled.device) * self.layout.prefix
        if not self.layout.prefix:
            first = torch.cat([first[:1], self.pooled[:-1] + 1])
        return first[:, None] + torch.arange(1, m + 1, device=first.device)


def pack(tokens: Tensor, end: Tensor, share_prefix: bool = False, sets: int = 1) -> PackedPrompts:
    """Pack token ids (C, context length) up to `end` (C,), the position of each end-of-text token.

    share_prefix: the tokens with which all prompts begin stand in the list once, or once for each
    of so many equal sets of prompts.
    """
    lengths = (end + 1).tolist()
    prefix = common_prefix(tokens, min(lengths) - 1) if share_prefix and len(tokens) > 1 else 0
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = tuple((n, length - prefix) for length, n in sorted(Counter(lengths).items()))
    rows = [torch.arange(prefix)] * sets if prefix else []
    rows += [torch.arange(prefix, lengths[i]) for i in order]
    owners = [0] * prefix * sets + [i for i in order for _ in range(lengths[i] - prefix)]
    positions = torch.cat(rows).to(tokens.device)
    ends = torch.tensor([lengths[i] - prefix for i in order]).cumsum(0) + prefix * sets - 1
    return PackedPrompts(
        tokens=tokens,
        ids=tokens[torch.tensor(owners, device=tokens.device), positions],
        positions=positions,
        pooled=ends.to(tokens.device),
        places=torch.tensor(order).argsort().to(tokens.device),
        layout=Layout(groups, causal=True, prefix=prefix, sets=sets),
    )


def common_prefix(tokens: Tensor, most: int) -> int:
    """Number of leading tokens that all rows share, at most `most`."""
    differs = (tokens[:, :most] != tokens[:1, :most]).any(0)
    return int(differs.int().argmax()) if bool(differs.any()) else most


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Return softmax(q kᵀ / sqrt D) v within each sequence. q, k, v: (T, H, D) -> (T, H D).

    q of one token a sequence, (N, H, D), stands for the last ones (or, not causal, for any): each
    sees all.
    """
    pooled = len(q) != len(k)
    queries = list(q.split([n for n, _ in layout.groups] if pooled else layout.sizes))
    pairs = list(zip(k.split(layout.sizes), v.split(layout.sizes), strict=True))
    causal, contexts, before = layout.causal and not pooled, [], None
    if layout.prefix:
        before = pairs.pop(0)
        if not pooled:
            contexts.append(_attend(queries.pop(0), *before, layout.sets, causal))
    for (n, _), query, pair in zip(layout.groups, queries, pairs, strict=True):
        contexts.append(_attend(query, *pair, n, causal, before, layout.sets))
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


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
