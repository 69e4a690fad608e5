"""What a method is, as far as a listing needs it, and what its `fit` gives back. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..core.schema import Strict
from .count import Choice

if TYPE_CHECKING:
    from torch import Tensor

    from ..clip.backbone import Backbone
    from .feature_cache import Features

Towers = tuple[Literal["text", "image"], ...]


class BaseMethod:
    """A method: its class attributes, and its settings; `fit(context) -> Predictor` is its own.

    name: in the registry; label: for figures; Settings: frozen, unknown keys refused. trains:
    whether shots and seeds mean anything. own_classes: whether it can tell only the classes that it
    was trained on. towers: what it changes or puts tokens into; images are evaluated by the feature
    cache where the image tower is none of them. on_features: whether it trains on cached features
    alone, and so has a schedule of its own in place of the profile's.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    Settings: ClassVar[type[Strict]]
    trains: ClassVar[bool] = True
    own_classes: ClassVar[bool] = False
    towers: ClassVar[Towers] = ("text", "image")
    on_features: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, before any training, for a backbone or for classes that it cannot take."""


class Predictor:
    """What a method's `fit` returns: how to classify, in whatever way the method does it.

    prompts(names): the texts of classes, where they are not the template's. replays: whether
    `logits` asks for the same kernels each time, for CUDA graphs.
    """

    loss: tuple[float, ...] = ()  # of every step
    overflows: tuple[int, ...] = ()  # steps, from 1, whose float16 gradients overflowed
    trainable_parameters = 0
    images_seen = 0  # in all updates, each time anew
    choice: Choice | None = None  # of settings, on validation images
    prompts: Callable[[Sequence[str]], list[str]] | None = None
    replays = False

    @property
    def updates(self) -> int:
        """Of all that was trained, settings that were not chosen among them: one a step."""
        return len(self.loss)

    def inference(self) -> AbstractContextManager[None]:
        """Merge what can be merged, for the time of the evaluation."""
        return nullcontext()

    def classifier(self, tokens: Tensor) -> Any:
        """What is computed once a set, such as class embeddings (C, d), from tokens."""
        raise NotImplementedError

    def logits(self, images: Tensor, classifier: Any) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, C)."""
        raise NotImplementedError

    def scores(self, features: Features, classifier: Any) -> Tensor:
        """As `logits`, of N images as the frozen tower gives them, where it stays frozen."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the backbone as it was."""
