"""Learnt tokens: vectors in place of what stands in a tower's list of tokens, shallow or deep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Learnt:
    """What stands at a tower's M learnt tokens at the input of each of its first blocks, (M, E).

    In the text tower they are the tokens after the start, and what is added for positions comes on
    top; in the image tower they follow all others. Of (B, M, E) every prompt is read B times.
    """

    blocks: tuple[Tensor, ...]

    @property
    def sets(self) -> int:
        """B, 0 where there are no sets."""
        return len(self.blocks[0]) if self.blocks[0].dim() == 3 else 0

    def put(self, x: Tensor, rows: Tensor, block: int) -> Tensor:
        """Return x with a block's vectors at its rows. x: (T, E), rows: (S, M) of S sequences."""
        if block >= len(self.blocks):
            return x
        vectors = self.blocks[block].to(x.dtype).expand(*rows.shape, -1)
        return x.index_copy(0, rows.flatten(), vectors.flatten(0, 1))
