"""Where adapters go: the attention modules of a model's towers, and linear layers by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..core.schema import AdapterError
from ..layers.names import NamedModules, join, parent
from .config import AdapterConfig

Pattern = re.Pattern[str]


def attention_sites(model: nn.Module, config: AdapterConfig) -> NamedModules:
    """Return the attention modules, in order, of the towers and layers that `config` names."""
    return [
        site for tower in find_towers(model, config.towers) for site in chosen_layers(tower, config)
    ]


def find_towers(model: nn.Module, wanted: tuple[str, ...]) -> list[tuple[str, str, nn.Module]]:
    """Return (tower, its name in the model, module) of each wanted tower.

    open_clip keeps the image tower in `visual` and the text tower in `text` or, in its older form,
    `transformer`. Any other model is one tower of its own.
    """
    for name, module in model.named_modules():
        children = dict(module.named_children())
        text = "text" if "text" in children else "transformer"
        if "visual" in children and text in children:
            keys = {"vision": "visual", "text": text}
            return [(tower, join(name, keys[tower]), children[keys[tower]]) for tower in wanted]
    children = dict(model.named_children())
    kinds = {"token_embedding": "text", "conv1": "vision", "conv_proj": "vision"}
    kind = next((kinds[child] for child in children if child in kinds), None)
    if kind is not None and kind not in wanted:
        raise AdapterError(
            f"{type(model).__name__} is a {kind} tower and has no {' or '.join(wanted)} tower; "
            f"use towers=({kind!r},)"
        )
    return [(kind or "only", "", model)]


def chosen_layers(tower: tuple[str, str, nn.Module], config: AdapterConfig) -> NamedModules:
    """Return the attention modules of the layers that `config` names; a layer holds some."""
    tower_name, prefix, module = tower
    named = [(join(prefix, name), m) for name, m in module.named_modules()]
    found = [site for site in named if isinstance(site[1], nn.MultiheadAttention)]
    # open_clip's transformer blocks; pooling heads beside them are no layers of the tower
    found = [site for site in found if ".resblocks." in f".{site[0]}."] or found
    if not found:
        raise AdapterError(no_attention(tower_name, prefix, module))
    layers = list(dict.fromkeys(parent(name) for name, _ in found))
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
    return [site for site in found if parent(site[0]) in chosen]


def no_attention(tower: str, prefix: str, module: nn.Module) -> str:
    """Say what a tower without nn.MultiheadAttention has instead, and the way out."""
    kinds = {type(m) for m in module.modules()}
    others = sorted(
        f"{kind.__module__}.{kind.__name__}" for kind in kinds if "Attention" in kind.__name__
    )
    has = f"its attention is {', '.join(others)}" if others else "it has no attention module at all"
    return (
        f"the {tower} tower ({type(module).__name__}{f' at {prefix!r}' if prefix else ''}) "
        f"holds no nn.MultiheadAttention: {has}; "
        "leave that tower out of towers, or name its linear layers with attach_linear"
    )


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
