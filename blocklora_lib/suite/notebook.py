"""What a notebook needs besides its subject: profile, records, exports, checks and verdicts.

nb = Notebook("08_few_shot", profile, results_dir, shots=shots)
nb.figure(accuracy_by_shots(summary), "accuracy_by_shots", data=summary, caption="...")
nb.check("08.E2", "accuracy rises with shots", holds, "34.1 -> 58.2", "measured")
nb.judge("C11")
nb.finish()
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from ..claims.claim import judge
from ..claims.evidence import Evidence
from ..claims.paper_claims import BY_ID
from ..claims.verdict import BASES, Basis, Finding, verdict, weighed
from ..core.files import write_whole
from ..core.paths import NOTEBOOKS
from ..core.schema import UnknownName
from ..display.style import save_figure
from ..display.tables import Table, one_line, plain, to_html
from ..runs.experiment import RATES
from ..runs.grid import expand
from ..runs.images import RunImages
from ..runs.packed import SUFFIX
from ..runs.profile_files import load_profile, rates_file
from ..runs.rates import not_chosen
from ..runs.results import experiment_runs, results_folder, table_checksum
from ..runs.standing import stored, to_run
from ..runs.store import RunStore
from .catalogue import check_links, drop_index_of_another, inside, notebook_needs
from .cell_errors import explain_errors
from .footer import footer, profile_note
from .judged_cells import check_ids, number
from .parameter_cell import check_parameters, injected_parameters
from .shown import show_figure, show_html, words
from .variant import PARAMETERS, as_given, place, vary

if TYPE_CHECKING:
    import torch


class CheckFailed(AssertionError):
    """What arithmetic decides (an equality, a count, a proof) does not hold; outputs are saved."""


class Notebook:
    """One notebook's exports: {figures,tables}/<notebook>/ and notebooks/<notebook>.json.

    They lie in results/<profile>/, or, where `varied` gives other datasets, methods, shots, seeds,
    rank or n_blocks than the profile's, in a folder of their own below it (see `variant`). Records
    lie in results/<profile>/runs/ in either case.
    """

    def __init__(self, name: str, profile: str, results_dir: str = "", **varied: Any) -> None:
        self.name = name
        explain_errors()
        check_parameters(NOTEBOOKS / f"{name}.ipynb", injected_parameters(), typed=True)
        check_ids(NOTEBOOKS)
        stated, needs = load_profile(profile), notebook_needs(name)
        self._stated, self._rates = stated, rates_file(profile)
        self.without_rate = not_chosen(stated, self._rates)  # methods with the rate of all
        self._base = base = results_folder(stated, results_dir)
        self.profile = vary(stated, needs, varied) if varied else stated
        self.folder = place(base, stated, needs, varied) if varied else base
        self.note = profile_note(self.profile)
        self.rests_on: Basis = needs["rests_on"]
        self.store = RunStore(base / "runs")
        check_links(self.folder)
        RunStore(inside(base, self.folder / "notebooks")).check_writable()
        drop_index_of_another(self.folder, name, self.profile.name)
        # how missing runs are made: `blocklora grid` makes the profile's alone
        self._way_out = "this notebook, compute_missing = True" if self.folder != base else ""
        if self.folder != base:
            given = {"profile": stated.name, **as_given(stated, needs, varied)}
            write_whole(self.folder / PARAMETERS, json.dumps(given, indent=1) + "\n")
        self._remarks, self._failed = list[str](), list[str]()
        self._read: list[str] = []  # experiments whose records were read, in order
        self._index: dict[str, Any] = {"notebook": name, "profile": self.profile.name}
        self._index |= {"note": self.note, "figures": [], "tables": [], "checks": [], "claims": []}

    @property
    def device(self) -> torch.device:
        """Where the notebook computes: the profile's device."""
        from ..core.devices import profile_device

        return profile_device(self.profile.device)

    def compute(self, *experiments: str) -> None:
        """Run what the store lacks of these experiments, with a progress bar.

        A record of images that have changed since is none; one of earlier code stands, see `runs`.
        Adapters are kept where the profile keeps them.
        Each record is written whole as soon as its run ends: whoever stops this goes on from there.
        """
        from tqdm import tqdm

        from ..runs.execute import run_grid
        from ..runs.kept import Kept
        from ..runs.workbench import Workbench

        specs = {s.key: s for name in experiments for s in expand(self.profile, name)}
        images, keeper = RunImages().digest, None
        if self.profile.save_adapters:
            keeper = Kept.of(self._base)
            keeper.check()
        found = [stored(self.store, spec, True, images) for spec in specs.values()]
        if missing := [one.spec for one in found if to_run(one, False, keeper)]:
            bench = Workbench(self.device, **self.profile.of_bench)
            records = run_grid(
                missing, self.store, bench, keep_old=True, keeper=keeper, stack=self.profile.stack
            )
            list(tqdm(records, total=len(missing), desc="runs", unit="run"))

    def runs(self, experiment: str = "few_shot", partial: bool = False) -> pd.DataFrame:
        """Return an experiment's finished runs, see `results.experiment_runs`. Missing ones are
        refused (MissingResults); if `partial`, only where none is of a training.

        What sets the records apart from each other, or from this library, is shown once a notebook.
        """
        way_out = self._way_out
        runs = experiment_runs(self.profile, self.store, experiment, partial, way_out)
        if partial and not (runs["shots"] > 0).any():
            experiment_runs(self.profile, self.store, experiment, False, way_out)  # names them
        self._read += [experiment] * (experiment not in self._read)
        for line in runs.attrs["remarks"]:
            if line not in self._remarks:
                self._remarks.append(line)
                show_html(f"<div class='export'><b>Note.</b> {html.escape(line)}</div>")
        return runs

    def rates(self) -> pd.DataFrame | None:
        """Return the runs by which the profile's learning rates were chosen, `chosen` at a method's
        chosen rate; None where none were.

        They are records packed beside the choice, on validation images.
        """
        if not self._rates.exists():
            return None
        self._read += [RATES] * (RATES not in self._read)
        store = RunStore(self._rates.with_suffix(SUFFIX))
        runs = experiment_runs(self._stated, store, RATES, partial=bool(self.without_rate))
        runs["method"] = runs["method"].str.rpartition(",lr=")[0]
        runs["method_label"] = runs["method_label"].str.rpartition(", lr = ")[0]
        own = {m.name: self._stated.training_of(m).lr for m in self._stated.trained}
        return runs.assign(chosen=runs["lr"] == runs["method"].map(own))

    def figure(
        self,
        figure: Figure,
        name: str,
        data: pd.DataFrame,
        caption: str,
        rests_on: Basis | None = None,
        note: str | None = None,
    ) -> None:
        """Save the figure as PDF, PNG and the CSV that it plots, and show it with its caption.

        The line below it says what it rests on: rests_on, or what the notebook's metadata say;
        note: that line itself, of what was recorded or timed elsewhere than in the profile's model.
        """
        stem = self._stem("figures", name, "pdf", "png", "csv")
        files = save_figure(figure, stem, note or self._footer(rests_on))
        files.append(self._csv(data, stem))
        width = round(float(figure.get_size_inches()[0]), 3)
        self._add("figures", name, caption, files, width=width)
        show_figure(files[1], width, caption)

    def table(
        self,
        table: Table | pd.DataFrame,
        name: str,
        caption: str,
        rests_on: Basis | None = None,
        note: str | None = None,
    ) -> None:
        """Save the table as tidy CSV and as a LaTeX tabular (booktabs), and show it with its
        caption.

        Its LaTeX begins with the line that `figure` writes below a figure.
        """
        table = table if isinstance(table, Table) else plain(table)
        stem = self._stem("tables", name, "csv", "tex")
        files = [self._csv(table.tidy, stem), stem.with_name(f"{name}.tex")]
        line = note or self._footer(rests_on)
        write_whole(files[1], (f"% {one_line(line)}\n" if line else "") + table.latex)
        shown = to_html(table.shown)
        self._add("tables", name, caption, files, html=shown, note=line)
        show_html(f"<div class='export'><b>Table.</b> {words(caption)}{shown}</div>")

    def check(
        self,
        id: str,
        statement: str,
        holds: bool | None,
        evidence: str,
        rests_on: Basis = "arithmetic",
    ) -> None:
        """Note what the notebook checks itself, under an id of its own such as '03.E1'.

        holds None: what was looked at allows both answers; with rests_on 'nothing': there was
        nothing to look at. What rests on arithmetic must hold, or `finish` raises.
        """
        if not id.startswith(f"{number(self.name)}."):
            raise ValueError(
                f"check {id!r} of {self.name}; begin its id with {number(self.name)}., as in "
                f"{number(self.name)}.E1"
            )
        if id in [check["id"] for check in self._index["checks"]]:
            raise ValueError(f"check {id} is made twice in {self.name}; give each its own id")
        finding = Finding(None if holds is None else bool(holds), str(evidence), rests_on)
        word, finding = verdict(finding, self.profile), weighed(finding, self.profile)
        row = {"id": id, "statement": statement, "verdict": word, "evidence": finding.evidence}
        self._index["checks"].append(row | {"rests_on": BASES[finding.rests_on][1]})
        if rests_on == "arithmetic" and finding.holds is False:
            self._failed.append(f"{id}: {statement} ({evidence})")

    def judge(self, *ids: str) -> None:
        """Show the verdict of the one judge of each of these public claims; none named: of all.

        It looks at this profile's results, this notebook's own tables among them.
        """
        for id in ids:
            if id not in BY_ID:
                raise UnknownName("claim", id, BY_ID)
        exports = [entry["name"] for what in ("figures", "tables") for entry in self._index[what]]
        made = {f"{self.name}/{export}" for export in exports}
        # of what the profile says all its experiments are looked at, not this notebook's alone
        profile = self._stated if self.folder == self._base else self.profile
        evidence = Evidence(
            profile, self.folder, store=self.store, made=made, way_out=self._way_out
        )
        judged = judge([BY_ID[id] for id in ids or BY_ID], evidence)
        rows = [j.row for j in judged]
        shown = pd.DataFrame(rows)[["id", "claim", "verdict", "but", "evidence"]]
        show_html(f"<div class='export'><b>Verdict.</b> {to_html(shown)}</div>")
        latest = {row["id"]: row for row in [*self._index["claims"], *rows]}
        self._index["claims"] = [*latest.values()]
        told = "is not what its proof says"
        self._failed += [f"{j.claim.id} {told} ({j.finding.told})" for j in judged if j.surprising]

    def finish(self) -> None:
        """Write the index of exports, checks and verdicts, show the checks, and only then raise for
        what arithmetic denies.
        """
        path = inside(self.folder, f"notebooks/{self.name}.json")
        write_whole(path, json.dumps(self._index, indent=1, ensure_ascii=False) + "\n")
        if checks := self._index["checks"]:
            show_html(to_html(pd.DataFrame(checks).drop(columns="rests_on")))
        if self._failed:
            raise CheckFailed("; ".join(self._failed))

    def _footer(self, rests_on: Basis | None) -> str | None:
        return footer(rests_on or self.rests_on, self.profile)

    def _stem(self, what: str, name: str, *kinds: str) -> Path:
        """The path of an export without its ending; ValueError where a link leads out of the
        folder, which may be a stranger's: what stands elsewhere is not written over.
        """
        stem = self.folder / what / self.name / name
        for kind in kinds:
            inside(self.folder, f"{what}/{self.name}/{name}.{kind}")
        return stem

    def _csv(self, data: pd.DataFrame, stem: Path) -> Path:
        stem.parent.mkdir(parents=True, exist_ok=True)
        path = stem.with_name(f"{stem.name}.csv")
        return write_whole(path, data.to_csv(index=False, lineterminator="\n"))

    def _add(self, what: str, name: str, caption: str, files: list[Path], **more: Any) -> None:
        if name in [entry["name"] for entry in self._index[what]]:
            raise ValueError(
                f"{self.name} exports two {what} named {name!r}; give each its own name"
            )
        relative = [str(path.relative_to(self.folder)) for path in files]
        told = {"name": name, "caption": caption, "files": relative, "experiments": [*self._read]}
        (digest,) = (table_checksum(path) for path in files if path.suffix == ".csv")
        self._index[what].append(told | {"sha256": digest} | more)
