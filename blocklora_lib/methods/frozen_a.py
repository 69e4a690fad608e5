"""The ablation 'w/o A': Block-LoRA whose A_s stays at its random start."""

from __future__ import annotations

from typing import Literal

from ._adapter import AdapterMethod, AdapterSettings


class Settings(AdapterSettings):
    """See AdapterConfig."""

    kind: Literal["frozen_a"] = "frozen_a"


class Method(AdapterMethod):
    name = "frozen_a"
    label = "w/o A"
    Settings = Settings
