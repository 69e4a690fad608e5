"""How a program ends that is stopped from outside: by an interrupt, or by a reader that leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
