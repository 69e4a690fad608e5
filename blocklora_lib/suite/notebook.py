"""What a notebook needs besides its subject: profile, records, exports and claims.

nb = Notebook("08_few_shot", profile, results_dir, shots=shots)
nb.figure(accuracy_by_shots(summary), "accuracy_by_shots", data=summary, caption="...")
nb.claim("F2", "accuracy rises with shots", holds, "34.1 -> 58.2", kind="empirical")
nb.finish()
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from ..core.files import write_whole
from ..core.paths import NOTEBOOKS
from ..display.style import save_figure
from ..display.tables import Table, plain, to_html
from ..runs.experiment import RATES
from ..runs.grid import expand
from ..runs.packed import SUFFIX
from ..runs.profile import Profile
from ..runs.profile_files import load_profile, rates_file
from ..runs.results import experiment_runs, results_folder
from ..runs.spec import RunSpec
from ..runs.store import DamagedRecord, RunStore
from .catalogue import VERDICTS, notebook_needs
from .parameter_cell import check_parameters, injected_parameters
from .variant import as_given, place, vary

if TYPE_CHECKING:
    import torch

Kind = Literal["structural", "empirical", "published"]


class ClaimFailed(AssertionError):
    """A structural claim (an equality, a count, arithmetic) does not hold. Raised after all outputs
    are saved.
    """


def profile_note(profile: Profile) -> str | None:
    """Return the line that every figure of this profile carries; None if its numbers may stand
    beside published ones.
    """
    if profile.published:
        return None
    name, pretrained = profile.backbone.name, profile.backbone.pretrained
    known = {
        "bundled": f"a small CLIP ({name}) on small images",
        "none": f"{name} with random weights",
    }
    return f"{profile.name} profile: {known.get(pretrained, name)}; not the paper's numbers"


class Notebook:
    """One notebook's exports: {figures,tables}/<notebook>/ and notebooks/<notebook>.json.

    They lie in results/<profile>/, or, where `varied` gives other datasets, methods, shots, seeds,
    rank or n_blocks than the profile's, in a folder of their own below it (see `variant`). Records
    lie in results/<profile>/runs/ in either case.
    """

    def __init__(self, name: str, profile: str, results_dir: str = "", **varied: Any) -> None:
        self.name = name
        check_parameters(NOTEBOOKS / f"{name}.ipynb", injected_parameters(), typed=True)
        stated, needs = load_profile(profile), notebook_needs(name)
        self._stated, self._rates = stated, rates_file(profile)
        base = results_folder(stated, results_dir)
        self.profile = vary(stated, needs, varied) if varied else stated
        self.folder = place(base, stated, needs, varied) if varied else base
        self.note = profile_note(self.profile)
        self.store = RunStore(base / "runs")
        RunStore(self.folder / "notebooks").check_writable()
        if self.folder != base:
            given = {"profile": stated.name, **as_given(stated, needs, varied)}
            write_whole(self.folder / "parameters.json", json.dumps(given, indent=1) + "\n")
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
        """Where the notebook computes: the profile's device."""
        from ..core.devices import profile_device

        return profile_device(self.profile.device)

    def compute(self, *experiments: str) -> None:
        """Run what the store lacks of these experiments, with a progress bar.

        Each record is written whole as soon as its run ends: whoever stops this goes on from there.
        """
        from tqdm import tqdm

        from ..runs.execute import run_grid
        from ..runs.workbench import Workbench

        specs = {s.key: s for name in experiments for s in expand(self.profile, name)}
        missing = [spec for spec in specs.values() if not self._has(spec)]
        if missing:
            records = run_grid(missing, self.store, Workbench(self.device))
            for _ in tqdm(records, total=len(missing), desc="runs", unit="run"):
                pass

    def _has(self, spec: RunSpec) -> bool:
        try:
            return self.store.load(spec) is not None
        except DamagedRecord:  # set aside when the run is made again
            return False

    def runs(self, experiment: str = "few_shot", partial: bool = False) -> pd.DataFrame:
        """Return an experiment's finished runs, see `results.experiment_runs`; missing ones are
        refused unless `partial`.

        What sets the records apart from each other, or from this library, is shown once a notebook.
        """
        runs = experiment_runs(self.profile, self.store, experiment, partial)
        for line in runs.attrs["remarks"]:
            if line not in self._remarks:
                self._remarks.append(line)
                _display_html(f"<div class='export'><b>Note.</b> {html.escape(line)}</div>")
        return runs

    def rates(self) -> pd.DataFrame | None:
        """Return the runs by which the profile's learning rates were chosen, `chosen` at a method's
        chosen rate; None where none were.

        They are records packed beside the choice, on validation images.
        """
        if not self._rates.exists():
            return None
        store = RunStore(self._rates.with_suffix(SUFFIX))
        runs = experiment_runs(self._stated, store, RATES)
        runs["method"] = runs["method"].str.rpartition(",lr=")[0]
        runs["method_label"] = runs["method_label"].str.rpartition(", lr = ")[0]
        own = {m.name: self._stated.training_of(m).lr for m in self._stated.trained}
        return runs.assign(chosen=runs["lr"] == runs["method"].map(own))

    def figure(
        self, figure: Figure, name: str, data: pd.DataFrame, caption: str, note: str | None = None
    ) -> None:
        """Save the figure as PDF, PNG and the CSV that it plots, and show it with its caption.

        note: the line below it, where it shows something else than this profile's results.
        """
        stem = self.folder / "figures" / self.name / name
        files = save_figure(figure, stem, note or self.note)
        files.append(self._csv(data, stem))
        self._add(
            "figures", name, caption, files, width=round(float(figure.get_size_inches()[0]), 3)
        )
        _display_figure(files[1], figure.get_size_inches()[0], caption)

    def table(self, table: Table | pd.DataFrame, name: str, caption: str) -> None:
        """Save the table as tidy CSV and as a LaTeX tabular (booktabs), and show it with its
        caption.
        """
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
        """Note a claim with its verdict. holds None: not run, or, if `undecided`, run and not
        resolved.

        kind 'structural': must hold, or `finish` raises. 'empirical': about what is seen on this
        profile. 'published': a published number, which only a profile that says `published: true`
        may confirm.
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
        """Write the index of exports and claims, show the claims, and only then raise for a failed
        structural one.
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
        return write_whole(
            stem.with_name(f"{stem.name}.csv"), data.to_csv(index=False, lineterminator="\n")
        )

    def _add(self, what: str, name: str, caption: str, files: list[Path], **more: Any) -> None:
        if name in [entry["name"] for entry in self._index[what]]:
            raise ValueError(
                f"{self.name} exports two {what} named {name!r}; give each its own name"
            )
        relative = [str(path.relative_to(self.folder)) for path in files]
        self._index[what].append({"name": name, "caption": caption, "files": relative, **more})


def _display_figure(png: Path, width: float, caption: str) -> None:
    from IPython.display import HTML, Image, display

    display(Image(data=png.read_bytes(), width=round(96 * float(width)), alt=caption))
    display(HTML(f"<div class='export'><b>Figure.</b> {caption}</div>"))


def _display_html(text: str) -> None:
    from IPython.display import HTML, display

    display(HTML(text))
