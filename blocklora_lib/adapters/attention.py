"""`nn.MultiheadAttention` and `nn.Linear` with adapters: what an adapted module computes.

A module is adapted in place: its class changes to the adapted one and back, so the object, its
parameters, their names and every hook on it stay what they were. Code that reads its weights finds
W + ΔW (`adapted.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.schema import AdapterError
from ..layers.adapted import Adapted, is_merged
from ..layers.frozen import frozen_linear
from ..layers.plain_attention import additive_mask, as_batches, attention_with_weights
from ..layers.side_by_side import updated_product
from ..layers.used_weight import (
    adapted_product,
    project,
    reach,
    read_as_used,
    refuse_symbolic_tracing,
    stored,
)
from .adapter import Adapter

MERGED_IN_TRAINING = (
    "the adapters are merged, so training would reach neither them nor the frozen weights; "
    "call unmerge() before training, or model.eval() for inference"
)


class AdaptedLinear(Adapted, nn.Linear):
    """`nn.Linear` plus one adapter."""

    weight = read_as_used("weight")

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(self, Adapted):  # someone kept this method beyond detach()
            return nn.Linear.forward(self, input)
        refuse_symbolic_tracing(self)
        if is_merged(self):
            refuse_training(self)
            return frozen_linear(input, stored(self, "weight"), self.bias)
        return adapted_product(self, input, self.bias)


class AdaptedMultiheadAttention(Adapted, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with adapters on some of q, k, v, o. Merged, it is PyTorch's forward.

    E = embed_dim, H heads of width D = E/H, N sequences of L queries and L_k keys.
    """

    adapters: Any  # nn.ModuleDict, keys among "q", "k", "v", "o"
    in_proj_weight = read_as_used("in_proj_weight")
    q_proj_weight = read_as_used("q_proj_weight")
    k_proj_weight = read_as_used("k_proj_weight")
    v_proj_weight = read_as_used("v_proj_weight")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(self, Adapted):
            refuse_symbolic_tracing(self)
        if not isinstance(self, Adapted) or is_merged(self):
            refuse_training(self)
            return nn.MultiheadAttention.forward(
                self, query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        if query.is_nested:
            raise AdapterError(
                "adapted attention takes padded tensors; "
                "build TransformerEncoder with enable_nested_tensor=False"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal is a hint about attn_mask; give the causal attn_mask with it"
            )
        batched = query.dim() == 3
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        self_attention = query is key and key is value
        query, key, value = as_batches(query, key, value, self.batch_first)

        q, k, v = self._in_projection(query, key, value, self_attention)  # each (N, H, L or L_k, D)
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if is_causal and key_padding_mask is None and not need_weights:
            context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        else:
            mask = additive_mask(attn_mask, key_padding_mask, q, k.shape[2])
            if need_weights:
                context, weights = attention_with_weights(q, k, v, mask, dropout_p)
                weights = weights.mean(1) if average_attn_weights else weights
            else:
                context = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=dropout_p
                )

        context = context.transpose(1, 2).flatten(2)  # (N, L, E)
        output = output_projection(self, context)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def active(self, targets: str) -> list[Adapter | None]:
        """Return the adapter of each target, None where there is none to compute."""
        if is_merged(self):
            return [None] * len(targets)
        reach(self)
        return [self.adapters[t] if t in self.adapters else None for t in targets]  # noqa: SIM401 (ModuleDict)

    def project_qkv(self, x: Tensor, targets: str = "qkv") -> Tensor:
        """As `qkv_projection`: one product for all, and the adapters' updates added to it."""
        return updated_product(x, *rows_of(self, targets), self.active(targets))

    def _in_projection(
        self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool
    ) -> list[Tensor]:
        """Return q, k, v of all heads, adapters included. (N, L, E) -> three times (N, H, L, D)."""
        weight = stored(self, "in_proj_weight")
        if self_attention and weight is not None:
            projected = self.project_qkv(query).unflatten(-1, (3, self.embed_dim)).unbind(-2)
        else:
            if weight is not None:
                weights = weight.chunk(3)
            else:
                weights = tuple(stored(self, f"{target}_proj_weight") for target in "qkv")
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            inputs = (query, key, value)
            projected = map(project, inputs, weights, biases, self.active("qkv"))
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected]


def refuse_training(module: nn.Module) -> None:
    """Refuse a training forward of merged weights, which would train nothing."""
    if isinstance(module, Adapted) and module.training and torch.is_grad_enabled():
        raise AdapterError(MERGED_IN_TRAINING)


def can_project(attention: nn.Module) -> bool:
    """Whether `qkv_projection`, attention and `output_projection` are this module's forward."""
    adapted = isinstance(attention, AdaptedMultiheadAttention)
    merged = isinstance(attention, Adapted) and is_merged(attention)
    return (
        (type(attention) is nn.MultiheadAttention or adapted)
        and stored(attention, "in_proj_weight") is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not (attention.training and (merged or attention.dropout > 0))
    )


def qkv_projection(attention: nn.MultiheadAttention, x: Tensor, targets: str = "qkv") -> Tensor:
    """Return the projections named, side by side, adapters included.

    x: (..., E) -> (..., m E); targets: m neighbours of "qkv".
    """
    if isinstance(attention, AdaptedMultiheadAttention):
        return attention.project_qkv(x, targets)
    return frozen_linear(x, *rows_of(attention, targets))


def rows_of(attention: nn.MultiheadAttention, targets: str) -> tuple[Tensor, Tensor | None]:
    """Return the frozen weight (m E, E) and bias of the m projections named."""
    first, e = "qkv".index(targets), attention.embed_dim
    rows = slice(first * e, (first + len(targets)) * e)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    return stored(attention, "in_proj_weight")[rows], bias


def output_projection(attention: nn.MultiheadAttention, context: Tensor) -> Tensor:
    """Return the o projection, its adapter included. context: (..., E) -> (..., E)."""
    own = attention.active("o") if isinstance(attention, AdaptedMultiheadAttention) else [None]
    return project(context, stored(attention.out_proj, "weight"), attention.out_proj.bias, *own)
