"""What the scripts in benchmarks/ share: options, progress, a table with spread, CSV and JSON.

`write` makes the records that `records.py` reads.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from tqdm import tqdm

from ..clip.backbone import Backbone, load_backbone
from ..core.devices import resolve_device
from ..core.files import check_writes_over, user_path, write_whole
from ..core.schema import explain
from ..runs.provenance import git_revision
from ..weights.spec import BUNDLED, BackboneSpec
from .processes import in_processes
from .timing import conditions, in_words, seen_over

LEGEND = (
    "ratio: median over the rounds of time / the baseline's time in the same round, "
    "with the 95% interval of that median (with --processes: of the medians of the processes).\n"
    "'open' means that the interval holds 1: neither faster nor slower was shown. More --rounds "
    "narrow it."
)


def options(
    description: str, model: str | None = "ViT-B-16", rounds: int = 11, processes: int = 0
) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; what is None or 0 is left out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if model:
        parser.add_argument(
            "--model",
            default=model,
            help=f"{', '.join(BUNDLED)}, or a name of open_clip (random weights)",
        )
    if rounds:
        parser.add_argument(
            "--rounds", type=positive, default=rounds, help="rounds of the paired timing"
        )
    if processes:
        parser.add_argument(
            "--processes", type=positive, default=processes,
            help="fresh processes that do these rounds each; 6 or more are the units of intervals",
        )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="threads of the CPU"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    parser.add_argument(
        "--output", type=user_path, default=None, help="stem of a CSV and a JSON file to write"
    )
    return parser


def positive(text: str) -> int:
    """Read a number of which there is at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is none; say at least 1")
    return number


def fraction(text: str) -> float:
    """Read a number between 0 and 1."""
    if not 0 < (number := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1, as 0.05 does")
    return number


def spec_of(model: str) -> BackboneSpec:
    """PocketCLIP with its weights; any other model with random ones, since values cost nothing."""
    return BackboneSpec(name=model, pretrained="bundled" if model in BUNDLED else "none")


def start(arguments: argparse.Namespace) -> torch.device:
    """Set the threads, say under what conditions is measured, and return the device.

    Where the output cannot be written, OSError now and not after minutes.
    """
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        for path in _files(arguments.output):
            check_writes_over(path)
        with tempfile.TemporaryFile(dir=arguments.output.parent):
            pass
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    facts = conditions(device)
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    if device.type == "cpu" and facts["load_average"] > facts["cores"]:
        print("other processes compete for the cores: expect wide intervals")
    return device


def load(arguments: argparse.Namespace, device: torch.device) -> Backbone:
    """Load the model that the options name."""
    return load_backbone(spec_of(arguments.model), device)


def progress(total: int, label: str) -> Callable[..., None]:
    """Return a function that moves a bar by one each time it is called."""
    bar = tqdm(total=total, desc=label, unit="round", disable=None)

    def advance(*_: int) -> None:
        bar.update()
        if bar.n >= total:
            bar.close()

    return advance


def timed(
    work: Callable[..., pd.DataFrame],
    given: argparse.Namespace,
    label: str,
    bars: int = 1,
    **more: Any,
) -> pd.DataFrame:
    """Return the times of work(rounds=.., **more) in as many processes as the options say.

    One is this process, with a bar of its rounds, so many times over.
    """
    if given.processes > 1:
        return in_processes(work, given.processes, label, rounds=given.rounds, **more)
    bar = progress(bars * given.rounds, label)
    return work(rounds=given.rounds, on_round=bar, **more)


def show_ratios(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Print milliseconds with quartiles and the ratio in words, a line a row."""
    ms = {c: 1e3 * frame[f"seconds_{c}"] for c in ("median", "q1", "q3")}
    shown = frame[list(keys)].copy()
    shown["ms"] = [f"{m:.3g} [{a:.3g}, {b:.3g}]" for m, a, b in zip(*ms.values(), strict=True)]
    for baseline in dict.fromkeys(frame["baseline"]):
        part = frame["baseline"] == baseline
        ratio = [ratio_text(row) for row in frame[part].to_dict("records")]
        print(f"\nagainst {baseline!r}\n\n{markdown(shown[part].assign(ratio=ratio))}")
    print(f"\n{LEGEND}")


def markdown(frame: pd.DataFrame) -> str:
    """Return the frame as a Markdown table, padded so that it reads well in a terminal too."""
    cells = [list(map(str, row)) for row in (frame.columns, *frame.to_numpy())]
    widths = [max(len(row[i]) for row in cells) for i in range(frame.shape[1])]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([v.ljust(w) for v, w in zip(row, widths, strict=True)] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def ratio_text(row: dict[str, Any]) -> str:
    """Return '0.71x [0.69, 0.73]', and a word where nothing is resolved; '1' for the baseline."""
    if row.get("form", row.get("name")) == row["baseline"]:
        return "1"
    if row["resolved"]:
        return in_words(row)
    if math.isnan(row["ratio_low"]):
        return f"{row['ratio']:.2f}x, open: {seen_over(row)} are too few"
    return f"{row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}], open"


def write(
    benchmark: str,
    frame: pd.DataFrame,
    arguments: argparse.Namespace,
    device: torch.device,
    **more: pd.DataFrame,
) -> None:
    """Write <output>.csv and the record <output>.json; more: further tables of the record."""
    if arguments.output is None:
        return
    table_path, record_path = _files(arguments.output)
    table_path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(table_path, frame.to_csv(index=False, lineterminator="\n"))
    facts = {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "revision": git_revision(),
        "conditions": conditions(device),
        "options": {key: str(value) for key, value in vars(arguments).items() if key != "output"},
    }
    for name, table in ({"rows": frame} | more).items():
        facts[name] = json.loads(table.to_json(orient="records", double_precision=15))
    write_whole(record_path, json.dumps(facts, indent=1) + "\n")
    print(f"written: {table_path}, {record_path}")


def _files(output: Path) -> tuple[Path, Path]:
    """The CSV and the JSON of a stem, or of the name of one of them."""
    stem = output.with_suffix("") if output.suffix in (".csv", ".json") else output
    return stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.json")


def run(main: Callable[[], None]) -> None:
    """Run a script; bad input ends it with one sentence, no traceback and exit code 2."""
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        text = explain(error) if isinstance(error, ValidationError) else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; nothing is written", file=sys.stderr)
        raise SystemExit(130) from None
