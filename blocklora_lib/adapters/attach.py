"""Attach adapters to a model, merge them into its weights, take them off, save and load them.

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

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.schema import AdapterError
from ..layers.adapted import (
    Adapted,
    AdaptedSites,
    Attachment,
    fold,
    holders,
    is_merged,
    is_stale,
    put,
    put_back,
)
from ..layers.arguments import listed, refuse_model, refuse_types
from ..layers.names import join
from ..layers.surroundings import bar_nested_tensors, freeze, unfreeze, unwatch, watch
from ..layers.trained_on import WEIGHTS, numbers_of, refuse_others, tell_stale, tell_unmoved
from ..layers.used_weight import stored
from . import files as adapter_files
from .adapter import Adapter
from .config import AdapterConfig
from .fitting import Plan, begin, fit, plan, refuse_computed
from .sites import Pattern, attention_sites, linear_sites


def attach(
    model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None
) -> AdapterSet:
    """Put adapters on q, k, v, o of a model's attention, and freeze every other parameter.

    Towers and attention are found by their structure: those of open_clip's and transformers' models
    (CLIPModel, SiglipModel, BlipModel); any other model is one tower. Attention is
    nn.MultiheadAttention or, in numbered blocks, linear layers with the usual names (q_proj, query,
    qkv, ..), which get an adapter each as by `attach_linear`: one that computes q, k and v together
    gets one for all three. Cross-attention of that kind is left to `attach_linear`. `generator`
    draws the start of A layer by layer, q, k, v, o in turn or as linear layers stand in the model
    (without it, torch's global generator).

    Returns the adapters. AdapterError, before the model changes: it cannot be adapted rightly.
    """
    refuse_types(AdapterConfig, model, config, generator)
    return put_on(model, begin(plan(model, attention_sites(model, config), config, generator)))


def attach_linear(
    model: nn.Module,
    names: str | Pattern | Iterable[str | Pattern],
    config: AdapterConfig,
    generator: torch.Generator | None = None,
) -> AdapterSet:
    """Put adapters on nn.Linear layers: names, globs ("*.mlp.c_fc") or patterns (searched).

    `config`'s targets, towers and layers say nothing here: the names do. Else as `attach`.
    """
    refuse_types(AdapterConfig, model, config, generator)
    sites = linear_sites(model, listed(names))
    return put_on(model, begin(plan(model, sites, config, generator)))


def find_adapters(model: nn.Module) -> list[AdapterSet]:
    """Return the adapter sets on a model, in its order: the handle of a copy."""
    sites: dict[int, tuple[Attachment, AdaptedSites]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapted) and isinstance(module.adapters, nn.ModuleDict):
            attachment = module.attached.attachment
            sites.setdefault(id(attachment), (attachment, []))[1].append((name, module))
    return [AdapterSet(model, attachment, found) for attachment, found in sites.values()]


def put_on(model: nn.Module, planned: list[Plan]) -> AdapterSet:
    """Change the model as planned: nothing fails from here on."""
    freeze(model)
    for module, adapted, adapters, attached in planned:
        module.adapters = adapters  # a plain dict is an attribute like any other
        module.__dict__["attached"] = attached
        module.__class__ = adapted
    sites = [(p.attached.name, p.module) for p in planned if isinstance(p.adapters, nn.ModuleDict)]
    attachment = planned[0].attached.attachment
    bar_nested_tensors(model)
    watch(model, attachment, sites)
    return AdapterSet(model, attachment, sites)


class AdapterSet:
    """The adapters on one model, by `attach`, `attach_linear`, `AdapterSet.load`, `find_adapters`.

    `adapters` maps "<module>.<q|k|v|o>" (for a linear layer "<module>.weight") to its Adapter;
    `extra` holds the strings of its file. All else is read off the model, so two sets of it agree.
    """

    def __init__(self, model: nn.Module, attachment: Attachment, sites: AdaptedSites):
        self.model, self._attachment, self._sites = model, attachment, sites
        self.config: AdapterConfig = attachment.config
        self.extra = attachment.extra
        self.adapters: dict[str, Adapter] = {
            join(name, target): adapter
            for name, module in sites
            for target, adapter in module.adapters.items()
        }
        self.kinds: dict[str, adapter_files.Kind] = {
            name: "attention" if isinstance(module, nn.MultiheadAttention) else "linear"
            for name, module in sites
        }

    @property
    def sites(self) -> AdaptedSites:
        """The adapted modules by name; none after `detach`."""
        return [
            (name, module)
            for name, module in self._sites
            if isinstance(module, Adapted) and module.attached.attachment is self._attachment
        ]

    @property
    def merged(self) -> bool:
        """Whether the weights hold W + ΔW."""
        return any(is_merged(module) for _, module in self.sites)

    def originals(self) -> list[Tensor]:
        """Return the weights W that are kept beside the merged ones."""
        weights = [
            w for _, m in self.sites for h in holders(m) for w in h.attached.weights.values()
        ]
        return [weight.original for weight in weights if weight.original is not None]

    # parameters

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters."""
        return (
            p for adapter in self.adapters.values() for p in adapter.parameters() if p.requires_grad
        )

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return groups for a torch optimizer: one, or two where B learns faster (collapsed)."""
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
        """Return how many numbers are trained."""
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
        """Put W + ΔW, formed in the adapter's precision, into the weights; return the set.

        Again does nothing, but where the adapters have changed since, whose ΔW then takes the place
        of the old one: a merged model computes with the adapters as they were when it was merged.
        The original weights are kept beside for `unmerge`; `merge_and_unload` lets them go, for
        good. The model's state stays W and the adapters: `state_dict` gives W, `load_state_dict`
        loads W and merges again.
        """
        sites = self.sites
        if not sites:
            raise AdapterError("the adapters are detached; attach them again before merging")
        put([w for _, m in sites if not is_merged(m) or is_stale(m) for w in fold(m)])
        unwatch(self.model, self._attachment)
        bar_nested_tensors(self.model)  # merged weights may go through fused kernels again
        return self

    @torch.inference_mode(False)
    def unmerge(self) -> AdapterSet:
        """Put the original weights back: the same bits, since they are kept and not computed.

        A weight that was changed while merged is refused (AdapterError): W knows nothing of the
        change.
        """
        if self.merged:
            put_back(module for _, module in self.sites)
            watch(self.model, self._attachment, self.sites)
            bar_nested_tensors(self.model)
        return self

    def detach(self) -> nn.Module:
        """Take the adapters off; return the model as it was: classes, weights, requires_grad."""
        self.unmerge()
        return self._take_off()

    def merge_and_unload(self) -> nn.Module:
        """Fold ΔW into the weights for good; return the plain model, without adapters."""
        self.merge()  # from here on W + ΔW is the weight
        return self._take_off()

    def _take_off(self) -> nn.Module:
        adapted = [holder for _, module in self.sites for holder in holders(module)]
        for holder in adapted:
            for key in holder.attached.weights:
                stored(holder, key)  # refused where it is no weight any more, before all changes
        unwatch(self.model, self._attachment)
        for holder in adapted:
            object.__setattr__(holder, "__class__", holder.attached.own_class)
            del holder.adapters, holder.attached
        bar_nested_tensors(self.model)
        unfreeze(self.model)
        return self.model

    # files

    def save(self, path: str | Path, extra: dict[str, str] | None = None) -> None:
        """Write the adapters, merged or not, and the strings `extra` to a self-describing file.

        Those of the file that they were loaded from told of its numbers; they go along if given.
        """
        refuse_computed(self.config, self.adapters)
        tensors = numbers_of(self.state_dict())
        tell_unmoved(self.adapters)
        tell_stale(self.sites)
        file = adapter_files.AdapterFile(self.config, self.kinds, tensors, dict(extra or {}))
        adapter_files.write(path, file)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, other_weights: bool = False) -> AdapterSet:
        """Attach a file's adapters to `model`. AdapterError, and no change, where they do not fit.

        other_weights: on others than those that a kept run's file names, too, of the same shapes.
        """
        file = adapter_files.read(path)
        refuse_model(model)
        if not other_weights:
            refuse_others(path, file.extra.get(WEIGHTS, ""), file.sites, model)
        return cls.put(file, model, path)

    @classmethod
    def put(cls, file: adapter_files.AdapterFile, model: nn.Module, path: str | Path) -> AdapterSet:
        """As `load`, of a file that was read; path: what errors call it."""
        sites, differences = fit(file, model)
        if any(next(module.parameters()).is_meta for _, module in sites):
            differences.append("the model lies on the device meta; give it its weights first")
        if differences:
            raise AdapterError(
                f"the adapters of {path} do not fit {type(model).__name__}: "
                + "; ".join(differences)
            )
        adapter_files.check_numbers(path, file)
        loaded = put_on(model, plan(model, sites, file.config, torch.Generator()))
        loaded.extra |= file.extra
        if any(tensor.dtype == torch.float64 for tensor in file.tensors.values()):
            loaded.double()  # all: neighbours are computed as one
        for name, adapter in loaded.adapters.items():
            adapter.load_state_dict({k: file.tensors[join(name, k)] for k in adapter.state_dict()})
        return loaded
