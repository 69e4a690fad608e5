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
        """ValueError, before any training, where the tokens have no place in the backbone."""
        from ..clip.towers import TextTower, images_are_plain

        of, plain = backbone.spec.name, "a transformer of open_clip, as ViT-B-16 has"
        puts = f"method {self.name} puts learnt tokens into the"
        tower = TextTower(backbone.model)
        if not tower.can_pack:
            raise ValueError(
                f"{puts} text tower, and that of {of} is not {plain}; use a backbone with one, or "
                "a method on features, such as task_res"
            )
        if "image" in self.towers and not images_are_plain(backbone.model):
            raise ValueError(
                f"{puts} image tower, and that of {of} is not {plain}; use a backbone with one, or "
                "a method of the text tower alone, such as coop"
            )
        depth, parts = getattr(self.settings, "depth", 1), {"text": tower.parts}
        for which in self.towers:
            part: Any = parts.get(which, backbone.model.visual)
            if depth > 1 and depth > (blocks := len(part.transformer.resblocks)):
                raise ValueError(
                    f"method {self.name} with depth={depth}: the {which} tower of {of} has "
                    f"{blocks} blocks; use depth={blocks} or less"
                )
        words, wanted = self.settings.context, getattr(self.settings, "tokens", 1)
        try:
            *rows, nothing = backbone.tokenize(self.texts([*names, ""])).tolist()
            given = int(tower.end_of_text(backbone.tokenize([str(words)]))) - 1
        except ValueError as error:
            raise ValueError(
                f"method {self.name} with context={words!r}: {error}, or learn fewer tokens "
                "(context)"
            ) from None
        if isinstance(words, str) and wanted > given:
            raise ValueError(
                f"method {self.name} with tokens={wanted}: context={words!r} has {given} tokens; "
                f"use tokens={given} or less, or a longer context"
            )
        if nothing in rows:
            raise ValueError(
                f"method {self.name}: class {names[rows.index(nothing)]!r} is no word to {of}'s "
                "tokenizer; give the class another name"
            )
