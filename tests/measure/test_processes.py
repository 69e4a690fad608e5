"""Work in fresh processes: what it is given, where it runs, what comes back and what is refused."""

from __future__ import annotations

import os

import pandas as pd
import psutil
import pytest
import torch

from blocklora_lib.measure.adapter_path import path_ratios, path_times
from blocklora_lib.measure.peak_memory import MeasurementFailed
from blocklora_lib.measure.processes import in_processes, on_backbone
from blocklora_lib.measure.training_step import step_ratios, training_step_times
from blocklora_lib.weights.spec import BackboneSpec

pytestmark = pytest.mark.slow


def where(seed, word):
    return pd.DataFrame({"pid": [os.getpid()], "threads": torch.get_num_threads(), word: seed})


def ended(seed):
    os._exit(9)


def refused(seed):
    raise ValueError(f"not with seed {seed}")


def test_each_process_is_a_new_one_with_its_seed_and_as_many_threads_as_here():
    before = psutil.Process().children()
    found = in_processes(where, 2, word="given")
    assert psutil.Process().children() == before  # a kernel that has some is slow to end
    assert len({os.getpid(), *found["pid"]}) == 3
    assert (found["threads"] == torch.get_num_threads()).all()
    assert found["given"].tolist() == found["process"].tolist() == [1, 2]


def test_a_process_that_is_killed_is_named_and_an_error_comes_through():
    with pytest.raises(MeasurementFailed, match="process 1 of 2 was ended from outside"):
        in_processes(ended, 2, "paths")
    with pytest.raises(ValueError, match="not with seed 1"):
        in_processes(refused, 2)
    point = dict(d=16, tokens=5, rank=2, n_blocks=2)
    with pytest.raises(ValueError, match="unknown form 'dens'; did you mean 'dense'"):
        in_processes(path_times, 2, points=[point], forms=["dens"])
    with pytest.raises(ValueError, match="dropout: Input should be less than 1"):
        in_processes(path_times, 2, points=[point], dropout=2)
    with pytest.raises(MeasurementFailed, match=r"TypeError: .*unexpected keyword argument 'more'"):
        in_processes(refused, 2, more=1)
    with pytest.raises(ValueError, match="processes=0; use at least 1"):
        in_processes(refused, 0)


def test_paths_are_timed_in_processes():
    points = [dict(d=16, tokens=5, rank=2, n_blocks=n) for n in (1, 2)]
    forms = ("low_rank", "sum_first")
    times = in_processes(path_times, 2, points=points, forms=forms, rounds=3, min_seconds=0.0)
    found = path_ratios(times)
    assert found[["n_blocks", "form"]].to_numpy().tolist() == [
        [n, f] for n in (1, 2) for f in forms
    ]
    assert (found["processes"] == 2).all()
    assert (found["rounds"] == 6).all()
    assert not found["resolved"].any()


def test_a_backbone_is_loaded_where_it_is_measured(tiny_clip):
    forms, spec = ("low_rank", "sum_first"), BackboneSpec(name=tiny_clip, pretrained="none")
    times = on_backbone(training_step_times, spec, classes=3, batch=2, forms=forms, rounds=3)
    assert step_ratios(times, "tiny", ["low_rank"])["form"].tolist() == list(forms)
