"""Prompts of different lengths as one list of tokens without padding.

Every product with a frozen weight works on tokens one by one, so it runs on the list, (T, E).
Attention alone needs sequences: see `layers.sequences`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ..layers.sequences import Layout


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts up to their end-of-text token, the shortest first.

    tokens: (C, context length), and ends: (C,), of their end-of-text tokens, as they were given.
    ids, positions: (T,). pooled: (C,), the row of each end-of-text token; places: (C,), where in
    that order the prompts stand as they were given.
    """

    tokens: Tensor
    ends: Tensor
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

    @cached_property
    def in_sets(self) -> Callable[[int], PackedPrompts]:
        """(S) -> S sets of the prompts, each led by a beginning of its own; made once."""
        return cache(lambda n: pack(self.tokens.repeat(n, 1), self.ends.repeat(n), True, n))

    def repeated(self, times: int) -> PackedPrompts:
        """The prompts so many times, each time anew as if they were others; without a prefix."""
        groups, offset = self.layout.groups, torch.arange(times, device=self.ids.device)[:, None]
        one = [(n * times, length) for n, length in groups]
        return PackedPrompts(
            tokens=self.tokens.repeat(times, 1),
            ends=self.ends.repeat(times),
            ids=self.ids.repeat(times),
            positions=self.positions.repeat(times),
            pooled=(self.pooled + offset * len(self.ids)).flatten(),
            places=(self.places + offset * len(self.places)).flatten(),
            layout=Layout(tuple(one) if len(one) == 1 else groups * times, causal=True),
        )


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
        ends=end,
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
