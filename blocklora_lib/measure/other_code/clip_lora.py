"""CLIP-LoRA's computation written once more, for tests and benchmarks, without the library.

After MaxZanella/CLIP-LoRA at 358f0d7: lora.py (the loop), loralib/layers.py (the adapter and its
attention), clip/model.py (the towers, openai's); what is taken of main.py, clip/clip.py and
utils.py (steps, transforms, accuracy) stands with the tests. It computes in the released code's
way, so that it can stand in for it on the clock too: all 77 positions of every class at every step,
tokens before sequences (L, N, E), q, k and v as three products with three dropout masks, B A formed
and multiplied by whenever dropout is on, attention by `scaled_dot_product_attention`. Where the
code goes another way than this:

precision   There, frozen products and adapters run in float16 under autocast, features and logits
            stay in float16, and GradScaler scales the loss and drops steps whose gradients overflow
            (the schedule moves on all the same). Here everything is float32.
no dropout  With dropout_rate = 0 the code writes W + s B A into the weight, multiplies, and takes
            s B A off the stored weight again before the backward pass. In float32 the gradient
            towards x would then pass through W alone; under autocast a float16 copy of W + s B A
            saves it. Here the gradient is that of x (W + s B A)ᵀ at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGIT_SCALE = 100.0  # main.py's constant; exp of OpenAI's logit_scale is the same number


class LinearLoRA(nn.Module):
    """x Wᵀ + b + s dropout(x) (B A)ᵀ, B A formed. A: (r, d_in), B: (d_out, r)."""

    def __init__(self, weight: Tensor, bias: Tensor, rank: int, scale: float, p: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = weight, bias, scale
        self.A = nn.Parameter(torch.zeros(rank, weight.shape[1]))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return (
            F.linear(x, self.weight, self.bias) + self.dropout(x) @ (self.B @ self.A).T * self.scale
        )


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x). x: (L, N, E), as openai's code lays it out."""

    def __init__(
        self, state: dict[str, Tensor], heads: int, rank: int, scale: float, p: float
    ) -> None:
        super().__init__()
        self.state, self.heads = state, heads
        rows = zip(
            state["attn.in_proj_weight"].chunk(3), state["attn.in_proj_bias"].chunk(3), strict=True
        )
        q, k, v = (LinearLoRA(weight, bias, rank, scale, p) for weight, bias in rows)
        self.lora = nn.ModuleDict({"q": q, "k": k, "v": v})  # CLIP-LoRA's default: not o

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        s = self.state
        x = x + self.attention(_norm(x, s, "ln_1"), mask)
        h = F.linear(_norm(x, s, "ln_2"), s["mlp.c_fc.weight"], s["mlp.c_fc.bias"])
        return x + F.linear(
            h * torch.sigmoid(1.702 * h), s["mlp.c_proj.weight"], s["mlp.c_proj.bias"]
        )

    def attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        length, n, width = x.shape
        q, k, v = (
            self.lora[name](x)
            .view(length, n * self.heads, -1)
            .transpose(0, 1)
            .view(n, self.heads, length, -1)
            for name in "qkv"
        )
        out = F.scaled_dot_product_attention(q, k, v, mask)
        out = out.permute(2, 0, 1, 3).reshape(length, n, width)
        return F.linear(out, self.state["attn.out_proj.weight"], self.state["attn.out_proj.bias"])


class ClipLora(nn.Module):
    """openai's CLIP (ViT) with LoRA on q, k, v of every block of both towers.

    state: the state_dict of an open_clip CLIP, whose names are openai's. heads: (vision, text).
    scale: alpha / sqrt(r) with alpha = 1, as the released code has it.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        heads: tuple[int, int],
        rank: int = 2,
        dropout: float = 0.25,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.frozen = {name: t.detach() for name, t in state.items()}
        scale = 1 / math.sqrt(rank) if scale is None else scale
        self.towers: Any = nn.ModuleDict()  # of lists of blocks
        for tower, prefix, h in (("vision", "visual.", heads[0]), ("text", "", heads[1])):
            parts = _group(self.frozen, f"{prefix}transformer.resblocks.")
            self.towers[tower] = nn.ModuleList(
                Block(parts[str(i)], h, rank, scale, dropout) for i in range(len(parts))
            )

    def adapters(self) -> dict[tuple[str, int, str], LinearLoRA]:
        """Return the adapters by (tower, layer, q k or v)."""
        return {
            (tower, layer, name): lora
            for tower, blocks in self.towers.items()
            for layer, block in enumerate(blocks)
            for name, lora in block.lora.items()
        }

    def reset(self, generator: torch.Generator) -> ClipLora:
        """Draw A as nn.Linear draws its weight, on the generator's device, and move it; B = 0."""
        for lora in self.adapters().values():
            start = torch.empty_like(lora.A, device=generator.device)
            lora.A.data.copy_(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator))
            nn.init.zeros_(lora.B)
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        s = self.frozen
        patch = s["visual.conv1.weight"].shape[-1]
        x = F.conv2d(images, s["visual.conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
        x = torch.cat([s["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        x = _norm(x + s["visual.positional_embedding"], s, "visual.ln_pre").transpose(0, 1)
        for block in self.towers["vision"]:
            x = block(x, None)
        return _norm(x[0], s, "visual.ln_post") @ s["visual.proj"]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """All positions, at every step."""
        s = self.frozen
        x = (s["token_embedding.weight"][tokens] + s["positional_embedding"]).transpose(0, 1)
        mask = torch.full((len(x), len(x)), -math.inf, dtype=x.dtype, device=x.device).triu_(1)
        for block in self.towers["text"]:
            x = block(x, mask)
        x = _norm(x.transpose(0, 1), s, "ln_final")
        return x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ s["text_projection"]

    def cosines(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), token ids (C, 77) -> (N, C), without the scale."""
        text, image = self.encode_text(tokens), self.encode_image(images)
        text = text / text.norm(dim=-1, keepdim=True)
        return image / image.norm(dim=-1, keepdim=True) @ text.t()

    def logits(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), token ids (C, 77) -> (N, C)."""
        return LOGIT_SCALE * self.cosines(images, tokens)


def optimisation(
    parameters: Iterable[nn.Parameter], lr: float, steps: int, weight_decay: float = 1e-2
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and a cosine to 1e-6 over so many steps."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, betas=(0.9, 0.999), lr=lr)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _group(state: dict[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """Return {layer: {name within the block: tensor}}, layers in order."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            layer, _, rest = name[len(prefix) :].partition(".")
            parts.setdefault(layer, {})[rest] = tensor
    return parts
