"""What `attach` changes around the adapted modules, and what takes it back.

Each mark lies on the module that it concerns, so that it is copied, pickled and moved with it: a
copy of an adapted model is taken apart like the model itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..core.schema import AdapterError
from .adapted import Adapted, AdaptedSites, Attachment, is_merged
from .names import few
from .update import Update
from .used_weight import are_over, called

TRAINED = "_trained_before_adapters"  # module -> {parameter's name: its requires_grad before}
FROZEN_FOR = "_frozen_for_adapters"  # module -> {attachment: whether it has adapters in there}
NESTED = "_nested_before_adapters"


def freeze(model: nn.Module) -> None:
    """Stop training all parameters but those of adapters; note on each module which trained."""
    own = {id(p) for m in model.modules() if isinstance(m, Update) for p in m.parameters()}
    before: dict[int, bool] = {}  # a parameter that two modules share has one flag
    for module in model.modules():
        for key, flag in module.__dict__.get(TRAINED, {}).items():
            if (parameter := module._parameters.get(key)) is not None:
                before[id(parameter)] = flag
    for module in model.modules():
        flags = module.__dict__.setdefault(TRAINED, {})
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in own:
                flags.setdefault(key, before.setdefault(id(parameter), parameter.requires_grad))
                parameter.requires_grad_(False)
                parameter.grad = None  # by which an optimizer that is there would still move it
        if not flags:
            del module.__dict__[TRAINED]


def unfreeze(model: nn.Module) -> None:
    """Give the flags back where all adapters are off that a module was frozen for."""
    modules = list(model.modules())
    on = {m.attached.attachment for m in modules if isinstance(m, Adapted)}
    marks = [(m, m.__dict__.get(FROZEN_FOR, {})) for m in modules]
    # off everywhere, or off this part of the model that it was on
    off = {a for _, mark in marks for a, within in mark.items() if within or not a.carried} - on
    for _, mark in marks:
        for attachment in off & mark.keys():
            del mark[attachment]
    # which a module that stays frozen shares
    held = {id(p) for m, mark in marks if mark for p in m._parameters.values()}
    for module in (m for m, mark in marks if not mark):
        module.__dict__.pop(FROZEN_FOR, None)
        for key, flag in module.__dict__.pop(TRAINED, {}).items():
            parameter = module._parameters.get(key)
            if parameter is not None and id(parameter) not in held:
                with torch.inference_mode(parameter.is_inference()):  # outside, its flag is fixed
                    parameter.requires_grad_(flag)


def bar_nested_tensors(model: nn.Module) -> None:
    """Keep nn.TransformerEncoder from nested tensors, which adapted attention does not take."""
    for encoder in model.modules():
        if not isinstance(encoder, nn.TransformerEncoder):
            continue
        if any(
            isinstance(module, Adapted) and not is_merged(module) for module in encoder.modules()
        ):
            encoder.__dict__.setdefault(NESTED, encoder.use_nested_tensor)
            encoder.use_nested_tensor = False
        elif NESTED in encoder.__dict__:
            encoder.use_nested_tensor = encoder.__dict__.pop(NESTED)


class Guard:
    """Two hooks on a module with adapters within: while it runs, weights are read as used.

    What passes adapters by nevertheless, such as a weight that was taken before `attach`, would
    train nothing and be silent: if it `asks`, a module that is called from outside, trains and
    reaches none of the adapters in it is an error.
    """

    def __init__(self, attachment: Attachment, name: str, sites: AdaptedSites, asks: bool):
        self.attachment, self.name, self.asks = attachment, name, asks
        self.at_first, self.whole = sites, False

    @property
    def sites(self) -> AdaptedSites:
        """The adapted modules within; `detach` of a part takes some off and leaves this guard."""
        return [
            (name, module)
            for name, module in self.at_first
            if isinstance(module, Adapted) and module.attached.attachment is self.attachment
        ]

    def before(self, module: nn.Module, args: Any) -> None:
        # of nn.DataParallel: they run at once and share these notes
        if "_is_replica" in module.__dict__:
            return
        self.whole = self.whole or have_numbers(self.sites)
        running, shown = self.attachment.running, False
        if not torch.compiler.is_compiling() and (self.asks or not running):
            calls = called()
            shown = next(calls, None) is module
            if running and are_over(running, calls):
                running.clear()
        if not running:
            self.attachment.reached = False
        running.append(module if shown or running else None)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if "_is_replica" in module.__dict__:
            return
        running = self.attachment.running
        for noted in (module, None):
            if any(ran is noted for ran in running):
                running.remove(noted)
                break
        else:  # another's hook raised, and `before` did not run
            return
        # an error has priority; who keeps its loss to itself returns None, too
        failed = output is None and sys.exc_info()[0] is not None
        if running or not self.asks or self.attachment.reached or failed:
            return
        sites = self.sites if torch.is_grad_enabled() else []
        if any(adapter.training for _, site in sites for adapter in site.adapters.values()):
            where = f"{self.name} ({type(module).__name__})" if self.name else type(module).__name__
            names = few([name for name, _ in sites])
            raise AdapterError(
                f"{where} ran in training and reached none of its adapted layers ({names}), "
                "so they would not be trained; "
                "attach to layers that its forward calls, or run it in eval mode"
            )


def have_numbers(sites: AdaptedSites) -> bool:
    """Whether none lies on "meta"; adapters without numbers on weights that have them are refused.

    On a CPU torch multiplies with what lies on "meta", and gives whatever was in the memory.
    """
    empty = [
        (name, module)
        for name, module in sites
        if any(p.is_meta for adapter in module.adapters.values() for p in adapter.parameters())
    ]
    for name, module in empty:
        if not next(module.parameters()).is_meta:
            raise AdapterError(
                f"{name or 'the model'} has weights by now, and its adapters lie on the device "
                "meta, without numbers; attach or load adapters after the weights"
            )
    return not empty


def watch(model: nn.Module, attachment: Attachment, sites: AdaptedSites) -> None:
    """Put guards on the adapted modules and on all that holds them.

    The model and its parts, which some models call by themselves (encode_image), ask whether they
    reached an adapter; smaller parts may well have a way round (a skipped layer), and so may those
    parts within the model (stochastic depth).
    """
    whole = uncompiled(model)
    asking = {id(uncompiled(module)) for module in (whole, *whole.children())}
    for name, module in model.named_modules():
        within = set(module.modules())
        inside = [site for site in sites if site[1] in within]
        module.__dict__.setdefault(FROZEN_FOR, {})[attachment] = bool(inside)
        runs = not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if inside and runs and uncompiled(module) is module:
            asks = id(module) in asking and not isinstance(module, Adapted)
            guard = Guard(attachment, name, inside, asks)
            module.register_forward_pre_hook(guard.before)
            module.register_forward_hook(guard.after, always_call=True)


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, whose hooks are compiled with it; or it."""
    compiled = type(module).__name__ == "OptimizedModule"  # to import the class is slow
    return module._orig_mod if compiled and isinstance(module._orig_mod, nn.Module) else module


def unwatch(model: nn.Module, attachment: Attachment) -> None:
    """Take the guards of an attachment off."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if is_guard(hook, attachment)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


def is_guard(hook: Callable[..., Any], attachment: Attachment | None = None) -> bool:
    """Whether a hook is a guard (of an attachment), which changes nothing that is computed."""
    guard = getattr(hook, "__self__", None)
    return isinstance(guard, Guard) and (attachment is None or guard.attachment is attachment)
