"""Zero-shot CLIP: the nearest class embedding, nothing trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from ..core.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ..learning.contract import Context


class Settings(Strict):
    """Nothing to set."""


class Method:
    name = "zero_shot"
    label = "Zero-shot CLIP"
    Settings: ClassVar[type[Strict]] = Settings
    trains = False

    def __init__(self, settings: Strict) -> None:
        self.settings = settings

    def fit(self, context: Context) -> ZeroShotPredictor:
        return ZeroShotPredictor(context)


class ZeroShotPredictor:
    """Cosine logits of the frozen towers."""

    loss: tuple[float, ...] = ()
    overflows: tuple[int, ...] = ()
    trainable_parameters = 0

    def __init__(self, context: Context) -> None:
        self.backbone = context.backbone

    @contextmanager
    def inference(self) -> Iterator[None]:
        yield

    def classifier(self, tokens: Tensor) -> Tensor:
        return self.backbone.encode_prompts(tokens)

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        return self.backbone.logit_scale * self.backbone.encode_images(images) @ classifier.T

    def close(self) -> None:
        """Nothing was attached."""
