"""The registry of methods: every module of this folder is one, or a table of a family.

A module defines `Method`, a class, or `METHODS`, several; `learning.method` says what they have.
Settings with a `schedule` take the place of a profile's training settings. Knows learning and all
below; a listing needs no torch.

Settings that are a tuple are a grid, from which `learning.selection` chooses on validation images;
with one value each a method reads none.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from ..core.schema import FrozenDict, Strict, UnknownName


def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(_registry()))


def get_method(name: str) -> Any:
    """The class of the method of this name."""
    if name not in _registry():
        raise UnknownName("method", name, _registry())
    return _registry()[name]


COST_CLASSES = ("cached features", "text tower", "both towers")


def cost_class(name: str) -> str:
    """What a method's gradients pass through, or that each image is encoded once for all steps."""
    method = get_method(name)
    if method.on_features:
        return COST_CLASSES[0]
    return COST_CLASSES[1 if method.towers == ("text",) else 2]


@cache  # a grid of a thousand runs asks three thousand times
def _registry() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{file}")
        for method in getattr(module, "METHODS", ()) or [module.Method]:
            if found.setdefault(method.name, method) is not method:
                raise ValueError(
                    f"two methods are called {method.name!r}, of {found[method.name].__module__} "
                    f"and {method.__module__}; give one of them another `name`"
                )
    return found


def _thaw(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _thaw(v) for k, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, (list, tuple)) else value


class MethodSpec(Strict):
    """A method of the registry with all its settings.

    Defaults are written out, and values checked, when it is made: here and nowhere else. With a
    validation context it is read from a record, and stands as it was written.
    """

    name: str
    settings: Annotated[Any, BeforeValidator(FrozenDict), PlainSerializer(_thaw)] = Field(
        default_factory=FrozenDict, validate_default=True
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return name if info.context else get_method(name).name

    @field_validator("settings")
    @classmethod
    def _complete(cls, given: FrozenDict, info: ValidationInfo) -> FrozenDict:
        if info.context or "name" not in info.data:
            return given
        settings = get_method(info.data["name"]).Settings.model_validate(dict(given), strict=True)
        return FrozenDict(settings.model_dump(mode="json"))

    @property
    def chosen(self) -> tuple[str, ...]:
        """The settings that it chooses on validation images."""
        grid = getattr(get_method(self.name).Settings, "grid", ())
        return tuple(name for name in grid if len(self.settings[name]) > 1)

    @property
    def chooses(self) -> bool:
        """Whether it chooses settings on validation images."""
        return bool(self.chosen)

    @property
    def scheduled(self) -> bool:
        """Whether a profile's training settings, its rate among them, say how it learns.

        They do not where its own settings have a schedule, as those of a method on features always
        do.
        """
        method = get_method(self.name)
        return method.trains and not method.on_features and not self.settings.get("schedule")

    def load(self) -> Any:
        """The method with its settings, ready to fit."""
        method = get_method(self.name)
        return method(method.Settings.model_validate(dict(self.settings)))
