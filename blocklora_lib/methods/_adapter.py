"""What all adapter methods share: settings without `kind`, and training that is loaded when it is
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from ..adapters.config import AdapterConfig
from ..core.schema import near

if TYPE_CHECKING:
    from ..learning.adapter_fit import AdapterPredictor
    from ..learning.contract import Context


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


class AdapterMethod:
    """Train an adapter on q, k, v (or o) of both towers, whatever its kind."""

    name: ClassVar[str]
    label: ClassVar[str]
    Settings: ClassVar[type[AdapterSettings]]
    trains: ClassVar[bool] = True

    def __init__(self, settings: AdapterSettings) -> None:
        self.settings = settings

    def fit(self, context: Context) -> AdapterPredictor:
        """Train and return the predictor; the adapters stay attached until it is closed."""
        from ..learning.adapter_fit import fit_adapters  # torch: listing a grid does without it

        # the settings' class only fixes the kind; the adapter's own config is what is saved with
        # adapters
        return fit_adapters(context, AdapterConfig(**self.settings.model_dump()))
