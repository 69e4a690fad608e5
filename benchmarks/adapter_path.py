"""Time one adapter by itself: forward and backward of x -> x ΔWᵀ, in every way to compute it."""

from __future__ import annotations

from blocklora_lib.measure.adapter_path import PATH_FORMS, path_ratios, path_times
from blocklora_lib.measure.benchmark_output import (
    options,
    positive,
    run,
    show_ratios,
    start,
    timed,
    write,
)


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, model=None, rounds=21, processes=1)
    parser.add_argument("--width", type=positive, default=768, help="d, of the d x d projection")
    parser.add_argument(
        "--tokens", type=positive, default=197 * 8, help="rows of x: images times tokens of each"
    )
    parser.add_argument("--ranks", type=positive, nargs="+", default=[2, 8], help="r")
    parser.add_argument(
        "--blocks",
        type=positive,
        nargs="+",
        default=[2, 4],
        help="n; cut that r does not allow is left out",
    )
    parser.add_argument(
        "--reading",
        default="total_rank",
        choices=("total_rank", "block_rank", "input"),
        help="of (r, n): what is cut",
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="on the adapter's input")
    given = parser.parse_args(arguments)
    device = start(given)
    points = [
        dict(d=given.width, tokens=given.tokens, rank=r, n_blocks=n, reading=given.reading)
        for r in dict.fromkeys(given.ranks)
        for n in dict.fromkeys(given.blocks)
        if given.reading != "total_rank" or r % n == 0
    ]
    if not points:
        raise ValueError("none of --blocks cuts one of --ranks in equal parts; give one that does")
    # the cut along the input has one B, which nothing collapses
    forms = [form for form in PATH_FORMS if given.reading != "input" or form != "collapsed"]
    times = timed(
        path_times, given, "adapter path", len(points),
        points=points, forms=forms, device=device, dropout=given.dropout,
    )  # fmt: skip
    frame = path_ratios(times)
    show_ratios(frame, ["rank", "n_blocks", "form"])
    print(
        "Baseline: LoRA of rank r. 'frozen_linear' is the product that the adapter stands beside."
    )
    write("adapter_path", frame, given, device)


if __name__ == "__main__":
    run(main)
