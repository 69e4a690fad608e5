"""Towers, and attention that a model writes with linear layers of its own, found by structure.

transformers, timm and torchvision's Swin name the layers q_proj, query, q, .. beside each other, or
keep several of q, k, v in one layer. Nothing of those packages is imported to see it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn

from ..core.schema import AdapterError
from .names import few, join, parent

TWO_TOWERS = {  # image tower -> text tower
    "visual": ("text", "transformer"),
    "vision_model": ("text_model", "text_encoder", "text_decoder"),
}
# name of a linear layer -> which of q, k, v, o it computes
NAMES = {
    **{f"{t}{end}": t for t in "qkv" for end in ("", "_proj", "_lin")},
    **{"query": "q", "key": "k", "value": "v", "kv": "kv", "qkv": "qkv", "Wqkv": "qkv"},
    **dict.fromkeys(("o", "o_proj", "out_proj", "out_lin", "proj", "projection"), "o"),
}
# which reads another sequence: not every forward of a model runs it
CROSS = re.compile("cross|encdec|encoder_attn", re.IGNORECASE)
IN_BLOCK = re.compile(r"(?:.*\.)?\d+(?=\.)")  # "encoder.layers.3" of what lies in it


def find_towers(model: nn.Module, wanted: tuple[str, ...]) -> list[tuple[str, str, nn.Module]]:
    """Return (tower, its name in the model, module) of each wanted tower.

    open_clip keeps the image tower in `visual` and the text tower in `text` or, in its older form,
    `transformer`; transformers has `vision_model` beside `text_model`, `text_encoder` or
    `text_decoder`. Any other model is one tower of its own.
    """
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for vision, texts in TWO_TOWERS.items():
            text = next((text for text in texts if text in children), None)
            if vision in children and text is not None:
                keys = {"vision": vision, "text": text}
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


def attention_layers(model: nn.Module, cross: bool = False) -> dict[str, tuple[str, nn.Linear]]:
    """Return the linear layers of self-attention in numbered blocks: name -> (targets, layer).

    Targets say what a layer computes, such as "q", or "qkv" where it holds all three. Pooling heads
    beside the blocks are no layers of the model. cross: cross-attention too.
    """
    modules = dict(model.named_modules())
    found: dict[str, tuple[str, nn.Linear]] = {}
    for name, module in modules.items():
        own = {join(name, n): (NAMES.get(n, ""), m) for n, m in module.named_children()}
        beside = join(parent(name), "output.dense")  # BERT's o; of a block itself it is the MLP's
        if beside in modules and not parent(name).rpartition(".")[2].isdigit():
            own[beside] = ("o", modules[beside])
        linear = {n: (t, m) for n, (t, m) in own.items() if t and isinstance(m, nn.Linear)}
        held = "".join(targets for targets, _ in linear.values())
        layer = IN_BLOCK.match(f"{name}.") and (cross or not CROSS.search(name))
        if layer and sorted(held.replace("o", "")) == ["k", "q", "v"]:
            found |= linear
    return {name: found[name] for name in modules if name in found}


def block_of(name: str) -> str:
    """Return the numbered block that a module lies in, "" if in none."""
    within = IN_BLOCK.match(name)
    return within[0] if within else ""


def patterns(names: Iterable[str]) -> list[str]:
    """Return names with * for the numbers in them, each once."""
    return list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))


def wanted(name: str, held: str, targets: Collection[str]) -> bool:
    """Whether what a linear layer computes is targeted; of some of it, AdapterError."""
    missing = [target for target in held if target not in targets]
    if missing and len(missing) < len(held):
        raise AdapterError(
            f"{name} computes {', '.join(held)} in one layer, which gets one adapter, and targets "
            f"leave {', '.join(missing)} out; name {', '.join(held)} in targets, all or none"
        )
    return not missing


def no_attention(tower: str, prefix: str, module: nn.Module) -> str:
    """Say what a tower whose attention is not found has instead, and the way out."""
    kinds = {type(m) for m in module.modules()}
    others = sorted(f"{k.__module__}.{k.__name__}" for k in kinds if "Attention" in k.__name__)
    linear = patterns(n for n, m in module.named_modules() if isinstance(m, nn.Linear))
    has = f"its attention is {', '.join(others)}" if others else "it has no attention module at all"
    return (
        f"the {tower} tower ({type(module).__name__}{f' at {prefix!r}' if prefix else ''}) "
        "holds no nn.MultiheadAttention and no linear layers q, k, v in numbered blocks: "
        f"{has}, its linear layers are {few(linear) or 'none'}; "
        "leave that tower out of towers, or name its linear layers with attach_linear"
    )
