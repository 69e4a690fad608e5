"""One law for what breaks the redundancy of equal blocks: one B learns with ratio n^(1-k).

Let an optimizer move each matrix p by p ← p - η u_t(p; g_1 .. g_t), with a step of degree k in the
size of the matrix, u_t(c p; g) = c^k u_t(p; g) for every c > 0. Equal blocks B_i = B/n all see the
gradient G of B, so that their sum moves by η times

    n u_t(B/n; G) = n^(1-k) u_t(B; G):

one B at n^(1-k) times the rate. k = 0: SGD, Adam, Muon; k = 1: LARS, LAMB, Adafactor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from ..adapters.config import AdapterConfig
from .trajectories import Hook, Learner, Task, collapsed, follow, make_learner, set_blocks

Optimizer = str | Callable[..., torch.optim.Optimizer]


def law(n_blocks: int, degree: float) -> float:
    """Return n^(1-k), the rate of one B over that of each block, for a step of degree k."""
    return float(n_blocks) ** (1 - degree)


def step_ratios(ours: Learner, one: Learner, steps: int) -> pd.DataFrame:
    """Hold every move of Σ B_i of `ours` against that of one B at the same place and rate.

    `one`, of the collapsed form, is put where `ours` is before each step, with the gradients of all
    steps so far. Columns: step, ratio (of the moves, by least squares over all sites), off: what no
    ratio explains, as a share of the move of `ours`.
    """
    rows = []
    for step in range(steps):
        with torch.no_grad():
            for mine, its in zip(
                ours.adapters.parameters(), one.adapters.parameters(), strict=True
            ):
                its.copy_(mine.sum(0) if mine.dim() == 3 else mine)
        start = _sums(ours)
        ours.step(step)
        one.step(step)
        moved, would = _sums(ours) - start, _sums(one) - start
        ratio = (moved @ would / (would @ would)).item()
        off = ((moved - ratio * would).norm() / moved.norm()).item()
        rows.append({"step": step + 1, "ratio": ratio, "off": off})
    return pd.DataFrame(rows)


def _sums(learner: Learner) -> Tensor:
    """Return Σ B_i of all sites as one vector."""
    ups = [adapter.B.detach() for adapter in learner.adapters.adapters.values()]
    return torch.cat([(up.sum(0) if up.dim() == 3 else up).flatten() for up in ups])


def against_the_law(
    task: Task,
    n_blocks: int,
    degree: float,
    optimizer: Optimizer,
    lr: float,
    hooks: Mapping[str, Hook] | None = None,
    start: float = 0.1,
    steps: int = 12,
    seed: int = 1,
) -> dict[str, float]:
    """Train n blocks of rank 2, from equal B_i of sum `start`, and one B with the law's ratio.

    Returns law; low and high, the extremes of `step_ratios`, and off, its largest; difference, the
    largest relative one in ΔW to that B; control, the same to a B with another ratio (1 where the
    law has n, else n); spread, of the blocks. Without decay.
    """
    config = AdapterConfig(reading="block_rank", rank=2, n_blocks=n_blocks, dropout=0.0)

    def learner(ratio: float | None) -> Learner:
        ratios = None if ratio is None else (ratio, 1.0)
        form = config if ratio is None else collapsed(config)
        made = make_learner(task, form, optimizer, lr, 0.0, seed, ratios, **(hooks or {}))
        if start:
            set_blocks(made.adapters, start, 0.0, seed)
        return made

    ratios = step_ratios(learner(None), learner(1.0), steps)
    path = follow(learner(None), learner(law(n_blocks, degree)), steps)
    other = follow(learner(None), learner(law(n_blocks, 1.0 if degree == 0 else 0.0)), steps)
    return {
        "law": law(n_blocks, degree),
        "low": ratios["ratio"].min(),
        "high": ratios["ratio"].max(),
        "off": ratios["off"].max(),
        "difference": path["difference"].max(),
        "control": other["difference"].max(),
        "spread": path["spread"].max(),
    }
