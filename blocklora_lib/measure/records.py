"""Records of benchmarks, as the scripts in benchmarks/ write them. No torch.

A record: benchmark (the script), date, revision, conditions (machine, threads, torch), options,
rows, and what further tables the script adds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.files import read_text
from ..core.json_data import read_json
from ..core.paths import RESULTS

BENCHMARKS = RESULTS / "reference" / "benchmarks"  # the committed ones
FIELDS = ("benchmark", "date", "conditions", "options", "rows")
CONDITIONS = ("processor", "device", "threads", "torch")  # among them


@dataclass(frozen=True)
class Record:
    """One run of a benchmark."""

    path: Path
    facts: dict[str, Any]

    def frame(self, table: str = "rows") -> pd.DataFrame:
        """Return one of its tables; what JSON calls null is nan."""
        return pd.DataFrame(self.facts[table]).fillna(float("nan")).infer_objects()

    @property
    def where(self) -> str:
        """On which machine and when, in words."""
        seen = self.facts["conditions"]
        machine = seen["processor"] if seen["device"] == "cpu" else seen["device"]
        return f"{machine}, {seen['threads']} threads, torch {seen['torch']}, {self.facts['date']}"


def read_records(benchmark: str, folder: Path = BENCHMARKS) -> list[Record]:
    """Return the records of a benchmark in a folder, by file name; none if there is no folder."""
    records = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            facts = read_json(path)
            lacking = [field for field in FIELDS if field not in facts]
            if not lacking:
                where = dict(facts["conditions"])
                lacking = [f"conditions.{name}" for name in CONDITIONS if name not in where]
        except (ValueError, TypeError, OSError):
            facts, lacking = {}, list(FIELDS)
        if lacking:
            raise ValueError(
                f"{path} is no record of a benchmark: it lacks {', '.join(lacking)}; write it anew "
                "by --output of a script in benchmarks/, or take it out of the folder"
            )
        if facts["benchmark"] == benchmark:
            records.append(Record(path, facts))
    return records


def gpu_checks(folder: Path = BENCHMARKS) -> pd.DataFrame:
    """Return the cases that `make gpu-check` measured on GPUs, a row each: device, date, what,
    case, and a column for each number. A folder may hold the records of several cards.
    """
    rows = []
    for path in sorted(folder.glob("gpu_check_*.jsonl")):
        try:
            first, *cases = [json.loads(line) for line in read_text(path).splitlines()]
            where = {name: first["numbers"][name] for name in ("device", "date")}
            rows += [where | {"what": c["what"], "case": c["case"]} | c["numbers"] for c in cases]
        except (ValueError, TypeError, LookupError):
            raise ValueError(
                f"{path} is no record of `make gpu-check`; take it out of the folder"
            ) from None
    return pd.DataFrame(rows)
