"""The registry of methods: every module of this folder is one method and defines `Method`.

A method has `name`, `label` (for figures), `trains` (whether shots and seeds mean anything),
`Settings` (frozen, unknown keys refused) and `fit(context) -> Predictor`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from ..core.schema import FrozenDict, UnknownName
from ..learning.spec import MethodSpec


@cache  # a grid of a thousand runs asks three thousand times
def method_names() -> tuple[str, ...]:
    """Names of all methods: the modules of this folder that do not start with an underscore."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    )


def get_method(name: str) -> Any:
    """The class `Method` of this method's module."""
    if name not in method_names():
        raise UnknownName("method", name, method_names())
    return importlib.import_module(f"{__name__}.{name}").Method


def complete(spec: MethodSpec) -> MethodSpec:
    """Return the method with every default written out and every value checked."""
    settings = get_method(spec.name).Settings.model_validate(dict(spec.settings), strict=True)
    return MethodSpec(name=spec.name, settings=FrozenDict(settings.model_dump(mode="json")))
