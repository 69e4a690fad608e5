"""The control of Block-LoRA: LoRA of rank r/n whose B learns n times as fast as A.

LoRA+ (Hayou et al. 2024) with ratio n. Its settings are those of the Block-LoRA that it controls,
whose scale and start it takes: by theory both train alike (notebook 13), so a gap between the two
would be an error.
"""

from __future__ import annotations

from typing import Literal

from ._adapter import AdapterMethod, AdapterSettings


class Settings(AdapterSettings):
    """See AdapterConfig."""

    kind: Literal["collapsed"] = "collapsed"


class Method(AdapterMethod):
    name = "lora_plus"
    label = "LoRA+"
    Settings = Settings
