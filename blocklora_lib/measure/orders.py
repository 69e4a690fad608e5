"""The orders of `costs.ways` as code: the same parameters and values as ours, at another cost.

An adapter takes an order in place, by its class, as modules do in `attach`: parameters, optimizers
and the set that holds it stay what they are. In every order but ours, q, k and v are projected one
by one, each followed by its adapter, and dropout is torch's own, one mask a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.adapter import Adapter
from ..adapters.attach import AdapterSet
from ..adapters.attention import AdaptedMultiheadAttention
from ..adapters.updates import BlockLoRA, InputBlockLoRA, LoRA, make_adapter
from ..core.schema import AdapterError, UnknownName
from ..costs.ways import ORDERS
from ..layers.adapted import adapted_class
from ..layers.used_weight import project, stored


class DenseLoRA(LoRA):
    """x ΔWᵀ = s · dropout(x) (B A)ᵀ with B A: (d_out, d_in) formed in every forward.

    Its backward forms the dense gradient of B A, a product of the size of the frozen one.
    """

    def _update(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return torch.matmul(x, (self.B @ self.A).T) * self.scale


class PlainLoRA(LoRA):
    """x ΔWᵀ = s · (dropout(x) A) B: two thin products, as the `peft` library has them."""

    def _update(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return F.linear(F.linear(x, self.A), self.B) * self.scale


class PlainBlockLoRA(BlockLoRA):
    """x ΔWᵀ = s · (dropout(x) A_s) (Σ B_i), in the same code as `PlainLoRA`."""

    def _update(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.B.dtype), self.dropout, self.training)
        return F.linear(F.linear(x, self.A_s), self.B.sum(0)) * self.scale


class LoopedBlockLoRA(BlockLoRA):
    """x ΔWᵀ = s Σ_i (x A_s) B_i, a term after the other, each with both its products."""

    def terms(self, x: Tensor) -> Iterator[Tensor]:
        for up in self.B:
            yield F.linear(F.linear(x, self.A_s), up)

    def _update(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.B.dtype), self.dropout, self.training)
        total: Any = sum(self.terms(x))
        return total * self.scale


class LoopedOnceBlockLoRA(LoopedBlockLoRA):
    """x ΔWᵀ = s Σ_i h B_i with h = x A_s computed once."""

    def terms(self, x: Tensor) -> Iterator[Tensor]:
        hidden = F.linear(x, self.A_s)
        for up in self.B:
            yield F.linear(hidden, up)


class LoopedInputBlockLoRA(InputBlockLoRA):
    """x ΔWᵀ = s Σ_i (x_i A_s) B, x = [x_1 .. x_n]: where the cut runs along the input."""

    def terms(self, x: Tensor) -> Iterator[Tensor]:
        for block in x.chunk(self.input_blocks, dim=-1):
            yield F.linear(F.linear(block, self.A_s), self.B)

    _update = LoopedBlockLoRA._update


class LoopedOnceInputBlockLoRA(LoopedInputBlockLoRA):
    """x ΔWᵀ = s (Σ_i x_i A_s) B: n products with A_s, and one with B."""

    def terms(self, x: Tensor) -> Iterator[Tensor]:
        hidden: Any = sum(F.linear(block, self.A_s) for block in x.chunk(self.input_blocks, dim=-1))
        yield F.linear(hidden, self.B)


class SeparateAttention(AdaptedMultiheadAttention):
    """Adapted attention with q, k and v projected one by one, each followed by its adapter."""

    def project_qkv(self, x: Tensor, targets: str = "qkv") -> Tensor:
        """Return projections named in `targets` side by side. x: (..., E) -> (..., m E)."""
        weights = dict(zip("qkv", stored(self, "in_proj_weight").chunk(3), strict=True))
        bias = self.in_proj_bias
        biases = dict(zip("qkv", (None,) * 3 if bias is None else bias.chunk(3), strict=True))
        adapters = {t: self.adapters[t] for t in targets if t in self.adapters}
        return torch.cat([project(x, weights[t], biases[t], adapters.get(t)) for t in targets], -1)

    def _in_projection(
        self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool
    ) -> list[Tensor]:
        return super()._in_projection(query, key, value, self_attention=False)


ADAPTERS = Adapter.__module__.rpartition(".")[0]  # the room of the kinds themselves
_CLASSES: Mapping[str, tuple[type[Adapter], ...]] = MappingProxyType(
    {
        "plain": (PlainLoRA, PlainBlockLoRA),
        "loop": (LoopedBlockLoRA, LoopedInputBlockLoRA),
        "loop_once": (LoopedOnceBlockLoRA, LoopedOnceInputBlockLoRA),
        "dense": (DenseLoRA,),
    }
)


def set_order(adapter: Adapter, order: str) -> Adapter:
    """Let one adapter compute in this order, in place, and return it; 'sum_first' is ours."""
    adapter.__class__ = _class_of(adapter, order)
    return adapter


def _class_of(adapter: Adapter, order: str) -> type[Adapter]:
    """Return the class by which this adapter computes in this order."""
    if order not in ORDERS:
        raise UnknownName("order", order, ORDERS)
    if order == "sum_first":
        return next(c for c in type(adapter).__mro__ if c.__module__.startswith(ADAPTERS))
    for found in _CLASSES[order]:
        own = next(c for c in (InputBlockLoRA, BlockLoRA, LoRA) if issubclass(found, c))
        if isinstance(adapter, own):
            return found
    way_out = "kind='lora'" if order in ("dense", "plain") else "kind='block_lora' or 'frozen_a'"
    raise AdapterError(f"{type(adapter).__name__} has no order {order!r}; use {way_out}")


def set_orders(adapters: AdapterSet, order: str) -> AdapterSet:
    """Let attached adapters compute in this order, with attention to match; 'sum_first' is ours.

    Parameters stay the same objects, and the order stays chosen through `merge` and `unmerge`.
    """
    if adapters.merged:
        raise AdapterError(
            f"the adapters are merged and compute nothing; unmerge() before order={order!r}"
        )
    ours, unused = order == "sum_first", torch.Generator()
    classes = [
        type(make_adapter(adapters.config, adapter.d_in, adapter.d_out, unused))
        if ours
        else _class_of(adapter, order)
        for adapter in adapters.adapters.values()
    ]
    for adapter, chosen in zip(adapters.adapters.values(), classes, strict=True):
        adapter.__class__ = chosen
    way: Any = AdaptedMultiheadAttention if ours else SeparateAttention
    for _, module in adapters.sites:
        if isinstance(module, nn.MultiheadAttention):
            own: Any = module.attached.own_class
            module.__class__ = adapted_class(own, way)
    return adapters
