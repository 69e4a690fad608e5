"""SigLIP's loss: each pair of image and caption is its own yes or no (Zhai et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, autocast, cosines


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over captions of -log sigmoid(z (t cos + b)), z = 1 for the own one and -1 for others."""
    with autocast():
        features = model.encode_image(batch.images)
    logits = model.logit_scale.exp().clamp(max=60) * cosines(features, batch) + model.logit_bias
    signs = torch.full_like(logits, -1.0).scatter(1, batch.own[:, None], 1.0)
    return -F.logsigmoid(signs * logits).masked_fill(batch.also_true, 0.0).sum(1).mean()
