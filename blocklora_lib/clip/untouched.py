"""Whether a tower's modules run the code that the fast path stands in for: looked at, not assumed.

Someone may have replaced a module or its class, exchanged a method of an instance or of a class,
hooked, parametrised or compiled a module. Any of it makes the tower run by its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import (
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    PatchDropout,
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from torch import nn
from torch.nn.modules import module as of_all_modules
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.module_tracker import ModuleTracker

from ..layers.adapted import Adapted
from ..layers.surroundings import is_guard
from ..layers.update import Update

MODELS = (CLIP, CustomTextCLIP)
PARTS = (
    *(
        VisionTransformer,
        TextTransformer,
        Transformer,
        ResidualAttentionBlock,
        nn.MultiheadAttention,
    ),
    *(nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv2d, nn.Embedding, PatchDropout),
    *(nn.LayerNorm, LayerNorm, LayerNormFp32, LayerScale, nn.Identity),  # of each token by itself
    *(nn.GELU, QuickGELU, nn.ReLU, nn.SiLU, nn.Sequential, nn.ModuleList, nn.ModuleDict),
)
STOOD_IN_FOR = (
    "forward",
    "__call__",
    "attention",
    "_embeds",
    "_pool",
    "_global_pool",
    "encode_image",
    "encode_text",
)


def has_own_encoders(model: nn.Module) -> bool:
    """Whether encode_image and encode_text are those of open_clip's CLIP."""
    return type(model) in MODELS and _has_own_code(type(model)) and not _replaced(model)


def untouched(*roots: nn.Module) -> bool:
    """Whether all modules in them are kinds of PyTorch's and open_clip's, as they were written."""
    modules = list(_without_adapters(roots))
    kinds = {_kind(module) for module in modules}
    return (
        kinds <= OWN.keys()
        and all(map(_has_own_code, kinds))
        and not _globally_hooked()
        and not any(_replaced(module) or _hooked(module) for module in modules)
    )


def _without_adapters(roots: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    """Their parameters are read, by the fast path as by an adapted layer; they are never called."""
    return (m for root in roots for m in root.modules() if not isinstance(m, Update))


def _kind(module: nn.Module) -> type[nn.Module]:
    """Its class; of an adapted module the one that it had (`adapted_class`), and none but that."""
    return type(module).__bases__[-1] if isinstance(module, Adapted) else type(module)


def _code(kind: type[nn.Module]) -> tuple[Any, ...]:
    return tuple(getattr(kind, name, None) for name in STOOD_IN_FOR)


OWN = {kind: _code(kind) for kind in (*MODELS, *PARTS)}


def _has_own_code(kind: type[nn.Module]) -> bool:
    return _code(kind) == OWN[kind]


def _replaced(module: nn.Module) -> bool:
    """Whether an attribute of the instance, or a compiled call, stands before a class's method."""
    kind: Any = type(module)
    changed = not _methods(kind).isdisjoint(vars(module))
    return module._compiled_call_impl is not None or changed


@cache
def _methods(kind: Any) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name)))


def _hooked(module: nn.Module) -> bool:
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    forward = module._forward_hooks, module._forward_pre_hooks
    return any(not is_guard(hook) for hooks in forward if hooks for hook in hooks.values())


def _globally_hooked() -> bool:
    """Whether someone's hook is on all modules; torch's FLOP counter only notes names."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    hooks = (h for kind in kinds for h in getattr(of_all_modules, f"_global_{kind}_hooks").values())
    return any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)
