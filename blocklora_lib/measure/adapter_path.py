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
from .timing import in_random_order, paired_times, ratios_by

FROZEN_LINEAR = "frozen_linear"  # the frozen product beside an adapter
PATH_FORMS = (FROZEN_LINEAR, *(form for form, way in WAYS.items() if way.order != "plain"))


POINT = ("d", "tokens", "rank", "n_blocks", "reading")


def path_times(
    points: Iterable[Mapping[str, Any]],
    forms: Sequence[str] = PATH_FORMS,
    rounds: int = 11,
    device: str | torch.device = "cpu",
    dropout: float = 0.0,
    min_seconds: float = 5e-3,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Time forward and backward of x ↦ x ΔWᵀ alone, x: (tokens, d), for each point.

    points: {d, tokens, rank, n_blocks} and, where wanted, reading. Gradients of x and of all that
    trains are formed. Returns POINT, round, name, seconds. 'frozen_linear' is the yardstick: the
    product x Wᵀ + b beside the adapter and the gradient of x through it.
    """
    frames = []
    for point in points:
        functions = path_functions(**point, forms=forms, device=device, dropout=dropout, seed=seed)
        times = paired_times(
            functions, rounds, device=device, min_seconds=min_seconds, seed=seed, on_round=on_round
        )
        frames.append(times.assign(**{"reading": "total_rank"} | dict(point)))
    if not frames:
        raise ValueError("no point to measure; give at least one, as {d, tokens, rank, n_blocks}")
    return pd.concat(frames, ignore_index=True)


def path_ratios(times: pd.DataFrame, baseline: str = "low_rank") -> pd.DataFrame:
    """Return POINT, form, and the columns of `timing.ratios`; times: of `path_times`."""
    return ratios_by(times, POINT, baseline)


def path_functions(
    d: int,
    tokens: int,
    rank: int,
    n_blocks: int,
    reading: str = "total_rank",
    forms: Sequence[str] = PATH_FORMS,
    device: str | torch.device = "cpu",
    dropout: float = 0.0,
    seed: int = 0,
) -> dict[str, Callable[[], object]]:
    """Return, for each form, a function that does one forward and one backward of the path.

    seed: of the order in which they are made.
    """
    draw = generator(1, f"adapter path/{d}/{tokens}")
    x = torch.randn(tokens, d, generator=draw).to(device).requires_grad_(True)
    upstream = torch.randn(tokens, d, generator=draw).to(device)

    def both_ways(
        layer: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
    ) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), [x, *parameters], upstream)

    def make(form: str) -> Callable[[], object]:
        if form == FROZEN_LINEAR:
            return both_ways(nn.Linear(d, d).requires_grad_(False).to(device), [])
        if form not in WAYS:
            raise UnknownName("form", form, (FROZEN_LINEAR, *WAYS))
        chosen = WAYS[form]
        config = chosen.config(rank, n_blocks, reading, dropout)
        adapter = make_adapter(config, d, d, generator(1, form)).to(device)
        nn.init.normal_(adapter.B, std=0.02)  # numbers as they are in training, not zeros
        set_order(adapter, chosen.order)
        return both_ways(adapter, [p for p in adapter.parameters() if p.requires_grad])

    return in_random_order(make, forms, seed)
