"""What `attach` is given: of the types that it takes, or AdapterError in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..core.schema import AdapterError


def refuse_types(config_class: type, model: Any, config: Any, generator: Any = None) -> None:
    """AdapterError for a model, config (of config_class) or generator of another type."""
    refuse_model(model)
    refuse("config", config, config_class, f"write {config_class.__name__}(rank=4, n_blocks=2)")
    way_out = "write torch.Generator().manual_seed(1), or leave it out"
    refuse("generator", generator, torch.Generator | None, way_out)


def refuse_model(model: Any) -> None:
    """AdapterError for what is no model."""
    refuse("model", model, nn.Module, "give the nn.Module itself")


def refuse(name: str, value: Any, kind: Any, way_out: str) -> None:
    """AdapterError for an argument that is not of its kind."""
    if not isinstance(value, kind):
        raise AdapterError(f"{name} is {value!r:.60} ({type(value).__name__}); {way_out}")


def listed(names: Any) -> list[str | re.Pattern[str]]:
    """Return one name, glob or pattern, or several, as a list; AdapterError for what is none."""
    several = isinstance(names, Iterable) and not isinstance(names, str)
    given = list(names) if several else [names]
    for name in given:
        if not isinstance(name, str | re.Pattern):
            raise AdapterError(
                f"{name!r:.60} ({type(name).__name__}) is no name; "
                "give names or globs of nn.Linear layers, such as '0' or '*.fc'"
            )
    return given
