"""A Slurm of one node on loopback with two stand-in GPUs, from Debian's packages.

    with slurm_node(folder) as environment:
        subprocess.run(["sinfo"], env=environment)

What the daemons write lies in the folder; each is stopped by its own pid file.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
GPUS = 2

SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=300
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(RuntimeError):
    """Why there can be none here, in a sentence."""


def install() -> None:
    """Install Debian's packages where they are missing; NoSlurm where that cannot be."""
    if all(
        shutil.which(name, path=_path()) for name in ("slurmctld", "slurmd", "munged", "sbatch")
    ):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoSlurm(f"needs {' and '.join(PACKAGES)}, or root and apt-get to install them")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    words = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:  # the lists of packages may be old, or none
        subprocess.run(["apt-get", "update", "-q"], env=quiet, capture_output=True, check=False)
        done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSlurm(f"apt-get cannot install {' and '.join(PACKAGES)}: {done.stderr[-300:]}")


def _path() -> str:
    """Where programs are looked for; Debian puts daemons where a login's PATH may not lead."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons in an empty folder, yield the environment of Slurm's commands, stop them.

    NoSlurm where this machine cannot: without root, packages, or devices that can be made.
    """
    if os.geteuid() != 0:
        raise NoSlurm("slurmd wants to be root")
    install()
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = platform.node().partition(".")[0]
    given = dict(folder=folder, host=host, ports=_free_ports(2), gpus=GPUS)
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**given))
    try:
        for number in range(GPUS):
            os.mknod(folder / f"nvidia{number}", 0o020666, os.makedev(195, number))
    except OSError as error:
        raise NoSlurm(f"a stand-in for a GPU cannot be made: {error}") from None
    gres = [f"NodeName={host} Name=gpu File={folder}/nvidia{i}\n" for i in range(GPUS)]
    (folder / "gres.conf").write_text("".join(gres))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf = str(folder / "slurm.conf")
    # the executor takes SLURM_* out of a job's environment: its srun would not find the file
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": conf, "PATH": f"{folder}/bin:{_path()}"}
    daemons = {
        "munged": ["--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        + [f"--{what}-file={folder}/munged.{what}" for what in ("pid", "log", "seed")],
        "slurmctld": ["-f", conf],
        "slurmd": ["-f", conf],
    }
    try:
        for name, words in daemons.items():
            subprocess.run([name, *words], env=environment, check=True, capture_output=True)
        _wait(lambda: b" idle" in _said("sinfo", "-h", "-o", "%P %t", env=environment), folder)
        yield environment
    finally:
        _said("scancel", "--user=root", env=environment)
        for name in reversed(daemons):
            _stop(folder / f"{name}.pid")


def _stop(file: Path) -> None:
    """End the process of a pid file, and wait for its end."""
    if not file.is_file():
        return
    number = int(file.read_text())
    for what in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(number, what)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                os.kill(number, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def _said(*words: str, env: dict[str, str]) -> bytes:
    return subprocess.run(words, env=env, capture_output=True, check=False).stdout


def _wait(there, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text()[-500:] for path in folder.glob("*.log")}
            raise NoSlurm(f"the node did not come up in {seconds:g} s: {logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    found = [socket.socket() for _ in range(count)]
    try:
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
    finally:
        for each in found:
            each.close()
