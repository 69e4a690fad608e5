"""A batch as every objective takes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Batch(NamedTuple):
    """Augmented images, and captions of theirs among captions of other images.

    images: (B, 3, 64, 64), normalised. captions: frozen unit rows (K, e). own: (B,), the row of the
    caption that was drawn for each image. also_true: (B, K), its other captions, no negatives.
    tokens: (B, L), the drawn captions as token ids. words: (V,), all token ids that captions use.
    """

    images: Tensor
    captions: Tensor
    own: Tensor
    also_true: Tensor
    tokens: Tensor
    words: Tensor


def autocast() -> torch.autocast:
    """bfloat16 where the CPU has instructions for it: elsewhere it takes ten times as long."""
    enabled = torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def cosines(features: Tensor, batch: Batch) -> Tensor:
    """Image features (B, e), of any length, with all captions: (B, K), float32."""
    return F.normalize(features.float(), dim=-1) @ batch.captions.T


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Everything but the text tower: what the objectives move."""
    return [(name, p) for name, p in model.named_parameters() if not of_text_tower(name)]


def of_text_tower(name: str) -> bool:
    """Whether a parameter of an open_clip model belongs to its text tower."""
    return not name.startswith(("visual.", "logit_", "text_decoder."))
