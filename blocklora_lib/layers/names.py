"""Names of modules within a model."""

from __future__ import annotations

from torch import nn

NamedModules = list[tuple[str, nn.Module]]


def few(names: list[str], most: int = 6) -> str:
    """Name the first few and count the rest."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def join(*parts: str) -> str:
    """Return the parts of a module's name with dots between them, empty ones left out."""
    return ".".join(part for part in parts if part)


def parent(name: str) -> str:
    """Return the name of the module that holds this one; '' is the model."""
    return name.rpartition(".")[0]
