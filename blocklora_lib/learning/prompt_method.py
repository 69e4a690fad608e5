"""What prompt methods have in common, as far as a listing needs it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ..core.schema import Strict, Whole
from .method import BaseMethod, Towers
from .spec import DasslSchedule

if TYPE_CHECKING:
    from ..clip.backbone import Backbone

WORDS = "a photo of a"
Epochs = tuple[Whole, Whole, Whole]  # as `DasslSchedule` has them
Tokens = Whole | Annotated[str, Field(min_length=1)]


class PromptSettings(Strict):
    """context: the words from whose embeddings the learnt tokens start, or how many at random.

    schedule: the method's own, {} as published; without one it learns by the training settings of
    a profile, as adapters do.
    """

    context: Tokens = 16
    schedule: DasslSchedule | None = None


class PromptMethod(BaseMethod):
    """A prompt method: tokens before whatever class name, in the towers.

    reads_images: each image has prompts of its own. plain_images: a step encodes the images without
    learnt tokens, too. backwards: passes of a step.
    """

    towers: ClassVar[Towers] = ("text",)
    reads_images: ClassVar[bool] = False
    plain_images: ClassVar[bool] = False
    backwards: ClassVar[int] = 1

    @property
    def words(self) -> int:
        """How many of the context's tokens it needs at least."""
        return 1

    def texts(self, names: Sequence[str]) -> list[str]:
        """The prompts of classes, in which the learnt tokens take the place of the first words."""
        context = self.settings.context
        words = " ".join("X" * context) if isinstance(context, int) else context
        return [f"{words} {name}." for name in names]

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, before any training, where the tokens have no place in the backbone."""
        from ..clip.towers import TextTower

        tower, words = TextTower(backbone.model), self.settings.context
        if not tower.can_pack:
            self._refuse("text", backbone, "a method on features, such as task_res")
        try:
            *rows, nothing = backbone.tokenize(self.texts([*names, ""])).tolist()
            given = int(tower.end_of_text(backbone.tokenize([str(words)]))) - 1
        except ValueError as error:
            raise ValueError(
                f"method {self.name} with context={words!r}: {error}, or learn fewer tokens "
                "(context)"
            ) from None
        if isinstance(words, str) and not given:
            raise ValueError(
                f"method {self.name}: context={words!r} has no words; give some, such as {WORDS!r}"
            )
        if isinstance(words, str) and self.words > given:
            raise ValueError(
                f"method {self.name} with tokens={self.words}: context={words!r} has {given} "
                f"tokens; use tokens={given} or less, or a longer context"
            )
        if nothing in rows:
            raise ValueError(
                f"method {self.name}: class {names[rows.index(nothing)]!r} is no word to "
                f"{backbone.spec.name}'s tokenizer; give the class another name"
            )

    def _refuse(self, tower: str, backbone: Backbone, other: str) -> None:
        raise ValueError(
            f"method {self.name} puts learnt tokens into the {tower} tower, and that of "
            f"{backbone.spec.name} is not a transformer of open_clip, as ViT-B-16 has; use a "
            f"backbone with one, or {other}"
        )


class DeepSettings(PromptSettings):
    """depth: J, of how many blocks the tokens stand at the input."""

    context: Tokens = WORDS
    depth: Whole = 9


class DeepMethod(PromptMethod):
    """A prompt method in both towers, at the input of the first `depth` blocks of each."""

    towers = ("text", "image")

    def check(self, backbone: Backbone, names: Sequence[str]) -> None:
        """ValueError, besides, for an image tower without place, or where there are less blocks."""
        from ..clip.towers import TextTower, images_are_plain

        if not images_are_plain(backbone.model):
            self._refuse("image", backbone, "a method of the text tower alone, such as coop")
        super().check(backbone, names)
        depth, text = self.settings.depth, TextTower(backbone.model).parts
        for which, tower in (("text", text), ("image", backbone.model.visual)):
            if depth > (blocks := len(tower.transformer.resblocks)):
                raise ValueError(
                    f"method {self.name} with depth={depth}: the {which} tower of "
                    f"{backbone.spec.name} has {blocks} blocks; use depth={blocks} or less"
                )
