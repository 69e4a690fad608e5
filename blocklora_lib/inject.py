"""Attach adapters to a model, merge them into its weights and take them off again; save and load them.

config = AdapterConfig(kind="block_lora", rank=2, n_blocks=2)
adapters = attach(model, config, torch.Generator().manual_seed(1))
optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=2e-4, weight_decay=1e-2))
...
adapters.merge()       # W + ΔW in the frozen weights: inference at the base model's cost
adapters.unmerge()     # the very same bits of W again
adapters.save("adapter.safetensors")
adapters.detach()      # the model as it was
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import adapter_files
from .adapter_config import AdapterConfig, AdapterError
from .adapters import Adapter, make_adapter
from .attention import (
    AdaptedLinear,
    AdaptedMultiheadAttention,
    MergedLinear,
    MergedMultiheadAttention,
    bar_fused_encoders,
)
from .sites import NamedModules, attention_sites, check_attention, check_linear, join, linear_sites


def attach(model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None) -> AdapterSet:
    """Put adapters on the q, k, v, o projections of nn.MultiheadAttention, and freeze every other parameter.

    The model is an open_clip model (its towers are found by their structure), or any module that holds
    nn.MultiheadAttention, such as torchvision's ViT, which then is one tower. `generator` draws the start of
    A layer by layer, q, k, v, o in turn (without it, torch's global generator).
    """
    return AdapterSet(model, config, attention_sites(model, config), generator)


def attach_linear(
    model: nn.Module,
    names: str | re.Pattern | Iterable[str | re.Pattern],
    config: AdapterConfig,
    generator: torch.Generator | None = None,
) -> AdapterSet:
    """Put adapters on nn.Linear layers given by names, globs ("*.mlp.c_fc") or compiled patterns (searched).

    `config`'s targets, towers and layers say nothing here: the names do.
    """
    return AdapterSet(model, config, linear_sites(model, names), generator)


class AdapterSet:
    """The adapters on one model. Made by `attach`, `attach_linear` or `AdapterSet.load`.

    `adapters` maps "<module>.<q|k|v|o>" (for a linear layer "<module>.weight") to its Adapter.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdapterConfig,
        sites: NamedModules,
        generator: torch.Generator | None = None,
    ):
        self.model, self.config, self.merged = model, config, False
        self.extra: dict[str, str] = {}
        planned = plan(sites, config, generator)
        refuse_tied_weights(model, sites)
        # nothing fails from here on
        self.adapters: dict[str, Adapter] = {}
        self._sites = [(name, module, type(module)) for name, module in sites]
        self._kinds = {
            name: "attention" if isinstance(module, nn.MultiheadAttention) else "linear"
            for name, module in sites
        }
        self._originals: list[tuple[nn.Parameter, Tensor]] = []
        self._bars: list[Any] = []
        freeze(model)
        for (name, module), adapters in zip(sites, planned, strict=True):
            module.adapters = adapters.train(module.training)
            self.adapters |= {join(name, target): adapter for target, adapter in adapters.items()}
        self._set_classes()

    def _set_classes(self) -> None:
        for _, module, _ in self._sites:
            if isinstance(module, nn.MultiheadAttention):
                module.__class__ = MergedMultiheadAttention if self.merged else AdaptedMultiheadAttention
            else:
                module.__class__ = MergedLinear if self.merged else AdaptedLinear
        self._lift_bars()
        if not self.merged:  # merged weights may go through fused kernels again
            self._bars = bar_fused_encoders(self.model, [module for _, module, _ in self._sites])

    def _lift_bars(self) -> None:
        while self._bars:
            self._bars.pop().remove()

    # parameters

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters."""
        return (p for adapter in self.adapters.values() for p in adapter.parameters() if p.requires_grad)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return groups for a torch optimizer: one, or two for the collapsed form, whose B learns faster."""
        groups: dict[int, list[nn.Parameter]] = {}
        for adapter in self.adapters.values():
            for name, parameter in adapter.named_parameters():
                ratio = adapter.up_lr_ratio if name == "B" else 1
                groups.setdefault(ratio, []).append(parameter)
        return [
            {"params": params, "lr": lr * ratio, "weight_decay": weight_decay / ratio}
            for ratio, params in sorted(groups.items())
        ]

    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(adapter.num_parameters() for adapter in self.adapters.values())

    def double(self) -> AdapterSet:
        """Move the adapters, and their arithmetic, to float64."""
        for adapter in self.adapters.values():
            adapter.double()
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor of the adapters by name, A_s of 'w/o A' included."""
        return {
            join(name, key): tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict().items()
        }

    # merge

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self) -> AdapterSet:
        """Put W + ΔW, formed in the adapter's precision, into the frozen weights. Again changes nothing.

        The original weights are kept beside for `unmerge`; `merge_and_unload` lets them go, for good.
        """
        if self.merged:
            return self
        if not self._sites:
            raise AdapterError("the adapters are detached; attach them again before merging")
        folded: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for _, module, _ in self._sites:
            for adapter, parameter, rows in module.adapted_weights():
                _, weight = folded.setdefault(id(parameter), (parameter, parameter.detach().clone()))
                delta = adapter.delta_weight()
                delta = delta.to(torch.promote_types(weight.dtype, delta.dtype))
                weight[rows] = (weight[rows].to(delta.dtype) + delta).to(weight.dtype)
        for parameter, weight in folded.values():
            self._originals.append((parameter, parameter.data))
            parameter.data = weight
        self.merged = True
        self._set_classes()
        return self

    def unmerge(self) -> AdapterSet:
        """Put the original weights back: the same bits, since they are kept and not computed."""
        for parameter, weight in self._originals:
            # the model may have moved in the meantime
            parameter.data = weight.to(parameter.device, parameter.dtype)
        self._originals.clear()
        if self.merged:
            self.merged = False
            self._set_classes()
        return self

    def detach(self) -> nn.Module:
        """Take the adapters off and return the model as it was: classes, weights and requires_grad flags."""
        self.unmerge()
        self._lift_bars()
        for _, module, original_class in self._sites:
            module.__class__ = original_class
            del module.adapters
        self._sites.clear()
        unfreeze(self.model)
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """Fold ΔW into the weights for good and return the plain model, without adapters, to deploy."""
        self.merge()
        self._originals.clear()  # from here on W + ΔW is the weight
        return self.detach()

    # files

    def save(self, path: str | Path, extra: dict[str, str] | None = None) -> None:
        """Write the adapters, merged or not, and the strings `extra` to one self-describing file."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        file = adapter_files.AdapterFile(self.config, self._kinds, tensors, dict(extra or {}))
        adapter_files.write(path, file)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> AdapterSet:
        """Attach the adapters of a file to `model`; a model that does not fit is left as it is."""
        file = adapter_files.read(path)
        sites, differences = fit(file, model)
        if differences:
            raise AdapterError(
                f"the adapters of {path} do not fit {type(model).__name__}: " + "; ".join(differences)
            )
        loaded = cls(model, file.config, sites, torch.Generator())
        loaded.extra = file.extra
        for name, adapter in loaded.adapters.items():
            if file.tensors[join(name, "B")].dtype == torch.float64:
                adapter.double()
            adapter.load_state_dict({key: file.tensors[join(name, key)] for key in adapter.state_dict()})
        return loaded


def plan(
    sites: NamedModules, config: AdapterConfig, generator: torch.Generator | None
) -> list[nn.ModuleDict]:
    """Build the adapters of each site, in order, without touching the model."""
    planned = []
    for name, module in sites:
        (check_attention if isinstance(module, nn.MultiheadAttention) else check_linear)(name, module)
        adapters = nn.ModuleDict()
        for target, (d_in, d_out) in projection_shapes(module, config.targets).items():
            try:
                adapters[target] = make_adapter(config, d_in, d_out, generator)
            except AdapterError as error:
                raise AdapterError(f"{join(name, target)}: {error}") from error
        planned.append(adapters.to(next(module.parameters()).device))
    return planned


def projection_shapes(module: nn.Module, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return (d_in, d_out) of each projection to adapt."""
    if isinstance(module, nn.Linear):
        return {"weight": (module.in_features, module.out_features)}
    width = module.embed_dim
    shapes = {"q": (width, width), "k": (module.kdim, width), "v": (module.vdim, width), "o": (width, width)}
    return {target: shapes[target] for target in targets}


def refuse_tied_weights(model: nn.Module, sites: NamedModules) -> None:
    """A weight that two modules share cannot hold the ΔW of one of them when merged."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, module in sites:
        for key, parameter in module.named_parameters():
            if parameter.dim() > 1 and owners[id(parameter)] > 1:
                raise AdapterError(f"{join(name, key)} is shared with another module; untie it first")


def freeze(model: nn.Module) -> None:
    """Stop training every parameter but those of adapters; each remembers whether it was trained."""
    adapters = {id(p) for m in model.modules() if isinstance(m, Adapter) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in adapters and not hasattr(parameter, "_trained_before_adapters"):
            parameter._trained_before_adapters = parameter.requires_grad
            parameter.requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Give the flags back once the last adapters are off."""
    if any(isinstance(module, Adapter) for module in model.modules()):
        return
    for parameter in model.parameters():
        if hasattr(parameter, "_trained_before_adapters"):
            parameter.requires_grad_(parameter._trained_before_adapters)
            del parameter._trained_before_adapters


def fit(file: adapter_files.AdapterFile, model: nn.Module) -> tuple[NamedModules, list[str]]:
    """Return the modules that a file's adapters belong to, and what is missing, unexpected or misshapen."""
    modules = dict(model.named_modules())
    classes = {"attention": nn.MultiheadAttention, "linear": nn.Linear}
    sites = [(n, modules[n]) for n, kind in file.sites.items() if isinstance(modules.get(n), classes[kind])]
    differences = []
    if "attention" in file.sites.values():
        try:  # a deeper model has modules that the file says nothing of
            chosen = attention_sites(model, file.config)
        except AdapterError as error:
            chosen, differences = [], [str(error)]
        sites += [site for site in chosen if site[0] not in file.sites]
    expected = {
        join(name, target, key): tuple(tensor.shape)
        for (name, _), adapters in zip(sites, plan(sites, file.config, torch.Generator()), strict=True)
        for target, adapter in adapters.items()
        for key, tensor in adapter.state_dict().items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if missing := sorted(expected.keys() - found.keys()):
        differences.append(f"missing in the file: {', '.join(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        differences.append(f"unexpected, the model has no such place: {', '.join(unexpected)}")
    for name in sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]):
        differences.append(f"{name}: shape {found[name]} in the file, {expected[name]} in the model")
    return sites, differences
