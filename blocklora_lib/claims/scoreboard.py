"""The scoreboard in its forms: a frame, JSON for programs, and the summary that README.md shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import write_between
from ..runs.profile import Profile
from .claim import Judged
from .verdict import counted

if TYPE_CHECKING:
    from pandas import DataFrame

MARKERS = ("<!-- claims: written by `blocklora claims --into` -->", "<!-- end of claims -->")


def caution(judged: list[Judged]) -> str:
    """What a reader of all verdicts has to know: nothing corrects for their number."""
    many = sum(j.finding.holds is not None and bool(j.finding.smallest) for j in judged)
    return (
        "Each statistical verdict is wrong at most once in 20 times by chance, and nothing "
        f"corrects for their number: of {many} that rest on samples at most {many / 20:g} are to "
        "be expected wrong. Smallest visible effect: half of the interval; one of that size would "
        "be seen in about half of all repeats, one 1.4 times as large in four of five. A verdict "
        "without one rests on counts, a proof or one measurement."
    )


def scoreboard(judged: Iterable[Judged]) -> DataFrame:
    """One row a claim: what it says, where it stands, what was found."""
    import pandas as pd

    return pd.DataFrame([j.row for j in judged]).rename(columns={"rests_on": "rests on"})


def as_json(judged: Iterable[Judged], profile: Profile) -> str:
    """The scoreboard as JSON text."""
    judged = list(judged)
    board = {"profile": profile.name, "caution": caution(judged), "claims": [j.row for j in judged]}
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def as_markdown(judged: Iterable[Judged]) -> str:
    """The README's summary: how many of each verdict, then each claim with its verdict and
    notebook.
    """
    judged = list(judged)
    lines = [f"{len(judged)} claims: {counted([j.verdict for j in judged])}.", ""]
    lines += [caution(judged), "", "| | Claim | Verdict | Evidence |", "|---|---|---|---|"]
    for j in judged:
        notebook = j.link.partition(".ipynb")[0]
        cells = (
            j.claim.id,
            j.claim.statement,
            f"{j.verdict}, {j.finding.but}" if j.finding.but else j.verdict,
            f"[{notebook}](docs/notebooks/{notebook}.ipynb)",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_into(path: Path, judged: Iterable[Judged]) -> None:
    """Replace what stands between the markers of a text file by the summary."""
    write_between(path, MARKERS, as_markdown(judged))
