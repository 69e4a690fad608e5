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
    **dict.fromkeys(("o", "o_proj", "out_proj", "out_lin", "proj", "projection", "dense"), "o"),
}
# which reads another sequence: not every forward of a model runs it
CROSS = re.compile("cross|encdec|encoder_attn", re.IGNORECASE)
IN_BLOCK = re.compile(r"(?:.*\.)?\d+(?=\.)")  # "encoder.layers.3" of what lies in it
NUMBERED = re.compile(r"(?:\w*_)?\d+")  # torchvision's "encoder_layer_3", too
IN_LAYER = re.compile(rf"(?:.*\.)?{NUMBERED.pattern}(?=\.)")
# modules that tell which tower a model is: its first layer, or embeddings
KINDS = {
    "vision": re.compile(r"conv1|conv_proj|(.*\.)?patch_embed(ding)?s?\d*"),
    "text": re.compile(r"shared|(.*\.)?(token_embedding|word_embeddings|embed_tokens)"),
}


def find_towers(model: nn.Module, wanted: tuple[str, ...]) -> list[tuple[str, str, nn.Module]]:
    """Return (tower, its name in the model, module) of each wanted tower.

    open_clip keeps the image tower in `visual` and the text tower in `text` or, in its older form,
    `transformer`; transformers has `vision_model` beside `text_model`, `text_encoder` or
    `text_decoder`. Of several such pairs all are returned. Any other model is one tower of its own.

    AdapterError: both towers are wanted and attention lies outside the module that holds them, or
    one is wanted and no tower of the model is known to be it.
    """
    found: list[tuple[str, str, nn.Module]] = []
    holders: list[str] = []
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{tower}.") for _, tower, _ in found):
            continue  # a part of a tower
        children = dict(module.named_children())
        for vision, texts in TWO_TOWERS.items():
            own = [text for text in texts if text in children]
            if vision in children and own:
                holders.append(name)
                pair = [("vision", vision), *(("text", text) for text in own)]
                seen = [shared for _, _, shared in found]
                found += [
                    (tower, join(name, child), children[child])
                    for tower, child in pair
                    if all(children[child] is not other for other in seen)
                ]
    if not found:
        return [(only_tower(model, wanted), "", model)]
    if len(wanted) > 1 and (outside := attention_outside(model, holders)):
        raise AdapterError(
            f"{type(model).__name__} has attention outside the vision and text towers of "
            f"{few(holders)}, which alone would get adapters: {few(patterns(outside))}; attach to "
            f"{few(holders)} and to what lies beside by themselves, or name one tower in towers"
        )
    return [tower for tower in found if tower[0] in wanted]


def attention_outside(model: nn.Module, holders: list[str]) -> list[str]:
    """Return the names of attention that lies in none of the modules `holders`."""
    inside = tuple(f"{holder}." if holder else "" for holder in holders)
    whole = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return [n for n in (*whole, *attention_layers(model)) if not n.startswith(inside)]


def only_tower(model: nn.Module, wanted: tuple[str, ...]) -> str:
    """Return which tower a model without two of them is, "only" where nothing tells.

    AdapterError: it is another than the one wanted, or has several parts, of which none is known
    to be that.
    """
    layers = list(dict.fromkeys(layer for layer, _, _ in layers_of(model).values()))
    above = common(layers)
    inner = dict.fromkeys(beneath(above, layer).partition(".")[0] for layer in layers)
    parts = [join(above, part) for part in inner if part and not NUMBERED.fullmatch(part)]
    # of several parts, embeddings within one tell nothing of the others
    within = tuple(f"{part}." for part in parts) if len(parts) > 1 else ()
    names = [name for name, _ in model.named_modules() if not name.startswith(within)]
    kinds = [kind for kind, own in KINDS.items() if any(map(own.fullmatch, names))]
    if len(kinds) == 1:
        if kinds[0] not in wanted:
            raise AdapterError(
                f"{type(model).__name__} is a {kinds[0]} tower and has no {' or '.join(wanted)} "
                f"tower; use towers=({kinds[0]!r},)"
            )
        return kinds[0]
    if len(wanted) == 1 and len(parts) > 1:
        raise AdapterError(
            f"towers={wanted!r} of {type(model).__name__}: of {few(parts)}, where its attention "
            f"lies, none is known as the {wanted[0]} tower; leave towers out to adapt all of it, "
            f"or attach to one part by itself, such as {parts[0]}"
        )
    return "only"


def layers_of(model: nn.Module) -> dict[str, tuple[str, str, nn.Module]]:
    """Return a tower's attention in the model's order: name -> (layer, targets, module).

    A layer is the innermost numbered block around it. nn.MultiheadAttention ("" for its targets) in
    none is a layer itself where it is numbered, and else is of what holds it; but where there are
    linear layers or open_clip's blocks, what lies beside the blocks is a pooling head and no layer.
    """
    modules = dict(model.named_modules())
    linear = attention_layers(model)
    found = {name: block_of(name) for name in linear}
    whole = [name for name, m in modules.items() if isinstance(m, nn.MultiheadAttention)]
    in_blocks = bool(linear) or any(".resblocks." in f".{name}." for name in whole)
    # numbers above all of it count no layers: nn.Sequential(model)
    above = "" if in_blocks else common(whole)
    for name in whole:
        own = beneath(above, name)
        block = IN_LAYER.match(own) or IN_BLOCK.match(f"{own}.")
        if block or not in_blocks:
            found[name] = join(above, block[0] if block else parent(own))
    if in_blocks:  # what holds blocks is none
        layers = set(found.values())
        outer = {a for a in layers if any(b.startswith(f"{a}.") for b in layers)}
        found = {n: layer for n, layer in found.items() if n in linear or layer not in outer}
    targets = {name: held for name, (held, _) in linear.items()}
    return {n: (found[n], targets.get(n, ""), m) for n, m in modules.items() if n in found}


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


def refuse_half(module: nn.Module, found: Iterable[str]) -> None:
    """Refuse linear attention that is found in some numbered blocks and not in others alike."""
    known = {parent(name) for name in found}
    alike = {pattern for pattern in patterns(known) if "att" in pattern.lower()}
    missed = [
        name
        for name, m in module.named_modules()
        if name not in known
        and patterns([name])[0] in alike
        and any(isinstance(child, nn.Linear) for child in m.children())
    ]
    if missed:
        inner = dict(module.named_modules())[missed[0]]
        linear = [n for n, m in inner.named_children() if isinstance(m, nn.Linear)]
        raise AdapterError(
            f"{few(missed)} ({type(inner).__name__}) would get no adapters, and "
            f"{few(sorted(known))} would: of the former's linear layers ({', '.join(linear)}) it "
            "is not known which compute q, k, v; name the layers to adapt with attach_linear"
        )


def block_of(name: str) -> str:
    """Return the numbered block that a module lies in, "" if in none."""
    within = IN_BLOCK.match(name)
    return within[0] if within else ""


def common(names: list[str]) -> str:
    """Return the innermost module that holds all that the names say."""
    above = parent(names[0]) if names else ""
    while above and not all(name.startswith(f"{above}.") for name in names):
        above = parent(above)
    return above


def beneath(above: str, name: str) -> str:
    """Return a module's name within the module `above`."""
    return name.removeprefix(f"{above}.")


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
    ways = ["leave that tower out of towers"] if prefix else []  # a model that is one tower cannot
    ways += ["name its linear layers with attach_linear"] if linear else []
    nowhere = "write its products as nn.Linear, which alone and nn.MultiheadAttention take adapters"
    return (
        f"the {tower} tower ({type(module).__name__}{f' at {prefix!r}' if prefix else ''}) "
        "holds no nn.MultiheadAttention and no linear layers q, k, v in numbered blocks: "
        f"{has}, its linear layers are {few(linear) or 'none'}; "
        f"{', or '.join(ways) or nowhere}"
    )
