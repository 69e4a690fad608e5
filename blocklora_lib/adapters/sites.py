"""Where adapters go: the attention modules of a model's towers, and linear layers by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..core.schema import AdapterError
from ..layers.attention_layers import (
    find_towers,
    layers_of,
    no_attention,
    patterns,
    refuse_half,
    wanted,
)
from ..layers.names import NamedModules, few, join, parent
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
    attention = layers_of(module)
    # nn.MultiheadAttention picks its targets itself
    found = {n: m for n, (_, t, m) in attention.items() if not t or wanted(n, t, config.targets)}
    if not found:
        raise AdapterError(no_attention(tower_name, prefix, module))
    linear = "".join(t for _, t, _ in attention.values())
    if all(t for _, t, _ in attention.values()):
        refuse_half(module, attention)
        if absent := [target for target in config.targets if target not in linear]:
            raise AdapterError(
                f"targets name {', '.join(absent)}, and no linear layer of the {tower_name} tower "
                f"is known to compute that beside {few(patterns(found))}; leave it out of targets, "
                "or name the layers with attach_linear"
            )
    layers = list(dict.fromkeys(layer for layer, _, _ in attention.values()))
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
    sites = [(join(prefix, name), m) for name, m in found.items() if attention[name][0] in chosen]
    # nn.MultiheadAttention first: the order in which starts are drawn
    return sorted(sites, key=lambda site: isinstance(site[1], nn.Linear))


def linear_sites(model: nn.Module, names: str | Pattern | Iterable[str | Pattern]) -> NamedModules:
    """Return the linear layers, in the model's order, that any name, glob or pattern matches."""
    patterns = [names] if isinstance(names, str | re.Pattern) else list(names)
    if not patterns:
        raise AdapterError("no name given; give names or globs of nn.Linear layers")
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    chosen: set[str] = set()
    for pattern in patterns:
        matched = linear.keys() & matching(pattern, modules)
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


def matching(pattern: str | Pattern, names: Iterable[str]) -> list[str]:
    """Return the names that are meant: the one that is given exactly is no glob."""
    if isinstance(pattern, re.Pattern):
        return [name for name in names if pattern.search(name)]
    return [n for n in names if n == pattern] or [n for n in names if fnmatchcase(n, pattern)]


def nothing_matched(
    pattern: str | Pattern, modules: dict[str, nn.Module], linear: list[str]
) -> str:
    shown = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    other = next(filter(None, matching(pattern, modules)), None)
    if other is not None:
        found = f"{other} ({type(modules[other]).__name__})"
        return f"{shown!r} matches {found}, but no nn.Linear layer; name linear layers"
    near = difflib.get_close_matches(shown, linear, n=3, cutoff=0.0) or [
        "none: the model has no nn.Linear"
    ]
    return f"{shown!r} matches no nn.Linear layer of {len(linear)}; near names: {', '.join(near)}"
