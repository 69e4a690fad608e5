"""A PEFT LoRA checkpoint as adapters of ours: the same function, and the same training from there.

What has no counterpart is refused by its name. Ranks that differ from layer to layer
(rank_pattern) are filled up with zeros in both A and B, which no gradient reaches; scales that
differ (by either pattern) go into B, and training goes on at another pace there.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.files import check_replaces, user_path
from ...core.schema import AdapterError, explain
from ...layers.arguments import refuse_model
from ...layers.names import few, join
from ...layers.trained_on import IMPORTED
from .. import files
from ..attach import AdapterSet
from ..config import AdapterConfig
from .peft_layers import by_model, by_names
from .peft_layout import OUT, OUT_KNOWN, OUT_TIMES, PREFIX, Pair, files_of
from .peft_settings import by_pattern, read_settings

KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")


def import_peft(folder: str | Path, model: nn.Module) -> AdapterSet:
    """Attach a PEFT checkpoint's adapters to the model that it was made for."""
    refuse_model(model)
    return AdapterSet.put(read_peft(folder, model), model, folder)


def import_peft_file(folder: str | Path, path: str | Path) -> None:
    """Write a PEFT checkpoint as an adapter file, which `AdapterSet.load` puts on the model.

    Without the model, depths of attention are the numbers in its names; where a model numbers its
    layers otherwise, `load` says so, and `import_peft` and `save` make the file. ValueError where
    something else than an imported adapter stands there: the checkpoint itself, a run's adapter.
    """
    check_replaces(user_path(path), _imported, "adapter that was imported")
    files.write(path, read_peft(folder))


def _imported(path: Path) -> None:
    if IMPORTED not in files.read(path).extra:
        raise ValueError("it was trained here")


def read_peft(folder: str | Path, model: nn.Module | None = None) -> files.AdapterFile:
    """Read a PEFT LoRA checkpoint, or say in one sentence what of it has no counterpart.

    model: the one that it is for, which says what its layers are.
    """
    folder = user_path(folder)
    settings = read_settings(folder)
    pairs = read_pairs(folder, settings)
    attention = [name.removesuffix(OUT) for name in pairs if name.endswith(OUT)]
    targets = targets_of(folder, attention, pairs)
    split: dict[str, Pair] = {}
    for name, pair in pairs.items():
        if name in attention:
            split |= {join(name, t): p for t, p in inner_pairs(pair, targets).items()}
        elif name.endswith(OUT):
            if "o" in targets:
                refuse_newer(folder, settings)
                split[join(name.removesuffix(OUT), "o")] = narrow(pair, targets)
        else:
            split[join(name, "weight")] = pair
    scales = {key: scale_of(key, split[key], pairs, settings) for key in split}
    rank = max(pair.rank for pair in split.values())
    where: dict[str, Any] = {}
    if attention:
        where = by_names(folder, attention) if model is None else by_model(folder, pairs, model)
    config = config_of(folder, settings, rank, targets, where)
    tensors: dict[str, Tensor] = {}
    for key, pair in split.items():
        missing = rank - pair.rank
        ratio = scales[key] / config.scale
        tensors[f"{key}.A"] = F.pad(pair.a, (0, 0, 0, missing))
        # exact where all scales agree
        tensors[f"{key}.B"] = F.pad(
            pair.b if math.isclose(ratio, 1, rel_tol=1e-12) else pair.b * ratio, (0, missing)
        )
        if pair.m is not None:
            tensors[f"{key}.magnitude"] = pair.m
    sites: dict[str, files.Kind] = {}
    for name in pairs:
        if not name.endswith(OUT):
            sites[name] = "attention" if name in attention else "linear"
    return files.AdapterFile(config, sites, tensors, {IMPORTED: "peft"})


def read_pairs(folder: Path, settings: dict[str, Any]) -> dict[str, Pair]:
    """Read A and B of each layer by its name in the model, and check them."""
    path = files_of(folder)[1]
    try:
        files.check_header(path)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged or no safetensors file ({error!s:.300})") from error
    files.refuse_values(path, tensors, "save the checkpoint again")
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        matched = KEY.fullmatch(key.removeprefix(PREFIX))
        if matched is None:
            strange.append(key)
            continue
        parts.setdefault(matched["module"], {})[matched["part"]] = (
            tensor.float() if tensor.dtype != torch.float64 else tensor
        )
    if strange:
        raise AdapterError(
            f"{path} holds {few(sorted(strange))}, which has no counterpart here: neither LoRA of "
            "a linear layer nor of nn.MultiheadAttention (modules_to_save, biases and embeddings "
            "are no adapters)"
        )
    if not parts:
        raise AdapterError(f"{path} holds no adapter; save the checkpoint again")
    pairs = {}
    for name, own in sorted(parts.items(), key=lambda item: in_order(item[0])):
        a, b, m = (own.get(part) for part in ("lora_A", "lora_B", "lora_magnitude_vector"))
        fits = a is not None and b is not None and a.dim() == b.dim() == 2 and len(a) == b.shape[1]
        if not fits or (m is None) == bool(settings.get("use_dora")):
            shapes = {part: tuple(tensor.shape) for part, tensor in own.items()}
            raise AdapterError(
                f"{name} of {path} holds {shapes}, where a linear layer's lora_A is (r, d_in) and "
                "lora_B (d_out, r), with lora_magnitude_vector if use_dora; other layers, "
                "convolutions among them, have no counterpart here"
            )
        assert a is not None
        assert b is not None
        pairs[name] = Pair(a, b, m)
    return pairs


def in_order(name: str) -> list[Any]:
    """Sort names as a model has them: by numbers where they hold some."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def targets_of(folder: Path, attention: list[str], pairs: dict[str, Pair]) -> dict[str, slice]:
    """Return the columns of the pair that each of q, k, v, o uses; without attention none.

    One pair adapts all three. Where B is zero but for one block each, as `peft_export` writes it,
    the blocks are adapters of their own and what has none is no target; where not, each of the
    three has the whole A.
    """
    if not attention:
        return {}
    for name in attention:
        if name not in pairs or len(pairs[name].b) != 3 * pairs[name].a.shape[1]:
            raise AdapterError(
                f"{name} of {folder} is no attention whose q, k and v have one width; "
                "other attention has no counterpart here"
            )
    inner = [pairs[name] for name in attention]
    outer = [pairs[name + OUT] for name in attention]
    o = any(pair.a.any() for pair in outer)
    if o and not any(pair.a.any() for pair in inner):  # the output projection alone
        return {"o": slice(None)}
    used = [t for i, t in enumerate("qkv") if any(pair.b.chunk(3)[i].any() for pair in inner)]
    rank = max(pair.rank for pair in inner)
    width = rank // max(len(used), 1)
    blocks: dict[str, slice] = {t: slice(i * width, (i + 1) * width) for i, t in enumerate(used)}
    cut = used and all(pair.rank == width * len(used) for pair in inner)
    if (
        not cut
        or any(beyond(pair, blocks) for pair in inner)
        or any(pair.a[width:].any() or pair.b[:, width:].any() for pair in outer)
    ):
        blocks, width = dict.fromkeys("qkv", slice(None)), rank
    return blocks | ({"o": slice(0, width)} if o else {})


def beyond(pair: Pair, blocks: dict[str, slice]) -> bool:
    """Whether B has numbers beside the blocks."""
    rest = pair.b.clone()
    for target, columns in blocks.items():
        rest.chunk(3)["qkv".index(target)][:, columns] = 0
    return bool(rest.any())


def inner_pairs(pair: Pair, targets: dict[str, slice]) -> dict[str, Pair]:
    """Cut attention's pair into those of q, k, v."""
    rows = dict(zip("qkv", pair.b.chunk(3), strict=True))
    return {
        t: Pair(pair.a[c].clone(), rows[t][:, c].clone()) for t, c in targets.items() if t != "o"
    }


def narrow(pair: Pair, targets: dict[str, slice]) -> Pair:
    """Cut the output projection's pair to the width of the others."""
    return Pair(pair.a[targets["o"]].clone(), pair.b[:, targets["o"]] * OUT_TIMES)


def refuse_newer(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse attention's output projection of a release that may apply its update once."""
    stated = str(settings.get("peft_version") or "")
    numbers = re.match(r"(\d+)\.(\d+)", stated)
    if numbers and (int(numbers[1]), int(numbers[2])) > OUT_KNOWN:
        raise AdapterError(
            f"{folder} was written by peft {stated}, and how often that applies the update of an "
            f"nn.MultiheadAttention's output projection is not known here (up to "
            f"{'.'.join(map(str, OUT_KNOWN))}: {OUT_TIMES} times); merge by peft instead"
        )


def scale_of(key: str, pair: Pair, pairs: dict[str, Pair], settings: dict[str, Any]) -> float:
    """Return lora_alpha/r, or lora_alpha/sqrt(r), of the pair in PEFT's file that this is of."""
    name = key.rpartition(".")[0]
    rank, alpha = pairs[name].rank, by_pattern(settings, "alpha_pattern", name, "lora_alpha", 8)
    stated = by_pattern(settings, "rank_pattern", name, "r", 8)
    if rank != stated:
        raise AdapterError(
            f"{name} has rank {rank} in the tensors, and {stated} by r and rank_pattern of the "
            "settings, so its scale is not known; save the checkpoint again"
        )
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def config_of(
    folder: Path,
    settings: dict[str, Any],
    rank: int,
    targets: dict[str, slice],
    where: dict[str, Any],
) -> AdapterConfig:
    """Return our settings. Where r is PEFT's own, alpha and the scaling stay what they are."""
    own = by_pattern(settings, "", "the checkpoint", "r", 8)
    alpha = by_pattern(settings, "", "the checkpoint", "lora_alpha", 8)
    rslora = bool(settings.get("use_rslora"))
    if targets:
        where = where | {"targets": tuple(targets)}
    if rank != own:  # attention that was cut, or filled up: the same scale
        alpha *= math.sqrt(rank / own) if rslora else rank / own
    try:
        return AdapterConfig(
            kind="dora" if settings.get("use_dora") else "lora",
            rank=rank,
            alpha=alpha,
            scaling="sqrt_rank" if rslora else "rank",
            # peft has no dropout on attention, whatever is set
            dropout=0.0 if targets else settings.get("lora_dropout", 0.0),
            **where,
        )
    except ValidationError as error:
        raise AdapterError(f"{folder} has settings of no adapter here: {explain(error)}") from error
