"""What a run took: seconds, memory, budget. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, model_serializer

from ..core.schema import Recorded


class Budget(Recorded):
    """What fitting took, whatever the machine; evaluation is in none of it.

    images_seen: in all updates, each time anew. image_passes, text_passes: images and prompts that
    go through each tower; features that were kept from another run count as if they were not.
    """

    updates: NonNegativeInt
    images_seen: NonNegativeInt
    image_passes: NonNegativeInt
    text_passes: NonNegativeInt


class Cost(Recorded):
    """What was measured: seconds by phase (load, train, evaluate), memory, the budget.

    Features that were kept from another run count in those of train as if they were not: as long as
    encoding them took. peak_memory_bytes: the most that the process held, whatever it held before
    this run. fit_bytes: the most that fitting held above what was held when it began, without what
    the feature cache encodes, and with what torch sets up once a process; None where it was not
    measured. budget: None where none was kept.
    """

    seconds: dict[str, Annotated[FiniteFloat, Field(ge=0)]]
    peak_memory_bytes: NonNegativeInt
    budget: Budget | None = None
    fit_bytes: NonNegativeInt | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Callable[[Cost], dict[str, Any]]) -> dict[str, Any]:
        data = handler(self)
        if self.fit_bytes is None:  # records that do not say it keep their bits
            del data["fit_bytes"]
        return data
