"""Records that travel as one Parquet: nothing is lost, and readers judge them like files."""

from __future__ import annotations

import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_records import made_up, write_records
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.packed import read_texts, write_texts
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults, experiment_runs
from blocklora_lib.runs.store import DamagedRecord, RunStore

PROFILE = load_profile("smoke")


@pytest.fixture
def made(tmp_path):
    """A results folder with records as files, and with a blank in its name."""
    write_records(PROFILE, tmp_path / "as files" / "runs", ["few_shot"])
    return tmp_path / "as files" / "runs"


def call(*words):
    done = CliRunner().invoke(app, [*map(str, words)])
    return done.exit_code, done.output


def texts(folder):
    return {path.stem: path.read_bytes() for path in folder.glob("*.json")}


@pytest.mark.slow
def test_packed_and_unpacked_records_are_what_they_were(made, tmp_path):
    whole = texts(made)
    (made / f"{'0' * 16}.tmp").write_text("no record")
    code, said = call("records", "pack", made)
    assert (code, said) == (0, f"{len(whole)} records packed into {made}.parquet\n")
    code, said = call("records", "unpack", f"{made}.parquet", tmp_path / "again")
    assert (code, said) == (0, f"{len(whole)} records unpacked into {tmp_path / 'again'}\n")
    assert texts(tmp_path / "again") == whole
    RunStore(tmp_path / "again").pack(tmp_path / "twice.parquet")
    first = made.with_name("runs.parquet").read_bytes()
    assert (tmp_path / "twice.parquet").read_bytes() == first


@pytest.mark.slow
def test_thousands_of_records_come_back_to_the_byte(tmp_path):
    """More than a page of the Parquet holds, and than its dictionary."""
    spec = next(spec for spec in expand(PROFILE, "few_shot") if spec.shots)
    made = [made_up(spec.model_copy(update={"seed": seed})) for seed in range(2000)]
    store = RunStore(tmp_path / "runs")
    for record in made:
        store.save(record)
    assert store.pack(tmp_path / "all.parquet") == len(made)
    again = RunStore(tmp_path / "again")
    assert again.unpack(tmp_path / "all.parquet") == len(made)
    assert texts(again.folder) == texts(store.folder)
    assert len(texts(again.folder)) == len(made)
    packed = RunStore(tmp_path / "all")
    assert packed.frame().equals(store.frame())
    again.pack(tmp_path / "twice.parquet")
    whole = (tmp_path / "all.parquet").read_bytes()
    assert (tmp_path / "twice.parquet").read_bytes() == whole
    assert sum(map(len, texts(again.folder).values())) > 2 * 2**20  # a page, a dictionary


@pytest.mark.slow
def test_readers_take_a_parquet_where_the_folder_is_not(made, tmp_path):
    RunStore(made).pack(tmp_path / "runs.parquet")
    files, packed = RunStore(made), RunStore(tmp_path / "runs")
    assert packed.records() == files.records() == RunStore(tmp_path / "runs.parquet").records()
    told = experiment_runs(PROFILE, files)
    assert experiment_runs(PROFILE, packed).equals(told)
    few = {spec.key for spec in (r.spec for r in packed.records()[1:])}
    write_texts(tmp_path / "few.parquet", {k: v for k, v in packed._packed.items() if k in few})
    with pytest.raises(MissingResults, match="1 run of few_shot missing"):
        experiment_runs(PROFILE, RunStore(tmp_path / "few"))
    said = [
        call("claims", "--profile", "smoke", "--results", f.parent) for f in (made, made.parent)
    ]
    assert said[0][0] == 0
    assert said[1] == (
        0,
        re.sub("'?" + re.escape(str(made.parent)) + "'?", str(tmp_path), said[0][1]),
    )


def test_packed_records_are_never_written_to_nor_mixed_with_files(made, tmp_path):
    RunStore(made).pack(tmp_path / "runs.parquet")
    packed = RunStore(tmp_path / "runs")
    for write in (packed.check_writable, lambda: packed.save(packed.records()[0])):
        with pytest.raises(ValueError, match=r"only read; .*`blocklora records unpack .*runs\.par"):
            write()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    assert RunStore(tmp_path / "runs").records() == []


def test_a_damaged_record_stays_damaged_in_a_parquet(made, tmp_path):
    store = RunStore(made)
    path = store.path(store.records()[0].spec)
    path.write_text(re.sub(r'"correct": \d', '"correct": 9', path.read_text(), count=1))
    code, said = call("records", "pack", made)
    assert code == 2
    assert f"{path} is damaged" in said
    assert not made.with_name("runs.parquet").exists()
    write_texts(tmp_path / "p.parquet", {k: v.decode() for k, v in texts(made).items()})
    found, damaged = RunStore(tmp_path / "p").read()
    assert (len(found), len(damaged)) == (len(texts(made)) - 1, 1)
    assert f"p.parquet/{path.name} is damaged" in str(damaged[0])
    assert str(damaged[0]).endswith(f"restore {tmp_path / 'p.parquet'}")
    with pytest.raises(DamagedRecord, match="its checksum is of another content"):
        RunStore(tmp_path / "new").unpack(tmp_path / "p.parquet")
    assert not (tmp_path / "new").exists()


def test_unpacking_writes_over_no_other_record(made, tmp_path):
    RunStore(made).pack(file := tmp_path / "p.parquet")
    assert RunStore(made).unpack(file) == 0
    path = next(made.glob("*.json"))
    path.write_text("another")
    with pytest.raises(ValueError, match=f"{path.name} and .* have different records"):
        RunStore(made).unpack(file)
    assert path.read_text() == "another"


KEY = "0123456789abcdef"


def table(**columns):
    return pa.table({name: pa.array(values) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PAR1 and no more", "Parquet"),
        (table(key=["a"]), r"\(it has no column record\)"),
        (table(key=[KEY, KEY], record=["x", "y"]), "a key stands twice"),
        (table(key=[KEY, None], record=["x", "y"]), "no text"),
        (table(key=[f"../{KEY}"], record=["x"]), f"'../{KEY}' is no key of a run"),
        (table(key=[f"{KEY}\0"], record=["x"]), "is no key of a run"),
        (table(key=[KEY, f"x/{KEY}"], record=["x", "x"]), f"'x/{KEY}' is no key of a run"),
        (table(key=[[KEY]], record=["x"]), "column key holds list"),
        (table(key=[KEY], record=[["x"]]), "column record holds list"),
        (table(key=["a"], record=[1]), "no text"),
    ],
    ids=range(10),
)
def test_what_is_no_parquet_of_records_is_a_sentence(tmp_path, content, why):
    path = tmp_path / "runs.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    with pytest.raises(ValueError, match=rf"runs\.parquet is no Parquet .*{why}.*; restore it"):
        read_texts(path)
    for command in (["unpack", path, tmp_path / "in"], ["merge", path, "--into", tmp_path / "in"]):
        code, said = call("records", *command)
        assert code == 2
        assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        (3000, 2**20),  # was 10 GB from 51 kB
        pytest.param(64, 30_000_000, marks=pytest.mark.slow),  # was 2 GB from 1.9 kB, in one batch
    ],
)
def test_a_small_file_cannot_fill_the_memory(tmp_path, rows, length):
    """One long text, said of many keys."""
    path, keys = tmp_path / "runs.parquet", [f"{i:016x}" for i in range(rows)]
    long = pa.DictionaryArray.from_arrays(pa.array([0] * len(keys)), pa.array(["x" * length]))
    whole = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({"key": keys, "record": long}), path, **whole)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="far more than texts of records do"):
        read_texts(path)
    most = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory() - before
    tracemalloc.stop()
    assert most < 5e8


@pytest.mark.parametrize("cut", [100, 2000, -10])
def test_a_cut_or_changed_parquet_is_a_sentence(made, tmp_path, cut):
    RunStore(made).pack(path := tmp_path / "runs.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    with pytest.raises(ValueError, match="is no Parquet of run records"):
        read_texts(path)
    path.write_bytes(content[:cut] + b"\0" * 60 + content[cut:][60:])
    with pytest.raises((ValueError, DamagedRecord), match=r"is no Parquet|is damaged"):
        RunStore(path).records()


def test_a_folder_that_is_not_there_is_not_packed_as_nothing(tmp_path):
    code, said = call("records", "pack", tmp_path / "none")
    assert code == 2
    assert "no folder of records" in said
    assert not (tmp_path / "none.parquet").exists()
    assert call("records", "unpack", tmp_path / "none.parquet")[0] == 2
    assert call("records", "unpack", tmp_path / "none")[0] == 2
    (tmp_path / "none" / "runs").mkdir(parents=True)  # a results folder in place of its records
    code, said = call("records", "pack", tmp_path / "none")
    assert (code, "no folder of records" in said) == (2, True)


def test_records_are_packed_over_records_and_nothing_else(tmp_path):
    photo = tmp_path / "holiday.jpg"
    photo.write_bytes(b"a photo")
    with pytest.raises(ValueError, match="is there and no Parquet of run records"):
        write_texts(photo, {"0123456789abcdef": "{}"})
    assert photo.read_bytes() == b"a photo"
    for _ in range(2):
        write_texts(tmp_path / "runs.parquet", {"0123456789abcdef": "{}"})
