"""Adapters as a standard PEFT LoRA checkpoint, which stock peft loads and computes alike.

Every kind is a LoRA once B_i are added: Block-LoRA is A_s and Σ B_i; cut along the input, A_s
stands n times; PiSSA is the rank 2 r of B A - B₀ A₀. On attention, whose q, k and v peft adapts by
one pair, the A stand upon one another and the B on a block diagonal, so that ΔW of each is its own;
the output projection gets the same width, filled with zeros.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...core.files import check_replaces, user_path, write_whole
from ...core.schema import AdapterError
from ...layers.names import few, join
from ...layers.trained_on import at_two_places, numbers_of, refuse_absent, tell_stale
from .. import files
from ..adapter import Adapter
from ..attach import AdapterSet
from ..config import AdapterConfig
from ..updates import make_adapter
from .peft_layout import OUT, OUT_TIMES, PREFIX, Pair, check_names, files_of


def export_peft(adapters: AdapterSet, folder: str | Path) -> Path:
    """Write the adapters of a model, on it or off, as `PeftModel.from_pretrained` reads them.

    Returns the folder. What peft would not compute alike is refused (AdapterError), but for models
    that read a layer's weight and never call the layer, as torchvision's Swin: peft passes it by.
    Of nn.TransformerEncoderLayer, which does so in eval mode, a warning says what helps.
    """
    refuse_absent(adapters.state_dict())
    if twice := at_two_places(adapters.model, adapters.kinds, adapters.config.targets):
        raise AdapterError(
            f"two places of the model hold {twice}, of which peft would adapt the first alone; "
            "untie them before attaching, or merge instead"
        )
    tell_stale(adapters.sites)
    tell_fused(adapters.model, adapters.kinds)
    return write(adapters.config, adapters.kinds, adapters.adapters, folder)


def tell_fused(model: nn.Module, names: Iterable[str]) -> None:
    """Warn where layers of these names lie in one whose fused kernel will pass peft's by."""
    fused = [
        name or "the model"
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        # own attention in its place takes no fused kernel
        if getattr(module.self_attn, "batch_first", False)
        if any(inner.startswith(f"{name}." if name else "") for inner in names)
    ]
    if fused:
        warnings.warn(
            f"in eval mode {few(fused)} (nn.TransformerEncoderLayer) may take a fused kernel that "
            "reads W alone, where peft's adapters do nothing; before using them by peft call "
            "torch.backends.mha.set_fastpath_enabled(False), or merge there",
            stacklevel=3,
        )


def export_peft_file(path: str | Path, folder: str | Path) -> Path:
    """Write an adapter file to such a folder, and return it; its model is not needed.

    So layers that two places of the model hold, which `export_peft` refuses, are not seen.
    """
    file = files.read(path)
    if file.config.kind == "vera":
        raise AdapterError(
            f"{path} holds kind='vera', whose random A and B are in no file; "
            "load it on its model and call export_peft"
        )
    files.check_numbers(path, file)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        name, _, what = key.rpartition(".")
        by_name.setdefault(name, {})[what] = tensor
    return write(
        file.config,
        dict(file.sites),
        {name: rebuilt(file.config, tensors) for name, tensors in by_name.items()},
        folder,
    )


def rebuilt(config: AdapterConfig, tensors: dict[str, Tensor]) -> Adapter:
    """Return an adapter with these tensors, apart from any model."""
    down, up = tensors.get("A", tensors.get("A_s")), tensors["B"]
    if down is None:
        raise AdapterError(f"kind={config.kind!r} has no A in its file; save the adapters again")
    times = config.n_blocks if config.reading == "input" else 1
    adapter = make_adapter(config, down.shape[1] * times, up.shape[-2], torch.Generator())
    if up.dtype == torch.float64:
        adapter.double()
    adapter.load_state_dict(tensors)
    return adapter


def write(
    config: AdapterConfig, kinds: dict[str, Any], adapters: dict[str, Adapter], folder: str | Path
) -> Path:
    pairs: dict[str, Pair] = {}
    for name, kind in kinds.items():
        if not name:
            raise AdapterError(
                "the adapted module is the model itself, which peft has no name for; "
                "put it into an nn.Module"
            )
        if kind == "linear":
            pairs[name] = pair_of(adapters[join(name, "weight")])
        elif config.kind == "dora":
            raise AdapterError(
                f"kind='dora' on nn.MultiheadAttention ({name}) has no counterpart in peft, which "
                "refuses use_dora there; export kind='lora' or 'block_lora', or merge instead"
            )
        else:
            pairs |= attention_pairs(name, adapters)
    scale, rank = config.scale, max(pair.rank for pair in pairs.values())
    # a pair of attention's output projection has the width of its q, k and v
    other = {n: p.rank for n, p in pairs.items() if p.rank != rank and not n.endswith(OUT)}
    # from the beginning: peft looks for them at the end of longer names, too
    patterns = {"^" + re.escape(name): width for name, width in other.items()}
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": scale * rank,
        # peft has none on attention
        "lora_dropout": 0.0 if "attention" in kinds.values() else config.dropout,
        # whole names: a list of names would be looked for at the end of longer ones too
        "target_modules": "|".join(map(re.escape, kinds)),
        "rank_pattern": patterns,
        "alpha_pattern": {name: scale * width for name, width in patterns.items()},
        "use_dora": config.kind == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b
        if pair.m is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = pair.m
    tensors = numbers_of(tensors)
    folder = user_path(folder)
    written = files_of(folder)
    files.refuse_values(written[1], tensors, "train or attach them again before exporting")
    check_replaces(written[1], check_names, "PEFT checkpoint")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(written[1], files.sorted_header(save(tensors, metadata={"format": "pt"})))
        write_whole(written[0], json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise AdapterError(
            f"cannot write the PEFT checkpoint {folder}: {error}; "
            "use a folder that exists or can be made"
        ) from error
    return folder


@torch.no_grad()
def pair_of(adapter: Adapter) -> Pair:
    """Return A and B of any adapter, without its scale."""
    parts = dict(adapter.named_buffers()) | dict(adapter.named_parameters())
    if "A_0" in parts:  # PiSSA: s (B A - B₀ A₀)
        return Pair(
            torch.cat([parts["A"], parts["A_0"]]), torch.cat([parts["B"], -parts["B_0"]], dim=1)
        )
    if "magnitude" in parts:  # DoRA
        return Pair(parts["A"], parts["B"], parts["magnitude"])
    down, up = adapter.factors()
    return Pair(down.repeat(1, adapter.input_blocks), up)


def attention_pairs(name: str, adapters: dict[str, Adapter]) -> dict[str, Pair]:
    """Return the pair of q, k, v and that of the output projection."""
    own = {t: pair_of(adapters[join(name, t)]) for t in "qkvo" if join(name, t) in adapters}
    any_pair = next(iter(own.values()))
    e, width, inner = len(any_pair.b), any_pair.rank, [t for t in "qkv" if t in own]
    if any(pair.a.shape[1] != e for pair in own.values()):
        raise AdapterError(
            f"{name} has keys or values of another width than {e}, which peft does not adapt; "
            "merge instead"
        )
    rank = width * max(len(inner), 1)
    a, b = any_pair.a.new_zeros(rank, e), any_pair.a.new_zeros(3 * e, rank)
    for i, target in enumerate(inner):
        columns = slice(i * width, (i + 1) * width)
        a[columns] = own[target].a
        row = "qkv".index(target) * e
        b[row : row + e, columns] = own[target].b
    out = Pair(a.new_zeros(rank, e), a.new_zeros(e, rank))
    if "o" in own:
        out.a[:width], out.b[:, :width] = own["o"].a, own["o"].b / OUT_TIMES
    return {name: Pair(a, b), name + OUT: out}
