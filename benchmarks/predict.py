"""Time what `blocklora predict` does to image files, with an adapter merged and without any."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from blocklora_lib.clip.backbone import Backbone
from blocklora_lib.core.paths import POCKET
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.measure.benchmark_output import (
    fraction,
    load,
    options,
    positive,
    progress,
    run,
    show_ratios,
    start,
    write,
)
from blocklora_lib.measure.inference import in_form
from blocklora_lib.measure.prompts import made_up_prompts
from blocklora_lib.measure.steps import twin
from blocklora_lib.measure.timing import equivalent, paired_times, ratios
from blocklora_lib.runs.classifier import Classifier

FORMS = ("base", "merged", "base_again")


def prediction(
    backbone: Backbone,
    paths: Sequence[Path],
    classes: int,
    rounds: int,
    on_round: Callable[[int, int], None],
) -> pd.DataFrame:
    """Return images, form, images_per_second and the columns of `timing.ratios`."""
    files, names = ImageFiles(paths, loading="upright"), made_up_prompts(classes)

    def work(form: str) -> Callable[[], object]:
        classifier = Classifier(in_form(twin(backbone), form)[0], names, "{}")
        return lambda: [logits.softmax(-1).max(-1) for _, logits in classifier.predict(files)]

    functions = {form: work(form) for form in FORMS}
    times = paired_times(functions, rounds, device=backbone.device, on_round=on_round)
    frame = ratios(times, "base").rename(columns={"name": "form"})
    frame.insert(0, "images", len(paths))
    frame.insert(2, "images_per_second", len(paths) / frame["seconds_median"])
    return frame


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, model="PocketCLIP", rounds=15)
    parser.add_argument(
        "--images", type=positive, default=1000, help="files, each read and decoded"
    )
    parser.add_argument("--size", type=positive, default=64, help="side of the files, in pixels")
    parser.add_argument("--classes", type=positive, default=8, help="classes to tell apart")
    parser.add_argument(
        "--margin", type=fraction, default=0.05, help="what merged may cost above the base"
    )
    given = parser.parse_args(arguments)
    device = start(given)
    source = itertools.cycle(sorted((POCKET / "stickers").rglob("*.webp")))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:06}.png") for i in range(given.images)]
        for path, picture in zip(paths, source, strict=False):
            Image.open(picture).resize((given.size, given.size)).save(path)
        bar = progress(given.rounds, "predict")
        frame = prediction(load(given, device), paths, given.classes, given.rounds, bar)
    show_ratios(frame, ["images", "form", "images_per_second"])
    (merged,) = frame[frame["form"] == "merged"].to_dict("records")
    holds = "shown" if merged["ratio_high"] <= 1 + given.margin else "not shown"
    same = "shown" if equivalent(merged, given.margin) else "not shown"
    print(f"merged costs at most {1 + given.margin:.2f} of the base: {holds}; the same: {same}")
    write("predict", frame, given, device)


if __name__ == "__main__":
    run(main)
