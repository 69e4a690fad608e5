"""What an evaluation counts, and what was chosen by it. No torch."""

from __future__ import annotations

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from ..core.schema import Recorded


class Count(Recorded):
    """Correct of how many."""

    correct: NonNegativeInt
    total: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Count:
        if self.correct > self.total:
            raise ValueError(
                f"{self.correct} correct answers of {self.total} are more than there are"
            )
        return self

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.correct / self.total


class Choice(Recorded):
    """Settings that were chosen from a grid, and the count of validation images by which."""

    settings: dict[str, FiniteFloat]
    validation: Count
