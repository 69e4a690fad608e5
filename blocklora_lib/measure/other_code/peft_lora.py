"""LoRA by the `peft` library on an open_clip model, as one writes it who knows peft and no more.

peft reaches linear layers. open_clip keeps q, k and v in one tensor of `nn.MultiheadAttention`,
which peft can adapt only as a whole: always with the output projection, without dropout, and by
adding the dense B A to the weight at every step. So attention is first written with linear layers
of its own, which hold the same numbers; then peft adapts q, k and v by name. All positions of every
prompt are encoded. Nothing here uses the library.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` as linear layers q, k, v, o. x: (N, L, E) -> ((N, L, E), None)."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            setattr(self, name, linear(weight, bias))
        self.out_proj = linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any
    ) -> Any:
        """open_clip hands over the same x three times, as self-attention has it."""
        projections: Any = (self.q_proj, query), (self.k_proj, key), (self.v_proj, value)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, x in projections
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out_proj(context.transpose(1, 2).flatten(2)), None


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen linear layer on these numbers, not on a copy."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (
        nn.Parameter(t.detach(), requires_grad=False) for t in (weight, bias)
    )
    return layer


def with_peft(model: nn.Module, rank: int, dropout: float, alpha: float = 1.0) -> nn.Module:
    """Put LoRA on q, k, v of every block of an open_clip CLIP, in place; return peft's wrapper.

    ΔW = alpha / sqrt(r) B A, as CLIP-LoRA has it. ModuleNotFoundError where peft is not installed.
    """
    from peft import LoraConfig, get_peft_model

    attentions = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    for name, attention in attentions.items():
        model.set_submodule(name, SplitAttention(attention))
    targets = ["q_proj", "k_proj", "v_proj"]
    settings: Any = dict(lora_alpha=alpha, use_rslora=True, lora_dropout=dropout)
    config = LoraConfig(r=rank, target_modules=targets, **settings)
    return get_peft_model(model, config)


def cosines(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W), token ids (C, context length) -> (N, C)."""
    text = F.normalize(model.encode_text(tokens), dim=-1)
    return F.normalize(model.encode_image(images), dim=-1) @ text.T
