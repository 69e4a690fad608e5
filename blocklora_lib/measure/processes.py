"""One timing in several fresh processes, one after the other.

Rounds within a process say how well *its* ratio is known. Another process of the same code on the
same machine has its tensors at other addresses and pages of memory, and has warmed up anew; where
that moves a ratio, rounds do not tell. So what is said of code, and not of one process, rests on
several, each of which gives one value (`timing.spread`).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from tqdm.auto import tqdm

from ..core.schema import explain
from ..weights.spec import BackboneSpec
from .peak_memory import MeasurementFailed

Times = Callable[..., pd.DataFrame]


def in_processes(
    work: Times, processes: int, label: str = "timing", **arguments: Any
) -> pd.DataFrame:
    """Return the frames of work(seed=1, ..), work(seed=2, ..), .. with a column `process`.

    work: a function of a module, as `path_times`; what it is given and returns is pickled. Each
    runs in a new interpreter with as many threads as here. What the work refuses is a ValueError or
    an OSError with its words; MeasurementFailed says what else it raises, and where it is killed.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}; use at least 1, and 6 for an interval at 95%")
    # not multiprocessing: its resource tracker stays, ignores SIGTERM, and so keeps a notebook's
    # kernel from ending until it is killed
    command = [sys.executable, "-m", __name__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    frames = []
    for seed in tqdm(range(1, processes + 1), desc=label, unit="process"):
        given = pickle.dumps((torch.get_num_threads(), work, arguments | {"seed": seed}))
        done = subprocess.run(
            command, input=given, stdout=subprocess.PIPE, env=environment, check=False
        )
        if done.returncode:
            raise MeasurementFailed(
                f"process {seed} of {processes} was ended from outside while it measured {label}; "
                "is there enough memory?"
            )
        found = pickle.loads(done.stdout)
        if isinstance(found, Exception):
            raise found
        frames.append(found.assign(process=seed))
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    """Do the work that stdin names; write what it returns, or its error, to stdout."""
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what the work prints is no answer
        threads, work, arguments = pickle.load(sys.stdin.buffer)
        torch.set_num_threads(threads)
        try:
            found = work(**arguments)
        except (ValueError, OSError) as error:  # in words alone: not each of ours can be pickled
            told = explain(error) if isinstance(error, ValidationError) else str(error)
            found = (ValueError if isinstance(error, ValueError) else OSError)(told)
        except Exception as error:
            found = MeasurementFailed(f"{type(error).__name__}: {error}")
        pickle.dump(found, answer)


def on_backbone(
    measure: Times, spec: BackboneSpec, device: str = "cpu", **arguments: Any
) -> pd.DataFrame:
    """Return measure(backbone, ..) of a backbone that is loaded where the work is done."""
    from ..clip.backbone import load_backbone  # takes as long as a short timing, which has none

    return measure(load_backbone(spec, device), **arguments)


if __name__ == "__main__":
    main()
