"""How a run trains, as settings. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..core.schema import Strict, Whole


def epochs_at(epochs: tuple[int, int, int], shots: int, classes: int) -> int:
    """CoOp's number of epochs: at 1, at 2 to 4, at more shots; from 1000 classes on the first."""
    return epochs[0 if classes >= 1000 else (shots > 1) + (shots > 4)]


class DasslSchedule(Strict):
    """A way of CoOp and its kin of their own, by epochs and SGD, in place of a profile's settings.

    Source: KaiyangZhou/Dassl.pytorch@c61a1b5. After an epoch at 1e-5 the rate falls along a cosine,
    once an epoch; an epoch leaves out a last batch that is short.
    epochs: as `epochs_at` has them.
    class_chunk, checkpointing: as `TrainingSpec` has them.
    """

    lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    epochs: tuple[Whole, Whole, Whole] = (50, 100, 200)
    batch_size: Whole = 32
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    augment: Literal["clip_lora", "light", "none"] = "clip_lora"
    class_chunk: Whole | None = None
    checkpointing: bool = False

    def of(self, shots: int, classes: int) -> int:
        """How many epochs."""
        return epochs_at(self.epochs, shots, classes)


def recomputes(how: TrainingSpec | DasslSchedule) -> bool:
    """Whether backward passes encode again what forward passes did."""
    return how.checkpointing or how.class_chunk is not None


class TrainingSpec(Strict):
    """Optimisation of every gradient method. Defaults: CLIP-LoRA's released settings."""

    # CLIP-LoRA: 500 x shots steps, whatever the number of classes
    steps_per_shot: Whole = 500
    min_steps: Whole = 1
    max_steps: Whole | None = None
    batch_size: Whole = 32
    lr: float = Field(2e-4, gt=0, allow_inf_nan=False)
    lr_min: float = Field(1e-6, ge=0, allow_inf_nan=False)  # where the cosine ends
    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.999)
    augment: Literal["clip_lora", "light", "none"] = "clip_lora"
    # Encode what all prompts begin with once a step: with dropout, another sample of the same
    # distribution.
    share_prefix: bool = False
    # Memory for time: keep the input of each block alone and compute the block again in the
    # backward pass ...
    checkpointing: bool = False
    # ... and encode so many classes at a time, each part again in the backward pass.
    class_chunk: Whole | None = None
    # Divergence: the mean loss of the last 20 steps exceeds this multiple of max(first loss, ln C).
    divergence_factor: float = Field(4.0, gt=1)

    @model_validator(mode="after")
    def _check(self) -> TrainingSpec:
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(
                f"max_steps={self.max_steps} is below min_steps={self.min_steps}; raise one or "
                "lower the other"
            )
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(
                f"betas={self.betas} must lie in [0, 1); AdamW's usual ones are (0.9, 0.999)"
            )
        return self

    @property
    def stackable(self) -> bool:
        """Whether runs that differ in their seed alone may be trained as one batch: none where
        classes are encoded again backwards, or with what they share once.
        """
        return not (self.share_prefix or recomputes(self))

    def steps(self, shots: int) -> int:
        """Number of optimiser steps of a run with this many shots a class."""
        steps = max(self.min_steps, self.steps_per_shot * shots)
        return steps if self.max_steps is None else min(steps, self.max_steps)
