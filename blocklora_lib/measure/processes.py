"""One timing in several fresh processes, one after the other.

Rounds within a process say how well *its* ratio is known. Another process of the same code on the
same machine has its tensors at other addresses and pages of memory, and has warmed up anew; for
short work that moves a ratio by more than the interval over rounds. So what is said of code, and
not of one process, rests on several, each of which gives one value (`timing.spread`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..clip.backbone import load_backbone
from ..weights.spec import BackboneSpec
from .peak_memory import MeasurementFailed

Times = Callable[..., pd.DataFrame]


def in_processes(
    work: Times, processes: int, label: str = "timing", **arguments: Any
) -> pd.DataFrame:
    """Return the frames of work(seed=1, ..), work(seed=2, ..), .. with a column `process`.

    work: a function of a module, as `path_times`; what it is given and returns is pickled. Each
    runs in a new interpreter with as many threads as here. MeasurementFailed where one is killed;
    an error of the work comes through as it is.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}; use at least 1, and 6 for an interval at 95%")
    new, frames = multiprocessing.get_context("spawn"), []
    for seed in tqdm(range(1, processes + 1), desc=label, unit="process"):
        with ProcessPoolExecutor(
            1, new, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        ) as pool:
            try:
                times = pool.submit(work, seed=seed, **arguments).result()
            except BrokenProcessPool:
                raise MeasurementFailed(
                    f"process {seed} of {processes} was ended from outside while it measured "
                    f"{label}; is there enough memory?"
                ) from None
        frames.append(times.assign(process=seed))
    return pd.concat(frames, ignore_index=True)


def on_backbone(
    measure: Times, spec: BackboneSpec, device: str = "cpu", **arguments: Any
) -> pd.DataFrame:
    """Return measure(backbone, ..) of a backbone that is loaded where the work is done."""
    return measure(load_backbone(spec, device), **arguments)
