"""What an adapted module carries, what a forward reads as its weights, and what its state is.

W is what is stored: `state_dict()` is about W and the adapters, merged or not, and whoever looks at
a model finds W in `module.weight`. W + ΔW is what is used: while the model runs, `module.weight` is
W + ΔW, so that a forward which takes a layer's weight instead of calling the layer, as Swin's, does
not pass the adapter by.
"""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..core.schema import AdapterError
from .update import Update
from .used_weight import stored, used

STATE_IS_UNMERGED = (
    "the adapters are merged, and the state is that of the model unmerged: W and the adapters; "
    "for W + ΔW call merge_and_unload() on a copy first"
)


FITS_NOTHING = torch.empty(0)  # the fingerprint of a merged weight that was changed and then moved


@dataclass(eq=False)
class Attachment:
    """One call of `attach`, shared by all modules that it adapted."""

    config: Any  # an AdapterConfig, which a room above makes
    extra: dict[str, str] = field(default_factory=dict)
    # the guarded modules that run now, the outer first; None: one in compiled code
    running: list[nn.Module | None] = field(default_factory=list)
    reached: bool = False  # whether an adapter computed since the outermost of them began
    carried: WeakSet[Attached] = field(default_factory=WeakSet)  # by the modules that it is on

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy: a copy does not run, and is on what was copied with it."""
        return Attachment, (self.config, self.extra)


@dataclass(eq=False)
class AdaptedWeight:
    """One parameter: which adapter falls on which of its rows, and its bits before a merge."""

    parts: tuple[tuple[str, slice], ...]
    original: Tensor | None = None
    # by which a change of the merged weight, and one of the adapters, is noticed
    merged_bits: tuple[torch.dtype, Tensor] | None = None
    merged_from: list[Tensor] | None = None


@dataclass(eq=False)
class Attached:
    """What a module carries beside its `adapters` while it is adapted."""

    name: str
    own_class: type[nn.Module]
    attachment: Attachment
    weights: dict[str, AdaptedWeight]

    def __post_init__(self) -> None:
        self.attachment.carried.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy."""
        vars(self).update(state)
        self.__post_init__()


class Adapted(nn.Module):
    """Mixin of adapted modules. `adapters`: target -> Update, by which ΔW is found.

    Its state is W and the adapters, however they are computed with at the moment.
    """

    adapters: Any  # nn.ModuleDict or, of an output projection, dict
    attached: Attached

    def adapted_weights(self) -> Iterator[tuple[Update, nn.Parameter, slice]]:
        """Yield each adapter with the parameter, and its rows, that ΔW is added to when merged."""
        for holder in holders(self):
            for key, weight in holder.attached.weights.items():
                for target, rows in weight.parts:
                    yield holder.adapters[target], stored(holder, key), rows

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks of every module."""
        raise AdapterError(
            f"{self.attached.name or 'the model'} has adapters, which torch.jit.script cannot "
            "read; call merge_and_unload() on a copy first, or use torch.jit.trace or torch.export"
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, weight in self.attached.weights.items():
            if weight.original is not None and prefix + key in destination:
                warnings.warn(STATE_IS_UNMERGED, stacklevel=2)
                destination[prefix + key] = original(self, key)

    def _load_from_state_dict(self, *args: Any) -> None:
        if is_merged(self):
            try:
                put_back([self])
            except AdapterError as error:
                # among torch's own error messages, raised after all is merged again
                args[-1].append(str(error))
                return
            # after the adapters, which are loaded last
            self.register_load_state_dict_post_hook(refold)
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapted:
        merged = [
            key for key, weight in self.attached.weights.items() if weight.original is not None
        ]
        changed = {key for key in merged if is_changed(self, key)}
        super()._apply(fn, recurse)
        for key in merged:  # a move, to another number format for one, is no change
            parameter, weight = self._parameters.get(key), self.attached.weights[key]
            if parameter is not None:
                weight.merged_bits = (
                    (parameter.dtype, FITS_NOTHING) if key in changed else bits_of(parameter)
                )
        return self


AdaptedSites = list[tuple[str, Adapted]]


# merging: functions, since the names of methods could be those of a module's own


def holders(module: Adapted) -> list[Adapted]:
    """Return the modules that hold a site's adapted weights: itself, attention's out_proj."""
    out = module.out_proj if isinstance(module, nn.MultiheadAttention) else None
    return [module, out] if isinstance(out, Adapted) else [module]


def is_merged(module: Adapted) -> bool:
    """Whether the weights of an adapted module hold W + ΔW."""
    weights = (weight for holder in holders(module) for weight in holder.attached.weights.values())
    return any(weight.original is not None for weight in weights)


UNLOAD = "keep what it holds now by merge_and_unload()"
AS_MERGED = "its adapters changed, too: put them back, or load both anew"


def original(module: Adapted, key: str, way_out: str = UNLOAD) -> Tensor:
    """Return W of a merged weight, where the model has moved since and in its number format."""
    if is_changed(module, key):
        raise AdapterError(
            f"{weight_name(module, key)} was changed or replaced while it held W + ΔW, "
            f"which W knows nothing of; {way_out}, and call unmerge() before changing weights"
        )
    parameter: Tensor = stored(module, key)
    kept: Any = module.attached.weights[key].original  # a merged weight has one
    return kept.to(parameter.device, parameter.dtype)


def weight_name(module: Adapted, key: str) -> str:
    """Return the name of a weight in the model."""
    return f"{module.attached.name}.{key}".lstrip(".")


def is_changed(module: Adapted, key: str) -> bool:
    """Whether a merged weight holds other bits than merging gave it, or is no parameter."""
    parameter, kept = module._parameters.get(key), module.attached.weights[key].merged_bits
    if parameter is None:
        return True
    if kept is None or parameter.dtype != kept[0] or (bits := bits_of(parameter)) is None:
        return False
    return not torch.equal(kept[1].to(parameter.device), bits[1])


def bits_of(weight: Tensor) -> tuple[torch.dtype, Tensor] | None:
    """Return the sums of a matrix's bits along rows and columns; None for "meta"."""
    if weight.is_meta:
        return None
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.detach().contiguous().view(whole)
    return weight.dtype, torch.cat([bits.sum(0, dtype=torch.int64), bits.sum(1, dtype=torch.int64)])


Folded = list[tuple[Adapted, str, Tensor]]


def tensors_of(holder: Adapted, key: str) -> list[Tensor]:
    """Return what the adapters of a weight are made of."""
    parts = holder.attached.weights[key].parts
    return [t for target, _ in parts for t in holder.adapters[target].state_dict().values()]


def is_stale(module: Adapted) -> bool:
    """Whether its adapters hold other numbers than those that were merged; a move is no change."""
    return any(
        not (now.is_meta or torch.equal(then.to(now.device, now.dtype), now))
        for holder in holders(module)
        for key, weight in holder.attached.weights.items()
        for then, now in zip(weight.merged_from or (), tensors_of(holder, key), strict=False)
    )


def fold(module: Adapted) -> Folded:
    """Return W + ΔW of each weight of an adapted module, merged or not, and change nothing."""
    folded = []
    for holder in holders(module):
        for key in holder.attached.weights:
            name = weight_name(holder, key)
            if key not in holder._parameters:
                raise AdapterError(
                    f"{name} is no parameter any more, so nothing can be merged into it; "
                    "undo what replaced it (a weight norm, a parametrization, a mask) first"
                )
            merged = holder.attached.weights[key].original is not None
            w = original(holder, key, AS_MERGED) if merged else None
            value = used(holder, key, w).detach()
            if not value.is_meta and not value.isfinite().all():
                raise AdapterError(
                    f"{name}: W + ΔW is not finite in {value.dtype}; look at the weights and the "
                    "adapters, or take a wider number format before merging"
                )
            folded.append((holder, key, value))
    return folded


def put(folded: Folded) -> None:
    """Let the parameters hold W + ΔW and keep W beside."""
    for holder, key, value in folded:
        parameter, weight = stored(holder, key), holder.attached.weights[key]
        if weight.original is None:
            weight.original = parameter.data
        weight.merged_bits = bits_of(value)
        weight.merged_from = [tensor.clone() for tensor in tensors_of(holder, key)]
        parameter.data = value


def put_back(modules: Iterable[Adapted]) -> None:
    """Let the parameters hold W: the same bits, since they are kept and not computed.

    Where someone changed a merged weight it is refused (AdapterError), and nothing is put back.
    """
    weights = [
        (h, key, w) for m in modules for h in holders(m) for key, w in h.attached.weights.items()
    ]
    merged = [(h, key, w, original(h, key)) for h, key, w in weights if w.original is not None]
    for holder, key, weight, value in merged:
        stored(holder, key).data = value
        weight.original = weight.merged_bits = weight.merged_from = None


@torch.inference_mode(False)
@torch.no_grad()
def refold(module: Adapted, incompatible_keys: Any) -> None:
    """Merge again what was loaded while merged."""
    hooks = module._load_state_dict_post_hooks  # a new dict: this one is being gone through
    module._load_state_dict_post_hooks = type(hooks)(
        (k, h) for k, h in hooks.items() if h is not refold
    )
    put(fold(module))


@cache
def adapted_class(own_class: type[Any], adapted: type[Any]) -> type[Any]:
    """Return an adapted subclass of a module's own class, whose methods and properties stay."""
    # PyTorch's own layer, which `adapted` is a subclass of already
    if own_class in adapted.__bases__:
        return adapted
    namespace = {"__module__": own_class.__module__, "__reduce_ex__": reduce_by_own_class}
    return type(f"Adapted{own_class.__name__}", (adapted, own_class), namespace)


def reduce_by_own_class(module: Adapted, protocol: int) -> tuple[Any, ...]:
    """For pickle and deepcopy: a class that is made at run time cannot be found by its name."""
    reduced: Any = super(type(module), module).__reduce_ex__(protocol)
    rebuild, args, *rest = reduced
    if rebuild is vars(copyreg)["__newobj__"]:
        rebuild, args = blank, (module.attached.own_class, type(module).__mro__[1])
    return rebuild, args, *rest


def blank(own_class: Any, adapted: Any) -> nn.Module:
    """Return an adapted module without any state, for pickle and deepcopy to fill."""
    made: Any = adapted_class(own_class, adapted)
    return made.__new__(made)
