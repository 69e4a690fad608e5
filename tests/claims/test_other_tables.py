"""Tables that another state of the suite exported: what lacks a column is no evidence."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from blocklora_lib.claims.claim import judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.paper_claims import CLAIMS
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import table_checksum

REFERENCE = RESULTS / "reference" / "pocket"
NEEDS = [(claim, need) for claim in CLAIMS for need in claim.needs if "/" in need]
each_need = pytest.mark.parametrize(
    ("claim", "need"), NEEDS, ids=[f"{claim.id}-{need}" for claim, need in NEEDS]
)


def copied(notebook, folder):
    """The reference's tables of a notebook, its indexes and records."""
    for file in REFERENCE.glob(f"*/{notebook}/*.csv"):
        to = folder / file.relative_to(REFERENCE)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    shutil.copytree(REFERENCE / "notebooks", folder / "notebooks")
    shutil.copy(REFERENCE / "runs.parquet", folder)


def judged_in(folder, claim):
    (found,) = judge([claim], Evidence(load_profile("pocket"), folder))
    return found.verdict, found.finding.evidence


@pytest.mark.slow
@each_need
def test_a_table_that_was_edited_is_no_evidence(claim, need, tmp_path):
    """A row taken out, a number made another: the notebook's index knows what it exported."""
    notebook, name = need.split("/")
    copied(notebook, tmp_path)
    for file in tmp_path.glob(f"*/{notebook}/{name}.csv"):
        whole = file.read_text()
        for edited in (whole.rpartition("\n")[0].rpartition("\n")[0] + "\n", whole + "\n"):
            file.write_text(edited)
            verdict, told = judged_in(tmp_path, claim)
            assert verdict == "not run"
            assert f"{file} is not what notebook {notebook} exported; make it again with" in told
        file.write_text(whole)
    assert judged_in(tmp_path, claim) == judged_in(REFERENCE, claim)


@pytest.mark.slow
@each_need
def test_a_table_without_one_of_its_columns_is_named(claim, need, tmp_path):
    """Or the verdict is the one of the whole table, where its judge does not read the column."""
    notebook, name = need.split("/")
    copied(notebook, tmp_path)
    index_file = tmp_path / "notebooks" / f"{notebook}.json"
    index = json.loads(index_file.read_text())
    files = [*tmp_path.glob(f"*/{notebook}/{name}.csv")]  # with a figure, as a table, or both
    table = pd.read_csv(files[0])
    evidence = Evidence(load_profile("pocket"), tmp_path)

    def judged():
        for kind in ("figures", "tables"):
            for entry in index[kind]:
                if entry["name"] == name:
                    entry["sha256"] = table_checksum(files[0])
        index_file.write_text(json.dumps(index))
        (found,) = judge([claim], evidence)
        return found.verdict, found.finding.evidence

    whole, read = judged(), 0
    for column in table.columns:
        for file in files:
            table.drop(columns=column).to_csv(file, index=False)
        verdict, told = judged()
        if verdict == "not run" and whole[0] != "not run":
            read += 1
            assert f"make it again with `blocklora notebook {notebook} " in told
    assert read or whole[0] == "not run"
