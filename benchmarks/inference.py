"""Time the image tower without adapters, with adapters beside the weights, and with merged ones."""

from __future__ import annotations

from blocklora_lib.measure.benchmark_output import (
    fraction,
    options,
    positive,
    run,
    show_ratios,
    spec_of,
    start,
    timed,
    write,
)
from blocklora_lib.measure.inference import inference_ratios, inference_times
from blocklora_lib.measure.processes import on_backbone
from blocklora_lib.measure.timing import equivalent


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, rounds=15, processes=1)
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 4], help="images at once"
    )
    parser.add_argument(
        "--margin", type=fraction, default=0.05, help="what counts as equal: a ratio in 1 ± margin"
    )
    given = parser.parse_args(arguments)
    device = start(given)
    times = timed(
        on_backbone, given, "inference", len(given.batches), measure=inference_times,
        spec=spec_of(given.model), device=device, batches=given.batches,
    )  # fmt: skip
    frame = inference_ratios(times)
    show_ratios(frame, ["batch", "form", "images_per_second"])
    for row in frame[frame["form"] == "merged"].to_dict("records"):
        shown = "shown" if equivalent(row, given.margin) else "not shown"
        told = f"merged costs what the base costs, within {given.margin:.0%}: {shown}"
        print(f"batch {row['batch']}: {told}")
    write("inference", frame, given, device)


if __name__ == "__main__":
    run(main)
