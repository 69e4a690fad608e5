"""What a method gets to see: the few-shot images and the settings, never a test image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..backbones import Backbone
from ..specs import TrainingSpec


@dataclass(frozen=True)
class Context:
    """images: (N, 3, H, W), pixels 0..255 at the backbone's resolution; labels: (N,); tokens: (C, context
    length).

    A method without training has no images, no labels and no training settings.
    """

    backbone: Backbone
    tokens: Tensor
    images: Tensor | None
    labels: Tensor | None
    training: TrainingSpec | None
    shots: int
    seed: int
    on_step: Callable[[int, int, float], None] | None = None
    on_skip: Callable[[int], None] | None = None  # see training.train
