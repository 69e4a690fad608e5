"""Time a step of learnt tokens (CoOp, deep prompts) against one over all positions, or LoRA's."""

from __future__ import annotations

import pandas as pd

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
from blocklora_lib.measure.prompt_steps import LORA, PLAIN, counted_flops, prompt_steps
from blocklora_lib.measure.timing import paired_times, ratios

CASES = {  # what is learnt, and of how many images by default
    "coop": (dict(tokens=16), 8),  # CoOp, M = 16
    "deep": (dict(tokens=4, depth=9, image=4), 4),  # PromptSRC's tokens
}


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "ViT-B-16-quickgelu", rounds=7)
    parser.add_argument("--classes", type=positive, default=100, help="ImageNet's first so many")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="prompts")
    parser.add_argument(
        "--tokens", type=positive, default=None, help="learnt, other than the cases'"
    )
    parser.add_argument("--depth", type=positive, default=9, help="blocks of deep prompts")
    parser.add_argument("--against", default=PLAIN, choices=[PLAIN, LORA],
                        help="over all positions, or LoRA on q, k, v of both towers")  # fmt: skip
    given = parser.parse_args(arguments)
    device, frames = start(given), []
    backbone = load(given, device)
    for case in given.cases:
        learnt, batch = CASES[case]
        learnt = learnt | ({"depth": given.depth} if "depth" in learnt else {})
        learnt = learnt | ({"tokens": given.tokens} if given.tokens else {})
        steps = prompt_steps(backbone, given.classes, batch, **learnt, against=given.against)
        flops = {name: counted_flops(step) for name, step in steps.items()}
        bar = progress(given.rounds, f"{case}, {given.classes} classes")
        times = paired_times(steps, given.rounds, warmup=1, device=device, on_round=bar)
        frame = ratios(times, given.against).rename(columns={"name": "form"})
        frame.insert(0, "case", case)
        frames.append(frame.assign(gflop=[flops[form] / 1e9 for form in frame["form"]],
                                   flop_ratio=[flops[form] / flops[given.against]
                                               for form in frame["form"]]))  # fmt: skip
    found = pd.concat(frames, ignore_index=True).assign(model=given.model, classes=given.classes)
    shown = found.assign(
        GFLOP=found["gflop"].map("{:.4g}".format),
        floor=found["flop_ratio"].map("{:.2f}".format),
    )
    show_ratios(shown, ["case", "form", "GFLOP", "floor"])
    print(
        f"floor: FLOPs of the step's products by those of '{given.against}': "
        "the ratio at equal rates."
    )
    write("prompts", found, given, device)


if __name__ == "__main__":
    run(main)
