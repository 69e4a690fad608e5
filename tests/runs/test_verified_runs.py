"""A record's run repeated: the same bits are said, and what is another one by its name."""

from __future__ import annotations

import json

import pytest
from one_run import make_failure, make_record, make_spec
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.verify import circumstances, differences


def call(*words):
    done = CliRunner().invoke(app, ["run", *map(str, words)])
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_record_is_what_its_run_gives_again_and_a_changed_one_is_not(tmp_path):
    given = ["--profile", "smoke", "--results", tmp_path]
    words = ["--dataset", "chess", "--method", "lora", "--shots", "1"]
    code, said = call(*given, *words)
    path = tmp_path / "runs" / said.splitlines()[-1].rpartition("/")[2]
    assert (code, path.is_file()) == (0, True)
    code, said = call("--profile", "smoke", "--verify", path)
    assert code == 0
    assert f"the same bits as {path}" in said
    RunStore(path.parent).pack(tmp_path / "p.parquet")
    facts = json.loads(path.read_text())
    del facts["checksum"]
    facts["result"]["loss"][1] += 1e-7
    path.write_text(seal(facts))
    code, said = call("--profile", "smoke", "--verify", path)
    assert code == 1
    assert "loss of step 2: it was " in said
    assert f"1 differences to {path}" in said
    assert path.read_text() == seal(facts)  # nothing is stored
    assert call("--profile", "smoke", "--verify", tmp_path / "p.parquet" / path.name)[0] == 0


def test_differences_are_of_counts_losses_status_and_circumstances():
    record = make_record()
    assert differences(record, make_record()) == circumstances(record, make_record()) == []
    assert differences(record, make_record(correct=8)) == [
        f"accuracy on {name}: it was {{'correct': 7, 'total': 10}} and is "
        "{'correct': 8, 'total': 10}"
        for name in ("dots", "squares")
    ]
    assert differences(record, make_failure(make_spec())) == ["it was done and is failed"]
    other = record.model_copy(update={"provenance": {"threads": 4}, "code": "0" * 64})
    assert circumstances(record, other) == [
        "code of the library: another state",
        "threads: it was None and is 4",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--verify", "none.json"], "no record"),
        (["--dataset", "chess"], "--dataset and --method, or --verify RECORD"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    code, said = call(*words)
    assert (code, said.count("\n")) == (2, 1)
    assert told in said
