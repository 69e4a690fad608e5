"""Which CLIP a run uses, as settings. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ..core.schema import Strict

# The models that the project ships -> stem of their config and weights in pocket/model, and the
# name under which open_clip knows them once the config is registered.
BUNDLED = {
    "PocketCLIP": "pocketclip",
    "PocketSigmoid": "pocketsigmoid",
    "PocketCoCa": "pocketcoca",
}


def _digest(value: Any) -> Any:
    """Small letters, as hashlib writes them; ValueError for a shortened or other text."""
    if not isinstance(value, str):
        return value
    if value and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError(
            f"{value!r} is no SHA-256: give all 64 digits, as `blocklora weights find` prints them"
        )
    return value.lower()


class BackboneSpec(Strict):
    """Which CLIP, with which weights.

    pretrained: 'bundled' (of the project's models), a tag of open_clip, the path of a checkpoint or
    of a folder that holds one, or 'none' (random weights, always the same ones).
    precision: number format of frozen weights and products; 'tf32' are float32 weights whose
    products a GPU makes of numbers of ten bits behind the point.
    """

    name: str
    pretrained: str
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    # SHA-256 of the weights (before them the config beside the file); '' only for a tag, whose file
    # the record's provenance names
    checksum: Annotated[str, BeforeValidator(_digest)] = ""

    @property
    def tf32(self) -> bool:
        """Whether a GPU may round the factors of float32 products."""
        return self.precision == "tf32"

    @property
    def format(self) -> str:
        """Number format of the frozen weights, as open_clip names it."""
        return "fp32" if self.tf32 else self.precision
