"""What methods on cached features have in common, as far as a listing needs it. No torch."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator

from ..core.schema import Strict
from .method import BaseMethod

MOST = 1e12  # of any value of a grid: far beyond what is of use, and its square is a float32


def _some(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise ValueError("the grid has no values; list one to fix it, or several to choose from")
    if any(a == b for a, b in itertools.combinations(values, 2)):
        raise ValueError(f"{list(values)} lists a value twice; list each once")
    if not all(0 <= value <= MOST for value in values):
        raise ValueError(f"{list(values)} holds a value outside 0 to {MOST:g}; list values within")
    return values


def _above_zero(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(values):
        raise ValueError(f"{list(values)} holds 0, which is no value of it; list values above 0")
    return values


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


# The values of a setting from the one nearest to doing nothing on. One, which needs no list, is the
# setting itself; of several, one is chosen on validation images.
Grid = Annotated[tuple[float, ...], AfterValidator(_some), BeforeValidator(_listed)]
Positive = Annotated[Grid, AfterValidator(_above_zero)]  # such as of learning rates
Steps = Annotated[
    tuple[int, ...], AfterValidator(_some), AfterValidator(_above_zero), BeforeValidator(_listed)
]


def spread(low: float, high: float, n: int) -> tuple[float, ...]:
    """n values from low to high, both among them, evenly, to three digits after the point."""
    return tuple(round(low + (high - low) * i / (n - 1), 3) for i in range(n))


class FeatureSettings(Strict):
    """Settings of a method on features; `grid` names those that are chosen from several values."""

    grid: ClassVar[tuple[str, ...]] = ()


class FeatureMethod(BaseMethod):
    """A method on features."""

    Settings = FeatureSettings
    on_features = True
    towers = ()
    own_classes = True  # most learn something of each class
