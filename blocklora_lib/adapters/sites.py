"""Where adapters go: the attention modules of a model's towers, and linear layers by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..core.schema import AdapterError
from ..layers.attention_layers import attention_layers, block_of, find_towers, no_attention, wanted
from ..layers.names import NamedModules, join, parent
from .config import AdapterConfig

Pattern = re.Pattern[str]


def attention_sites(model: nn.Module, config: AdapterConfig) -> NamedModules:
    """Return the attention of the towers and layers that `config` names, tower by tower.

    Where all of it is linear layers, they stand in the model's order, as `linear_sites` has it.
    """
    towers = find_towers(model, config.towers)
    sites = [site for tower in towers for site in chosen_layers(tower, config)]
    if any(isinstance(module, nn.MultiheadAttention) for _, module in sites):
        return sites
    order = {id(module): i for i, module in enumerate(model.modules())}
    return sorted(sites, key=lambda site: order[id(site[1])])


def chosen_layers(tower: tuple[str, str, nn.Module], config: AdapterConfig) -> NamedModules:
    """Return the attention modules of the layers that `config` names; a layer holds some."""
    tower_name, prefix, module = tower
    found = [site for site in module.named_modules() if isinstance(site[1], nn.MultiheadAttention)]
    # open_clip's transformer blocks; pooling heads beside them are no layers of the tower
    blocks = [site for site in found if ".resblocks." in f".{site[0]}."]
    found, layer_of = blocks or found, parent
    if linear := {} if blocks else attention_layers(module):
        found = [site for site in found if block_of(site[0])]
        found += [(name, m) for name, (t, m) in linear.items() if wanted(name, t, config.targets)]
        layer_of = block_of
    if not found:
        raise AdapterError(no_attention(tower_name, prefix, module))
    layers = list(dict.fromkeys(layer_of(name) for name in linear or dict(found)))
    depth = len(layers)
    if config.layers == "all":
        chosen = set(layers)
    else:
        if beyond := [i for i in config.layers if not -depth <= i < depth]:
            raise AdapterError(
                f"layers names depth {', '.join(map(str, beyond))}, "
                f"but the {tower_name} tower has {depth} layers; "
                f'use depths from {-depth} to {depth - 1}, or layers="all"'
            )
        chosen = {layers[i] for i in config.layers}
    return [(join(prefix, name), m) for name, m in found if layer_of(name) in chosen]


def linear_sites(model: nn.Module, names: str | Pattern | Iterable[str | Pattern]) -> NamedModules:
    """Return the linear layers, in the model's order, that any name, glob or pattern matches."""
    patterns = [names] if isinstance(names, str | re.Pattern) else list(names)
    if not patterns:
        raise AdapterError("no name given; give names or globs of nn.Linear layers")
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in linear if matches(pattern, name)}
        if not matched:
            raise AdapterError(nothing_matched(pattern, modules, list(linear)))
        chosen |= matched
    for name in chosen:
        if isinstance(modules.get(parent(name)), nn.MultiheadAttention):
            raise AdapterError(
                f"{name} ({type(linear[name]).__name__}) "
                "is the output projection of an nn.MultiheadAttention, "
                "which reads its weight and never calls it; use attach with targets=('o',)"
            )
    # a layer that stands at two places gets one adapter, under its first name
    ids = {id(linear[name]) for name in chosen}
    return [(name, m) for name, m in model.named_modules() if id(m) in ids]


def matches(pattern: str | Pattern, name: str) -> bool:
    return (
        bool(pattern.search(name))
        if isinstance(pattern, re.Pattern)
        else fnmatchcase(name, pattern)
    )


def nothing_matched(
    pattern: str | Pattern, modules: dict[str, nn.Module], linear: list[str]
) -> str:
    shown = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    other = next((n for n in modules if n and matches(pattern, n)), None)
    if other is not None:
        found = f"{other} ({type(modules[other]).__name__})"
        return f"{shown!r} matches {found}, but no nn.Linear layer; name linear layers"
    near = difflib.get_close_matches(shown, linear, n=3, cutoff=0.0) or [
        "none: the model has no nn.Linear"
    ]
    return f"{shown!r} matches no nn.Linear layer of {len(linear)}; near names: {', '.join(near)}"
