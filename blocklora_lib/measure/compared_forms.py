"""Other ways to compute the same update, to compare ours with: same parameters, same values, other
cost.

dense       (B A) materialised as a d_out x d_in matrix, then x times it, with separate q, k, v products: what
            CLIP-LoRA's released code does whenever dropout is on (`LinearLoRA.forward`).
plain       the same code in the other order, (x A) B: all that changes against `dense` is the order.
loop        Σ_i (x A_s) B_i with both products computed for every block: no sharing is made use of.
loop_once   (x A_s) once, then a product with each B_i, summed after.
fused       ours: one product for the A of q, k and v, Σ B_i first, one product for all B (`attention.py`).

An adapter takes a form in place, by its class, as modules do in `attach`: parameters, optimizers
and the set that holds it stay what they are. Dropout is torch's own here, one mask a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.attach import AdapterSet
from ..adapters.attention import AdaptedMultiheadAttention
from ..adapters.updates import Adapter, BlockLoRA, InputBlockLoRA, LoRA, make_adapter
from ..core.schema import AdapterError, UnknownName
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


class LoopedBlockLoRA(BlockLoRA):
    """x ΔWᵀ = s Σ_i (x A_s) B_i, a term after the other, each with both its products."""

    def terms(self, x: Tensor) -> Iterator[Tensor]:
        for up in self.B:
            yield F.linear(F.linear(x, self.A_s), up)

    def _update(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.B.dtype), self.dropout, self.training)
        return sum(self.terms(x)) * self.scale


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
        hidden = sum(F.linear(block, self.A_s) for block in x.chunk(self.input_blocks, dim=-1))
        yield F.linear(hidden, self.B)


class SeparateAttention(AdaptedMultiheadAttention):
    """Adapted attention with q, k and v projected one by one, each followed by its adapter's own
    forward.
    """

    def project_qkv(self, x: Tensor, targets: str = "qkv") -> Tensor:
        """Return the projections named, side by side. x: (..., E) -> (..., m E); targets: of "qkv"."""
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = dict(
            zip(
                "qkv",
                zip(stored(self, "in_proj_weight").chunk(3), biases, strict=True),
                strict=True,
            )
        )
        adapters = {t: self.adapters[t] for t in targets if t in self.adapters}
        return torch.cat([project(x, *parts[t], adapters.get(t)) for t in targets], -1)

    def _in_projection(
        self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool
    ) -> list[Tensor]:
        return super()._in_projection(query, key, value, self_attention=False)


FORMS: Mapping[str, tuple[type[Adapter], ...]] = MappingProxyType(
    {
        "dense": (DenseLoRA,),
        "plain": (PlainLoRA,),
        "loop": (LoopedBlockLoRA, LoopedInputBlockLoRA),
        "loop_once": (LoopedOnceBlockLoRA, LoopedOnceInputBlockLoRA),
        "fused": (),
    }
)


def as_form(adapter: Adapter, form: str) -> Adapter:
    """Give an adapter the form's way to compute, in place, and return it."""
    adapter.__class__ = form_class(adapter, form)
    return adapter


def form_class(adapter: Adapter, form: str) -> type[Adapter]:
    """Return the class by which this adapter computes in this form."""
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    for kind in FORMS[form]:
        own = next(c for c in (InputBlockLoRA, BlockLoRA, LoRA) if issubclass(kind, c))
        if isinstance(adapter, own):
            return kind
    way_out = {
        "fused": "replace_forms: it is a form of whole attention layers",
        "dense": "kind='lora'",
        "plain": "kind='lora'",
    }.get(form, "kind='block_lora' or 'frozen_a'")
    raise AdapterError(f"{type(adapter).__name__} has no form {form!r}; use {way_out}")


def replace_forms(adapters: AdapterSet, form: str) -> AdapterSet:
    """Let attached adapters compute in this form, with attention to match; 'fused' gives ours back.

    Parameters stay the same objects, and the form stays chosen through `merge` and `unmerge`.
    """
    if adapters.merged:
        raise AdapterError(
            f"the adapters are merged and compute nothing; unmerge() before form={form!r}"
        )
    fused, unused = form == "fused", torch.Generator()
    classes = [
        type(make_adapter(adapters.config, adapter.d_in, adapter.d_out, unused))
        if fused
        else form_class(adapter, form)
        for adapter in adapters.adapters.values()
    ]
    for adapter, chosen in zip(adapters.adapters.values(), classes, strict=True):
        adapter.__class__ = chosen
    for _, module in adapters.sites:
        if isinstance(module, nn.MultiheadAttention):
            way = AdaptedMultiheadAttention if fused else SeparateAttention
            module.__class__ = adapted_class(module.attached.own_class, way)
    return adapters
