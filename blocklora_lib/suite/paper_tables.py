"""Tables of the reproduction report: of a column's width, made of records and of wider exports."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..analysis.summaries import AVERAGE
from ..core.durations import clock
from ..core.files import read_text
from ..display.venues import booktabs_rows

Facts = Mapping[str, Any]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of an exported CSV, 'tables/NOTEBOOK/NAME'; none where it is not there."""
    path = folder / f"{name}.csv"
    return list(csv.DictReader(io.StringIO(read_text(path)))) if path.is_file() else []


def of_runs(records: Sequence[Facts]) -> dict[str, str]:
    """What the runs of each method took."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for record in records:
        if record["status"] == "done" and record["cost"]:
            name = record["provenance"].get("method_label", record["spec"]["method"]["name"])
            groups[name].append(record)
    rows = []
    for name, mine in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        seconds = [sum(record["cost"]["seconds"].values()) for record in mine]
        peak = max(record["cost"]["peak_memory_bytes"] for record in mine)
        median = statistics.median(seconds)
        time = f"{median:.1f} s" if median >= 0.1 else f"{1000 * median:.0f} ms"
        rows.append([name, f"{len(mine):,}", time, clock(sum(seconds)), f"{peak / 2**30:.1f}"])
    head = ["Method", "Runs", "Median", "Sum", "GiB"]
    return {"table-compute": booktabs_rows(head, rows, "lrrrr")}


def of_exports(folder: Path) -> dict[str, str]:
    """Tables of a column's width, made of wider exports; those whose export is there."""
    found = {"table-accuracy": _accuracy(rows_of(folder, "figures/08_few_shot/accuracy_by_shots"))}
    for name, export, keep, columns, align in COLUMNS:
        rows = [row for row in rows_of(folder, export) if keep(row)]
        cells = [[show(row) for show in columns.values()] for row in rows]
        found[name] = booktabs_rows(list(columns), cells, align) if cells else ""
    return {name: latex for name, latex in found.items() if latex}


def _accuracy(rows: list[dict[str, str]]) -> str:
    """Mean accuracy over sets by method and shots, with half of its 95% interval."""
    rows = [row for row in rows if row["dataset"] == AVERAGE]
    shots = sorted({int(row["shots"]) for row in rows})
    cells = {(row["method_label"], int(row["shots"])): row for row in rows}
    lines = []
    for label in dict.fromkeys(row["method_label"] for row in rows):
        mine = [cells.get((label, k)) for k in shots]
        lines.append([label, *(_with_half(row) if row else "–" for row in mine)])
    return booktabs_rows(["", *map(str, shots)], lines, "l" + "r" * len(shots)) if rows else ""


def _with_half(row: Mapping[str, str]) -> str:
    if not row["low"]:
        return f"{float(row['mean']):.1f}"
    half = (float(row["high"]) - float(row["low"])) / 2
    return f"{float(row['mean']):.1f} ± {half:.1f}"


def _text(name: str) -> Callable[[dict[str, str]], str]:
    return lambda row: NAMES.get(row[name], row[name].replace("_", " "))


def _number(name: str, form: str = ",.0f") -> Callable[[dict[str, str]], str]:
    return lambda row: format(float(row[name]), form) if row[name] else "–"


def _interval(mean: str, low: str, high: str, form: str) -> Callable[[dict[str, str]], str]:
    def show(row: dict[str, str]) -> str:
        middle, *ends = (format(float(row[name]), form) for name in (mean, low, high))
        return f"{middle} [{', '.join(ends)}]"

    return show


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


NAMES = {
    "lora": "LoRA",
    "block_lora": "Block-LoRA",
    "frozen_a": "w/o A",
    "dense": "LoRA, BA formed",
    "low_rank": "LoRA, (xA)B",
    "low_rank_plain": "LoRA, (xA)B, plain",
    "sum_first": "Block-LoRA",
    "sum_first_plain": "Block-LoRA, plain",
    "loop": "Block-LoRA, loop",
    "frozen": "no adapter",
}
Row = dict[str, str]
Show = Callable[[Row], str]
COLUMNS: tuple[tuple[str, str, Callable[[Row], bool], dict[str, Show], str], ...] = (
    (
        "table-differences",
        "tables/08_few_shot/paired_differences",
        lambda row: row["comparison"].startswith("Block-LoRA"),
        {
            "Comparison": _text("comparison"),
            "Shots": _number("shots"),
            "Points": _interval("difference (points)", "low", "high", "+.1f"),
            "p": lambda row: _p_value(float(row["p"] or "nan")),
        },
        "lrrr",
    ),
    (
        "table-steps",
        "tables/04_time/training_step",
        lambda row: row["form"] != row["baseline"],
        {
            "Step with": _text("form"),
            "Over": _text("baseline"),
            "Ratio": _interval("ratio", "ratio_low", "ratio_high", ".2f"),
        },
        "llr",
    ),
    (
        "table-parameters",
        "tables/03_counts/adapter_parameters",
        lambda row: "ViT-B-16" in row["model"],
        {
            "Form": _text("form"),
            "Reading": _text("reading"),
            "r": _number("rank"),
            "n": _number("n_blocks"),
            "Trained": _number("counted"),
        },
        "llrrr",
    ),
    (
        "table-budgets",
        "tables/17_comparison/budgets",
        lambda row: True,
        {
            "Method": _text("method"),
            "Top-1": _number("accuracy (%)", ".1f"),
            "Updates": _number("updates"),
            "Trained": _number("trained parameters"),
            "Seconds": _number("seconds", ",.2f"),
        },
        "lrrrr",
    ),
    (
        "table-occam",
        "tables/07_nonvacuous_bound/occam",
        lambda row: True,
        {
            "Set": _text("dataset"),
            "Setting": _text("setting"),
            "Bits": _number("bits"),
            "Bound": _number("bound", ".3f"),
            "Universal": _number("universal", ".3f"),
            "Test": _number("test_error", ".3f"),
        },
        "llrrrr",
    ),
)
