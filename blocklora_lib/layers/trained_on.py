"""What adapters were trained on, and whether all were.

A file may say which weights: of others, loading is refused; and what it held when it was written:
changed since, it is refused, too. An adapter that no gradient reached, beside others that learned,
is told when they are saved.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..core.schema import AdapterError
from .adapted import AdaptedSites, is_stale
from .names import few, join

WEIGHTS = "weights"  # of a file's extra: number format and SHA-256 of the weights adapted
SUM, TENSORS_SUM = "sha256", "tensors_sha256"  # of a file's metadata: of these and of its tensors
IMPORTED = "imported_from"  # of an extra, too: "peft"
# what is read of a file's extra, and its form; `trained` is the run of `blocklora run --save`
READ = {WEIGHTS: r"[\w+]* [0-9a-f]{64}", "trained": r"\{.*\}"}


def check_extra(extra: Mapping[Any, Any]) -> None:
    """AdapterError for an extra that holds no strings, or under a name that is read, another."""
    for key, value in extra.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise AdapterError(f"extra holds {key!r}: {value!r}; keys and values must be strings")
        if key in READ and not re.fullmatch(READ[key], value, re.DOTALL):
            raise AdapterError(
                f"extra holds {key!r}: {value!r:.60}, and by {key!r} a file says what its adapters "
                f"were trained on; use another name than {', '.join(map(repr, READ))}"
            )


def refuse_absent(tensors: Mapping[str, Tensor]) -> None:
    """AdapterError where not all numbers are in this process."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise AdapterError(
                f"{name} lies on the device meta, without numbers; give the weights and the "
                "adapters theirs before writing"
            )
        if not is_plain(tensor):
            raise AdapterError(
                f"{name} is a {type(tensor).__name__}, of which this process may hold a part; load "
                "the full state (get_model_state_dict of torch.distributed.checkpoint with "
                "full_state_dict) into an adapted model that is not sharded, and write that"
            )


def numbers_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as files hold them, on the CPU; AdapterError where not all of it is here."""
    refuse_absent(tensors)
    numbers: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        # safetensors writes no memory under two names, as adapters that share an A or B have it
        numbers[name] = here.clone() if here.data_ptr() in places else here
        places.add(here.data_ptr())
    return numbers


def is_plain(tensor: Tensor) -> bool:
    """Whether all numbers lie here: neither on "meta" nor in shards (DTensor)."""
    return not tensor.is_meta and not is_traceable_wrapper_subclass(tensor)


def at_two_places(model: nn.Module, names: Collection[str], targets: Collection[str]) -> str:
    """Name those modules that two places of the model hold, "" if none: peft adapts the first.

    names: of adapted modules; with "o" in targets, attention's out_proj is one, too.
    """
    names = {*names, *(join(name, "out_proj") for name in names if "o" in targets)}
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    return few([n for n, m in model.named_modules() if n in names and places[id(m)] > 1])


def weights_told(sites: Iterable[tuple[str, nn.Module]]) -> str:
    """Return 'float32 <SHA-256>' of what modules hold beside their adapters, merged or not."""
    digest, formats = hashlib.sha256(), set()
    for name, module in sorted(sites, key=lambda site: site[0]):
        for key, value in sorted(module.state_dict().items()):  # W, when merged too
            if not key.startswith("adapters."):
                formats.add(str(value.dtype).removeprefix("torch."))
                digest.update(f"{name}.{key} {tuple(value.shape)} ".encode())
                digest.update(bytes_of(value))
    return f"{'+'.join(sorted(formats))} {digest.hexdigest()}"


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers; bfloat16 is none of NumPy's formats."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensors_told(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors by name, number format and shape."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def facts_told(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of what a file's metadata say, of its tensors too."""
    said = {key: metadata[key] for key in sorted(metadata) if key != SUM}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def refuse_others(path: Path | str, told: str, names: Iterable[str], model: nn.Module) -> None:
    """AdapterError where a file names weights and the model's, of that format, are others.

    told: of `weights_told`, else the file says nothing of it; names: of the modules adapted.
    """
    modules, names = dict(model.named_modules()), list(names)
    if not re.fullmatch(READ[WEIGHTS], told) or not modules.keys() >= {*names}:
        return  # or it does not fit, which is told elsewhere
    if not all(is_plain(p) for name in names for p in modules[name].parameters()):
        return  # told elsewhere, too
    here = weights_told((name, modules[name]) for name in names)
    kind, _, digest = here.partition(" ")
    if told.startswith(f"{kind} ") and here != told:
        raise AdapterError(
            f"the adapters of {path} were trained on other weights than {type(model).__name__} has "
            f"here (digests {told.partition(' ')[2][:12]} and {digest[:12]}); load them onto "
            "those, or take these all the same by other_weights=True"
        )


def unlike_peft(
    extra: Mapping[str, str], model: nn.Module, names: Collection[str], targets: Collection[str]
) -> list[str]:
    """Return what of adapters that peft trained, as extra says, would compute otherwise here."""
    twice = at_two_places(model, names, targets) if extra.get(IMPORTED) == "peft" else ""
    told = (
        f"two places of the model hold {twice}, and peft adapted the first; merge by peft instead"
    )
    return [told] if twice else []


def tell_stale(sites: AdaptedSites) -> None:
    """Warn of a merged model whose adapters have changed since."""
    if stale := [name for name, module in sites if is_stale(module)]:
        warnings.warn(
            f"the adapters have changed since they were merged ({few(stale)}): they are written as "
            "they are now, and the merged model computes with what they were; call merge() again",
            stacklevel=3,
        )


def tell_unmoved(adapters: Mapping[str, nn.Module]) -> None:
    """Warn of adapters whose B (VeRA's b) is as it began, beside others whose is not."""
    still = [name for name, adapter in adapters.items() if not is_moved(adapter)]
    if 0 < len(still) < len(adapters):
        warnings.warn(
            f"{len(still)} of {len(adapters)} adapters have learned nothing, their B is as it "
            f"began ({few(still)}): no gradient reached them, since no training forward ran "
            "through these layers or the loss does not depend on them",
            stacklevel=3,
        )


def is_moved(adapter: Any) -> bool:
    """Whether what begins at zero is not zero, or PiSSA's B another than the B_0 that it keeps."""
    up = getattr(adapter, "b", adapter.B)
    return bool((up != getattr(adapter, "B_0", 0)).any())
