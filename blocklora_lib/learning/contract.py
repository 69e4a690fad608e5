"""What a method is given, and what it gives back: Context, Predictor, Count."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..clip.backbone import Backbone
from .spec import TrainingSpec


@dataclass(frozen=True)
class Context:
    """images: (N, 3, H, W), pixels 0..255 at the backbone's resolution; labels: (N,); tokens: (C,
    context length).

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


class Predictor(Protocol):
    """What a method's `fit` returns: how to classify, in whatever way the method does it."""

    loss: tuple[float, ...]
    trainable_parameters: int

    def inference(self) -> AbstractContextManager[None]:
        """Merge what can be merged, for the time of the evaluation."""

    def classifier(self, tokens: Tensor) -> Any:
        """What is computed once a set, such as class embeddings (C, d). tokens: (C, context
        length).
        """

    def logits(self, images: Tensor, classifier: Any) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, C)."""

    def close(self) -> None:
        """Leave the backbone as it was."""
