"""LoRA of rank r: CLIP-LoRA, adapters on q, k, v of both towers."""

from __future__ import annotations

from typing import Literal

from ._adapter import AdapterMethod, AdapterSettings


class Settings(AdapterSettings):
    """See AdapterConfig."""

    kind: Literal["lora"] = "lora"


class Method(AdapterMethod):
    name = "lora"
    label = "LoRA"
    Settings = Settings
