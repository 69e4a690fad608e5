"""`make reference`: keep a run of the suite in the repository, small and readable on the web.

A reference run is one Parquet of records, its figures and tables, and what it took, in
results/reference. Of the one that README.md shows, the executed notebooks stand in docs/notebooks.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from ..claims.claim import judge
from ..claims.evidence import Evidence
from ..claims.paper_claims import CLAIMS
from ..claims.scoreboard import as_json
from ..claims.scoreboard import write_into as write_claims
from ..core.durations import clock
from ..core.files import read_text, write_between, write_whole
from ..core.machine import processor_name, usable_cpus
from ..core.paths import DOCS, RESULTS, ROOT
from ..data.manifest_files import manifest_names
from ..runs.grid import expand
from ..runs.profile import Profile
from ..runs.profile_files import load_profile
from ..runs.results import results_folder
from ..runs.store import RunStore
from .catalogue import notebook_names, notebook_needs

SHOWN = "pocket-full"  # the profile whose reference run README.md shows
REFERENCE = RESULTS / "reference"
TIMINGS = REFERENCE / "timings.csv"
COPIES = DOCS / "notebooks"
LIMIT = 8 * 10**6  # bytes of all executed copies together, which every clone has to fetch
COLOURS = 256  # of a figure's copy; its CSV, PDF and full PNG stand beside the reference run
MARKERS = ("<!-- timings: written by `make reference` -->", "<!-- end of timings -->")


def keep(profile: str, results: str | Path = "") -> Path:
    """Keep the results of a profile as its reference run; return the folder.

    Raises FileNotFoundError where a part is missing, before anything is written, and DamagedRecord
    where a record is.
    """
    settings = load_profile(profile)
    folder, place = results_folder(settings, results), REFERENCE / settings.name
    executed = {name: folder / "notebooks" / f"{name}.ipynb" for name in notebook_names()}
    indexes = [path.with_suffix(".json") for path in executed.values()]
    for path in (folder / "figures", folder / "tables", *executed.values(), *indexes):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing; say `make reproduce PROFILE={profile}` first"
            )
    copies = {name: readable(nbformat.read(path, 4), folder) for name, path in executed.items()}
    store, named = RunStore(folder / "runs"), set(manifest_names())
    rows = timings(settings, executed, store)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REFERENCE, prefix=".") as new:
        # not those of one's own images, which nobody else has
        specs = [record.spec for record in store.records() if record.spec.dataset in named]
        store.pack(Path(new, "runs.parquet"), specs)
        for part in ("figures", "tables"):
            shutil.copytree(folder / part, Path(new, part))
        Path(new, "notebooks").mkdir()
        for path in indexes:  # of which claims, exports and the report are made
            shutil.copy(path, Path(new, "notebooks"))
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(new, place)
    write_whole(TIMINGS, _merged(rows))
    write_between(ROOT / "README.md", MARKERS, as_markdown(read_timings()))
    if settings.name == SHOWN:
        _show(place, copies)
    write_scoreboard(settings)
    return place


def write_scoreboard(profile: Profile) -> None:
    """Judge every claim by the reference run of a profile: claims.json, and README's summary of the
    one shown.
    """
    place = REFERENCE / profile.name
    judged = judge(CLAIMS, Evidence(profile, place))
    write_whole(place / "claims.json", as_json(judged, profile))
    if profile.name == SHOWN:
        write_claims(ROOT / "README.md", judged)


def _show(place: Path, copies: Mapping[str, nbformat.NotebookNode]) -> None:
    """Write what README.md and the site show of a reference run."""
    texts = {name: nbformat.writes(copy) + "\n" for name, copy in copies.items()}
    if (size := sum(len(text.encode()) for text in texts.values())) > LIMIT:
        raise ValueError(f"the notebooks have {size:,} bytes of {LIMIT:,}; make figures smaller")
    shutil.rmtree(COPIES, ignore_errors=True)
    COPIES.mkdir(parents=True)
    for name, text in texts.items():
        write_whole(COPIES / f"{name}.ipynb", text)
    shutil.copy(place / "figures" / "00_overview" / "key_figure.png", DOCS / "few_shot.png")


def readable(notebook: nbformat.NotebookNode, results: Path) -> nbformat.NotebookNode:
    """Return a copy for the web: no bars, no times and paths of the machine, small figures.

    results: where it was run; the parameter that says so is given as its default, ''.
    """
    copy = nbformat.from_dict(notebook)
    copy.metadata.pop("papermill", None)
    for cell in copy.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        cell.source = cell.source.replace(str(results), "")
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return copy


def _smaller(png: str) -> str:
    """Return a PNG (base64) of a palette, or the one given where that is no smaller."""
    image, content = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return min(base64.b64encode(content.getvalue()).decode(), png, key=len)


def timings(
    profile: Profile, executed: Mapping[str, Path], store: RunStore
) -> list[dict[str, Any]]:
    """One row a notebook: its own seconds, and those of the runs that it waits for.

    A run that two notebooks wait for counts for both. Seconds of runs are sums over runs: where
    jobs ran side by side, the clock showed less.
    """
    seconds = {r.key: sum(r.cost.seconds.values()) for r in store.records("done") if r.cost}
    rows = []
    for name, path in executed.items():
        wanted = {*notebook_needs(name)["experiments"]} & {*profile.experiments}
        keys = {spec.key for experiment in wanted for spec in expand(profile, experiment)}
        own = nbformat.read(path, 4).metadata.papermill.duration
        rows.append(
            {
                "machine": processor_name(),
                "cores": usable_cpus(),
                "threads": os.environ.get("OMP_NUM_THREADS", "1"),  # as execution.py sets them
                "profile": profile.name,
                "notebook": name,
                "seconds": round(own, 1),
                "runs": len(keys & seconds.keys()),
                "seconds_runs": round(sum(seconds[key] for key in keys & seconds.keys()), 1),
            }
        )
    return rows


def read_timings() -> list[dict[str, str]]:
    """Return the rows of all machines and profiles, none where nothing was kept yet."""
    return list(csv.DictReader(io.StringIO(read_text(TIMINGS)))) if TIMINGS.is_file() else []


def _merged(rows: list[dict[str, Any]]) -> str:
    """The table with these rows instead of earlier ones of the same machine and profile."""
    kept = [row for row in read_timings() if _column(row) != _column(rows[0])]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    return out.getvalue()


def _column(row: Mapping[str, Any]) -> str:
    s = "s" * (str(row["threads"]) != "1")
    return f"{row['profile']}: {row['machine']}, {row['cores']} cores, {row['threads']} thread{s}"


def as_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """One row a notebook, one column a profile and machine: the runs that it waits for + itself."""
    rows = list(rows)
    columns = list(dict.fromkeys(map(_column, rows)))
    cells = {(row["notebook"], _column(row)): _duration(row) for row in rows}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in sorted({row["notebook"] for row in rows}):
        shown = (cells.get((name, column), "–") for column in columns)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _duration(row: Mapping[str, Any]) -> str:
    own, runs = float(row["seconds"]), float(row["seconds_runs"])
    return f"{clock(runs)} + {clock(own)}" if runs else clock(own)
