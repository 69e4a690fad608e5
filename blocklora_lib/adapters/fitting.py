"""Adapters for the chosen modules: planned and checked before anything of the model changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core.schema import AdapterError
from ..layers.adapted import Adapted, AdaptedWeight, Attached, Attachment, adapted_class
from ..layers.checks import (
    check_attention,
    check_linear,
    refuse_lazy,
    refuse_reading_owners,
    refuse_shared_weights,
    refuse_wrappers,
)
from ..layers.names import NamedModules, few, join
from ..layers.trained_on import unlike_peft
from . import files as adapter_files
from .adapter import Adapter
from .attention import AdaptedLinear, AdaptedMultiheadAttention
from .config import AdapterConfig
from .sites import attention_sites
from .updates import make_adapter


class Plan(NamedTuple):
    """What attaching to one module will do."""

    module: Any  # the nn.Linear or nn.MultiheadAttention that becomes an Adapted
    adapted: type[Adapted]
    adapters: nn.ModuleDict | dict[str, nn.Module]
    attached: Attached


@torch.inference_mode(False)
def plan(
    model: nn.Module, sites: NamedModules, config: AdapterConfig, generator: torch.Generator | None
) -> list[Plan]:
    """Build the adapters of each site, in order, without touching the model."""
    refuse_wrappers(model, sites)
    refuse_lazy(model)
    if config.dropout > 0:
        refuse_reading_owners(model, sites)
    attachment, planned = Attachment(config), []
    held: dict[tuple[int, int], Any] = {}
    for name, module in sites:
        check: Any = check_attention if isinstance(module, nn.MultiheadAttention) else check_linear
        check(name, module)
        adapters = nn.ModuleDict()
        for target, (d_in, d_out) in projection_shapes(module, config.targets).items():
            if not d_in * d_out:
                raise AdapterError(
                    f"{join(name, target)} has {d_out} x {d_in} numbers, none; leave it out"
                )
            try:
                adapter = make_adapter(config, d_in, d_out, generator)
            except AdapterError as error:
                raise AdapterError(f"{join(name, target)}: {error}") from error
            adapter.share(held)
            adapters[target] = adapter
        device = next(module.parameters()).device
        planned += plan_site(name, module, adapters.to(device).train(module.training), attachment)
    refuse_shared_weights(model, [(step.attached.name, step.module) for step in planned])
    return planned


@torch.inference_mode(False)
@torch.no_grad()
def begin(planned: list[Plan]) -> list[Plan]:
    """Let new adapters start from the weights that they fall on; what they refuse, they name."""
    for step in planned:
        for key, weight in step.attached.weights.items():
            for target, rows in weight.parts:
                w = step.module._parameters[key][rows]
                adapter: Any = step.adapters[target]
                try:
                    if not w.is_meta:
                        adapter.begin(w)
                except AdapterError as error:
                    raise AdapterError(f"{join(step.attached.name, target)}: {error}") from error
    return planned


def refuse_computed(config: AdapterConfig, adapters: Mapping[str, Adapter]) -> None:
    """Refuse adapters whose numbers are computed from others: no file of theirs could be loaded."""
    for name, adapter in adapters.items():
        with torch.device("meta"):
            plain = make_adapter(config, adapter.d_in, adapter.d_out, torch.Generator())
        if other := sorted(adapter.state_dict().keys() ^ plain.state_dict().keys()):
            raise AdapterError(
                f"{name} has {few(other)}: its numbers are computed (a pruning mask, a "
                "parametrization); make them plain first, by torch.nn.utils.prune.remove or "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )


def plan_site(
    name: str, module: Any, adapters: nn.ModuleDict, attachment: Attachment
) -> list[Plan]:
    """Return what happens to a module and, with an adapter on o, to its output projection."""
    if isinstance(module, nn.Linear):
        weights = {"weight": AdaptedWeight((("weight", slice(None)),))}
        return [plan_module(name, module, AdaptedLinear, adapters, attachment, weights)]
    whole, e = slice(None), module.embed_dim
    if module.in_proj_weight is None:
        weights = {f"{t}_proj_weight": AdaptedWeight(((t, whole),)) for t in adapters if t != "o"}
    else:
        first = {target: "qkv".index(target) * e for target in adapters if target != "o"}
        parts = tuple((target, slice(row, row + e)) for target, row in first.items())
        weights = {"in_proj_weight": AdaptedWeight(parts)} if parts else {}
    planned = [plan_module(name, module, AdaptedMultiheadAttention, adapters, attachment, weights)]
    if "o" in adapters:  # whoever calls or reads out_proj by itself finds it adapted, too
        own = {"o": adapters["o"]}  # a plain dict: the adapter is registered, saved and moved once
        weights = {"weight": AdaptedWeight((("o", whole),))}
        out, out_name = module.out_proj, join(name, "out_proj")
        planned.append(plan_module(out_name, out, AdaptedLinear, own, attachment, weights))
    return planned


def plan_module(
    name: str,
    module: nn.Module,
    adapted: Any,
    adapters: nn.ModuleDict | dict[str, nn.Module],
    attachment: Attachment,
    weights: dict[str, AdaptedWeight],
) -> Plan:
    own: Any = type(module)
    if own not in (nn.Linear, nn.MultiheadAttention):
        try:  # its layout and metaclass must allow a subclass that instances can change to
            adapted = adapted_class(own, adapted)
            module.__class__ = adapted
            module.__class__ = own
        except Exception as error:
            raise AdapterError(
                f"{name or 'the model'} ({own.__name__}) cannot be of another class while adapters "
                f"are on ({error}); use a plain {own.__mro__[1].__name__}"
            ) from error
    return Plan(module, adapted, adapters, Attached(name, own, attachment, weights))


def projection_shapes(module: Any, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return (d_in, d_out) of each projection to adapt."""
    if isinstance(module, nn.Linear):
        return {"weight": (module.in_features, module.out_features)}
    width, inputs = module.embed_dim, {"k": module.kdim, "v": module.vdim}
    return {target: (inputs.get(target, width), width) for target in targets}


def fit(file: adapter_files.AdapterFile, model: nn.Module) -> tuple[NamedModules, list[str]]:
    """Return the modules of a file's adapters, and what is missing, unexpected or misshapen."""
    modules = dict(model.named_modules())
    if wrapped := wrapper_names(file, modules):
        return [], [wrapped]
    classes = {"attention": nn.MultiheadAttention, "linear": nn.Linear}
    sites = [
        (n, modules[n])
        for n, kind in file.sites.items()
        if isinstance(modules.get(n), classes[kind])
    ]
    differences = unlike_peft(file.extra, model, file.sites, file.config.targets)
    if "attention" in file.sites.values():
        try:  # a deeper model has modules that the file says nothing of
            chosen = attention_sites(model, file.config)
        except AdapterError as error:
            chosen, differences = [], [*differences, str(error)]
        sites += [site for site in chosen if site[0] not in file.sites]
    held = sum(tensor.numel() for tensor in file.tensors.values())
    if (least := _least_numbers(sites, file.config)) > 8 * held + 2**22:
        return sites, [  # before memory is asked for
            f"rank={file.config.rank} at {len(sites)} places are {least:,} numbers at least, "
            f"the file holds {held:,}"
        ]
    expected = {}
    for step in plan(model, sites, file.config, torch.Generator()):
        if isinstance(step.adapters, nn.ModuleDict):
            for key, tensor in step.adapters.state_dict().items():
                expected[join(step.attached.name, key)] = tuple(tensor.shape)
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if missing := sorted(expected.keys() - found.keys()):
        differences.append(f"missing in the file: {few(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        differences.append(f"unexpected, the model has no such place: {few(unexpected)}")
    elif absent := sorted(file.sites.keys() - dict(sites).keys()):
        differences.append(f"its metadata name places that the model has not: {few(absent)}")
    shapes = [
        f"{name}: shape {found[name]} in the file, {expected[name]} in the model"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    return sites, differences + ([few(shapes)] if shapes else [])


def _least_numbers(sites: NamedModules, config: AdapterConfig) -> int:
    """Numbers that a file of these settings holds at least."""
    cut, width = config.n_blocks if config.reading == "input" else 1, config.block_rank
    shapes = [s for _, module in sites for s in projection_shapes(module, config.targets).values()]
    if config.kind == "vera":
        return sum(width + d_out for _, d_out in shapes)
    return sum(width * (d_in // cut + d_out) for d_in, d_out in shapes)


def wrapper_names(file: adapter_files.AdapterFile, modules: dict[str, nn.Module]) -> str:
    """Say that file and model differ by a wrapper's prefix; "" where they do not."""
    for prefix in ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        inner = prefix.rstrip(".")
        saved = file.sites and all(name.startswith(prefix) for name in file.sites)
        if saved and inner not in modules:
            return (
                f"they were saved from a wrapped model (names begin with {prefix!r}); "
                f"save from model.{inner}"
            )
        if inner in modules and not any(name in modules for name in file.sites):
            return f"the model is wrapped (names begin with {prefix!r}); load into model.{inner}"
    return ""
