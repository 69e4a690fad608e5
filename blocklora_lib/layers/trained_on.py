"""What adapters were trained on, and whether all were.

A file may say which weights: of others, loading is refused. An adapter that no gradient reached,
beside others that learned, is told when they are saved.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from ..core.schema import AdapterError
from .names import few

WEIGHTS = "weights"  # of a file's extra: number format and SHA-256 of the weights adapted


def weights_told(sites: Iterable[tuple[str, nn.Module]]) -> str:
    """Return 'float32 <SHA-256>' of what modules hold beside their adapters, merged or not."""
    digest, formats = hashlib.sha256(), set()
    for name, module in sorted(sites, key=lambda site: site[0]):
        for key, value in sorted(module.state_dict().items()):  # W, when merged too
            if not key.startswith("adapters."):
                formats.add(str(value.dtype).removeprefix("torch."))
                digest.update(f"{name}.{key} {tuple(value.shape)} ".encode())
                # an array of bytes: bfloat16 is none of NumPy's formats
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"{'+'.join(sorted(formats))} {digest.hexdigest()}"


def refuse_others(path: Path | str, told: str, names: Iterable[str], model: nn.Module) -> None:
    """AdapterError where a file names weights and the model's, of that format, are others.

    told: of `weights_told`, '' where the file says nothing; names: of the modules adapted.
    """
    modules, names = dict(model.named_modules()), list(names)
    if not told or not modules.keys() >= {*names}:
        return  # or it does not fit, which is told elsewhere
    here = weights_told((name, modules[name]) for name in names)
    kind, _, digest = here.partition(" ")
    if told.startswith(f"{kind} ") and here != told:
        raise AdapterError(
            f"the adapters of {path} were trained on other weights than {type(model).__name__} has "
            f"here (digests {told.partition(' ')[2][:12]} and {digest[:12]}); load them onto "
            "those, or take these all the same by other_weights=True"
        )


def tell_unmoved(adapters: Mapping[str, nn.Module]) -> None:
    """Warn of adapters whose B is zero, as it begins, beside others whose B is not."""
    ups: dict[str, object] = {
        name: getattr(adapter, "B", None) for name, adapter in adapters.items()
    }
    zero = [name for name, b in ups.items() if isinstance(b, torch.Tensor) and not b.any()]
    if 0 < len(zero) < len(ups):
        warnings.warn(
            f"{len(zero)} of {len(ups)} adapters have learned nothing, their B is zero "
            f"({few(zero)}): no gradient reached them, since no training forward ran through these "
            "layers or the loss does not depend on them",
            stacklevel=3,
        )
