"""The engine in a folder of its own, and as much of records and specs as it looks at."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from blocklora_lib.core.paths import ROOT
from blocklora_lib.runs.code_digest import code_of
from blocklora_lib.runs.sealed import seal

PROFILE = "smoke"


def snakemake(folder, *arguments, **config):
    """Run the Snakefile in a folder of its own; results then stand in folder/results/<profile>."""
    place = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    options = ["--cores", "1", "--nolock", "--rerun-incomplete", *arguments]
    given = [f"{key}={value}" for key, value in ({"profile": PROFILE} | config).items()]
    command = [sys.executable, "-m", "snakemake", *place, *options, "--config", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=folder
    )


def record(key, code=None):
    """As much of a record as the engine looks at: key, method, code and checksum."""
    code = code_of("lora") if code is None else code
    spec = {"method": {"name": "lora"}}
    return seal({"schema": 2, "key": key, "spec": spec, "code": code, "images": "", "end": 0})


class Run(NamedTuple):
    """As much of a spec as the engine looks at."""

    key: str


def runs(*keys):
    return [Run(key) for key in keys]
