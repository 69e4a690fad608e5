"""Stores of several machines joined: nothing lost, nothing changed, what disagrees is told."""

from __future__ import annotations

import pytest
from one_run import make_failure, make_record, make_spec
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.code_digest import code_of
from blocklora_lib.runs.store import RunStore

SPECS = [make_spec(seed=seed) for seed in range(1, 6)]


def merge(*words):
    done = CliRunner().invoke(app, ["records", "merge", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def machines(tmp_path):
    """Two machines that did three runs each, one of them both."""
    a, b = RunStore(tmp_path / "a" / "runs"), RunStore(tmp_path / "b" / "runs")
    for store, specs in ((a, SPECS[:3]), (b, SPECS[2:])):
        for spec in specs:
            store.save(make_record(spec))
    return a, b


@pytest.mark.parametrize("packed", [False, True])
def test_all_records_of_both_are_there_to_the_byte(machines, tmp_path, packed):
    a, b = machines
    given = [a.folder, b.folder]
    if packed:
        given[1] = tmp_path / "b.parquet"
        b.pack(given[1])
    into = tmp_path / "all" / "runs"
    assert merge(*given, "--into", into) == (0, f"5 records merged into {into}\n", "")
    for store in machines:
        for path in store.folder.iterdir():
            assert (into / path.name).read_bytes() == path.read_bytes()
    assert len(RunStore(into).records()) == 5
    assert merge(*given, "--into", into)[1] == f"0 records merged into {into}\n"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_done_beats_failed_whatever_the_order(machines, tmp_path, order):
    a, b = machines
    a.save(make_failure(SPECS[2]))
    into = RunStore(tmp_path / "all")
    code, out, err = merge(*[machines[i].folder for i in order], "--into", into.folder)
    # one that is replaced counts once
    assert (code, out, err) == (0, f"5 records merged into {into.folder}\n", "")
    assert {record.status for record in into.records()} == {"done"}
    assert into.load(SPECS[2]) == b.load(SPECS[2])


def test_results_that_disagree_are_told_and_the_first_stands(machines, tmp_path):
    a, b = machines
    b.save(make_record(SPECS[2], correct=8))
    into = RunStore(tmp_path / "all")
    code, out, err = merge(a.folder, b.folder, "--into", into.folder)
    assert (code, out) == (1, f"5 records merged into {into.folder}\n")
    assert err.count("\n") == 1
    assert f"{b.folder} has another result of {SPECS[2].key}" in err
    assert into.load(SPECS[2]) == a.load(SPECS[2])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_present_state_of_the_library_beats_an_earlier_one(machines, tmp_path, order):
    """An earlier one that stood would be computed again by the next grid."""
    a, b = machines
    present = make_record(SPECS[2], correct=8).model_copy(
        update={"code": code_of(SPECS[2].method.name)}
    )
    b.save(present)
    into = RunStore(tmp_path / "all")
    said = merge(*[machines[i].folder for i in order], "--into", into.folder)
    assert said == (0, f"5 records merged into {into.folder}\n", "")
    assert into.load(SPECS[2]) == present
    b.save(make_failure(SPECS[2]).model_copy(update={"code": present.code}))
    assert merge(b.folder, "--into", a.folder)[0] == 0
    assert a.load(SPECS[2]) == make_record(SPECS[2])  # done, of whatever state, before failed


def test_damaged_records_are_told_and_left_out(machines, tmp_path):
    a, b = machines
    b.path(SPECS[4]).write_text("{")
    code, _, err = merge(a.folder, b.folder, "--into", tmp_path / "all")
    assert code == 1
    assert err.startswith(f"left out: run record {b.path(SPECS[4])} is damaged")
    assert len(RunStore(tmp_path / "all").records()) == 4


def test_a_store_that_is_not_there_is_a_sentence(machines, tmp_path):
    code, _, err = merge(machines[0].folder, tmp_path / "none", "--into", tmp_path / "all")
    assert (code, err.count("\n")) == (2, 1)
    assert "no records in" in err
    assert not (tmp_path / "all").exists()
    code, _, err = merge(machines[0].folder.parent, "--into", tmp_path / "all")
    assert (code, "no records in" in err) == (2, True)
