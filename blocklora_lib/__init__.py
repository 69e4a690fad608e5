"""Block-LoRA for CLIP: adapters, few-shot training, run records and the reports made of them.

    from blocklora_lib import AdapterConfig, attach

    adapters = attach(model, AdapterConfig(kind="block_lora", rank=4, n_blocks=2))

The rooms, from the ground up; each knows only those before it: core, layers, adapters, data,
weights, clip, costs, learning, methods, runs, theory, measure, analysis, display, claims,
suite, cli.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.attach import AdapterSet, attach, attach_linear, find_adapters
    from .adapters.config import AdapterConfig
    from .core.schema import AdapterError

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "AdapterSet",
    "attach",
    "attach_linear",
    "find_adapters",
]
__version__ = "0.1.0"

# all else of the face is in .adapters.attach
_HOMES = {"AdapterConfig": ".adapters.config", "AdapterError": ".core.schema"}


def __getattr__(name: str) -> Any:
    """Import the face when it is asked for: a listing of runs needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, ".adapters.attach"), __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
