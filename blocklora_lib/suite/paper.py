"""`make paper`: what the reproduction report takes from a results folder, as LaTeX.

Every number of the report is a value of numbers.tex, whose line names its source. The folder's
records, scoreboard and exports are read; nothing is computed again and nothing typed. What a folder
lacks the report says to be missing.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..claims.verdict import CONFIRMED, CONTRADICTED, NOT_RUN, OPEN, stem
from ..core.durations import clock
from ..core.files import read_bytes, read_text, write_whole
from ..core.json_data import read_json, undamaged
from ..core.paths import PUBLISHED, ROOT
from ..display.venues import VENUES, booktabs_rows, prose
from ..runs.results import counted, judged
from ..runs.store import RunStore
from .export import exports
from .paper_tables import Facts, of_exports, of_runs, rows_of
from .reference import REFERENCE, TIMINGS

SOURCES = ROOT / "paper"
STEMS = (CONFIRMED, CONTRADICTED, OPEN, NOT_RUN)  # as report.sty's \bystem has them
VIT = "ViT-B/16"
WRITTEN = "% written by `blocklora paper`"  # how numbers.tex begins, and so a report is known
_ID = re.compile(r"[A-Z][A-Za-z0-9.]*")
_ROW = ("id", "claim", "verdict", "but", "evidence", "source", "cell")


class Numbers:
    """The report's values: each once, with where it comes from."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, str]] = {}

    def add(self, name: str, value: object, source: str) -> None:
        """Add a value as it is to be read."""
        if name in self.values:
            raise ValueError(f"two values are called {name}; give each its own name")
        self.values[name] = (f"{value:,}" if isinstance(value, int) else str(value), source)

    def latex(self) -> str:
        """Return numbers.tex."""
        lines = [f"{WRITTEN}: values, each with its source"]
        for name, (value, source) in self.values.items():
            lines.append(rf"\definevalue{{{name}}}{{{prose(value)}}}% {source}")
        return "\n".join(lines) + "\n"


def write_inputs(folder: Path, to: Path) -> list[str]:
    """Write the report's sources, numbers, tables and figures into `to`; return what is wrong with
    records that are left out.

    MissingResults where none of them can be counted. What an earlier report of another folder wrote
    there is removed: what this one lacks is to be said to be missing. ValueError for a folder of
    anything else.
    """
    mine = to / "numbers.tex"
    known = mine.is_file() and read_text(mine).startswith(WRITTEN)
    if to.is_dir() and any(to.iterdir()) and not known:
        raise ValueError(
            f"{to} has files, and they are not those of a report, over which this one may be "
            "written; name a new folder"
        )
    board = scoreboard(folder)
    store = RunStore(folder / "runs")
    records, damaged = counted(store, folder)
    floats = exports(folder)
    numbers = Numbers()
    of_claims(numbers, board)
    with judged(store):
        of_records(numbers, records)
        parts = {**_of_board(board), **of_runs(records)}
    of_tables(numbers, folder)
    if folder.resolve() == (REFERENCE / board["profile"]).resolve():
        of_machine(numbers, board["profile"])
    to.mkdir(parents=True, exist_ok=True)
    write_whole(mine, numbers.latex())  # first: by it the folder is known
    for path in [*to.glob("table-*.tex"), *to.glob("figures/*-*.pdf"), *to.glob("figures/*-*.tex")]:
        path.unlink()
    for path in sorted(SOURCES.glob("*.*")):
        shutil.copy(path, to)
    for name, latex in {**parts, **of_exports(folder)}.items():
        write_whole(to / f"{name}.tex", latex)
    (to / "figures").mkdir(exist_ok=True)
    for name, one in floats.items():
        if name.startswith("figures/"):
            pdf = read_bytes(one.stem.with_suffix(".pdf"))
            write_whole(to / "figures" / f"{_flat(one.name)}.pdf", pdf)
            write_whole(
                to / "figures" / f"{_flat(one.name)}.tex",
                one.latex(VENUES["icml"], f"figures/{_flat(one.name)}.pdf"),
            )
    return [str(error) for error in damaged]


def _flat(name: str) -> str:
    return name.replace("/", "-")


def scoreboard(folder: Path) -> Facts:
    """Return the folder's claims.json."""
    path = folder / "claims.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no claims.json, the verdicts that the report tells; notebook 16_claims "
            "writes it, and results/reference/pocket-full has one"
        )
    with undamaged(str(path), "delete it and execute notebook 16_claims again"):
        board: Facts = read_json(path)
        for row in board["claims"]:
            words = [row[name] for name in _ROW]
            if not all(isinstance(word, str) for word in words):
                raise ValueError(f"a claim has {words}, which are not all texts")
            if not _ID.fullmatch(row["id"]):  # it becomes the name of a value
                raise ValueError(f"{row['id']!r} is no id of a claim")
            stem(row["verdict"])
        str.strip(board["profile"]), str.strip(board["caution"])
    return board


def of_claims(numbers: Numbers, board: Facts) -> None:
    """Add every claim's words, and how many verdicts there are of each kind."""
    rows = board["claims"]
    stems = [stem(row["verdict"]) for row in rows]
    numbers.add("profile", board["profile"], "claims.json: profile")
    numbers.add("claims", len(rows), "claims.json: number of claims")
    for word in STEMS:
        name = f"claims.{word.replace(' ', '')}"
        numbers.add(name, stems.count(word), f"claims.json: verdicts '{word}'")
    decided = stems.count(CONFIRMED) + stems.count(CONTRADICTED)
    numbers.add("claims.decided", decided, "claims.json: verdicts that decide")
    numbers.add("caution", board["caution"], "claims.json: caution")
    for row, found in zip(rows, stems, strict=True):
        for part in ("claim", "verdict", "but", "evidence"):
            numbers.add(f"{part}.{row['id']}", row[part], f"claims.json: {row['id']}, {part}")
        numbers.add(f"stem.{row['id']}", STEMS.index(found), f"claims.json: {row['id']}, verdict")


def of_records(numbers: Numbers, records: Sequence[Facts]) -> None:
    """Add what the runs were."""
    done = [record for record in records if record["status"] == "done"]
    specs = [record["spec"] for record in done]
    told = "runs: "
    numbers.add("runs", len(done), f"{told}those done")
    numbers.add("runs.failed", len(records) - len(done), f"{told}those failed")
    sets = {spec["dataset"] for spec in specs}
    numbers.add("runs.sets", len(sets), f"{told}different training sets")
    shots = sorted({spec["shots"] for spec in specs} - {0})
    if shots:
        numbers.add("shots", _listed(shots), f"{told}different shots")
        numbers.add("shots.most", max(shots), f"{told}largest number of shots")
        numbers.add("shots.fewest", min(shots), f"{told}smallest number of shots")
    numbers.add("seeds", len({s["seed"] for s in specs} - {0}), f"{told}different seeds")
    methods = {spec["method"]["name"] for spec in specs}
    numbers.add("runs.methods", len(methods), f"{told}different methods")
    counts = [c for r in done for c in r["result"]["accuracy"].values()]
    numbers.add("answers", sum(c["total"] for c in counts), f"{told}test answers of all")
    seconds = sum(sum(r["cost"]["seconds"].values()) for r in done if r["cost"])
    numbers.add("runs.time", clock(seconds), f"{told}sum of seconds of all phases")
    peak = max((r["cost"]["peak_memory_bytes"] for r in done if r["cost"]), default=0)
    numbers.add("runs.peak", f"{peak / 2**30:.1f} GiB", f"{told}largest peak of memory")
    numbers.add("backbone", _listed({s["backbone"]["name"] for s in specs}), f"{told}backbone")
    for name in ("device", "threads", "resolution"):
        values = {r["provenance"].get(name, "unknown") for r in done}
        numbers.add(f"runs.{name}", _listed(values), f"{told}provenance, {name}")
    for name in ("python", "torch", "open_clip_torch", "numpy", "blocklora"):
        values = {r["provenance"].get("versions", {}).get(name, "unknown") for r in done}
        numbers.add(f"version.{name}", _listed(values), f"{told}provenance, versions")


def _listed(values: Iterable[Any]) -> str:
    texts = [str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v))]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]])) if texts else "none"


def of_tables(numbers: Numbers, folder: Path) -> None:
    """Add single values of exported tables."""
    name = "tables/03_counts/adapter_parameters"
    rows = [row for row in rows_of(folder, name) if "ViT-B-16" in row["model"]]
    wanted = {"lora": ("lora", "1"), "block": ("block_lora", "2")}
    for key, (form, blocks) in wanted.items():
        for row in rows:
            if (row["form"], row["n_blocks"], row["rank"]) == (form, blocks, "2") and (
                row["reading"] == "total_rank" and f"parameters.{key}" not in numbers.values
            ):
                numbers.add(f"parameters.{key}", int(row["counted"]), f"{name}.csv")
    name = "tables/13_theorem/trajectories"
    if rows := rows_of(folder, name):
        worst = max(float(row["max_relative_difference"]) for row in rows)
        numbers.add("theorem.worst", f"{worst:.1e}", f"{name}.csv: largest difference")
        numbers.add("theorem.cases", len(rows), f"{name}.csv: rows")
    name = "tables/14_where_it_breaks/breaks"
    if rows := rows_of(folder, name):
        numbers.add("breaks.cases", len(rows), f"{name}.csv: rows")
        leaves = sum(row["expected"] == "leaves" for row in rows)
        numbers.add("breaks.leaves", leaves, f"{name}.csv: rows expected to leave")
    name = "tables/14_where_it_breaks/thresholds"
    if ratios := [float(row["ratio"]) for row in rows_of(folder, name) if row["ratio"]]:
        numbers.add("collapse.cases", len(ratios), f"{name}.csv: rows that lost half of the gain")
        numbers.add("collapse.least", f"{min(ratios):.1f}", f"{name}.csv: smallest ratio")
        numbers.add("collapse.most", f"{max(ratios):.1f}", f"{name}.csv: largest ratio")
    name = "figures/06_generalization_bound/bounds"
    if rows := rows_of(folder, name):
        numbers.add("bounds", len(rows), f"{name}.csv: rows")
        numbers.add(
            "bounds.vacuous",
            sum(row["vacuous"] == "True" for row in rows),
            f"{name}.csv: rows that are vacuous",
        )
    rows = list(csv.DictReader(io.StringIO(read_text(PUBLISHED))))
    numbers.add("published", len(rows), "published/results.csv: rows")
    methods = len({row["method"] for row in rows})
    numbers.add("published.methods", methods, "published/results.csv: different methods")


def of_machine(numbers: Numbers, profile: str) -> None:
    """Add what the reference run's notebooks took, where timings of this profile are kept."""
    rows = [r for r in csv.DictReader(io.StringIO(read_text(TIMINGS))) if r["profile"] == profile]
    rows = [r for r in rows if r["machine"] == rows[-1]["machine"]]  # the last that was kept
    if rows:
        source = f"results/reference/timings.csv: {profile}"
        numbers.add("machine", rows[0]["machine"], source)
        numbers.add("machine.cores", int(rows[0]["cores"]), source)
        numbers.add("notebooks", len(rows), f"{source}, rows")
        total = sum(float(row["seconds"]) for row in rows)
        numbers.add("notebooks.time", clock(total), f"{source}, sum of seconds")


def _of_board(board: Facts) -> dict[str, str]:
    """The scoreboard as a table, and the judges' sentences on claims that the text passes over."""
    told = "".join(read_text(path) for path in SOURCES.glob("*.tex"))
    rows, rest = [], []
    for row in board["claims"]:
        verdict = f"{row['verdict']}, {row['but']}" if row["but"] else row["verdict"]
        notebook = row["cell"].partition(".ipynb")[0]
        rows.append([row["id"], row["claim"], verdict, row["source"].partition(",")[0], notebook])
        if rf"\judge{{{row['id']}}}" not in told:
            rest.append(rf"\judge{{{row['id']}}}")
    heading = [r"\subsection{Other claims}"] if rest else []
    wide = r"l>{\raggedright\arraybackslash}p{0.40\linewidth}"
    wide += r">{\raggedright\arraybackslash}p{0.22\linewidth}ll"
    head = ["", "Claim", "Verdict", "Source", "Notebook"]
    return {
        "table-scoreboard": booktabs_rows(head, rows, wide),
        "sentences": "\n".join([*heading, *rest]) + "\n",
    }
