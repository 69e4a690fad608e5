"""What an adapted module carries, what a forward reads as its weights, and what its state is.

W is what is stored: `state_dict()` is about W and the adapters, merged or not, and whoever looks at a model
finds W in `module.weight`.  W + ΔW is what is used: while the model runs, `module.weight` is W + ΔW, so that
a forward which takes a layer's weight instead of calling the layer, as Swin's, does not pass the adapter by.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapter_config import AdapterConfig, AdapterError
from .adapters import Adapter, without_autocast


@dataclass(eq=False)
class Attachment:
    """One call of `attach`, shared by all modules that it adapted."""

    config: AdapterConfig
    extra: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)  # the guarded modules that run now, the outer first
    reached: bool = False  # whether an adapter computed since a guard last asked


@dataclass(eq=False)
class AdaptedWeight:
    """One parameter: which adapter falls on which of its rows, and its bits before they were merged."""

    parts: tuple[tuple[str, slice], ...]
    original: Tensor | None = None


@dataclass(eq=False)
class Attached:
    """What a module carries beside its `adapters` while it is adapted."""

    name: str
    own_class: type[nn.Module]
    attachment: Attachment
    weights: dict[str, AdaptedWeight]


class Adapted(nn.Module):
    """Mixin of adapted modules.  `adapters`: target -> Adapter, by which ΔW is found."""

    adapters: nn.ModuleDict | dict[str, Adapter]
    attached: Attached

    def holders(self) -> list[Adapted]:
        """Return the modules that hold the adapted weights: this one, and attention's out_proj."""
        return [self]

    @property
    def merged(self) -> bool:
        weights = (weight for holder in self.holders() for weight in holder.attached.weights.values())
        return any(weight.original is not None for weight in weights)

    def reach(self) -> None:
        """Note that an adapter computes."""
        self.attached.attachment.reached = True

    def adapted_weights(self) -> Iterator[tuple[Adapter, nn.Parameter, slice]]:
        """Yield each adapter with the parameter, and its rows, that ΔW is added to when merged."""
        for holder in self.holders():
            for key, weight in holder.attached.weights.items():
                for target, rows in weight.parts:
                    yield holder.adapters[target], stored(holder, key), rows

    def original(self, key: str) -> Tensor:
        """Return W of a merged weight, where the model has moved since and in its number format."""
        parameter, original = self._parameters[key], self.attached.weights[key].original
        return original.to(parameter.device, parameter.dtype)

    def fold(self) -> Folded:
        """Return W + ΔW of each adapted weight, and change nothing."""
        folded = []
        for holder in self.holders():
            for key in holder.attached.weights:
                if key not in holder._parameters:
                    raise AdapterError(
                        f"{holder.attached.name}.{key} is no parameter any more, so nothing can be merged "
                        "into it; undo what replaced it (a weight norm, a parametrization, a mask) first"
                    )
                value = used(holder, key).detach()
                if not value.is_meta and not value.isfinite().all():
                    raise AdapterError(
                        f"{holder.attached.name}.{key}: W + ΔW is not finite in {value.dtype}; look at the "
                        "weights and the adapters, or take a wider number format before merging"
                    )
                folded.append((holder, key, value))
        return folded

    def put_back(self) -> None:
        """Let the parameters hold W: the same bits, since they are kept and not computed."""
        for holder in self.holders():
            for key, weight in holder.attached.weights.items():
                if weight.original is not None:
                    holder._parameters[key].data = holder.original(key)
                    weight.original = None

    # state: W and the adapters, however they are computed with at the moment

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, weight in self.attached.weights.items():
            if weight.original is not None and prefix + key in destination:
                destination[prefix + key] = self.original(key)

    def _load_from_state_dict(self, *args: Any) -> None:
        if self.merged:
            self.put_back()
            self.register_load_state_dict_post_hook(refold)  # after the adapters, which are loaded last
        super()._load_from_state_dict(*args)


Folded = list[tuple[Adapted, str, Tensor]]


def put(folded: Folded) -> None:
    """Let the parameters hold W + ΔW and keep W beside."""
    for holder, key, value in folded:
        parameter = holder._parameters[key]
        holder.attached.weights[key].original = parameter.data
        parameter.data = value


@torch.inference_mode(False)
@torch.no_grad()
def refold(module: Adapted, incompatible_keys: Any) -> None:
    """Merge again what was loaded while merged."""
    hooks = module._load_state_dict_post_hooks  # a new dict: this one is being gone through
    module._load_state_dict_post_hooks = type(hooks)((k, h) for k, h in hooks.items() if h is not refold)
    put(module.fold())


@cache
def adapted_class(own_class: type[nn.Module], adapted: type[Adapted]) -> type[Adapted]:
    """Return a subclass of a module's own class, so that its methods and properties stay, that is adapted."""
    namespace = {"__module__": own_class.__module__, "__reduce_ex__": reduce_by_own_class}
    return type(f"Adapted{own_class.__name__}", (adapted, own_class), namespace)


def reduce_by_own_class(module: Adapted, protocol: int) -> tuple:
    """For pickle and deepcopy: a class that is made at run time cannot be found by its name."""
    rebuild, args, *rest = super(type(module), module).__reduce_ex__(protocol)
    if rebuild is copyreg.__newobj__:
        rebuild, args = blank, (module.attached.own_class, type(module).__mro__[1])
    return rebuild, args, *rest


def blank(own_class: type[nn.Module], adapted: type[Adapted]) -> nn.Module:
    """Return an adapted module without any state, for pickle and deepcopy to fill."""
    made = adapted_class(own_class, adapted)
    return made.__new__(made)


# weights


def stored(module: nn.Module, key: str) -> Any:
    """Return the parameter itself, W or merged, rather than what reading it by its name gives."""
    # replicas of DataParallel, and what ran `del` and `setattr` on a parameter, keep it as an attribute
    return module._parameters[key] if key in module._parameters else module.__dict__[key]


def used(module: Adapted, key: str) -> Tensor:
    """Return W + ΔW, summed in the adapters' precision and in the number format of W."""

    def add(w: Tensor) -> Tensor:
        total = w
        for target, rows in module.attached.weights[key].parts:
            delta = module.adapters[target].delta_weight()
            first, last, _ = rows.indices(len(w))
            # rows of zeros around it rather than a sum in place: autograd and functorch follow both orders
            delta = F.pad(delta, (0, 0, first, len(w) - last))
            total = total.to(torch.promote_types(total.dtype, delta.dtype)) + delta
        return total.to(w.dtype)

    return without_autocast(add, stored(module, key))


def read_as_used(key: str) -> property:
    """Make the class attribute by which an adapted module's weight is read."""

    def read(self: Adapted) -> Any:
        weight = self.attached.weights.get(key)
        # replicas of DataParallel exist to run, in threads that share what is noted here
        runs = self.attached.attachment.running or "_is_replica" in self.__dict__
        if weight is None or weight.original is not None or not runs:
            return stored(self, key)
        value = used(self, key).as_subclass(UsedWeight)
        value.module, value.key = self, key
        return value

    def write(self: Adapted, value: Any) -> None:
        self.__dict__[key] = value  # nn.Module itself takes parameters; what else is assigned comes here

    return property(read, write)


# what is asked of, or done to, the parameter rather than its value
OF_THE_PARAMETER = frozenset(
    {Tensor.data.__get__, Tensor.grad.__get__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__hash__}
)
IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor", "matmul")}
IN_PLACE |= {"__setitem__", "__set__", "__delete__"}


class UsedWeight(Tensor):
    """W + ΔW as a forward outside the module reads it, with the gradient to the adapters.

    A linear product with it is what a call of the layer is, dropout included.  Writing to it, or to its
    `.data`, writes to W.
    """

    module: Adapted
    key: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written: Any = kwargs.get("out")
        if func in OF_THE_PARAMETER or name in IN_PLACE or (name.endswith("_") and name[:2] != "__"):
            written = args[0] if args else kwargs
        elif name == "linear" and (product := linear_product(cls, args, kwargs)) is not None:
            return product
        read = list(found(cls, (args, kwargs)))
        parameters = {id(weight): stored(weight.module, weight.key) for weight in found(cls, written)}
        args, kwargs = replaced((args, kwargs), cls, parameters)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if parameters:
            return result
        if any(True for _ in found(Tensor, result)):
            for weight in read:
                check_dropout(weight, result)
        return result


def linear_product(cls: type, args: tuple, kwargs: dict) -> Tensor | None:
    """Return F.linear(x, weight, bias) as the adapted layer computes it; None where it is another case."""
    names = enumerate(("input", "weight", "bias"))
    x, weight, bias = (args[i] if len(args) > i else kwargs.get(name) for i, name in names)
    if not isinstance(weight, cls) or isinstance(x, cls) or not isinstance(weight.module, nn.Linear):
        return None
    return weight.module.product(x, bias)


def check_dropout(weight: UsedWeight, result: Any) -> None:
    """Dropout falls on a layer's input, which a weight that is used in some other product does not see."""
    module = weight.module
    module.reach()
    if not any(t.requires_grad for t in found(Tensor, result)):
        return
    for target, _ in module.attached.weights[weight.key].parts:
        adapter = module.adapters[target]
        if adapter.training and adapter.dropout > 0:
            raise AdapterError(
                f"{module.attached.name}: its {weight.key} is read and the layer not called, so the "
                f"adapter's dropout of {adapter.dropout:g} cannot fall on its input; use dropout=0"
            )


def found(kind: type, value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a kind in nested arguments or results."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from found(kind, item)
    elif isinstance(value, dict):
        yield from found(kind, list(value.values()))


def replaced(value: Any, cls: type, by: dict[int, Any]) -> Any:
    """Return nested arguments with each read weight as a plain tensor, or as `by` says."""
    if isinstance(value, cls):
        if id(value) in by:
            return by[id(value)]
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if isinstance(value, dict):
        return {k: replaced(v, cls, by) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(replaced(v, cls, by) for v in value)
    return value
