"""What a judge may look at: the runs of a profile, the tables of its notebooks, published numbers.

Nothing of another profile is evidence: runs are asked for by their specs, and a table is read only
where its notebook's index names this profile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.json_data import read_json, undamaged
from ..core.paths import PUBLISHED
from ..core.schema import UnknownName
from ..runs.grid import expand
from ..runs.profile import Profile
from ..runs.record import frame as run_frame
from ..runs.results import MissingResults, changed_tables, experiment_runs, notebook_table
from ..runs.store import DamagedRecord, RunStore
from .verdict import Finding

if TYPE_CHECKING:
    from pandas import DataFrame


class Evidence:
    """The evidence of one profile in a results folder.

    store: where its records lie (None: in the folder's `runs`). made: the 'NOTEBOOK/TABLE' that the
    notebook which asks has just made, before its index tells of them.
    """

    def __init__(
        self,
        profile: Profile,
        folder: Path,
        published: Path = PUBLISHED,
        store: RunStore | None = None,
        made: Collection[str] = (),
        way_out: str = "",
    ) -> None:
        self.profile, self.folder, self.made = profile, folder, made
        self.store = store or RunStore(folder / "runs")
        self._published, self._way_out = published, way_out
        self.remarks: list[str] = []  # what sets the records apart, see standing.remarks
        self.damaged: list[DamagedRecord] = []  # records that were asked for and cannot be counted
        self._runs: dict[str, DataFrame] = {}  # many judges look at the same runs: many files
        self._failed: dict[str, list[str]] = {}  # kinds of failure, by experiment
        self._placed: set[str] = set()  # experiments whose diverged runs the present judge placed
        self._asked: dict[str, None] = {}  # experiments that the present judge looked at, in order
        self._tables: dict[str, None] = {}  # NOTEBOOK/TABLE, as well

    def runs(self, experiment: str = "few_shot") -> DataFrame:
        """Finished runs, all there, or MissingResults. A miniature's accuracy means nothing."""
        if experiment not in self.profile.experiments:
            raise MissingResults(
                f"profile {self.profile.name} has no experiment {experiment}; add it to its YAML "
                "file, as pocket.yaml has it, and make its runs with `blocklora grid --profile "
                f"{self.profile.name} --experiment {experiment}`"
            )
        self._asked[experiment] = None
        if experiment not in self._runs:
            try:
                runs = experiment_runs(self.profile, self.store, experiment, way_out=self._way_out)
            except MissingResults as missing:
                known = {error.path for error in self.damaged}
                self.damaged += [error for error in missing.damaged if error.path not in known]
                raise
            if runs["miniature"].any():
                raise MissingResults(
                    f"the runs of {experiment} in {self.store.folder} are of miniatures, whose "
                    "accuracies mean nothing; make runs of the sets themselves with `blocklora "
                    f"grid --profile paper --experiment {experiment}`"
                )
            self._runs[experiment] = runs
            self.remarks += [line for line in runs.attrs["remarks"] if line not in self.remarks]
        return self._runs[experiment]

    def table(self, notebook: str, name: str, numbers: Collection[str] = ()) -> DataFrame:
        """What a notebook exported under this name for this profile, or MissingResults.

        numbers: columns in which each row has to have a number, for what lacks one proves nothing.
        """
        table = notebook_table(self.profile, self.folder, notebook, name)
        self._tables[f"{notebook}/{name}"] = None
        if f"{notebook}/{name}" not in self.made:
            path = self.folder / "notebooks" / f"{notebook}.json"
            with undamaged(str(path), f"delete it, and execute notebook {notebook} again"):
                index = read_json(path) if path.is_file() else {"profile": None}
                made_by, changed = index["profile"], changed_tables(self.folder, index, name)
            if made_by != self.profile.name:
                whose = (
                    f"are of profile {made_by}" if made_by else "have no index that names theirs"
                )
                raise MissingResults(
                    f"the tables of notebook {notebook} in {self.folder} {whose}, and not of "
                    f"{self.profile.name}; make them with `blocklora notebook {notebook} --profile "
                    f"{self.profile.argument}`"
                )
            if changed:
                raise MissingResults(
                    f"{self.folder / changed[0]} is not what notebook {notebook} exported; make it "
                    f"again with `blocklora notebook {notebook} --profile {self.profile.argument}`"
                )
        empty = [name for name in numbers if name not in table or table[name].isna().any()]
        if empty or table.empty:
            what = f"no number for {' and '.join(empty)} in some row" if empty else "no row"
            raise MissingResults(
                f"table {name} of notebook {notebook} in {self.folder} has {what}; make it again "
                f"with `blocklora notebook {notebook} --profile {self.profile.argument}`"
            )
        return table

    def missing(self, needs: Iterable[str]) -> list[str]:
        """Say what of 'EXPERIMENT' or 'NOTEBOOK/TABLE' is not there, and how each is made."""
        told = []
        for need in needs:
            notebook, _, name = need.rpartition("/")
            try:
                self.table(notebook, name) if notebook else self.runs(name)
            except MissingResults as lacking:
                told.append(str(lacking).rstrip("."))
        return told

    def failed(self, experiment: str, kind: Literal["diverged", "refused"] | None = None) -> int:
        """How many runs of the experiment ended without a result (kind: for that reason)."""
        if experiment not in self._failed:
            records = filter(None, map(self.store.load, expand(self.profile, experiment)))
            self._failed[experiment] = [record.error.kind for record in records if record.error]
        return sum(kind in (None, found) for found in self._failed[experiment])

    def diverged(self, experiment: str) -> DataFrame:
        """Return a row, without accuracy, of each run of the experiment whose training diverged.

        Who asks for them has a place for them in its means.
        """
        self._placed.add(experiment)
        records = filter(None, map(self.store.load, expand(self.profile, experiment)))
        return run_frame([r for r in records if r.error and r.error.kind == "diverged"])

    def found(self, judge: Callable[[Evidence], Finding]) -> Finding:
        """Return what a judge finds; its text says so where runs that it looked at failed and are
        in no mean.

        Whatever a judge says of seeds itself, none can pass over a missing one in silence. Nor does
        one judge by a table without what it reads, which another state of the suite exported. What
        an experiment measured on a small model of its own says so in every profile.
        """
        self._asked.clear()
        self._tables.clear()
        self._placed.clear()
        try:
            finding = judge(self)
        except (KeyError, IndexError) as lacking:
            if not self._tables or isinstance(lacking, UnknownName):
                raise
            notebooks = dict.fromkeys(name.partition("/")[0] for name in self._tables)
            raise MissingResults(
                f"{' or '.join(self._tables)} in {self.folder} lacks {lacking}; make it "
                f"again with `blocklora notebook {' '.join(notebooks)} --profile "
                f"{self.profile.name}`"
            ) from lacking
        own, of = self.profile.backbone, self.profile.experiment
        used = {(of(name).backbone or own).pretrained for name in self._asked} - {own.pretrained}
        if finding.rests_on == "measured" and "bundled" in used and own.pretrained != "none":
            finding = replace(finding, rests_on="bundled")  # an experiment's own small model
        lost = {
            name: self.failed(name) - (self.failed(name, "diverged") if name in self._placed else 0)
            for name in self._asked
        }
        lost = {name: n for name, n in lost.items() if n}
        told = " and ".join(f"{n} run{'s' * (n > 1)} of {name}" for name, n in lost.items())
        return (
            replace(finding, evidence=f"{finding.evidence} In no mean, for they failed: {told}.")
            if lost
            else finding
        )

    @cached_property
    def published(self) -> DataFrame:
        """Published accuracies (%), with source and how each was read."""
        import pandas as pd

        if not self._published.is_file():
            raise MissingResults(
                f"published numbers are missing: {self._published}; restore the file from git"
            )
        return pd.read_csv(self._published)
