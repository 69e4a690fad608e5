"""Tables that another state of the suite exported: what lacks a column is no evidence."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from blocklora_lib.claims.claim import judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.paper_claims import CLAIMS
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.runs.profile_files import load_profile

REFERENCE = RESULTS / "reference" / "pocket"
NEEDS = [(claim, need) for claim in CLAIMS for need in claim.needs if "/" in need]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "need"), NEEDS, ids=[f"{claim.id}-{need}" for claim, need in NEEDS]
)
def test_a_table_without_one_of_its_columns_is_named(claim, need, tmp_path):
    """Or the verdict is the one of the whole table, where its judge does not read the column."""
    notebook, name = need.split("/")
    for file in REFERENCE.glob(f"*/{notebook}/*.csv"):
        copied = tmp_path / file.relative_to(REFERENCE)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)
    shutil.copytree(REFERENCE / "notebooks", tmp_path / "notebooks")
    shutil.copy(REFERENCE / "runs.parquet", tmp_path)
    files = [*tmp_path.glob(f"*/{notebook}/{name}.csv")]  # with a figure, as a table, or both
    table = pd.read_csv(files[0])
    evidence = Evidence(load_profile("pocket"), tmp_path)

    def judged():
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
