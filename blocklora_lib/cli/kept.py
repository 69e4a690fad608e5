"""`blocklora predict`, `evaluate` and `merge`: what a kept adapter is for. Thin."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.files import printable
from ..core.schema import UnknownName
from ..runs.packed import SUFFIX
from .lines import say
from .options import RootOption, own_folder, path
from .run_options import ThreadsOption, load_libraries

FORMATS = ("table", "csv", "json")

FileArgument = Annotated[
    Path, typer.Argument(parser=path, help="What `blocklora run --save` wrote.", metavar="FILE")
]
FormatOption = Annotated[
    str, typer.Option("--format", "-f", help="table, csv or json, on standard output.")
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="Where the backbone's weights lie here: a path, or a tag [where the file says]."
    ),
]
OtherWeightsOption = Annotated[
    bool,
    typer.Option(
        "--other-weights", help="Take weights though the adapter was not trained on them."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto, the GPU if any.")]


def predict(
    file: FileArgument,
    images: Annotated[list[str], typer.Argument(help="Images, and folders of images.")],
    form: FormatOption = "table",
    top: Annotated[int, typer.Option(help="So many classes an image, likeliest first.", min=1)] = 1,
    weights: WeightsOption = "",
    other_weights: OtherWeightsOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Say of each image its class and how likely it is. Exit code 1 if one cannot be read."""
    _check(form)
    named = _images(images)
    load_libraries()
    import torch

    from ..data.image_files import ImageFiles
    from ..runs.classifier import load_classifier

    torch.set_num_threads(threads)
    classifier = load_classifier(file, device=device, weights=weights, other_weights=other_weights)
    left = _LeftOut()
    rows = []
    names, paths = list(named), list(named.values())
    files = ImageFiles(paths, loading=classifier.about.image_loading)
    for index, logits in classifier.predict(files, left):
        found = logits.softmax(-1).topk(min(top, len(classifier.classes)))
        values, labels = found.values.tolist(), found.indices.tolist()
        for number, probabilities, likely in zip(index, values, labels, strict=True):
            ranked = enumerate(zip(likely, probabilities, strict=True), 1)
            image, told = names[number], classifier.classes
            rows += [(image, rank, told[label], share) for rank, (label, share) in ranked]
    if not rows:
        raise ValueError(f"none of {len(paths)} images can be read ({left.first}); look at them")
    heads, shown = ["image", "rank", "class", "probability"], [list(row) for row in rows]
    if top == 1:
        heads, shown = ["image", "class", "probability"], [[a, c, p] for a, _, c, p in rows]
    typer.echo(_written(heads, shown, form))
    left.end()


def evaluate(
    file: FileArgument,
    dataset: Annotated[str, typer.Argument(help="Name, or a folder of your own images.")],
    split: Annotated[
        str,
        typer.Option(
            help="test, val, train or all; a folder without splits is cut as a run cuts it."
        ),
    ] = "test",
    template: Annotated[
        str | None,
        typer.Option(help="Where prompts differ, whose: dataset, or file [refused]."),
    ] = None,
    other_classes: Annotated[
        bool,
        typer.Option(
            "--other-classes", help="Tell the dataset's classes apart, not those of training."
        ),
    ] = False,
    form: FormatOption = "table",
    root: RootOption = None,
    weights: WeightsOption = "",
    other_weights: OtherWeightsOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Count correct answers, class by class. Exit code 1 if an image cannot be read."""
    _check(form)
    from ..data.manifest_files import manifest_names
    from ..learning.count import Count
    from ..runs.kept import trained
    from ..runs.scoring import remark, set_for

    folder = own_folder(dataset, manifest_names())
    how: Any = dict(template=template, other_classes=other_classes, root=root)
    load_libraries()
    about = trained(file)
    found = set_for(about, folder or dataset, split, **how)
    if folder:
        from ..data.user_dataset import of_two_classes
        from ..data.user_folder import look

        for note in (*look(folder).notes, *of_two_classes(found.manifest, folder)):
            say(f"note: {note}", err=True)
    import torch

    from ..runs.classifier import load_classifier
    from ..runs.scoring import score

    torch.set_num_threads(threads)
    classifier = load_classifier(file, device=device, weights=weights, other_weights=other_weights)
    left = _LeftOut()
    counts = score(classifier, found, split, left)
    whole = Count(
        correct=sum(c.correct for c in counts.values()), total=sum(c.total for c in counts.values())
    )
    named = [*counts.items(), (f"{found.name}, {split}", whole)]  # as a class may be called, too
    rows = [(name, c.correct, c.total, c.accuracy) for name, c in named]
    typer.echo(_written(("class", "correct", "total", "accuracy"), rows, form))
    if note := remark(about, found, split):
        say(f"note: {note}", err=True)
    left.end()


def merge(
    files: Annotated[
        list[Path],
        typer.Argument(parser=path, help="What `blocklora run --save` wrote.", metavar="FILE"),
    ],
    into: Annotated[
        Path, typer.Option(parser=path, help="Checkpoint to write, such as merged.safetensors.")
    ],
    weights: WeightsOption = "",
    other_weights: OtherWeightsOption = False,
) -> None:
    """Write backbone and adapter as one checkpoint, which open_clip loads without us."""
    if len(files) > 1 or files[0].is_dir() or files[0].suffix == SUFFIX:
        raise ValueError(
            f"{' '.join(map(str, files))}: not the file of one adapter, which is merged into its "
            "backbone; records of several machines are joined by `blocklora records merge`"
        )
    load_libraries()
    from ..runs.merged import write_merged

    for line in write_merged(files[0], into, weights=weights, other_weights=other_weights):
        say(line)


class _LeftOut:
    """Says of each image that cannot be read why, and remembers that there was one."""

    first = ""

    def __call__(self, path: Path, why: str) -> None:
        self.first = self.first or f"{path} {why}"
        say(f"left out: {path} {why}", err=True)

    def end(self) -> None:
        """Exit code 1 if anything was left out."""
        if self.first:
            raise typer.Exit(1)


def _images(given: Sequence[str]) -> dict[str, Path]:
    """The files by their names as given, and the images of the folders, nested ones too.

    What else is in a folder is said.
    """
    from ..data.user_images import images, told

    found: dict[str, Path] = {}
    for name in given:
        place = path(name)
        if place.is_dir():
            here = images(place)
            here.left.pop("nested", None)
            for note in told(here.left):
                say(f"note: {name}: {note}", err=True)
            found |= {os.path.join(name, inner): place / inner for inner in here.paths}
        elif place.exists():
            found[name] = place
        else:
            raise FileNotFoundError(f"there is no image {name}; give images, or folders of them")
    if not found:
        raise ValueError(f"no image in {', '.join(given)}; give images, or folders of them")
    return found


def _check(form: str) -> None:
    if form not in FORMATS:
        raise UnknownName("choice of --format", form, FORMATS)


def _written(heads: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> str:
    """Rows as JSON (a list of objects), as CSV, or as lines with columns; shares to 6 digits."""
    if form == "table":
        texts = [
            [f"{v:.1%}" if isinstance(v, float) else printable(str(v)) for v in row] for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
        lines = (zip(line, widths, strict=True) for line in [list(heads), *texts])
        return "\n".join("  ".join(t.ljust(w) for t, w in line).rstrip() for line in lines)
    plain = [[round(v, 6) if isinstance(v, float) else v for v in row] for row in rows]
    if form == "json":
        facts = [dict(zip(heads, row, strict=True)) for row in plain]
        return json.dumps(facts, indent=1, ensure_ascii=False)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *plain])
    return text.getvalue().rstrip("\n")
