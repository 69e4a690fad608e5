"""What a person mistypes, or says in one breath, is answered by what was meant or by a sentence."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from blocklora_lib import __version__
from blocklora_lib.cli.app import app
from blocklora_lib.cli.options import given
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.runs.grid import experiments_with
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.suite.engine import variant_jobs

REFERENCE = RESULTS / "reference" / "pocket"


def said(*words: object, code: int = 0) -> str:
    """What a command says, on both streams."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def test_the_version_is_told():
    assert said("--version") == f"{__version__}\n"


def test_an_unknown_option_of_all_is_one_sentence():
    (line,) = said("--verison", code=2).splitlines()
    assert line.startswith("error: No such option: --verison")


@pytest.mark.parametrize(
    ("words", "default"),
    [
        (["grid"], "[results/<profile>]"),
        (["grid"], "[as the profile says]"),
        (["reproduce"], "[one a core]"),
        (["data", "list"], "[all]"),
        (["data", "list"], "[$BLOCKLORA_DATA or data]"),
    ],
)
def test_help_has_its_defaults(words, default):
    """Words in brackets were taken for styles of a terminal, and left out."""
    assert default in " ".join(said(*words, "--help").split())


def test_all_experiments_are_those_that_have_the_dataset_and_the_method():
    pocket = load_profile("pocket")
    everything = experiments_with(pocket, None, None)
    assert everything == list(pocket.experiments)
    some = experiments_with(pocket, "mnist", "gda")
    assert "comparison" in some
    assert set(some) < set(everything)
    listed = said("grid", "--experiment", "all", "--method", "gda", "--list")
    assert all(" gda " in line for line in listed.splitlines()[:5])
    assert "unknown dataset 'mnsit'; did you mean 'mnist'" in said(
        "grid", "--experiment", "all", "--dataset", "mnsit", "--list", code=2
    )


def test_a_grid_names_runs_as_its_profile_does():
    """CoOp of 16 tokens and of 4 were both 'coop', and the readings of blocks one and the same."""
    words = ("grid", "--profile", "paper", "--list", "--experiment")
    listed = said(*words, "comparison", "--dataset", "ucf101").splitlines()
    told = [line.split(maxsplit=2)[2] for line in listed[:-2]]
    assert "ucf101 coop shots=1 seed=1" in told
    assert "ucf101 coop_4 shots=1 seed=1" in told
    assert "ucf101 lora(2) shots=1 seed=1" in told  # whose name is the registry's
    assert len({*told}) == len(told)
    varied = said(*words, "blocks", "--dataset", "eurosat")
    assert "eurosat block_lora,reading=input,rank=2,n_blocks=4 shots=16 seed=1" in varied


@pytest.mark.parametrize("command", [["claims"], ["report"]])
@pytest.mark.parametrize("made", [False, True])
def test_results_that_are_not_there_are_no_empty_results(tmp_path, command, made):
    """A mistyped folder was judged 'not run', and `report` made it."""
    place = tmp_path / "typo"
    if made:
        place.write_text("a file")
    assert f"no results folder {place}" in said(*command, "--results", place, code=2)
    assert place.exists() == made


@pytest.mark.parametrize("command", ["claims", "report"])
def test_a_variant_is_not_a_results_folder(tmp_path, command):
    """Its runs stand elsewhere: a report said '0 finished runs', claims how to make them anew."""
    place = tmp_path / "variants" / "r4-12345678"
    place.mkdir(parents=True)
    (place / "parameters.json").write_text("{}")
    assert f"claims and report are of {tmp_path}" in said(command, "--results", place, code=2)
    assert not (place / "report.html").exists()


def test_a_results_folder_is_not_a_folder_of_records(tmp_path):
    """claims.json begins with a hexadecimal digit, and was called a damaged record."""
    (tmp_path / "claims.json").write_text("{}")
    inner = f"{tmp_path}/runs"
    packed = said("records", "pack", tmp_path, code=2)
    assert f"no folder of records {tmp_path}; give one, as {inner}" in packed
    merged = said("records", "merge", tmp_path, "--into", tmp_path / "all", code=2)
    assert f"no records in {tmp_path}; give a folder of them, as {inner}, or" in merged


@pytest.mark.parametrize("stores", [["a", "b"], ["a"], ["c.parquet"], ["c.parquet", "a", "b"]])
def test_stores_are_joined_by_another_merge(tmp_path, stores):
    for name in "ab":
        (tmp_path / name).mkdir()
    given = [tmp_path / name for name in stores]
    told = said("merge", *given, "--into", tmp_path / "all", code=2)
    assert "joined by `blocklora records merge`" in told
    assert str(given[-1]) in told
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("name", "option"), [("profile", "--profile"), ("results_dir", "--results")]
)
def test_what_is_said_twice_is_refused(name, option):
    text = said("notebook", "08_few_shot", "-p", name, "smoke", option, "pocket", code=2)
    assert f"-p {name} and {option} say the same" in text


@pytest.mark.parametrize(
    "entry",
    [
        "notebook: '08_few_shot,11_ablations', rank: 4",
        "notebook: '', rank: 4",
        "notebook: 08_few_shot, rank: 4, profile: pocket",
        "notebook: 08_few_shot, rank: 4, results_dir: x",
    ],
)
def test_a_sweep_names_one_notebook_and_what_is_varied(entry):
    with pytest.raises(ValueError, match="is to name one notebook, and what is varied"):
        variant_jobs(f"[{{{entry}}}]", load_profile("smoke"))


def test_tables_are_exported_into_a_new_folder(tmp_path):
    to = tmp_path / "new" / "paper"
    words = ["--venue", "icml", "--results", REFERENCE, "--tables", "08_few_shot", "--to", to]
    said("export", *words)
    assert len([*to.glob("tab-*.tex")]) > 2


def test_a_setting_that_may_be_nothing_is_given_as_null():
    """It was 'cannot be read', though profiles say it so."""
    assert given(["class_chunk=null", "max_steps=~"], "-t") == dict.fromkeys(
        ("class_chunk", "max_steps")
    )
    wrong = said("run", "--dataset", "mnist", "--method", "lora", "-s", "rank=null", code=2)
    assert "rank: " in wrong
    for word in ("rank", "rank=", "rank= ", "=8"):
        with pytest.raises(ValueError, match="write -s NAME=VALUE"):
            given([word], "-s")


def test_records_are_merged_into_a_folder_and_packed_into_a_file(tmp_path):
    """A folder called all.parquet was made, which no reader takes for a file."""
    told = said("records", "merge", REFERENCE / "runs", "--into", tmp_path / "x.parquet", code=2)
    assert "a folder gets the records" in told
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("words", [["rates"], ["grid", "--list", "--experiment", "rates"]])
def test_a_profile_that_declares_no_rates_is_told_so(tmp_path, words):
    """It was 'unknown experiment, did you mean texts?'"""
    path = tmp_path / "mine.yaml"
    path.write_text("{name: mine, description: d, extends: smoke, rates: null}")
    told = said(*words, "--profile", path, code=2)
    assert "profile mine declares no rates to choose from; give rates: {grid: ..., " in told
