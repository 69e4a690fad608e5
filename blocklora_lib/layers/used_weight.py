"""What a forward finds that reads an adapted module's weight: W + ΔW, and products with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from threading import get_ident
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace
from torch.nn import functional as F

from ..core.schema import AdapterError
from .eager import without_autocast
from .frozen import frozen_linear
from .update import Update

# Releases of torch before that function, 2.6 among them, have is_fx_tracing alone.
AdaptedModule = Any  # an `Adapted`: of it this file knows `attached` and `adapters` alone
T = TypeVar("T")

_fx_tracing = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)


def reach(module: AdaptedModule) -> None:
    """Note that an adapter computes."""
    module.attached.attachment.reached = True


def stored(module: AdaptedModule, key: str) -> Any:
    """Return the parameter itself, W or merged, rather than what reading it by its name gives."""
    # replicas of DataParallel, and what ran `del` and `setattr` on a parameter, keep it as an
    # attribute
    for place in (module._parameters, module.__dict__):
        if key in place:
            return place[key]
    raise AdapterError(
        f"{module.attached.name}: its {key} is no parameter any more since adapters were put on; "
        "undo what replaced it (torch.nn.utils.parametrize.remove_parametrizations, "
        "remove_weight_norm)"
    )


def refuse_symbolic_tracing(module: AdaptedModule) -> None:
    """Refuse torch.fx, whose graph would hold W alone where a weight is read."""
    if _fx_tracing() and not torch.compiler.is_compiling():
        raise AdapterError(
            f"{module.attached.name} has adapters, which torch.fx (symbolic_trace, "
            "create_feature_extractor) cannot follow; "
            "call merge_and_unload() on a copy first, or use torch.export"
        )


def used(module: AdaptedModule, key: str, weight: Tensor | None = None) -> Tensor:
    """Return W + ΔW, summed in the adapters' precision and in the number format of W.

    weight: W where the parameter holds something else.
    """

    def add(w: Tensor) -> Tensor:
        total = w
        for target, rows in module.attached.weights[key].parts:
            delta = module.adapters[target].delta_on(w[rows])
            first, last, _ = rows.indices(len(w))
            # rows of zeros around it rather than a sum in place: autograd and functorch follow both
            # orders
            delta = F.pad(delta, (0, 0, first, len(w) - last))
            total = total.to(torch.promote_types(total.dtype, delta.dtype)) + delta
        return total.to(w.dtype)

    return without_autocast(add, stored(module, key) if weight is None else weight)


CALL = nn.Module._call_impl.__code__


def called() -> Iterator[nn.Module]:
    """Yield the modules that are being called, this thread's first, the innermost first."""
    yield from calls_of(sys._getframe())
    for thread, top in sys._current_frames().items():
        if thread != get_ident():
            yield from calls_of(top)


def calls_of(frame: FrameType | None) -> Iterator[nn.Module]:
    """Yield the modules that are being called on one stack, from its top."""
    while frame is not None:
        if frame.f_code is CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def are_over(running: list[nn.Module | None], calls: Iterable[nn.Module]) -> bool:
    """Whether all that was noted as running has ended: PyTorch runs no hook after Ctrl-C.

    calls: of `called`. Compiled code has no calls to look for, and is believed.
    """
    if running[0] is None:
        return False
    noted = {id(module) for module in running}
    return not any(id(module) in noted for module in calls)


def runs(module: AdaptedModule) -> bool:
    """Whether an adapted module, or what holds it, runs at the moment."""
    running = module.attached.attachment.running
    return bool(
        (running and (torch.compiler.is_compiling() or not are_over(running, called())))
        or "_is_replica" in module.__dict__  # of DataParallel: it exists to run
        or torch._C._current_graph_task_id() != -1  # a checkpoint runs again in the backward pass
    )


def leave_to_eager(config: Any) -> None:
    """Have torch.compile trace no product with a weight that knows its layer: it cannot."""
    if hasattr(config, "nontraceable_tensor_subclasses"):
        config.nontraceable_tensor_subclasses.add(UsedWeight)


def asked_by_fsdp() -> bool:
    """Whether who reads a weight is FSDP: it looks after the parameter, in the midst of a step."""
    if torch.compiler.is_compiling():
        return False
    reader: str = sys._getframe(2).f_globals.get("__name__", "")
    return reader.startswith("torch.distributed.fsdp")


def read_as_used(key: str) -> property:
    """Make the class attribute by which an adapted module's weight is read."""

    def read(self: AdaptedModule) -> Any:
        refuse_symbolic_tracing(self)
        if key not in self._parameters and key not in self.__dict__:
            # for hasattr, which parametrizations ask while they are put on
            raise AttributeError(key)
        weight = self.attached.weights.get(key)
        if weight is None or weight.original is not None or not runs(self) or asked_by_fsdp():
            return stored(self, key)
        value = used(self, key)
        drops = dropping(self, key) is not None
        if drops and torch.compiler.is_dynamo_compiling():  # which goes on without a graph for it
            raise AdapterError(
                f"{self.attached.name}: its {key} is read and the layer not called, and no graph "
                "lets dropout fall on its input; use dropout=0 or no fullgraph=True"
            )
        # graphs and fake tensors have no room for a subclass
        if (torch.compiler.is_compiling() and not drops) or type(value) is not Tensor:
            reach(self)
            return value
        leave_to_eager(sys.modules.get("torch._dynamo.config"))
        weight_read = value.as_subclass(UsedWeight)
        weight_read.module, weight_read.key = self, key
        return weight_read

    def write(self: nn.Module, value: Any) -> None:
        # nn.Module itself takes parameters; what else is assigned comes here
        self.__dict__[key] = value

    def delete(self: nn.Module) -> None:
        # and is deleted here: FSDP puts views of its own in a parameter's place, one after another
        if key not in self.__dict__:
            raise AttributeError(key)
        del self.__dict__[key]

    return property(read, write, delete)


# what is asked of, or done to, the parameter rather than its value
OF_THE_PARAMETER = {getattr(Tensor, name).__get__ for name in ("data", "grad")}
OF_THE_PARAMETER |= {Tensor.data_ptr, Tensor.untyped_storage, Tensor.__hash__}
IN_PLACE = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor", "matmul")
}
IN_PLACE |= {"__setitem__", "__set__", "__delete__"}
# of the arguments after the first, these take number format, device or shape alone
TAKE_NO_VALUES = {Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as}


class UsedWeight(Tensor):
    """W + ΔW as a forward outside the module reads it, with the gradient to the adapters.

    A linear product with it is what a call of the layer is, dropout included. Writing to it, or to
    its `.data`, writes to W.
    """

    module: AdaptedModule
    key: str

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written: Any = kwargs.get("out")
        if (
            func in OF_THE_PARAMETER
            or name in IN_PLACE
            or (name.endswith("_") and name[:2] != "__")
        ):
            written = args[0] if args else kwargs
        elif name == "linear" and (product := linear_product(cls, args, kwargs)) is not None:
            return product
        read = list(found(cls, args[:1] if func in TAKE_NO_VALUES else (args, kwargs)))
        parameters = {
            id(weight): stored(weight.module, weight.key) for weight in found(cls, written)
        }
        args, kwargs = replaced((args, kwargs), cls, parameters)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if parameters:
            return result
        if any(True for _ in found(Tensor, result)):
            for weight in read:
                check_dropout(weight, result)
        return result


def project(x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Update | None) -> Tensor:
    """Return x Wᵀ + b + x ΔWᵀ, in the adapter's precision: (..., d_in) -> (..., d_out)."""
    base = frozen_linear(x, weight, bias)
    return base if adapter is None else (base + adapter.update_on(weight, x)).to(base.dtype)


def adapted_product(module: AdaptedModule, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (W + ΔW)ᵀ + bias of an adapted layer that is not merged."""
    reach(module)
    (adapter,) = module.adapters.values()
    return project(x, stored(module, "weight"), bias, adapter)


def linear_product(
    cls: type[UsedWeight], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return F.linear(x, weight, bias) as the adapted layer computes it; None in another case."""
    names = enumerate(("input", "weight", "bias"))
    given: list[Any] = [args[i] if len(args) > i else kwargs.get(name) for i, name in names]
    x, weight, bias = given
    if (
        not isinstance(weight, cls)
        or isinstance(x, cls)
        or not isinstance(weight.module, nn.Linear)
    ):
        return None
    return adapted_product(weight.module, x, bias)


def check_dropout(weight: UsedWeight, result: Any) -> None:
    """Dropout falls on a layer's input: a weight that some other product uses does not see it."""
    module = weight.module
    reach(module)
    if not any(t.requires_grad for t in found(Tensor, result)):
        return
    if adapter := dropping(module, weight.key):
        raise AdapterError(
            f"{module.attached.name}: its {weight.key} is read and the layer not called, so the "
            f"adapter's dropout of {adapter.dropout:g} cannot fall on its input; use dropout=0"
        )


def dropping(module: AdaptedModule, key: str) -> Update | None:
    """Return an adapter of this weight whose dropout is on, if there is one."""
    adapters = (module.adapters[target] for target, _ in module.attached.weights[key].parts)
    return next((adapter for adapter in adapters if adapter.training and adapter.dropout > 0), None)


def found(kind: type[T], value: Any) -> Iterator[T]:
    """Yield the tensors of a kind in nested arguments or results."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from found(kind, item)
    elif isinstance(value, dict):
        yield from found(kind, list(value.values()))


def replaced(value: Any, cls: type[Tensor], by: dict[int, Any]) -> Any:
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
