"""Rows of a frozen tower in files: written whole or not at all, read if they are those meant."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.files import read_bytes, write_whole

LIMIT = 2**36  # bytes of a file of features


@dataclass(frozen=True)
class Encoded:
    """What a tower gave: its rows, (N, p), and the seconds that it took."""

    rows: Tensor
    seconds: float


def write_features(path: Path, name: str, made: Encoded) -> None:
    """Write pooled rows and their seconds under a name, whole or not at all."""
    pooled = made.rows.cpu().contiguous()
    said = {"name": name, "sha256": _digest(pooled), "seconds": repr(made.seconds)}
    write_whole(path, save({"pooled": pooled}, said))


def read_features(path: Path, name: str, shape: tuple[int, int] = (0, 0)) -> Encoded:
    """Read pooled rows (N, p); ValueError if the file is damaged or of other images.

    shape: N and p that they must have, 0 where that is not known.
    """
    content = read_bytes(path, LIMIT)
    try:
        pooled = load(content)["pooled"]
        length = int.from_bytes(content[:8], "little")
        said: Any = json.loads(content[8 : 8 + length])["__metadata__"]
        seconds = float(said["seconds"])
        whole = said["sha256"] == _digest(pooled) and 0 <= seconds < math.inf
        whole = whole and pooled.dtype == torch.float32 and "name" in said
    except (SafetensorError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: it does not hold the features that were written")
    if said["name"] != name:
        raise ValueError(f"{path} holds features of other images, or of another backbone or view")
    found = tuple(pooled.shape)
    if len(found) != 2 or any(n not in (0, there) for n, there in zip(shape, found, strict=True)):
        raise ValueError(f"{path} holds features of another shape, {found}")
    return Encoded(pooled, seconds)


def _digest(pooled: Tensor) -> str:
    return hashlib.sha256(pooled.numpy().tobytes()).hexdigest()
