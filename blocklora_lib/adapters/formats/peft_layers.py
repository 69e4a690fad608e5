"""Where a checkpoint's attention lies in its model: towers and layers, as the config names them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from ...core.schema import AdapterError
from ...layers.attention_layers import find_towers, layers_of
from ...layers.names import join
from ..config import TOWERS

Tower = tuple[str, str, nn.Module]


def by_model(folder: Path, names: Collection[str], model: nn.Module) -> dict[str, Any]:
    """Return towers and layers of the config by which `attach` adapts what the names say.

    Where none does, what it has to be is told when the adapters are fitted to the model.
    """
    towers = find_towers(model, TOWERS)
    found: dict[str, tuple[set[int], int]] = {}  # tower -> its depths that are adapted, and all
    for tower in towers:
        layers = layers_in(tower)
        if own := {i for i, layer in enumerate(layers) if not layer.isdisjoint(names)}:
            found[tower[0]] = own, len(layers)
    if not found:
        return {}
    where: dict[str, Any] = {} if len(found) == len(towers) else {"towers": tuple(found)}
    if all(len(own) == depth for own, depth in found.values()):
        return where
    least = min(depth for _, depth in found.values())
    # counted from the first layer, from the last (of towers that differ in depth), or both
    for depths in (range(least), range(-least, 0), range(-least, least)):
        chosen = tuple(i for i in depths if all(i % d in own for own, d in found.values()))
        if all({i % d for i in chosen} == own for own, d in found.values()):
            return where | {"layers": chosen}
    raise differ(folder, {tower: own for tower, (own, _) in found.items()})


def layers_in(tower: Tower) -> list[set[str]]:
    """Return the names of attention, layer by layer, as `attach` counts them."""
    _, prefix, module = tower
    layers: dict[str, set[str]] = {}
    for name, (layer, _, _) in layers_of(module).items():
        layers.setdefault(layer, set()).add(join(prefix, name))
    return list(layers.values())


def by_names(folder: Path, attention: list[str]) -> dict[str, Any]:
    """Return towers and layers as the names have them, whose last numbers are taken for depths."""
    depths: dict[str, list[int]] = {}
    for name in attention:
        numbers = re.findall(r"\d+", name)
        depths.setdefault(re.sub(r"\d+", "*", name), []).append(int(numbers[-1]) if numbers else 0)
    vision = {".visual." in f".{name}" for name in depths}
    found: dict[str, Any] = {}
    if vision == {True}:
        found["towers"] = ("vision",)
    elif any(
        re.match(r"(text\.)?transformer\.resblocks\.", name) for name in depths
    ) and vision == {False}:
        found["towers"] = ("text",)
    different = {tuple(sorted(own)) for own in depths.values()}
    if len(different) == 1:
        found["layers"] = different.pop()
    elif any(list(own) != list(range(len(own))) for own in different):
        raise differ(folder, depths)
    return found


def differ(folder: Path, depths: dict[str, Any]) -> AdapterError:
    """Return what says that no one list of layers is adapted in every tower."""
    told = "; ".join(f"{name}: {', '.join(map(str, sorted(own)))}" for name, own in depths.items())
    return AdapterError(
        f"{folder} adapts different layers in its towers ({told}), and `layers` is one list "
        "for all; adapt the same layers in each, or all of them"
    )
