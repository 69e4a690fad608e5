"""What a method is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from ..clip.backbone import Backbone
from ..core.lean_imports import spare_the_compiler
from ..data.image_files import ImageFiles
from .feature_cache import FeatureCache, Features, Source
from .replayed import can_replay
from .spec import DasslSchedule, TrainingSpec, recomputes

spare_the_compiler()
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What a run gives its method: the model, the classes, the few images, and how to train.

    images: (N, 3, H, W), pixels 0..255 at the backbone's resolution, or files; labels: (N,), on
    any device; names: of the classes; tokens: of their prompts, (C, context length). A method
    without training has no images, no labels and no training settings. on_step(step, of, loss) is
    called after every step.

    source: where the cache finds the images, for a method whose image tower stays frozen; one on
    features asks `features()` for them and has no `images`. validation: images and labels to choose
    settings by, of a method with a grid alone. cuda_graphs: where a step can be repeated by them.
    """

    backbone: Backbone
    tokens: Tensor
    images: Tensor | ImageFiles | None
    labels: Tensor | None
    training: TrainingSpec | None
    shots: int
    seed: int
    on_step: Callable[[int, int, float], None] | None = None
    source: Source | None = None
    validation: tuple[Source, Tensor] | None = None
    cache: FeatureCache = field(default_factory=FeatureCache)
    names: Sequence[str] = ()
    cuda_graphs: bool = True
    _asked: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def replays(self, how: TrainingSpec | DasslSchedule) -> bool:
        """Whether steps of such settings are computed by CUDA graphs, see `replayed`."""
        return self.cuda_graphs and can_replay(self.backbone, recomputes(how))

    def features(self, views: int = 0) -> Features:
        """The few images as the frozen tower sees them, or so many random views of each.

        Of views, row v N + i is view v of image i. What a run asks for again, here and below, has
        been encoded for it, and takes nothing.
        """
        images, source = self.images, self.source
        if source is None:
            assert images is not None
            given = images
            source = Source(lambda: given)
        return self._once(
            views, lambda: self.cache.features(self.backbone, source, views, self.seed)
        )

    def prompts(self, tokens: Tensor) -> Tensor:
        """Rows of prompts as long as the frozen text tower gives them: (C, d)."""
        name = (*tokens.shape, tokens.cpu().numpy().tobytes())
        return self._once(name, lambda: self.cache.prompts(self.backbone, tokens))

    def validated(self, source: Source) -> Features:
        """The validation images as the frozen tower sees them."""
        return self._once("validation", lambda: self.cache.features(self.backbone, source))

    def _once(self, name: object, make: Callable[[], T]) -> T:
        if name not in self._asked:
            self._asked[name] = make()
        found: T = self._asked[name]
        return found

    def few(self) -> tuple[Tensor | ImageFiles, Tensor]:
        """Return images and labels; ValueError for a method that is given none."""
        if self.images is None or self.labels is None:
            raise ValueError(self._nothing)
        return self.images, self.labels

    def to_train(self) -> tuple[Tensor | ImageFiles, Tensor, TrainingSpec]:
        """Return images, labels and settings; ValueError for a method that is given none."""
        if self.training is None:
            raise ValueError(self._nothing)
        return *self.few(), self.training

    @property
    def _nothing(self) -> str:
        return (
            f"shots={self.shots} gives nothing to train on; a method that fits needs images, "
            "labels and training settings (trains = True)"
        )
