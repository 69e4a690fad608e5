"""How time and memory of our training step grow with classes, images, rank, blocks and threads."""

from __future__ import annotations

import pandas as pd

from blocklora_lib.costs.ways import OUR_STEPS
from blocklora_lib.display.figures.benchmark import growth_table
from blocklora_lib.measure.benchmark_output import (  # fmt: skip
    markdown,
    options,
    positive,
    progress,
    run,
    spec_of,
    start,
    write,
)
from blocklora_lib.measure.growth import AXES, axis_times, memory_line, points, time_line
from blocklora_lib.measure.peak_memory import MeasurementFailed
from blocklora_lib.measure.prompts import class_prompts
from blocklora_lib.measure.step_costs import step_memory
from blocklora_lib.measure.steps import Size, load
from blocklora_lib.measure.timing import quartiles

DEFAULTS = {"classes": [25, 100, 200], "images": [2, 4, 8], "rank": [2, 8, 32],
            "blocks": [1, 2, 4, 8], "threads": [1, 2]}  # fmt: skip
MEMORY_AXES = ("classes", "images")  # of the others, memory hardly knows


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "ViT-B-16-quickgelu", rounds=6)
    for axis in AXES:
        parser.add_argument(f"--by-{axis}", type=positive, nargs="*", default=DEFAULTS[axis],
                            help="values; none: leave this growth out")  # fmt: skip
    parser.add_argument("--classes", type=positive, default=50, help="while something else grows")
    parser.add_argument(
        "--batch", type=positive, default=4, help="images, while something else grows"
    )
    parser.add_argument("--rank", type=positive, default=2, help="r, while something else grows")
    parser.add_argument("--blocks", type=positive, default=2, help="n, while something else grows")
    parser.add_argument(
        "--variants", nargs="+", default=["independent"], choices=OUR_STEPS, help="of our step"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks of memory out")
    given = parser.parse_args(arguments)
    class_prompts(max([given.classes, *given.by_classes]))  # refuses more than there are
    device, spec = start(given), spec_of(given.model)
    base = Size(given.classes, given.batch, "block_lora", given.rank, given.blocks)
    backbones, rows, lines = load(spec, given.variants, device), [], []
    for variant in given.variants:
        for axis in AXES:
            values = getattr(given, f"by_{axis}")
            sizes = points(axis, values, base)
            if gone := [v for v in values if v not in sizes]:
                print(f"left out: {axis} {gone}, which n = {given.blocks} does not divide")
            if len(sizes) < 2:
                if sizes:
                    print(f"left out: {axis}, whose line asks for two values or more")
                continue
            bar = progress(given.rounds, f"{variant}, {axis}")
            times = axis_times(backbones, variant, axis, sizes, given.rounds, bar)
            facts = {"variant": variant, "axis": axis}
            found = {v: quartiles(part["seconds"], "seconds_median", "seconds")
                     for v, part in times.groupby("name", sort=False)}  # fmt: skip
            if axis != "threads":
                lines.append(facts | {"quantity": "seconds"} | time_line(times))
            if axis in MEMORY_AXES and not given.no_memory:
                forms = {v: (variant, size) for v, size in sizes.items()}
                try:
                    peaks = step_memory(spec, forms, str(device)).set_index("name")["peak_bytes"]
                except MeasurementFailed as error:
                    print(f"left out: {error}")
                else:
                    line = memory_line(list(peaks.index), list(peaks))
                    lines.append(facts | {"quantity": "bytes"} | line)
                    found = {v: row | {"peak_bytes": int(peaks[v])} for v, row in found.items()}
            rows += [facts | {"value": v} | row for v, row in found.items()]
    if not rows:
        raise ValueError("nothing to grow: give at least two values to one of the --by options")
    show(frame := pd.DataFrame(rows), fitted := pd.DataFrame(lines))
    write("scaling", frame, given, device, lines=fitted)


def show(frame: pd.DataFrame, lines: pd.DataFrame) -> None:
    shown = frame[["variant", "axis", "value"]].copy()
    shown["ms a step"] = (1e3 * frame["seconds_median"]).map("{:.4g}".format)
    if "peak_bytes" in frame:
        shown["peak MiB"] = [f"{b / 2**20:.1f}" if b == b else "" for b in frame["peak_bytes"]]
    print(f"\n{markdown(shown)}")
    if lines.empty:
        return
    print(f"\n{markdown(growth_table(lines))}")
    print("\n'off the line': largest distance from it, as a share of the largest value.")


if __name__ == "__main__":
    run(main)
