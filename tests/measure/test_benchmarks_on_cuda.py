"""Every script of benchmarks/ with `--device cuda`, on a GPU that is not there: fake_cuda.py."""

from __future__ import annotations

import json

import pytest
from benchmark_scripts import FOLDER, load_script
from conftest import mostly_rare

ROUNDS = "--rounds 3 --threads 1"
SMALL = f"--model {{quick}} --batch 2 {ROUNDS}"
SCRIPTS = {
    "adapter_path": f"--width 16 --tokens 8 --ranks 2 --blocks 2 --dropout 0.1 {ROUNDS}",
    "inference": f"--model {{quick}} --batches 2 {ROUNDS}",
    "memory": "--model {quick} --classes 3 --threads 1",
    "predict": f"--model {{quick}} --images 3 {ROUNDS}",
    "prompts": f"--model {{quick}} --classes 3 --tokens 2 --depth 1 {ROUNDS}",
    "roofline": f"--classes 3 --sides 8 {SMALL}",
    "scaling": "--classes 3 --by-classes 2 3 --by-images --by-rank --by-blocks --by-threads "
    + SMALL,
    "stack": f"--runs 2 --classes 3 --steps 2 {SMALL}",
    "step": "--classes 3 --variants independent checkpointing clip_lora peft --class-chunk 2 "
    + SMALL,
    "training_step": f"--classes 3 {SMALL}",
}
PROCESSES = {
    "pocket_run",
    "plain_peft_loop",
}  # the first starts others; the second writes no record
MEASURED = {"gpu_check"}  # made for a GPU, and run on one: results/reference has its record


def test_no_script_is_passed_over():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, *PROCESSES, *MEASURED}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("gpu")]


@pytest.mark.parametrize(
    "name", mostly_rare(SCRIPTS, {"adapter_path", "inference", "predict", "prompts", "step"})
)
def test_it_runs_on_the_gpu_and_says_so(name, quick_clip, tmp_path):
    given = SCRIPTS[name].format(quick=quick_clip).split()
    load_script(name).main([*given, "--device", "cuda", "--output", str(tmp_path / "found")])
    facts = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert facts["conditions"]["device"] == "a fake GPU"
    assert facts["rows"]


def test_the_plain_loop_trains_and_evaluates_there(capsys):
    options = "--profile smoke --dataset chess --shots 1 --dropout 0 --device"
    found = []
    for device in ("cpu", "cuda"):
        load_script("plain_peft_loop").main([*options.split(), device])
        found.append(json.loads(capsys.readouterr().out.strip().rpartition("\n")[2]))
        found[-1].pop("train_seconds")
    assert found[0] == found[1]  # the CPU computes both; only dropout would draw elsewhere


def test_a_whole_run_is_timed_where_it_was_asked_for(monkeypatch, tmp_path):
    """What our process is told; test_step_benchmarks.py sees that peft's is told the same."""
    module, commands = load_script("pocket_run"), []

    def output(command, _):
        commands.append(command)
        raise InterruptedError

    monkeypatch.setattr(module, "output", output)
    with pytest.raises(InterruptedError):
        module.main(
            ["--device", "cuda", "--methods", "block_lora", "--output", str(tmp_path / "none")]
        )
    (command,) = commands
    assert [command[i + 1] for i, word in enumerate(command) if word == "--device"] == ["cuda:0"]
