"""What methods on cached features have in common, as far as a listing needs it. No torch."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator

from ..core.schema import Strict


def _some(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise ValueError("the grid has no values; list one to fix it, or several to choose from")
    if any(a == b for a, b in itertools.combinations(values, 2)):
        raise ValueError(f"{list(values)} lists a value twice; list each once")
    if not all(0 <= value < float("inf") for value in values):
        raise ValueError(f"{list(values)} holds a value that is not finite or below 0")
    return values


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


# The values of a setting from the one nearest to doing nothing on. One, which needs no list, is the
# setting itself; of several, one is chosen on validation images.
Grid = Annotated[tuple[float, ...], AfterValidator(_some), BeforeValidator(_listed)]


Steps = Annotated[tuple[int, ...], AfterValidator(_some)]


def spread(low: float, high: float, n: int) -> tuple[float, ...]:
    """n values from low to high, both among them, evenly, to three digits after the point."""
    return tuple(round(low + (high - low) * i / (n - 1), 3) for i in range(n))


class FeatureSettings(Strict):
    """Settings of a method on features; `grid` names those that are chosen from several values."""

    grid: ClassVar[tuple[str, ...]] = ()


class FeatureMethod:
    """A method on features: its class attributes, and its settings."""

    name: ClassVar[str]
    label: ClassVar[str]
    Settings: ClassVar[type[FeatureSettings]] = FeatureSettings
    trains: ClassVar[bool] = True
    on_features: ClassVar[bool] = True
    own_classes: ClassVar[bool] = True  # most learn something of each class

    def __init__(self, settings: Any) -> None:
        self.settings = settings
