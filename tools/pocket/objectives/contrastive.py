"""CLIP's loss over the captions of an image (locked-text tuning; PocketCLIP)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, autocast, cosines


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of an image's own caption against all others of the batch and its pool."""
    with autocast():
        features = model.encode_image(batch.images)
    return of_features(model, features, batch)


def of_features(model: nn.Module, features: Tensor, batch: Batch) -> Tensor:
    """The same of features (B, e) that are there already."""
    logits = model.logit_scale.exp().clamp(max=60) * cosines(features, batch)
    return F.cross_entropy(logits.masked_fill(batch.also_true, -math.inf), batch.own)
