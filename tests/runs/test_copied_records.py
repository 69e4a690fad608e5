"""Records that a file manager copied, and folders of which none can be counted."""

from __future__ import annotations

import json
import shutil

import pytest
from one_run import make_record, make_spec
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.packed import write_texts
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.runs.store import DamagedRecord, RunStore
from blocklora_lib.suite.difference import difference
from blocklora_lib.suite.paper import write_inputs


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "a" / "runs")
    for seed in (1, 2, 3):
        store.save(make_record(make_spec(seed=seed)))
    return store


def copied(store):
    """The same store with copies of two records, as file managers name them; and those names."""
    names = []
    for path, name in zip(sorted(store.folder.iterdir())[:2], ("{} (copy)", "{} 2"), strict=True):
        names.append(f"{name.format(path.stem)}.json")
        shutil.copy(path, store.folder / names[-1])
    return sorted(names)


def test_a_copy_is_told_by_every_reader_and_counted_by_none(store):
    before = store.facts()[0]
    names = copied(store)
    found, damaged = store.facts()
    read, told = store.read()
    assert found == before
    assert len(read) == len(found) == 3
    assert sorted(error.path.name for error in damaged) == names
    assert [*map(str, damaged)] == [*map(str, told)]
    with pytest.raises(DamagedRecord, match="the file's name is not its key"):
        store.frame()


def test_a_difference_counts_each_run_once(store, tmp_path):
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    names = copied(store)
    done = CliRunner().invoke(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 1
    assert f"A: {tmp_path / 'a'}, 3 runs\n" in done.stdout
    assert "3 runs are of one spec in both: 3 gave the same counts, 0 did not." in done.stdout
    left = done.stderr.splitlines()
    assert len(left) == 2
    assert all(name in line for name, line in zip(names, left, strict=True))


def test_a_packed_record_under_anothers_key_is_one_too(store, tmp_path):
    texts = {path.stem: path.read_text() for path in store.folder.iterdir()}
    first, second, _ = sorted(texts)
    write_texts(tmp_path / "p.parquet", texts | {first: texts[second]})
    found, damaged = RunStore(tmp_path / "p.parquet").facts()
    assert sorted(facts["key"] for facts in found) == sorted(texts)[1:]
    assert f"{first}.json is damaged (the file's name is not its key {second})" in str(damaged[0])


def test_a_folder_of_damaged_records_is_not_said_to_hold_none(store, tmp_path):
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in store.folder.iterdir():
        path.write_text(path.read_text().replace('"seed"', '"sead"'))
    board = {"claims": [], "profile": "smoke", "caution": ""}
    (tmp_path / "a" / "claims.json").write_text(json.dumps(board))
    first, *others = sorted(path.name for path in store.folder.iterdir())
    for call in (
        lambda: difference(tmp_path / "b", tmp_path / "a"),
        lambda: write_inputs(tmp_path / "a", tmp_path / "paper"),
    ):
        with pytest.raises(MissingResults) as told:
            call()
        text = str(told.value)
        assert text.startswith(f"no run record of {tmp_path / 'a'} can be counted: run record ")
        assert f"{first} is damaged (its checksum is of another content" in text
        assert text.endswith(f"; damaged, too: {', '.join(others)}")
        assert len(told.value.damaged) == 3
    assert not (tmp_path / "paper").exists()
