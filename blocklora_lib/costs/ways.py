"""Ways to compute an adapter, and a training step with adapters: the one list of them. No torch.

A way is a kind of adapter x a reading of (r, n) x an order of computation. Kind and reading are
`AdapterConfig`'s; the orders of s x A_s Σ B_i are

    "sum_first"  (x A_s)(Σ_i B_i)       sum the B_i (additions), then two thin products: what the
                                        library does, in attention for q, k and v together
    "plain"      (x A_s)(Σ_i B_i)       the same products, every adapter by itself
    "loop"       Σ_i (x A_s) B_i        one block after another, each with both of its products
    "loop_once"  h = x A_s, Σ_i h B_i   the shared product once ("input": Σ_i x_i A_s, then one B)
    "dense"      x (A_s Σ_i B_i)        ΔW is formed, d_in x d_out, then multiplied by: what
                                        CLIP-LoRA's released code does while dropout is on

Closed forms (`adapter.py`, `step.py`), code that computes in these orders (`measure/orders.py`),
timings and figures all take their names from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ..adapters.config import AdapterConfig

Order = Literal["sum_first", "plain", "loop", "loop_once", "dense"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Way:
    """A kind of adapter and the order in which it is computed; label: its name in figures."""

    kind: str
    order: Order
    label: str

    def config(
        self, rank: int = 2, n_blocks: int = 2, reading: str = "total_rank", dropout: float = 0.25
    ) -> AdapterConfig:
        """Return the adapter; LoRA has rank r, and reading and n say nothing to it."""
        cut = {} if self.kind == "lora" else {"n_blocks": n_blocks, "reading": reading}
        return AdapterConfig(kind=self.kind, rank=rank, dropout=dropout, **cut)


# by the names that stand in records, tables and figures, where a way is called a form
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "dense": Way("lora", "dense", "LoRA, $BA$ formed"),
        "low_rank_plain": Way("lora", "plain", "LoRA, plain code"),
        "low_rank": Way("lora", "sum_first", "LoRA"),
        "loop": Way("block_lora", "loop", "blocks in a loop"),
        "loop_once": Way("block_lora", "loop_once", "loop, $xA_s$ once"),
        "sum_first_plain": Way("block_lora", "plain", "Block-LoRA, plain code"),
        "sum_first": Way("block_lora", "sum_first", "Block-LoRA"),
        "collapsed": Way("collapsed", "sum_first", "collapsed"),
        "frozen_a": Way("frozen_a", "sum_first", "w/o $A$"),
    }
)
WAY_LABELS: Mapping[str, str] = {name: way.label for name, way in WAYS.items()}


@dataclass(frozen=True)
class StepWay:
    """How a whole training step is computed. Half precision apart, all give the same gradients.

    share_prefix  tokens that all prompts begin with are encoded once, with one dropout mask
    checkpoint    a block keeps its input alone and is computed again in backward
    precision     of the frozen weights and products: "fp32", "fp16" or "bf16"
    chunks        prompts are encoded in so many parts: features first, without a graph; then the
                  loss, and each part again with its share of the gradient, once the images' graph
                  is gone
    """

    share_prefix: bool = False
    checkpoint: bool = False
    precision: str = "fp32"
    chunks: int = 1

    @property
    def size(self) -> int:
        """Bytes of a number of the frozen weights and products."""
        return 4 if self.precision == "fp32" else 2


OUR_STEPS: Mapping[str, StepWay] = MappingProxyType(
    {
        "independent": StepWay(),
        "shared_prefix": StepWay(share_prefix=True),
        "checkpointing": StepWay(share_prefix=True, checkpoint=True),
        "bf16": StepWay(share_prefix=True, precision="bf16"),
    }
)
OTHER_STEPS = ("clip_lora", "peft")  # LoRA of rank r by other code, whatever adapter ours has
STEPS = (*OUR_STEPS, *OTHER_STEPS)
