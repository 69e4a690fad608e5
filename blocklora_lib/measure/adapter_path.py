"""The time of one adapter path by itself, in every way of `costs.ways`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..adapters.updates import make_adapter
from ..core.schema import UnknownName
from ..core.seeding import generator
from ..costs.ways import WAYS
from .orders import set_order
from .timing import paired_times, ratios

FROZEN_LINEAR = "frozen_linear"  # the frozen product beside an adapter
PATH_FORMS = (FROZEN_LINEAR, *(form for form, way in WAYS.items() if way.order != "plain"))


def adapter_path(
    points: Iterable[Mapping[str, Any]],
    forms: Sequence[str] = PATH_FORMS,
    rounds: int = 11,
    device: str | torch.device = "cpu",
    dropout: float = 0.0,
    baseline: str = "low_rank",
    min_seconds: float = 5e-3,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Time forward and backward of x ↦ x ΔWᵀ alone, x: (tokens, d), for each point.

    points: {d, tokens, rank, n_blocks} and, where wanted, reading. Gradients of x and of all that
    trains are formed. Returns the point, form, and the columns of `timing.ratios`. 'frozen_linear'
    is the yardstick: the product x Wᵀ + b beside the adapter and the gradient of x through it.
    """
    frames = []
    for point in points:
        functions = path_functions(**point, forms=forms, device=device, dropout=dropout)
        times = paired_times(
            functions, rounds, device=device, min_seconds=min_seconds, on_round=on_round
        )
        frame = ratios(times, baseline).rename(columns={"name": "form"})
        facts = {"reading": "total_rank"} | dict(point)
        for i, column in enumerate(("d", "tokens", "rank", "n_blocks", "reading")):
            frame.insert(i, column, facts[column])
        frames.append(frame)
    if not frames:
        raise ValueError("no point to measure; give at least one, as {d, tokens, rank, n_blocks}")
    return pd.concat(frames, ignore_index=True)


def path_functions(
    d: int,
    tokens: int,
    rank: int,
    n_blocks: int,
    reading: str = "total_rank",
    forms: Sequence[str] = PATH_FORMS,
    device: str | torch.device = "cpu",
    dropout: float = 0.0,
) -> dict[str, Callable[[], object]]:
    """Return, for each form, a function that does one forward and one backward of the path."""
    draw = generator(1, f"adapter path/{d}/{tokens}")
    x = torch.randn(tokens, d, generator=draw).to(device).requires_grad_(True)
    upstream = torch.randn(tokens, d, generator=draw).to(device)

    def both_ways(
        layer: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
    ) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), [x, *parameters], upstream)

    functions = {}
    for form in forms:
        if form == FROZEN_LINEAR:
            functions[form] = both_ways(nn.Linear(d, d).requires_grad_(False).to(device), [])
            continue
        if form not in WAYS:
            raise UnknownName("form", form, (FROZEN_LINEAR, *WAYS))
        chosen = WAYS[form]
        config = chosen.config(rank, n_blocks, reading, dropout)
        adapter = make_adapter(config, d, d, generator(1, form)).to(device)
        nn.init.normal_(adapter.B, std=0.02)  # numbers as they are in training, not zeros
        set_order(adapter, chosen.order)
        functions[form] = both_ways(adapter, [p for p in adapter.parameters() if p.requires_grad])
    return functions
