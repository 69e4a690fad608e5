"""Starting the engine: what is asked for is looked at before Snakemake, which answers in traces."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from blocklora_lib.suite import reproduce as module


@pytest.fixture
def engine(monkeypatch):
    """The engine's command, in place of the engine."""
    started = []

    class Engine:
        def __init__(self, command, process_group):
            started.append(command)

        def __enter__(self):
            return SimpleNamespace(wait=lambda: 0)

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(subprocess, "Popen", Engine)
    return started


@pytest.mark.parametrize("read_only", [False, True])
def test_results_that_cannot_be_written_are_said_before_the_engine_starts(
    engine, monkeypatch, tmp_path, read_only
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(module.os, "access", lambda *_: not read_only)
    with pytest.raises(OSError, match=r"file/here/runs cannot be written .*--results"):
        module.reproduce("smoke", results=tmp_path / "file" / "here")
    assert engine == []


def test_in_a_read_only_project_the_engine_notes_stand_with_the_results(
    engine, monkeypatch, tmp_path
):
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    assert module.reproduce("smoke", results=tmp_path / "here") == 0
    (command,) = engine
    assert command[command.index("--directory") + 1] == str(tmp_path / "here")
    assert f"results={tmp_path / 'here'}" in command


@pytest.mark.parametrize(
    ("variants", "handed_on"), [("sweep.yaml", "{folder}/sweep.yaml"), ("[{a: 1}]", "[{{a: 1}}]")]
)
def test_a_sweep_reaches_the_engine_as_a_path_that_holds_in_any_folder(
    engine, monkeypatch, tmp_path, variants, handed_on
):
    monkeypatch.chdir(tmp_path)
    module.reproduce("smoke", results=tmp_path / "results", variants=variants)
    assert f"variants={handed_on.format(folder=tmp_path)}" in engine[0]


@pytest.mark.parametrize("variable", ["BLOCKLORA_DATA", "BLOCKLORA_WEIGHTS"])
def test_a_relative_folder_in_a_variable_is_of_where_the_command_was_given(
    engine, monkeypatch, tmp_path, variable
):
    """The engine, which works in the project's folder, read another one there, or missed it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "mine")
    module.reproduce("smoke", results=tmp_path / "results")
    assert os.environ[variable] == str(tmp_path / "mine")
