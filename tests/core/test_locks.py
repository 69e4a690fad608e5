"""A lock of a name: one process has it, a dead one loses it, the file goes with the last."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from blocklora_lib.core.locks import Taken, locked
from blocklora_lib.core.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from blocklora_lib.core.locks import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_one_processs_until_it_dies(tmp_path):
    path = tmp_path / ".a.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Taken, match=r"\.a\.lock"), locked(path, print, wait=False):
            pass
        assert path.exists()
    finally:
        other.kill()
        other.wait()
    said = []
    with locked(path, said.append) as held:  # what a killed process left
        assert held
        with pytest.raises(Taken), locked(path, print, wait=False):
            pass
    assert said == []
    assert not path.exists()


def test_a_lock_of_a_name_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking, whoever had it was done and removed the file."""
    path, real = tmp_path / ".a.lock", os.open
    opened = []

    def slow(*given, **more):
        opened.append(real(*given, **more))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    monkeypatch.setattr(os, "open", slow)
    with locked(path, print) as held:
        assert held
        assert os.stat(path).st_ino == os.fstat(opened[-1]).st_ino
    assert len(opened) == 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_nobody_waits(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    said = []
    with locked(tmp_path / ".a.lock", said.append, wait=False) as held:
        assert not held
    assert said == [
        f"the file system of {tmp_path} has no locks ({os.strerror(number)}): start one at a time"
    ]
