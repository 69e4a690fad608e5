"""How a program ends that is stopped from outside: by an interrupt, or by a reader that leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.cli.exits import sentence
from blocklora_lib.cli.options import GO_ON, JOB
from blocklora_lib.core.paths import ROOT

GOES_ON = "; the same command goes on"
INTERRUPTED = """
import runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run behind a shell
sys.meta_path.insert(0, Finder())
sys.argv = ["blocklora", "data", "list"]
runpy.run_module("blocklora_lib.cli", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["cli.exits", "core.files", "cli.app"])
def test_an_interrupt_while_modules_are_read_is_an_interrupt(module):
    code = INTERRUPTED.format(module=f"blocklora_lib.{module}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


def test_an_error_of_a_strangers_long_text_keeps_its_end():
    told = sentence(ValueError(f"unknown {'x' * 10**6}; give another name"))
    assert told.endswith("x; give another name")
    assert len(told) < 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["data", "list"], ["grid", "--profile", "smoke", "--list"]], ids=lambda w: w[0]
)
def test_a_reader_that_left_leaves_a_code_that_is_no_success(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "blocklora_lib.cli", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (["grid", "--profile", "smoke"], "cli.grid.named_profile", GOES_ON),
        (["grid", "--profile", "smoke", "--list"], "cli.grid.named_profile", ""),
        (["rates", "--profile", "smoke"], "cli.grid.named_profile", GOES_ON),
        (["notebook", "01_method"], "suite.execution.run_notebook", GOES_ON),
        (["data", "download", "dtd"], "data.obtain.download.download", GOES_ON),
        (["data", "list"], "cli.data.all_manifests", ""),
        (["claims", "--profile", "smoke"], "runs.profile_files.load_profile", ""),
        (["run", "--dataset", "chess", "--method", "lora"], "cli.app.named_profile", ""),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_an_interrupt_says_whether_the_same_command_goes_on(monkeypatch, words, where, said):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.setattr(f"blocklora_lib.{where}", interrupt)
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.output) == (128 + signal.SIGINT, f"stopped{said}\n")
    monkeypatch.setenv(JOB, "1")  # the engine says it for all its jobs
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.output) == (128 + signal.SIGINT, "")


def test_commands_that_go_on_are_commands():
    from typer.main import get_command

    commands = get_command(app).commands
    names = {
        *commands,
        *(f"{a} {b}" for a in commands for b in getattr(commands[a], "commands", ())),
    }
    assert names >= {*GO_ON}


def test_the_engine_tells_its_jobs_that_they_are():
    assert f'os.environ["{JOB}"] = "1"' in (ROOT / "Snakefile").read_text(encoding="utf-8")
