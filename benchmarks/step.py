"""Time and peak memory of a training step: ours, CLIP-LoRA's computation, and peft's LoRA."""

from __future__ import annotations

import pandas as pd

from blocklora_lib.core.schema import UnknownName
from blocklora_lib.costs.ways import OTHER_STEPS, STEPS
from blocklora_lib.display.figures.benchmark import steps_table
from blocklora_lib.measure.benchmark_output import (  # fmt: skip
    markdown,
    options,
    positive,
    progress,
    ratio_text,
    run,
    spec_of,
    start,
    write,
)
from blocklora_lib.measure.peak_memory import MeasurementFailed
from blocklora_lib.measure.prompts import class_prompts
from blocklora_lib.measure.step_costs import (  # fmt: skip
    compare,
    forms_of,
    free_memory,
    missing,
    step_memory,
    step_times,
)
from blocklora_lib.measure.steps import Size, load


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "ViT-B-16-quickgelu", rounds=6)
    parser.add_argument(
        "--classes", type=positive, nargs="+", default=[100], help="ImageNet's first so many"
    )
    parser.add_argument("--batch", type=positive, default=8, help="images in every step")
    parser.add_argument("--variants", nargs="+", choices=STEPS, help="what to compare",
                        default=["independent", "shared_prefix", *OTHER_STEPS])  # fmt: skip
    parser.add_argument("--adapters", nargs="+", choices=("block_lora", "lora"),
                        default=["block_lora"],
                        help="adapter of our variants; other code's is LoRA")  # fmt: skip
    parser.add_argument("--rank", type=positive, default=2, help="r")
    parser.add_argument("--blocks", type=positive, default=2, help="n of Block-LoRA")
    parser.add_argument("--dropout", type=float, default=0.25, help="on the adapters' input")
    parser.add_argument(
        "--class-chunk", type=positive, default=None, help="classes at a time, in our variants"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks of memory out")
    parser.add_argument("--delay", nargs=2, action="append", default=[],
                        metavar=("FORM", "SECONDS"),
                        help="make a form slower, to see what a difference looks like")  # fmt: skip
    given = parser.parse_args(arguments)
    slower = {form: float(seconds) for form, seconds in given.delay}
    known = forms_of(given.variants, given.adapters, Size(1, 1))
    for form in slower.keys() - known.keys():
        raise UnknownName("form to delay", form, known)
    class_prompts(max(given.classes))  # refuses more than there are, before an hour of fewer
    device, frames = start(given), []
    spec = spec_of(given.model)
    backbones = load(spec, given.variants, device)
    for classes in given.classes:
        size = Size(classes, given.batch, "block_lora", given.rank, given.blocks, given.dropout,
                    given.class_chunk)  # fmt: skip
        reasons = {v: missing(v, given.model, size, free_memory(device)) for v in given.variants}
        for reason in filter(None, reasons.values()):
            print(f"left out: {reason}")
        forms = forms_of([v for v in given.variants if not reasons[v]], given.adapters, size)
        if not forms:
            continue
        bar = progress(given.rounds, f"{classes} classes")
        delays = {form: slower[form] for form in forms if form in slower}
        times = step_times(backbones, forms, given.rounds, delays, bar)
        memory = None
        try:
            memory = None if given.no_memory else step_memory(spec, forms, str(device))
        except MeasurementFailed as error:
            print(f"left out: {error}")
        baselines = [form for form in OTHER_STEPS if form in forms] or list(forms)[:1]
        facts = {"model": given.model, "classes": classes, "batch": given.batch}
        found = compare(times, memory, baselines)
        frames.append(pd.DataFrame(facts, index=found.index).join(found))
        print(f"\n{markdown(steps_table(frames[-1], ratio_text))}")
    if not frames:
        raise ValueError(
            "every variant was left out; give others by --variants, or fewer --classes"
        )
    write("step", pd.concat(frames, ignore_index=True), given, device)


if __name__ == "__main__":
    run(main)
