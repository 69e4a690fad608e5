"""Time the image tower without adapters, with adapters beside the weights, and with merged ones."""

from __future__ import annotations

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
from blocklora_lib.measure.inference import inference
from blocklora_lib.measure.timing import equivalent


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, rounds=15)
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 4], help="images at once"
    )
    parser.add_argument(
        "--margin", type=float, default=0.05, help="what counts as equal: a ratio in 1 ± margin"
    )
    given = parser.parse_args(arguments)
    device = start(given)
    bar = progress(len(given.batches) * given.rounds, "inference")
    frame = inference(load(given, device), given.batches, given.rounds, on_round=bar)
    show_ratios(frame, ["batch", "form", "images_per_second"])
    for row in frame[frame["form"] == "merged"].to_dict("records"):
        shown = "shown" if equivalent(row, given.margin) else "not shown"
        told = f"merged costs what the base costs, within {given.margin:.0%}: {shown}"
        print(f"batch {row['batch']}: {told}")
    write("inference", frame, given, device)


if __name__ == "__main__":
    run(main)
