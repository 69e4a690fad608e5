"""Measure the peak memory of inference and of training steps, each form in a process of its own."""

from __future__ import annotations

import pandas as pd

from blocklora_lib.costs.ways import WAYS
from blocklora_lib.measure.benchmark_output import options, positive, run, spec_of, start, write
from blocklora_lib.measure.inference import inference_memory
from blocklora_lib.measure.training_step import FROZEN, training_memory

MIB = 2**20


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, rounds=0)
    parser.add_argument("--classes", type=positive, default=10, help="prompts in a training step")
    parser.add_argument("--batch", type=positive, default=2, help="images at once")
    parser.add_argument(
        "--repeats", type=positive, default=1, help="processes for each form of inference"
    )
    parser.add_argument("--forms", nargs="*", choices=(FROZEN, *WAYS),
                        default=["frozen", "dense", "low_rank", "sum_first"],
                        help="forms of training; none: leave training out")  # fmt: skip
    given = parser.parse_args(arguments)
    device = start(given)
    spec, where = spec_of(given.model), str(device)
    print("inference: a process for each form ...")
    frames = [
        inference_memory(spec, [given.batch], device=where, repeats=given.repeats).assign(
            what="inference"
        )
    ]
    if given.forms:
        print("training: a process for each form ...")
        found = training_memory(spec, given.classes, given.batch, given.forms, device=where)
        frames.append(found.assign(what="training"))
    frame = pd.concat(frames, ignore_index=True)
    shown = frame[["what", "form"]].copy()
    for name in ("weights", "prepared", "peak"):
        shown[f"{name} MiB"] = (frame[f"{name}_bytes"] / MIB).round(1)
    print(f"\n{shown.to_string(index=False)}")
    print(
        "\nweights: counted. prepared: measured before the work, with the code that libraries "
        "loaded.\npeak: the highest within it. Compare forms: the code is in all of them."
    )
    write("memory", frame, given, device)


if __name__ == "__main__":
    run(main)
