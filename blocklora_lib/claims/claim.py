"""The scoreboard: each public claim, the evidence for or against it, and a verdict that follows
from both.

A claim is a statement with its source and a function that judges it from results: run records,
tables that notebooks exported, published numbers. No evidence is typed in, so that other results
give other verdicts. `paper_claims` holds the claims; this module knows what a verdict is. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.files import write_between
from ..core.json_data import read_notebook
from ..core.paths import NOTEBOOKS, PUBLISHED
from ..core.schema import UnknownName
from ..runs.grid import expand
from ..runs.profile import Profile
from ..runs.results import MissingResults, experiment_runs, notebook_table
from ..runs.store import DamagedRecord, RunStore

if TYPE_CHECKING:
    from pandas import DataFrame

Kind = Literal["structural", "empirical"]
Scope = Literal["arithmetic", "constructed", "modelled", "measured", "published", "nothing"]
Verdict = Literal[
    "confirmed", "contradicted", "confirmed on pocket only", "not resolved", "not run"
]
VERDICTS: tuple[Verdict, ...] = (
    "confirmed",
    "confirmed on pocket only",
    "contradicted",
    "not resolved",
    "not run",
)
SCOPES: dict[Scope, str] = {
    "arithmetic": "arithmetic and counts",
    "constructed": "a constructed task, without a backbone",
    "modelled": "a model, held against measurements of smaller cases",
    "measured": "runs and measurements of this profile",
    "published": "published numbers",
    "nothing": "nothing yet",
}


@dataclass(frozen=True)
class Finding:
    """holds: True, False, or None where nothing was run, or where what was run is `undecided`.

    evidence: one or two sentences with the numbers. undecided: the interval allows both answers.
    scope says what the evidence is: a measurement on a small backbone confirms for that backbone
    only.
    """

    holds: bool | None
    evidence: str
    scope: Scope = "measured"
    undecided: bool = False


class Evidence:
    """What may be looked at: the runs of a profile, the tables of its notebooks, published numbers."""

    def __init__(self, profile: Profile, folder: Path, published: Path = PUBLISHED) -> None:
        self.profile, self.folder = profile, folder
        self._published = published
        self.remarks: list[str] = []  # what sets the records apart, see standing.remarks
        self.damaged: list[DamagedRecord] = []  # records that were asked for and cannot be counted
        self._runs: dict[
            str, DataFrame
        ] = {}  # many judges look at the same runs, which are many files
        self._failed: dict[str, list[str]] = {}  # kinds of failure, by experiment
        self._asked: dict[str, None] = {}  # experiments that the present judge looked at, in order

    @property
    def small_backbone(self) -> bool:
        """Whether this profile's numbers may not stand beside published ones, as those of a small
        CLIP.
        """
        return not self.profile.published

    def runs(self, experiment: str = "few_shot") -> DataFrame:
        """Finished runs, all there, or MissingResults."""
        if experiment not in self.profile.experiments:
            raise MissingResults(
                f"profile {self.profile.name} has no experiment {experiment}; add it to its YAML "
                "file"
            )
        self._asked[experiment] = None
        if experiment not in self._runs:
            store = RunStore(self.folder / "runs")
            try:
                self._runs[experiment] = runs = experiment_runs(self.profile, store, experiment)
            except MissingResults as missing:
                known = {error.path for error in self.damaged}
                self.damaged += [error for error in missing.damaged if error.path not in known]
                raise
            self.remarks += [line for line in runs.attrs["remarks"] if line not in self.remarks]
        return self._runs[experiment]

    def failed(self, experiment: str, kind: Literal["diverged", "refused"] | None = None) -> int:
        """How many runs of the experiment ended without a result (kind: for that reason)."""
        if experiment not in self._failed:
            store = RunStore(self.folder / "runs")
            records = filter(None, map(store.load, expand(self.profile, experiment)))
            self._failed[experiment] = [record.error.kind for record in records if record.error]
        return sum(kind in (None, found) for found in self._failed[experiment])

    def found(self, judge: Callable[[Evidence], Finding]) -> Finding:
        """Return what a judge finds; its text says so where runs that it looked at failed and are
        in no mean.

        Whatever a judge says of seeds itself, none can pass over a missing one in silence.
        """
        self._asked.clear()
        finding = judge(self)
        lost = {name: self.failed(name) for name in self._asked if self.failed(name)}
        told = " and ".join(f"{n} run{'s' * (n > 1)} of {name}" for name, n in lost.items())
        return (
            replace(finding, evidence=f"{finding.evidence} In no mean, for they failed: {told}.")
            if lost
            else finding
        )

    def table(self, notebook: str, name: str) -> DataFrame:
        """What a notebook exported under this name, or MissingResults."""
        return notebook_table(self.profile, self.folder, notebook, name)

    @cached_property
    def published(self) -> DataFrame:
        """Published accuracies (%), with source and how each was read."""
        import pandas as pd

        if not self._published.is_file():
            raise MissingResults(
                f"published numbers are missing: {self._published}; restore the file from git"
            )
        return pd.read_csv(self._published)


@dataclass(frozen=True)
class Claim:
    """One public statement. `shown`: (notebook, exported name) where its evidence can be seen.

    `expected` is the verdict that a proof gives for a structural claim: any other one is an error
    of the suite.
    """

    id: str
    statement: str
    source: str
    kind: Kind
    shown: tuple[str, str]
    judge: Callable[[Evidence], Finding] = field(repr=False)
    expected: Verdict | None = None


@dataclass(frozen=True)
class Judged:
    """A claim with what was found."""

    claim: Claim
    finding: Finding
    verdict: Verdict
    link: str

    @property
    def surprising(self) -> bool:
        """A structural claim whose verdict, if there is one, is not what its proof says."""
        decided = self.finding.holds is not None
        return self.claim.expected is not None and decided and self.verdict != self.claim.expected


def verdict(finding: Finding, small_backbone: bool) -> Verdict:
    """What the finding amounts to."""
    if finding.holds is None:
        return "not resolved" if finding.undecided else "not run"
    if not finding.holds:
        return "contradicted"
    return (
        "confirmed on pocket only"
        if finding.scope == "measured" and small_backbone
        else "confirmed"
    )


def judge(claims: Iterable[Claim], evidence: Evidence, notebooks: Path = NOTEBOOKS) -> list[Judged]:
    """Judge each claim. Evidence that is not there makes 'not run', with the command that would
    make it.
    """
    found = []
    for claim in claims:
        try:
            finding = evidence.found(claim.judge)
        except MissingResults as missing:
            finding = Finding(None, str(missing), "nothing")
        link = cell_link(*claim.shown, notebooks)
        found.append(Judged(claim, finding, verdict(finding, evidence.small_backbone), link))
    return found


def cell_link(notebook: str, name: str, folder: Path = NOTEBOOKS) -> str:
    """Return 'NOTEBOOK.ipynb#cell-id=ID' of the cell that exports `name`, as JupyterLab opens it."""
    path = folder / f"{notebook}.ipynb"
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code" and f'"{name}"' in "".join(cell["source"]):
            return f"{path.name}#cell-id={cell['id']}"
    raise UnknownName(f"export of notebook {notebook}:", name, [])


def scoreboard(judged: Iterable[Judged]) -> DataFrame:
    """One row a claim: what it says, where it stands, what was found."""
    import pandas as pd

    return pd.DataFrame(
        {
            "id": j.claim.id,
            "claim": j.claim.statement,
            "source": j.claim.source,
            "kind": j.claim.kind,
            "verdict": j.verdict,
            "evidence": j.finding.evidence,
            "rests on": SCOPES[j.finding.scope],
            "cell": j.link,
        }
        for j in judged
    )


def as_json(judged: Iterable[Judged], profile: Profile) -> str:
    """The scoreboard as JSON text."""
    rows = scoreboard(judged).rename(columns={"rests on": "rests_on"}).to_dict("records")
    return (
        json.dumps({"profile": profile.name, "claims": rows}, indent=1, ensure_ascii=False) + "\n"
    )


MARKERS = ("<!-- claims: written by `blocklora claims --into` -->", "<!-- end of claims -->")


def as_markdown(judged: Iterable[Judged]) -> str:
    """The README's summary: how many of each verdict, then each claim with its verdict and
    notebook.
    """
    judged = list(judged)
    counts = [(v, sum(j.verdict == v for j in judged)) for v in VERDICTS]
    lines = [f"{len(judged)} claims: " + ", ".join(f"{n} {v}" for v, n in counts if n) + ".", ""]
    lines += ["| | Claim | Verdict | Evidence |", "|---|---|---|---|"]
    for j in judged:
        notebook = j.link.partition(".ipynb")[0]
        cells = (
            j.claim.id,
            j.claim.statement,
            j.verdict,
            f"[{notebook}](notebooks/{notebook}.ipynb)",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_into(path: Path, judged: Iterable[Judged]) -> None:
    """Replace what stands between the markers of a text file by the summary."""
    write_between(path, MARKERS, as_markdown(judged))
