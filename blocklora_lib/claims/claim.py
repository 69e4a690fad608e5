"""What a claim is, and how it is judged: by one function, from evidence, in one vocabulary.

A claim is a statement with its source, the evidence that it needs, and a judge. No evidence is
typed in, so that other results give other verdicts. `paper_claims` holds the claims, `verdict` the
words. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..core.json_data import read_notebook
from ..core.paths import NOTEBOOKS, ROOT
from ..core.schema import UnknownName
from ..runs.results import MissingResults
from .evidence import Evidence
from .verdict import BASES, Finding, Verdict, verdict, weighed


@dataclass(frozen=True)
class Claim:
    """One public statement. `shown`: (notebook, exported name) where its evidence can be seen.

    needs: 'EXPERIMENT' and 'NOTEBOOK/TABLE' that its judge reads. proof: what a proof says of a
    structural claim, whether it holds; another verdict is an error of the suite. None: empirical.
    """

    id: str
    statement: str
    source: str
    shown: tuple[str, str]
    needs: tuple[str, ...]
    judge: Callable[[Evidence], Finding] = field(repr=False)
    proof: bool | None = None

    @property
    def kind(self) -> str:
        """Whether a proof decides it, or measurements."""
        return "empirical" if self.proof is None else "structural"


@dataclass(frozen=True)
class Judged:
    """A claim with what was found."""

    claim: Claim
    finding: Finding
    verdict: Verdict
    link: str

    @property
    def surprising(self) -> bool:
        """A structural claim whose finding, if there is one, is not what its proof says."""
        holds = self.finding.holds
        return self.claim.proof is not None and holds is not None and holds != self.claim.proof

    @property
    def row(self) -> dict[str, str]:
        """The claim's row of the scoreboard."""
        return {
            "id": self.claim.id,
            "claim": self.claim.statement,
            "source": self.claim.source,
            "kind": self.claim.kind,
            "verdict": self.verdict,
            "but": self.finding.but,
            "evidence": self.finding.told,
            "rests_on": BASES[self.finding.rests_on][1],
            "cell": self.link,
        }


def judge(claims: Iterable[Claim], evidence: Evidence, notebooks: Path = NOTEBOOKS) -> list[Judged]:
    """Judge each claim. Of one whose evidence is not there the sentence names all that is missing,
    with the commands that make it.
    """
    found = []
    for claim in claims:
        try:
            finding = weighed(evidence.found(claim.judge), evidence.profile)
        except MissingResults as lacking:
            told = dict.fromkeys([*evidence.missing(claim.needs), str(lacking).rstrip(".")])
            text = "; ".join(told).replace(f"{ROOT}{os.sep}", "")  # as seen from the repository
            finding = Finding(None, f"{text}.", "nothing")
        link = cell_link(*claim.shown, notebooks)
        found.append(Judged(claim, finding, verdict(finding, evidence.profile), link))
    return found


def by_id(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Return the claims by id; ValueError for an id that two claims have."""
    found: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in found:
            raise ValueError(f"two claims are called {claim.id}; give each its own id")
        found[claim.id] = claim
    return found


def cell_link(notebook: str, name: str, folder: Path = NOTEBOOKS) -> str:
    """Return 'NOTEBOOK.ipynb#cell-id=ID' of the cell that exports `name`, for JupyterLab."""
    path = folder / f"{notebook}.ipynb"
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code" and f'"{name}"' in "".join(cell["source"]):
            return f"{path.name}#cell-id={cell['id']}"
    raise UnknownName(f"export of notebook {notebook}:", name, [])
