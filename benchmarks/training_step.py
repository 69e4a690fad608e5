"""Time whole training steps of CLIP with each form of adapter, and the adapter path's share."""

from __future__ import annotations

from blocklora_lib.measure.benchmark_output import (
    options,
    positive,
    run,
    show_ratios,
    spec_of,
    start,
    timed,
    write,
)
from blocklora_lib.measure.processes import on_backbone
from blocklora_lib.measure.training_step import (
    STEP_FORMS,
    path_share,
    step_ratios,
    training_step_times,
)


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, rounds=7, processes=1)
    parser.add_argument(
        "--classes", type=positive, default=10, help="prompts encoded in every step"
    )
    parser.add_argument("--batch", type=positive, default=2, help="images in every step")
    parser.add_argument("--rank", type=positive, default=2, help="r")
    parser.add_argument("--blocks", type=positive, default=2, help="n")
    parser.add_argument("--dropout", type=float, default=0.25, help="on the adapters' input")
    parser.add_argument("--forms", nargs="+", default=list(STEP_FORMS), help="forms to time")
    given = parser.parse_args(arguments)
    device = start(given)
    times = timed(
        on_backbone, given, "training step", measure=training_step_times,
        spec=spec_of(given.model), device=device, classes=given.classes, batch=given.batch,
        forms=given.forms, rank=given.rank, n_blocks=given.blocks, dropout=given.dropout,
    )  # fmt: skip
    baselines = [form for form in ("dense", "low_rank") if form in given.forms] or given.forms[:1]
    frame = step_ratios(times, given.model, baselines)
    show_ratios(frame, ["form"])
    if "frozen" in given.forms and {*given.forms} > {"frozen"}:
        share = path_share(times)
        columns = ["form", "share", "share_low", "share_high", "resolved", "speedup_limit"]
        print(
            "\nThe adapter path's share of a step\n"
            f"{share[columns].round(3).to_string(index=False)}"
        )
        print("share: (step - step without adapters) / step. No saving on the path can exceed it.")
    write("training_step", frame, given, device)


if __name__ == "__main__":
    run(main)
