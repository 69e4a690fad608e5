"""The family of adapter methods, a row each: the method's name, its label, its kind, and why.

All train an adapter on q, k, v (or o) of both towers; `AdapterConfig` says what each kind computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import create_model, model_validator

from ..adapters.config import AdapterConfig
from ..core.schema import near
from ..learning.method import BaseMethod

if TYPE_CHECKING:
    from ..learning.adapter_fit import AdapterPredictor
    from ..learning.contract import Context

TABLE = (
    ("lora", "LoRA", "lora", "CLIP-LoRA: rank r, what the paper compares with"),
    ("block_lora", "Block-LoRA", "block_lora", "the paper's: n blocks share one down-projection"),
    ("frozen_a", "w/o A", "frozen_a", "the paper's ablation: A_s stays at its random start"),
    # LoRA+ (Hayou et al. 2024) with ratio n, B learning n times as fast as A. It has the settings,
    # scale and start of the Block-LoRA that it controls: by theory both train alike (notebook 13),
    # so a gap between the two would be an error.
    ("lora_plus", "LoRA+", "collapsed", "the control of Block-LoRA: LoRA of its width r/n"),
    # Relatives of LoRA under its schedule, so that a gain of the blocks is told from one of the
    # family. (LoRA at alpha/r is `lora` with scaling: rank; CLIP-LoRA's code is rank-stabilised.)
    ("dora", "DoRA", "dora", "the length of each row of W apart from its direction"),
    ("pissa", "PiSSA", "pissa", "A and B start as the principal part of W"),
    ("vera", "VeRA", "vera", "fixed random A and B, and two vectors of each layer"),
)


class AdapterSettings(AdapterConfig):
    """An adapter's settings in which `kind` is the method's own."""

    @model_validator(mode="before")
    @classmethod
    def _own_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}; {near(key, cls.model_fields)}")
        return {"kind": cls.model_fields["kind"].default} | values


class AdapterMethod(BaseMethod):
    """A method of the table."""

    def fit(self, context: Context) -> AdapterPredictor:
        """Train and return the predictor; the adapters stay attached until it is closed."""
        from ..learning.adapter_fit import fit_adapters  # torch: listing a grid does without it

        # the settings' class only fixes the kind; adapters are saved with a config of their own
        return fit_adapters(context, AdapterConfig(**self.settings.model_dump()))


def _method(name: str, label: str, kind: str, why: str) -> type[AdapterMethod]:
    of_kind: Any = (Literal[kind], kind)
    settings = create_model(f"{name}_settings", __base__=AdapterSettings, kind=of_kind)
    facts = {"name": name, "label": label, "Settings": settings, "__doc__": why}
    return type(name, (AdapterMethod,), facts)


METHODS = tuple(_method(*row) for row in TABLE)
