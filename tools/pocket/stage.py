"""A stage of pre-training: resumable, with a curve on disk and the rate of learning over time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch


class Stage:
    """A resumable loop: state on disk each minute, one JSON line a report."""

    def __init__(
        self,
        folder: Path,
        name: str,
        modules: dict[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.modules, self.optimizer = modules, optimizer
        self.seen, self.seconds, self.saved = 0, 0.0, time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            optimizer.load_state_dict(state["optimizer"])
            self.seen, self.seconds = state["seen"], state["seconds"]

    def save(self, every: float = 0.0) -> None:
        """Write the checkpoint (to a temporary name first) when `every` seconds have passed."""
        now = time.monotonic()
        if now - self.saved >= every:
            self.seconds, self.saved = self.seconds + now - self.saved, now
            state = dict(
                modules={k: m.state_dict() for k, m in self.modules.items()},
                optimizer=self.optimizer.state_dict(),
                seen=self.seen,
                seconds=self.seconds,
            )
            torch.save(state, self.path.with_suffix(".tmp"))
            os.replace(self.path.with_suffix(".tmp"), self.path)

    def report(self, **values) -> None:
        """Append to the curve and say it."""
        line = dict(
            seen=self.seen, seconds=round(self.seconds + time.monotonic() - self.saved), **values
        )
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def learning_rate(
    peak: float, seen: int, total: int, warm_up: int = 20_000, cool_down: float = 0.3
) -> float:
    """Warm up, stay, and fall linearly to zero over the last part: the end may be moved during the
    run.
    """
    return peak * min(1.0, (seen + 1) / warm_up, max(1 - seen / total, 0.0) / cool_down)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group of the optimizer the rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value
