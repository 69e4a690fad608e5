"""What prompt methods have in common, as far as a listing needs it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.schema import Strict
from .spec import DasslSchedule

if TYPE_CHECKING:
    from ..clip.backbone import Backbone

WORDS = "a photo of a"
Tokens = Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)]


class PromptSettings(Strict):
    """context: the words from whose embeddings the learnt tokens start, or how many at random.

    schedule: the method's own, {} as published; without one it learns by the training settings of
    a profile, as adapters do.
    """

    context: Tokens = 16
    schedule: DasslSchedule | None = None


class PromptMethod:
    """A prompt method: its class attributes, and its settings. towers: where its tokens stand."""

    name: ClassVar[str]
    label: ClassVar[str]
    Settings: ClassVar[type[PromptSettings]]
    trains: ClassVar[bool] = True
    on_features: ClassVar[bool] = False
    own_classes: ClassVar[bool] = False  # the tokens stand before whatever class name
    towers: ClassVar[tuple[Literal["text", "image"], ...]] = ("text",)

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def texts(self, names: Sequence[str]) -> list[str]:
        """The prompts of classes, in which the learnt tokens take the place of the first words."""
        context = self.settings.context
        words = " ".join("X" * context) if isinstance(context, int) else context
        return [f"{words} {name}." for name in names]

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, before any training, where the backbone has no place for the tokens."""
        from .prompt_fit import refuse

        refuse(self, backbone, names)
