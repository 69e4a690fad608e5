"""`make reproduce` and `blocklora reproduce`: start the engine and say where the report is.

What a person gave, paths above all, reaches the engine as absolute paths, each one word.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.files import user_path
from ..core.machine import usable_cpus
from ..core.paths import ROOT
from ..runs.profile_files import is_file_name, load_profile
from ..runs.store import RunStore
from .execution import keep_folders

STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def reproduce(
    profile: str = "pocket",
    notebooks: str = "",
    jobs: int = 0,
    results: str | Path = "",
    variants: str = "",
) -> int:
    """Run grid, notebooks and report of a profile; return the engine's exit code, 0 if all is well.

    jobs: how many at a time; 0 for one a core. results: the folder, results/<profile> if empty;
    OSError where it cannot be written, in a project that may be read-only.
    variants: a sweep of notebooks, as `engine.variant_jobs` reads it: a YAML file, or its text.
    """
    settings = load_profile(profile)
    given = {"quiet": 1, "profile": _absolute(profile), "notebooks": notebooks}
    if variants:
        given["variants"] = _absolute(variants)
    folder = settings.results
    if str(results):
        folder = user_path(results)
        given["results"] = str(folder)
    RunStore(folder / "runs").check_writable()
    keep_folders()  # the engine works in another one
    home = ROOT  # of the engine's own notes
    if not os.access(ROOT, os.W_OK):
        given["results"] = str(folder)
        home = folder
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(home), "--cores", str(jobs or usable_cpus()), "--keep-going"]
    command += ["--rerun-incomplete", "--nolock", "--quiet", "host", "--config"]
    command += [f"{key}={value}" for key, value in given.items()]
    code = _run(command)
    if code == 0:
        print(f"done: open {_shown(folder / 'report.html')}")
    return code if code >= 0 else 128 - code


def _run(command: list[str]) -> int:
    """Run the engine; what ends or halts this process alone, as `kill` does, does so to all jobs.

    Engine and jobs are a group of their own. A stop is passed on to the engine as Ctrl-C, and by it
    to its jobs. A signal that was ignored before, as by nohup or of a script's background job,
    still is.
    """
    stopped: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if before[number] is signal.SIG_IGN:
            return
        with suppress(ProcessLookupError):  # it has just ended
            if number == signal.SIGTSTP:
                os.killpg(engine.pid, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)  # until someone says fg
                os.killpg(engine.pid, signal.SIGCONT)
            else:
                stopped.append(number)
                os.kill(engine.pid, signal.SIGINT)

    before: dict[int, Any] = {n: signal.signal(n, pass_on) for n in (*STOPS, signal.SIGTSTP)}
    try:
        with subprocess.Popen(command, process_group=0) as engine:
            code = engine.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + stopped[0] if stopped else code


def _absolute(given: str) -> str:
    """Return a YAML file's path for a process that works in another folder; all else as it is."""
    return str(user_path(given)) if is_file_name(given) else given


def as_typed(entries: Iterable[str] | None) -> dict[str, str]:
    """Return the values of Snakemake's --config, `key=value` each, as they were typed.

    Snakemake itself reads them as numbers or YAML: of `a #b` only `a` is left, `a: b` becomes a
    mapping, and 007 is 7. Quotes around a whole value are taken away, as it does.
    """
    pairs = (entry.split("=", 1) for entry in entries or () if "=" in entry)
    return {key: re.sub(r"^(['\"])(.*)\1$", r"\2", value, flags=re.DOTALL) for key, value in pairs}


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
