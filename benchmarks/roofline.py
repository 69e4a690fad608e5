"""The share of the machine's matrix-product rate that a training step reaches."""

from __future__ import annotations

import pandas as pd

from blocklora_lib.clip.architectures import from_config
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
from blocklora_lib.measure.products import roofline, squares, step_products
from blocklora_lib.measure.prompts import class_prompts, prompt_lengths
from blocklora_lib.measure.steps import Size, load, make_step
from blocklora_lib.measure.timing import by_round, paired_times

WAYS = ("independent", "shared_prefix")


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "ViT-B-16-quickgelu", rounds=7)
    parser.add_argument(
        "--classes", type=positive, nargs="+", default=[100], help="ImageNet's first so many"
    )
    parser.add_argument("--batch", type=positive, default=8, help="images in every step")
    parser.add_argument("--rank", type=positive, default=2, help="r")
    parser.add_argument("--blocks", type=positive, default=2, help="n of Block-LoRA")
    parser.add_argument(
        "--variants", nargs="+", default=list(WAYS), choices=WAYS, help="of our step"
    )
    parser.add_argument(
        "--sides", type=positive, nargs="+", default=[1024, 2048, 4096], help="of square products"
    )
    given = parser.parse_args(arguments)
    class_prompts(max(given.classes))  # refuses more than there are, before fewer are measured
    device, frames, alone = start(given), [], []
    backbone = load(spec_of(given.model), given.variants, device)["fp32"]
    architecture = from_config(given.model, architecture_config(given.model))
    for classes in given.classes:
        size = Size(classes, given.batch, "block_lora", given.rank, given.blocks)
        tokens = backbone.tokenize(class_prompts(classes))
        lengths = (tokens.argmax(-1) + 1).tolist()  # CLIP's end of text has the highest id
        prefix = prompt_lengths(tokens).prefix if classes > 1 else 0
        for variant in given.variants:
            shared = prefix if variant == "shared_prefix" else 0
            width = size.adapter.block_rank
            counted = step_products(architecture, lengths, given.batch, shared, width)
            products = {f"product {i}": item for i, item in enumerate(counted.items())}
            tops = squares(given.sides)
            functions = {name: p.prepared(device) for name, (p, _) in products.items()}
            functions |= {name: p.prepared(device) for name, p in tops.items()}
            functions["step"] = make_step(backbone, variant, size)
            bar = progress(given.rounds, f"{variant}, {classes} classes")
            times = paired_times(functions, given.rounds, warmup=1, device=device, on_round=bar,
                                 min_seconds=0.01)  # fmt: skip
            seconds = by_round(times)
            facts = {"model": given.model, "classes": classes, "variant": variant}
            frames.append(roofline(seconds, products, "step", tops).assign(**facts))
            timed = products | {name: (p, 0) for name, p in tops.items()}
            alone += [
                facts | vars(p) | {"times": n, "gflops": p.flops / seconds[name].median() / 1e9}
                for name, (p, n) in timed.items()
            ]
    show(frame := pd.concat(frames, ignore_index=True))
    write("roofline", frame, given, device, products=pd.DataFrame(alone))


def architecture_config(model: str) -> dict:
    """The configuration of a model that open_clip knows, one added at run time included."""
    from open_clip import get_model_config

    from blocklora_lib.clip.architectures import read_config

    return get_model_config(model) or read_config(model)


def show(frame: pd.DataFrame) -> None:
    shown = frame[["variant", "classes", "products"]].copy()
    shown["GFLOP"] = frame["gflop"].map("{:.4g}".format)
    shown["s a step"] = frame["step_seconds"].map("{:.3g}".format)
    shown["s alone"] = frame["seconds_alone"].map("{:.3g}".format)
    shown["GFLOP/s"] = frame["step_rate"].map("{:.4g}".format)
    shown["alone"] = frame["alone_rate"].map("{:.4g}".format)
    shown["squares"] = frame["best_rate"].map("{:.4g}".format)
    intervals = zip(frame["share"], frame["share_low"], frame["share_high"], strict=True)
    shown["share reached"] = [f"{s:.2f} [{low:.2f}, {high:.2f}]" for s, low, high in intervals]
    print(
        f"\n{markdown(shown)}\n\nshare reached: time of the products alone, at the step's own "
        "shapes and by its own kernels (frozen\nones on a CPU: oneDNN's), by the time of the step. "
        "GFLOP: of the minimal step, by closed forms.\nsquares: the best rate over square products."
    )


if __name__ == "__main__":
    run(main)
