"""Time runs that differ in their seed, trained at once, against one after the other."""

from __future__ import annotations

import pandas as pd

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.measure.benchmark_output import (
    load,
    options,
    positive,
    progress,
    run,
    show_ratios,
    start,
    write,
)
from blocklora_lib.measure.stacked import ALONE, stacked_trainings
from blocklora_lib.measure.timing import paired_times, ratios


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "PocketCLIP", rounds=7)
    parser.add_argument("--runs", nargs="+", type=positive, default=[3], help="trained at once")
    parser.add_argument(
        "--classes", type=positive, default=10, help="prompts encoded in every step"
    )
    parser.add_argument("--batch", type=positive, default=16, help="images of a run in every step")
    parser.add_argument("--steps", type=positive, default=12, help="of each run")
    parser.add_argument("--rank", type=positive, default=2, help="r")
    parser.add_argument("--blocks", type=positive, default=2, help="n")
    parser.add_argument("--dropout", type=float, default=0.25, help="on the adapters' input")
    given = parser.parse_args(arguments)
    device, frames = start(given), []
    backbone = load(given, device)
    config = AdapterConfig(rank=given.rank, n_blocks=given.blocks, dropout=given.dropout)
    for runs in given.runs:
        ways = stacked_trainings(backbone, runs, given.classes, given.batch, given.steps, config)
        bar = progress(given.rounds, f"{runs} runs of {given.steps} steps")
        times = paired_times(ways, given.rounds, warmup=1, device=device, on_round=bar)
        frame = ratios(times, ALONE).rename(columns={"name": "form"})
        frame.insert(0, "runs", runs)
        frames.append(frame)
    found = pd.concat(frames, ignore_index=True).assign(model=given.model, classes=given.classes)
    show_ratios(found, ["runs", "form"])
    print("whole trainings, adapters put on and taken off; 1 / ratio: times as fast at once.")
    write("stack", found, given, device)


if __name__ == "__main__":
    run(main)
