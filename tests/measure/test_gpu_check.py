"""`make gpu-check` measures all on a CPU too, keeps what it finds, and sees what is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from blocklora_lib.clip import backbone as backbones
from blocklora_lib.learning.replayed import Replayed
from blocklora_lib.measure import gpu_acceptance
from blocklora_lib.measure.gpu_acceptance import Sizes, recomputed_against_kept, trained
from blocklora_lib.measure.prompts import class_prompts
from blocklora_lib.measure.steps import random_images

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
CPU = torch.device("cpu")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sizes(tiny_clip):
    return Sizes(tiny_clip, classes=(3,), batch=2, steps=1, images=3)


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_rng_state().tolist(),
    )


@pytest.mark.rare  # half a minute; what it measures is tested part by part below
def test_everything_is_measured_judged_and_kept(script, tiny_clip, tmp_path, capsys):
    before = switches()
    options = (
        f"--device cpu --model {tiny_clip} --classes 3 --batch 2 --steps 1 --images 3 --output"
    )
    script.main([*options.split(), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    lines = (tmp_path / "out" / "gpu-check.jsonl").read_text(encoding="utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    assert [line for line in printed.splitlines() if line.startswith("{")] == lines
    assert all(set(r) == {"what", "case", "numbers", "accept", "ok", "seconds"} for r in results)
    assert not [r for r in results if "error" in r["numbers"]]
    assert all((r["ok"] is None) == (r["accept"] == "") for r in results)
    assert {r["what"] for r in results} == {
        *("conditions", "CUDA against CPU", "recomputed against kept", "repeats", "whole runs"),
        *("evaluation", "step", "memory", "error of a number format"),
    }
    assert sum(r["what"] == "step" for r in results) == 7 + 2 + 1  # ours, CLIP-LoRA, peft
    errors = [r["numbers"] for r in results if r["what"] == "error of a number format"]
    tf32, *halves = (error["relative"] for error in errors)
    assert tf32 == 0  # on a CPU
    assert all(1e-4 < error < 0.2 for error in halves)
    assert len(pd.read_csv(tmp_path / "out" / "gpu-check.csv")) == len(results)
    assert "| CUDA against CPU " in printed
    assert switches() == before


def test_other_masks_in_the_backward_pass_are_seen(sizes, monkeypatch):
    """As class_chunk had them on CUDA: forward and backward each with draws of their own."""
    assert recomputed_against_kept(sizes, CPU, class_chunk=True)["relative"] < 1e-6

    def forgetful(function, argument, device):
        return checkpoint(function, argument, use_reentrant=False, preserve_rng_state=False)

    monkeypatch.setattr(backbones, "recomputed", forgetful)
    assert recomputed_against_kept(sizes, CPU, class_chunk=True)["relative"] > 1e-2


def test_runs_that_do_not_repeat_are_seen(sizes, monkeypatch):
    assert gpu_acceptance.repeats(sizes, CPU, "fp32", strict=True)["same_bits"]
    count = iter(range(3))

    def drifting(*arguments):
        losses, row = trained(*arguments)
        return losses, row + (
            1e-8 if next(count) == 2 else 0
        )  # the last run alone, in its last bits

    monkeypatch.setattr(gpu_acceptance, "trained", drifting)
    assert not gpu_acceptance.repeats(sizes, CPU, "fp32", strict=True)["same_bits"]


def test_the_step_is_that_of_plain_autograd(sizes):
    """The loss falls, and the first one is that of the model without adapters, computed apart."""
    losses, row = trained(sizes, CPU, dropout=0.0)
    backbone = sizes.load("fp32", CPU)
    images = random_images(backbone, 2)
    rows = backbone.encode_prompts(backbone.tokenize(class_prompts(3)))
    scores = backbone.logit_scale * backbone.encode_images(images) @ rows.T
    expected = -scores.log_softmax(1)[[0, 1], [0, 1]].mean().item()
    assert losses[0] == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]
    assert row.abs().sum() > 0


def test_on_a_gpu_steps_are_computed_by_graphs(script, tiny_clip, gpu):
    """Graphs that are asked for are made; steps whose backward encodes again have none."""
    sizes = Sizes(tiny_clip, classes=(3,), batch=2, steps=1, images=3)
    there, made = torch.device("cuda", 0), []
    found = gpu_acceptance.graphs_against_none(sizes, there, "fp32")
    assert found["same_bits"]
    assert found["graphs"] == 1
    real = Replayed.__init__

    def noted(self, *given):
        real(self, *given)
        made.append(self)

    with mock.patch.object(Replayed, "__init__", noted):
        script.ours(sizes, there, 3, "fp32", True, {})
        script.ours(sizes, there, 3, "fp32", True, {}, graphs=False)
        script.ours(sizes, there, 3, "fp32", True, {"checkpoint": True})
    assert [replayed.graphs for replayed in made] == [1]


def test_a_case_without_room_is_a_line_and_never_the_end(script):
    def no_room():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access")

    told = script.judged(script.Case("step", "theirs", no_room), CPU)
    assert told["ok"] is None
    assert told["numbers"]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert (
        script.judged(script.Case("memory", "ours", no_room, "it fits", bool), CPU)["ok"] is False
    )
    assert script.judged(script.Case("step", "theirs", broken), CPU)["ok"] is False
    assert script.fits({"loss": 1.0, "peak_gib": 22.0})
    assert not script.fits({"loss": 1.0, "peak_gib": 22.4})
    assert not script.finite({"loss": float("nan")})


GPU = torch.device("cuda", 0)


def judged_by(script, what, case, **numbers):
    """Whether a card's numbers are accepted; None where nothing is asked."""
    (found,) = [c for c in script.cases(Sizes(), GPU) if (c.what, c.case) == (what, case)]
    return found.judge and found.judge({"loss": 1.0} | numbers)


@pytest.mark.parametrize(
    ("what", "case", "good", "bad"),
    [
        ("step", "ours, fp16, strict, graphs, 100 classes", {"ms": 17, "host_ms": 1.9},
         {"ms": 17, "host_ms": 10.3}),
        ("memory", "ours, fp16, 1000 classes, plain", {"peak_gib": 3.8, "reserved_gib": 21.9},
         {"peak_gib": 3.8, "reserved_gib": 22.0}),
        ("memory", "ours, fp16, 1000 classes, share_prefix True", {"reserved_gib": 21.9},
         {"reserved_gib": 60.0}),
        ("evaluation", "kept views", {"images_per_second": 5000.0}, {"images_per_second": 4999.0}),
        ("evaluation", "files", {"images_per_second": 1000.0}, {"images_per_second": 782.3}),
    ],
)  # fmt: skip
def test_a_card_is_asked_for_what_is_promised(what, case, good, bad, script, monkeypatch):
    monkeypatch.setattr(script, "usable_cpus", lambda: 8)
    assert judged_by(script, what, case, **good)
    assert not judged_by(script, what, case, **bad)


def test_another_model_fewer_cores_and_a_cpu_are_measured_and_not_asked(script, sizes, monkeypatch):
    monkeypatch.setattr(script, "usable_cpus", lambda: 7)
    assert judged_by(script, "evaluation", "files") is None
    slow = {"loss": 1.0, "ms": 9e9, "host_ms": 9e9}
    for found in (script.cases(sizes, GPU), script.cases(Sizes(), CPU)):
        asked = {c.what: c for c in found}
        assert asked["evaluation"].judge is None
    for case in script.cases(sizes, GPU):
        assert case.what != "step" or case.judge is None or case.judge(slow)


def test_the_step_is_held_against_that_of_clip_lora(script):
    def results(theirs, ours):
        named = {"CLIP-LoRA, fp16 autocast": theirs, "ours, fp16, strict, graphs": ours}
        return [
            {"what": "step", "case": f"{name}, {n} classes", "numbers": {"ms": ms} if ms else {}}
            for name, ms in named.items()
            for n in (10, 100)
        ]

    def judged(theirs, ours):
        found = [script.judged(c, CPU) for c in script.speeds(Sizes(), GPU, results(theirs, ours))]
        return [(one["numbers"].get("times_as_fast"), one["ok"]) for one in found]

    none = (None, None)
    assert judged(117.3, 17.4) == [(6.74, None), (6.74, True), none]
    assert judged(50.0, 17.4) == [(2.87, None), (2.87, False), none]
    assert judged(None, 17.4) == [none, (None, False), none]  # of 100 classes alone it is asked
    assert not list(script.speeds(Sizes(), CPU, results(117.3, 17.4)))


def test_what_is_not_accepted_ends_with_1(script, monkeypatch, tmp_path, capsys):
    bad = script.Case(
        "repeats", "fp32", lambda: {"same_bits": False}, "same", lambda n: n["same_bits"]
    )
    monkeypatch.setattr(script, "cases", lambda sizes, device: [bad])
    with pytest.raises(SystemExit) as ended:
        script.main(["--device", "cpu", "--output", str(tmp_path)])
    assert ended.value.code == 1
    assert "not accepted: repeats (fp32)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--device gpu", "unknown device 'gpu'"),
        ("--device cpu --batch 0", "--batch 0; use at least 1"),
        ("--device cpu --classes 1", "--classes 1; use at least 2"),
        ("--device cpu --classes 1001", "classes=1001"),
        ("--device cpu --model ViT-B-61", "ViT-B-61"),
    ],
)
def test_bad_input_is_one_sentence_and_2(script, given, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main([*given.split(), "--output", str(tmp_path / "none")])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("error: ")
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["--output", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: device 'cuda': there is no GPU here")
