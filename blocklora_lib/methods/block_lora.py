"""Block-LoRA: n blocks that share one down-projection A_s."""

from __future__ import annotations

from typing import Literal

from ._adapter import AdapterMethod, AdapterSettings


class Settings(AdapterSettings):
    """See AdapterConfig."""

    kind: Literal["block_lora"] = "block_lora"


class Method(AdapterMethod):
    name = "block_lora"
    label = "Block-LoRA"
    Settings = Settings
