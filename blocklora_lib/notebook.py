"""What a notebook needs besides its subject (profile, records, exports, claims), and how one is executed.

nb = Notebook("05_few_shot", profile, results_dir)
nb.figure(accuracy_by_shots(runs), "accuracy_by_shots", data=summary, caption="...")
nb.claim("E1", "accuracy rises with shots on average", holds, "34.1 -> 58.2", kind="empirical")
nb.finish()
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from .data.roots import VARIABLE as DATA_VARIABLE
from .files import holds_none, remove, user_path, write_whole
from .parameters import check_parameters, injected_parameters, read_notebook
from .paths import NOTEBOOKS, ROOT
from .plain_data import read_json
from .plotting import save_figure
from .profiles import Profile, is_file_name, load_profile
from .results import experiment_runs, results_folder
from .runs import RunStore
from .strict import near
from .tables import Table, plain, to_html

if TYPE_CHECKING:
    import torch

Kind = Literal["structural", "empirical", "published"]
VERDICTS = {  # what a claim's `holds` means, in words; None: not checked in this run
    "structural": {True: "holds", False: "fails", None: "not run"},
    "empirical": {True: "reproduced", False: "not reproduced", None: "not run"},
    "published": {True: "reproduced", False: "not reproduced", None: "not run"},
}


FIELDS = ("Question", "Reproduces", "Runtime", "Needs")  # what every notebook's title cell states


class ClaimFailed(AssertionError):
    """A structural claim (an equality, a count, arithmetic) does not hold.  Raised after all outputs are
    saved.
    """


class NotebookFailed(RuntimeError):
    """A cell raised.  The message names the notebook, the cell, the error and the executed copy."""


def profile_note(profile: Profile) -> str | None:
    """Return the line that every figure of this profile carries; None if its numbers may stand beside
    published ones.
    """
    if profile.published:
        return None
    name, pretrained = profile.backbone.name, profile.backbone.pretrained
    known = {"bundled": f"a small CLIP ({name}) on small images", "none": f"{name} with random weights"}
    return f"{profile.name} profile: {known.get(pretrained, name)}; not the paper's numbers"


class Notebook:
    """One notebook's exports.  Files: results/<profile>/{figures,tables}/<notebook>/,
    notebooks/<notebook>.json.
    """

    def __init__(self, name: str, profile: str, results_dir: str = "") -> None:
        self.name = name
        check_parameters(NOTEBOOKS / f"{name}.ipynb", injected_parameters(), typed=True)
        self.profile = load_profile(profile)
        self.folder = results_folder(self.profile, results_dir)
        self.note = profile_note(self.profile)
        self.store = RunStore(self.folder / "runs")
        RunStore(self.folder / "notebooks").check_writable()
        self._remarks: list[str] = []
        self._index: dict[str, Any] = {
            "notebook": name,
            "profile": self.profile.name,
            "note": self.note,
            "figures": [],
            "tables": [],
            "claims": [],
        }

    @property
    def device(self) -> torch.device:
        """Where the notebook computes: the profile's device ."""
        from .devices import profile_device

        return profile_device(self.profile.device)

    def runs(self, experiment: str = "few_shot", partial: bool = False) -> pd.DataFrame:
        """Return an experiment's finished runs, see `results.experiment_runs`; missing ones are refused
        unless
        `partial`.

        What sets the records apart from each other, or from this library, is shown once a notebook.
        """
        runs = experiment_runs(self.profile, self.store, experiment, partial)
        for line in runs.attrs["remarks"]:
            if line not in self._remarks:
                self._remarks.append(line)
                _display_html(f"<div class='export'><b>Note.</b> {html.escape(line)}</div>")
        return runs

    def figure(
        self, figure: Figure, name: str, data: pd.DataFrame, caption: str, note: str | None = None
    ) -> None:
        """Save the figure as PDF, PNG and the CSV that it plots, and show it with its caption.

        note: the line below it, where it shows something else than this profile's results.
        """
        stem = self.folder / "figures" / self.name / name
        files = save_figure(figure, stem, note or self.note)
        files.append(self._csv(data, stem))
        self._add("figures", name, caption, files, width=round(float(figure.get_size_inches()[0]), 3))
        _display_figure(files[1], figure.get_size_inches()[0], caption)

    def table(self, table: Table | pd.DataFrame, name: str, caption: str) -> None:
        """Save the table as tidy CSV and as a LaTeX tabular (booktabs), and show it with its caption."""
        table = table if isinstance(table, Table) else plain(table)
        stem = self.folder / "tables" / self.name / name
        files = [self._csv(table.tidy, stem), stem.with_suffix(".tex")]
        write_whole(files[1], (f"% {self.note}\n" if self.note else "") + table.latex)
        shown = to_html(table.shown)
        self._add("tables", name, caption, files, html=shown)
        _display_html(f"<div class='export'><b>Table.</b> {caption}{shown}</div>")

    def claim(
        self,
        id: str,
        statement: str,
        holds: bool | None,
        evidence: str,
        kind: Kind = "structural",
        undecided: bool = False,
    ) -> None:
        """Note a claim with its verdict.  holds None: not run, or, if `undecided`, run and not resolved.

        kind 'structural': must hold, or `finish` raises.  'empirical': about what is seen on this profile.
        'published': a published number, which only a profile that says `published: true` may confirm.
        """
        if kind not in VERDICTS:
            raise ValueError(f"kind={kind!r} of claim {id}; use one of {', '.join(VERDICTS)}")
        if id in [c["id"] for c in self._index["claims"]]:
            raise ValueError(f"claim {id} is made twice in {self.name}; give each its own id")
        holds = None if holds is None or (kind == "published" and self.note) else bool(holds)
        self._index["claims"].append(
            {
                "id": id,
                "statement": statement,
                "kind": kind,
                "holds": holds,
                "verdict": "not resolved" if holds is None and undecided else VERDICTS[kind][holds],
                "evidence": str(evidence),
            }
        )

    def finish(self) -> None:
        """Write the index of exports and claims, show the claims, and only then raise for a failed structural
        one.
        """
        path = self.folder / "notebooks" / f"{self.name}.json"
        write_whole(path, json.dumps(self._index, indent=1, ensure_ascii=False) + "\n")
        claims = self._index["claims"]
        if claims:
            _display_html(to_html(pd.DataFrame(claims)[["id", "statement", "verdict", "evidence"]]))
        failed = [c for c in claims if c["kind"] == "structural" and c["holds"] is False]
        if failed:
            raise ClaimFailed(
                "; ".join(f"{c['id']} fails: {c['statement']} ({c['evidence']})" for c in failed)
            )

    def _csv(self, data: pd.DataFrame, stem: Path) -> Path:
        stem.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(stem.with_name(f"{stem.name}.csv"), data.to_csv(index=False, lineterminator="\n"))

    def _add(self, what: str, name: str, caption: str, files: list[Path], **more: Any) -> None:
        if name in [entry["name"] for entry in self._index[what]]:
            raise ValueError(f"{self.name} exports two {what} named {name!r}; give each its own name")
        relative = [str(path.relative_to(self.folder)) for path in files]
        self._index[what].append({"name": name, "caption": caption, "files": relative, **more})


def read_indexes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the finished notebooks' exports and claims, by notebook."""
    return {path.stem: _read_index(path) for path in sorted((folder / "notebooks").glob("[!.]*.json"))}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = read_json(path)
        for what, more in (("figures", "width"), ("tables", "html")):
            for entry in index[what]:
                entry["name"], entry["caption"], entry[more], [Path(file) for file in entry["files"]]
        for figure in index["figures"]:
            if not (float(figure["width"]) > 0 and any(file.endswith(".png") for file in figure["files"])):
                raise ValueError(f"figure {figure['name']} has no size or no PNG")
        known = {"not resolved", *(word for words in VERDICTS.values() for word in words.values())}
        for claim in index["claims"]:
            claim["id"], claim["statement"], claim["evidence"], claim["kind"]
            if claim["verdict"] not in known:
                raise ValueError(f"claim {claim['id']} has the verdict {claim['verdict']!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is damaged ({what}); delete it, and execute notebook {path.stem} again"
        ) from None
    return index


def drop_damaged_indexes(folder: Path) -> list[Path]:
    """Delete the indexes of notebooks that cannot be read, and return them.

    Their executed copies and the report go too: by these the engine sees what it has to make again.
    """
    dropped = []
    for path in sorted((folder / "notebooks").glob("[!.]*.json")):
        try:
            _read_index(path)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and not holds_none(error):
                raise
            for stale in (path, path.with_suffix(".ipynb"), folder / "report.html"):
                remove(stale)
            dropped.append(path)
    return dropped


def notebook_names(folder: Path = NOTEBOOKS) -> tuple[str, ...]:
    """Names of all notebooks, in order.  A folder without one is an error, not an empty list."""
    names = tuple(sorted(p.stem for p in folder.glob("[0-9]*.ipynb")))
    if not names:
        raise FileNotFoundError(f"no notebook ([0-9]*.ipynb) in {folder}; restore the folder")
    return names


def heading(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Return what the title cell says: 'Title', and the text after **Question.**, **Reproduces.**, ... by its
    name.
    """
    title, *fields = re.split(r"\*\*(\w+)[.:]\*\*|\*\*(\w+)\*\*[.:]", "".join(notebook["cells"][0]["source"]))
    names = [a or b for a, b in zip(fields[0::3], fields[1::3], strict=True)]
    texts = {
        name: " ".join(text.replace("`", "").split()).rstrip("-* ")
        for name, text in zip(names, fields[2::3], strict=True)
    }
    return {"Title": title.strip().lstrip("# "), **{n: texts.get(n, "") for n in FIELDS}}


def notebook_needs(name: str, folder: Path = NOTEBOOKS) -> dict[str, Any]:
    """Return what a notebook's metadata says of its place in the suite.

    'experiments': grids of runs that it waits for; 'notebooks': notebooks that it reads; 'last': it waits for
    all others; 'alone': it measures time, so nothing else may run beside it.
    """
    about = read_notebook(folder / f"{name}.ipynb")["metadata"].get("blocklora", {})
    known = {"experiments": [], "notebooks": [], "last": False, "alone": False}
    for key in about:
        if key not in known:
            raise ValueError(f"metadata of notebook {name}: unknown key blocklora.{key}; {near(key, known)}")
    for other in about.get("notebooks", []):
        if not (folder / f"{other}.ipynb").is_file():
            raise ValueError(f"metadata of notebook {name}: no notebook {other!r} to wait for in {folder}")
    return known | about


def choose_notebooks(wanted: str = "", folder: Path = NOTEBOOKS) -> tuple[str, ...]:
    """Return the notebooks named in `wanted` (blanks or commas between them; '' means all), in order."""
    names, chosen = notebook_names(folder), wanted.replace(",", " ").split()
    for name in chosen:
        if name not in names:
            raise ValueError(f"unknown notebook {name!r}; {near(name, names)}")
    return tuple(name for name in names if name in chosen) if chosen else names


def run_notebook(
    name: str,
    profile: str = "pocket",
    parameters: Mapping[str, Any] | None = None,
    results: str | Path = "",
    *,
    verbose: bool = True,
) -> Path:
    """Execute notebook `name` through papermill and return its copy, <results>/notebooks/<name>.ipynb.

    Unknown parameters and wrong types are refused first.  A failed notebook leaves its copy, up to and with
    the cell that raised, as <name>.failed.ipynb.
    """
    if len(chosen := choose_notebooks(name)) != 1:
        raise ValueError(f"{name!r} names {len(chosen)} notebooks; name one: {', '.join(chosen)}")
    (name,) = chosen
    given = {"profile": profile, "results_dir": str(results), **(parameters or {})}
    given = check_parameters(NOTEBOOKS / f"{name}.ipynb", given)
    # paths are of the folder where this was called; the kernel works in another one
    if is_file_name(given["profile"]):
        given["profile"] = str(user_path(given["profile"]))
    if given["results_dir"]:
        given["results_dir"] = str(user_path(given["results_dir"]))
    if os.environ.get(DATA_VARIABLE):
        os.environ[DATA_VARIABLE] = str(user_path(os.environ[DATA_VARIABLE]))
    folder = results_folder(load_profile(given["profile"]), given["results_dir"]) / "notebooks"
    RunStore(folder).check_writable()
    done, failed = folder / f"{name}.ipynb", folder / f"{name}.failed.ipynb"

    import papermill  # slow to import: after all that can be refused has been

    # No network and one thread a process, unless the caller says otherwise: no result may depend on either.
    for variable in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PYDEVD_DISABLE_FILE_VALIDATION"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # bars are text here, not widgets
    start = time.monotonic()
    if verbose:
        print(f"notebook {name} (profile {given['profile']}) ...", file=sys.stderr, flush=True)
    # papermill writes after every cell: the copy gets its name when it is whole
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as place:
        running = Path(place, done.name)
        try:
            papermill.execute_notebook(
                NOTEBOOKS / f"{name}.ipynb",
                running,
                parameters=given,
                kernel_name="python3",
                cwd=ROOT,
                progress_bar=False,
                start_timeout=300,
                extra_arguments=["--log-level=ERROR"],
                stderr_file=sys.stderr if verbose else None,
            )
            os.replace(running, done)
            failed.unlink(missing_ok=True)
        except papermill.PapermillExecutionError as error:
            os.replace(running, failed)
            what = " ".join(str(error.evalue).split())
            raise NotebookFailed(
                f"notebook {name}, cell {error.exec_count}: {error.ename}: {what} (executed copy: {failed})"
            ) from None
        except KeyError as error:  # NoSuchKernel is one
            raise NotebookFailed(
                f"notebook {name} has no kernel to run in: {error}; install it with "
                f"`{sys.executable} -m ipykernel install --sys-prefix --name python3`"
            ) from None
    if verbose:
        print(f"notebook {name} done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return done


def _display_figure(png: Path, width: float, caption: str) -> None:
    from IPython.display import HTML, Image, display

    display(Image(data=png.read_bytes(), width=round(96 * float(width)), alt=caption))
    display(HTML(f"<div class='export'><b>Figure.</b> {caption}</div>"))


def _display_html(text: str) -> None:
    from IPython.display import HTML, display

    display(HTML(text))
