"""CoCa's losses: contrast image and caption, and say the caption word by word (Yu et al. 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import contrastive
from .batch import Batch, autocast

CAPTION_WEIGHT = 2.0  # CoCa's
CAPTIONED = 32  # images of a batch whose captions are said: the words are what costs


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Contrastive loss of the pooled token plus `CAPTION_WEIGHT` times the captioner's."""
    with autocast():
        features, seen = model.visual(batch.images)
    contrast = contrastive.of_features(model, features, batch)
    return contrast + CAPTION_WEIGHT * _captions(model, seen[:CAPTIONED], batch)


def _captions(model: nn.Module, seen: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token. seen: (C, Q, e), what the decoder looks at.

    Exactly that over all 49,408 words: columns of words that no caption uses are zero and stay
    so, hence all their logits are 0, and they enter the sum as one term.
    """
    tokens = batch.tokens[: len(seen)]
    with torch.no_grad():
        _, texts = model.text(tokens)
    longest = int((tokens != 0).sum(1).max())
    decoder, wanted = model.text_decoder, tokens[:, 1:longest]
    projection, decoder.text_projection = decoder.text_projection, None
    with autocast():
        hidden = decoder(seen, texts[:, : longest - 1])
    decoder.text_projection = projection
    said = wanted != 0
    logits = hidden[said].float() @ projection[:, batch.words]
    unused = logits.new_full((len(logits), 1), math.log(projection.shape[1] - len(batch.words)))
    target = torch.searchsorted(batch.words, wanted[said])
    own = logits.gather(1, target[:, None])[:, 0]
    return (torch.cat([logits, unused], 1).logsumexp(1) - own).mean()
