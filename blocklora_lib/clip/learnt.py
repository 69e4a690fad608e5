"""Learnt tokens: vectors that stand in a tower's list of tokens in place of what was there.

Prompt learning puts them at a tower's input (shallow), and at the input of its first blocks too
(deep), where they replace what the block before has made of the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Learnt:
    """The vectors of each of the first blocks, (M, E): what stands at a tower's M learnt tokens.

    In the text tower they are the tokens after the start of text; in the image tower they follow
    all others. blocks[0] stands at the tower's input, before what embeddings of positions add in
    the one, after it in the other.
    """

    blocks: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """M."""
        return self.blocks[0].shape[-2]

    def put(self, x: Tensor, rows: Tensor, block: int) -> Tensor:
        """Return x with a block's vectors at its rows. x: (T, E), rows: (S, M) of S sequences."""
        if block >= len(self.blocks):
            return x
        vectors = self.blocks[block].to(x.dtype).expand(*rows.shape, -1)
        return x.index_copy(0, rows.flatten(), vectors.flatten(0, 1))
