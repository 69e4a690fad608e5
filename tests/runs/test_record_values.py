"""What a record may hold. Each case is a file as a bad disk, a hand or a program gone wrong leaves
it.
"""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from pathlib import Path

import pytest
from one_run import make_failure, make_record, make_spec
from pydantic import ValidationError
from synthetic_records import write_records
from typer.testing import CliRunner

from blocklora_lib.claims.scoreboard import MARKERS
from blocklora_lib.cli.app import app
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.learning.count import Count
from blocklora_lib.runs.packed import read_texts
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults, experiment_runs
from blocklora_lib.runs.sealed import is_whole, seal, unseal
from blocklora_lib.runs.store import (
    DamagedRecord,
    EarlierRecord,
    RunStore,
    record_of,
)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def rewritten(path: Path, *changes, sealed: bool = True) -> None:
    """Set facts[a][b]... = value for each change (a, b, ..., value); sealed: with a checksum that
    fits.
    """
    facts = json.loads(path.read_text())
    del facts["checksum"]
    for *where, last, value in changes:
        place = facts
        for key in where:
            place = place[key]
        place[last] = value
    text = seal(facts) if sealed else json.dumps(facts, indent=1)
    path.write_text(text)


IMPOSSIBLE = [
    ("result", "accuracy", "dots", {"correct": 70, "total": 10}),
    ("result", "accuracy", "dots", {"correct": -1, "total": 10}),
    ("result", "accuracy", "dots", {"correct": "7", "total": 10}),
    ("result", "accuracy", "dots", {"correct": True, "total": 10}),
    ("result", "accuracy", "dots", {"correct": 7.0, "total": 10}),
    ("result", "accuracy", "dots", {"correct": 0, "total": 0}),
    ("result", "accuracy", "dots", None),
    ("result", "accuracy", {"squares": {"correct": 7, "total": 10}}),  # one of two sets
    ("result", "accuracy", "stars", {"correct": 7, "total": 10}),  # a set too many
    ("result", "accuracy", {}),
    ("result", "train", None),
    ("result", "train", {"correct": 5, "total": 4}),
    ("result", "loss", [0.1]),  # of two steps
    ("result", "loss", [0.1, 0.2, 0.3]),
    ("result", "loss", [0.1, None]),
    ("result", "loss", [0.1, "nan"]),
    ("result", "loss", [0.1, "0.2"]),
    ("result", "loss", [0.1, True]),
    ("result", "trainable_parameters", -12),
    ("result", "trainable_parameters", "12"),
    ("result", "overflows", [3]),
    ("result", "overflows", [0]),
    ("cost", "seconds", "train", -1.0),
    ("cost", "peak_memory_bytes", -1),
    ("status", "failed"),
    ("status", "finished"),
    ("key", "0" * 16),
    ("spec", "seed", 2),
    ("spec", "seed", "1"),
    ("spec", "seed", True),
    ("spec", "training", "batch_size", 32.0),
    ("result", None),
    ("schema", 3),
    ("results", {}),
]


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_a_value_that_cannot_be_is_refused_even_under_its_own_checksum(store, change):
    path = store.save(make_record())
    rewritten(path, change)
    with pytest.raises(DamagedRecord, match=rf"{path.name} is damaged \("):
        store.load(make_spec())


@pytest.mark.parametrize("spelling", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_loss_that_is_no_number_is_refused_in_every_spelling(store, spelling):
    path = store.save(make_record())
    body = path.read_text().split(',\n "checksum"')[0].replace("0.1,", f"{spelling},")
    assert spelling in body
    end = seal(
        json.loads("{}") | {"a": 0}
    )  # how a seal is written, here put under a body of our own
    own = sha256(end.split(',\n "checksum"')[0].encode()).hexdigest()
    path.write_text(body + end[end.index(",\n") :].replace(own, sha256(body.encode()).hexdigest()))
    assert is_whole(path.read_text())
    with pytest.raises(DamagedRecord):
        store.load(make_spec())


def test_a_hand_set_accuracy_is_noticed_by_the_checksum(store):
    path = store.save(make_record(correct=7))
    path.write_text(path.read_text().replace('"correct": 7', '"correct": 10'))
    with pytest.raises(DamagedRecord, match="changed after it was written"):
        store.load(make_spec())


def test_a_key_that_stands_twice_is_noticed_by_the_checksum():
    text = seal({"a": 1, "b": {"c": 1}})
    assert unseal(text) == {"a": 1, "b": {"c": 1}}
    body = text.split(',\n "checksum"')[0]
    for twice in (
        body.replace('"c": 1', '"c": 1, "c": 2'),
        body.replace('"a": 1', '"a": 1, "a": 1'),
    ):
        with pytest.raises(ValueError, match="changed after"):
            unseal(text.replace(body, twice))


def test_every_flipped_byte_is_noticed(store):
    path = store.save(make_record())
    content = path.read_bytes()
    for place in range(0, len(content) - 2, 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedRecord):
            store.load(make_spec())


def test_every_cut_is_noticed(store):
    path = store.save(make_record())
    content = path.read_bytes()
    for length in [*range(0, len(content) - 2, 53), len(content) - 2]:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedRecord):
            store.load(make_spec())
    path.write_bytes(content)
    assert store.load(make_spec()) == make_record()


def test_a_pipe_a_device_a_folder_and_a_link_to_nowhere_are_named_and_not_waited_for(store):
    path = store.save(make_record())
    for place in (
        os.mkfifo,
        lambda p: os.symlink("/dev/zero", p),
        os.mkdir,
        lambda p: os.symlink("gone", p),
    ):
        os.rename(path, path.with_name("kept"))
        place(path)
        for read in (lambda: store.load(make_spec()), store.records, store.frame):
            with pytest.raises(DamagedRecord, match=path.name):
                read()
        assert store.set_aside(make_spec()).parent == store.folder / "damaged"
        assert store.load(make_spec()) is None
        os.rename(path.with_name("kept"), path)
    assert len(list((store.folder / "damaged").iterdir())) == 4


def test_the_record_of_another_run_under_this_name_is_named(store):
    path = store.save(make_record())
    path.write_text(make_record(make_spec(seed=2)).to_json())
    with pytest.raises(DamagedRecord, match="the file's name is not its key"):
        store.load(make_spec())


def test_a_record_of_schema_1_is_said_to_be_of_an_earlier_version(store):
    path = store.save(make_record())
    rewritten(path, ("schema", 1), sealed=False)
    with pytest.raises(
        EarlierRecord, match="made by an earlier version and has no checksum; run again"
    ):
        store.load(make_spec())


def test_a_record_of_a_later_version_is_said_to_be_of_another(store):
    path = store.save(make_record())
    rewritten(path, ("schema", 3))
    with pytest.raises(DamagedRecord, match="it has schema 3 of another version; this one reads"):
        store.load(make_spec())


def test_what_a_machine_does_to_a_run_is_no_failure_record(store):
    failure = make_failure(make_spec())
    for kind in ("out_of_memory", "OSError", "RuntimeError", "AcceleratorError"):
        with pytest.raises(ValidationError):
            type(failure.error).model_validate(failure.error.model_dump() | {"kind": kind})


def test_more_correct_answers_than_images_cannot_be_made():
    with pytest.raises(ValidationError, match="11 correct answers of 10 are more than there are"):
        Count(correct=11, total=10)


@pytest.mark.parametrize("profile", ["pocket", "pocket-full"])
def test_the_committed_records_are_whole_and_under_their_keys(profile):
    """All by their checksums, a tenth by their values."""
    path = RESULTS / "reference" / profile / "runs.parquet"
    texts = read_texts(path)
    assert len(texts) > 500
    assert all(map(is_whole, texts.values()))
    assert all(record_of(texts[key], path / key).key == key for key in sorted(texts)[::10])


def test_a_reader_names_damaged_records_and_never_goes_on_as_if_they_were_missing_or_good(tmp_path):
    profile = load_profile("smoke")
    store = RunStore(tmp_path / "runs")
    write_records(profile, store.folder, ["few_shot"])
    whole = experiment_runs(profile, store)
    path = store.folder / f"{whole['key'][0]}.json"
    path.write_text(re.sub(r'"correct": \d', '"correct": 9', path.read_text(), count=1))
    with pytest.raises(MissingResults, match=rf"1 run of few_shot .*{path.name} is damaged"):
        experiment_runs(profile, store)
    part = experiment_runs(profile, store, partial=True)
    assert set(whole["key"]) - set(part["key"]) == {path.stem}


@pytest.mark.slow
def test_an_output_without_damaged_records_is_made_named_and_ends_with_code_1(tmp_path):
    """As of failed runs: what could be done is done, and a script sees that it is not whole."""
    profile = load_profile("smoke")
    records = write_records(profile, tmp_path / "runs", ["few_shot"])
    (tmp_path / "readme.md").write_text("\n".join(MARKERS))
    given = ["--profile", "smoke", "--results", str(tmp_path)]

    def call(*words):
        done = CliRunner().invoke(app, [*words, *given])
        return done.exit_code, done.stderr

    assert call("report")[0] == call("claims")[0] == 0
    path = tmp_path / "runs" / f"{next(iter(records))}.json"
    path.write_text(path.read_text()[:-9])
    for command in (["report"], ["claims", "--into", str(tmp_path / "readme.md")]):
        (tmp_path / "report.html").unlink(missing_ok=True)
        code, said = call(*command)
        assert code == 1
        assert said.count("left out: run record") == 1
        assert f"{path} is damaged" in said
        assert (tmp_path / "report.html").is_file() == (command == ["report"])
    assert (tmp_path / "readme.md").read_text() == "\n".join(MARKERS)
