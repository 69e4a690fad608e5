"""The adapters of several runs on one model, each of which sees its own part of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..layers.adapted import holders
from ..layers.names import join
from ..layers.stacked import Draws, Stacked
from .attach import AdapterSet, attach
from .config import AdapterConfig


def attach_stack(
    model: nn.Module, config: AdapterConfig, generators: Sequence[torch.Generator], draws: Draws
) -> list[AdapterSet]:
    """Return a set for each generator, as `attach` makes it; the last one's `detach` takes all off.

    In between the model takes batches of the runs' equal parts, in order, and dropout draws by
    `draws`.
    """
    sets: list[AdapterSet] = []
    for generator in generators:
        if sets:
            sets[-1].detach()
        sets.append(attach(model, config, generator))
    for name, module in sets[-1].sites:
        stacks = {
            target: Stacked([each.adapters[join(name, target)] for each in sets], draws)
            for target in module.adapters
        }
        for holder in holders(module):
            for target in list(holder.adapters):
                holder.adapters[target] = stacks[target]
    return sets
