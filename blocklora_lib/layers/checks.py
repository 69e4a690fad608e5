"""What a layer would run is looked at before it is adapted: one passed by is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..core.schema import AdapterError
from .adapted import Adapted
from .names import NamedModules, join

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_attention(name: str, module: nn.MultiheadAttention) -> None:
    """Refuse an attention module whose forward an adapter would not reach."""
    label = label_of(name, module)
    check_forward(label, module, nn.MultiheadAttention)
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        raise AdapterError(
            f"{label} uses add_bias_kv or add_zero_attn, "
            "which adapters do not support; build it without"
        )
    check_parameters(
        label,
        module,
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
    )
    out = module.out_proj
    if not isinstance(out, nn.Linear):
        raise AdapterError(
            f"{label} has {type(out).__name__} for out_proj, not nn.Linear; "
            "put its own out_proj back"
        )
    check_forward(label_of(join(name, "out_proj"), out), out, nn.Linear)
    check_parameters(label_of(join(name, "out_proj"), out), out, ("weight", "bias"))


def check_linear(name: str, module: nn.Module) -> None:
    """Refuse a linear layer whose forward an adapter would not reach."""
    label = label_of(name, module)
    check_forward(label, module, nn.Linear)
    check_parameters(label, module, ("weight", "bias"))


def check_forward(label: str, module: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse a module that runs anything but `kind`'s own forward."""
    if isinstance(module, Adapted):
        raise AdapterError(f"{label} has adapters already; detach() them first")
    for key in NAMES:
        if hasattr(module, key):
            raise AdapterError(
                f"{label} has {key!r} of its own, a name that adapters need; rename it"
            )
    for key in ("forward", "_call_impl", "_slow_forward", "__call__"):
        if key in vars(module):
            raise AdapterError(
                f"the {key} of {label} was replaced on the instance, "
                "which would pass the adapter by; "
                "put its own back (accelerate: remove_hook_from_module(model, recurse=True)) before"
            )
        theirs, own = (
            getattr(type(module), key, None),
            getattr(nn.Module if key != "forward" else kind, key, None),
        )
        if (
            theirs is not own
            or getattr(theirs, "__globals__", {}).get("__name__") not in TORCH_FILES
        ):
            raise AdapterError(
                f"{label} has a {key} of its own, which would pass the adapter by; "
                f"use a plain nn.{kind.__name__}"
            )


NAMES = ("adapters", "attached", "adapted_weights", "active", "project_qkv")  # of adapted modules
TORCH_FILES = {f"torch.nn.modules.{name}" for name in ("module", "linear", "activation")}


def check_parameters(label: str, module: nn.Module, keys: tuple[str, ...]) -> None:
    """Refuse weights that are computed, quantised or else no plain parameters."""
    if hasattr(module, "parametrizations"):
        raise AdapterError(
            f"{label} is parametrized; "
            "call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    for key in keys:
        if key not in module._parameters or key in vars(module) or hasattr(type(module), key):
            raise AdapterError(
                f"{key} of {label} is computed (weight_norm, spectral_norm, "
                "a pruning mask), no parameter; undo that first, "
                "by torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
            )
        parameter = module._parameters[key]
        if parameter is None:
            continue
        if parameter.layout is not torch.strided:
            raise AdapterError(
                f"{key} of {label} is stored as {parameter.layout}; adapters take dense weights, "
                "so put its to_dense() there first"
            )
        if parameter.dtype not in FLOATS or is_traceable_wrapper_subclass(parameter):
            raise AdapterError(
                f"{key} of {label} is {type(parameter).__name__} in {parameter.dtype}, "
                "not plain numbers in float16, bfloat16, float32 or float64; "
                "attach before quantising or sharding"
            )


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model that has parameters without a shape, which cannot be frozen."""
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in module._parameters.values() if p is not None):
            raise AdapterError(
                f"{label_of(name, module)} has no shape yet; "
                "run one batch through the model before attaching"
            )


def label_of(name: str, module: nn.Module) -> str:
    """Return what an error calls a module: its name and its class."""
    return f"{name or 'the model'} ({type(module).__name__})"


def refuse_wrappers(model: nn.Module, sites: NamedModules) -> None:
    """Refuse what took hold of the parameters: later adapters would not train, or not run."""
    for name, module in model.named_modules():
        if not is_wrapper(module):
            continue
        inside = set(module.modules())
        if any(site in inside for _, site in sites):
            raise AdapterError(
                f"{label_of(name, module)} holds parameters as they were when it was made and "
                "would not train adapters; attach to the model itself, then wrap it"
            )


def refuse_reading_owners(model: nn.Module, sites: NamedModules) -> None:
    """Refuse dropout where a weight is known to be read for another product than a linear one."""
    for owner in model.modules():
        if type(owner).__name__ == "AttentionPool2d":  # of CLIP's ResNets
            for name, module in sites:
                if module in owner.children():
                    raise AdapterError(
                        f"{label_of(name, module)} belongs to an AttentionPool2d, "
                        "which reads its weight and never calls it, "
                        "so dropout cannot fall on its input; use dropout=0 or leave it out"
                    )


def is_wrapper(module: nn.Module) -> bool:
    """Whether it shards, distributes or has compiled the model within it."""
    names = {f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(module).__mro__}
    sharded = {"torch.FullyShardedDataParallel", "torch.FSDPModule", "deepspeed.DeepSpeedEngine"}
    return isinstance(module, DistributedDataParallel | torch.jit.ScriptModule) or bool(
        names & sharded
    )


def refuse_shared_weights(model: nn.Module, sites: NamedModules) -> None:
    """A weight that two places share cannot hold the ΔW of one of them when merged."""
    owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for name, module in model.named_modules():
        for key, tensor in tensors_of(module):
            owners.setdefault(id(tensor), []).append((module, key, join(name, key)))
    modules = [module for _, module in sites]
    for name, module in sites:
        if modules.count(module) > 1:
            raise AdapterError(
                f"{name} belongs to two attention modules that are adapted; untie it first"
            )
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.dim() < 2:
                continue
            for owner, its_key, other in owners.get(id(parameter), []):
                if owner is not module or its_key != key:
                    raise AdapterError(
                        f"{join(name, key)} is shared with another place, {other}; untie it first"
                    )


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's tensors by name: parameters, buffers, attributes, and lists of them."""
    yield from ((key, t) for key, t in module._parameters.items() if t is not None)
    yield from ((key, t) for key, t in module._buffers.items() if t is not None)
    for key, value in vars(module).items():
        if key not in ("_parameters", "_buffers", "_modules"):
            yield from ((key, tensor) for tensor in held(value))


def held(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an attribute: it is one, or a list or dict of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | set):
        yield from (item for item in value if isinstance(item, Tensor))
    elif isinstance(value, dict):
        yield from (item for item in value.values() if isinstance(item, Tensor))
