"""The measurements behind the benchmarks compare equal things, and the scripts run, print and
write.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_scripts import FOLDER, load_script

from blocklora_lib.adapters.updates import AdapterConfig, AdapterError
from blocklora_lib.analysis.memory import above_base
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.clip.towers import TextTower
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.costs.ways import WAYS
from blocklora_lib.display.figures.timing import latency, memory
from blocklora_lib.measure import inference as inference_measurements
from blocklora_lib.measure.adapter_path import PATH_FORMS, path_ratios, path_times
from blocklora_lib.measure.inference import (
    ALL_FORMS,
    in_form,
    inference_memory,
    inference_outputs,
    inference_ratios,
    inference_times,
    weight_bytes,
)
from blocklora_lib.measure.peak_memory import MeasurementFailed, Memory, peak_memories
from blocklora_lib.measure.prompts import made_up_prompts
from blocklora_lib.measure.steps import random_images, twin
from blocklora_lib.measure.training_step import (
    FROZEN,
    STEP_FORMS,
    path_share,
    step_in_form,
    step_ratios,
    training_step_times,
)

SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "plain_peft_loop")
RATIO_COLUMNS = {
    *(
        "seconds_median",
        "seconds_q1",
        "seconds_q3",
        "ratio",
        "ratio_q1",
        "ratio_q3",
        "resolved",
        "baseline",
    )
}


@pytest.fixture
def backbone(tiny_clip):
    return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")


def numbers(backbone):
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


# one path


@pytest.mark.slow
def test_a_path_is_timed_in_every_form_at_every_point():
    points = [
        dict(d=16, tokens=5, rank=2, n_blocks=2),
        dict(d=16, tokens=5, rank=2, n_blocks=4, reading="block_rank"),
    ]
    frame = path_ratios(path_times(points, rounds=3, min_seconds=0))
    assert set(frame) >= {"d", "tokens", "rank", "n_blocks", "reading", "form"} | RATIO_COLUMNS
    assert len(frame) == 2 * 8
    assert set(frame["baseline"]) == {"low_rank"}
    assert not frame["resolved"].any()  # three rounds resolve nothing
    assert frame.loc[frame["form"] == "low_rank", "ratio"].tolist() == [1, 1]


def test_paths_refuse_what_they_cannot_time():
    with pytest.raises(ValueError, match="no point to measure"):
        path_times([])
    with pytest.raises(UnknownName, match="unknown form 'dens'; did you mean 'dense'"):
        path_times([dict(d=16, tokens=5, rank=2, n_blocks=2)], forms=["dens"])
    with pytest.raises(ValueError, match="cannot be cut into n_blocks=4"):
        path_times([dict(d=16, tokens=5, rank=2, n_blocks=4)], forms=["sum_first"])


# whole steps


def test_twins_share_numbers_and_nothing_else(backbone):
    before = numbers(backbone)
    other = twin(backbone)
    for (name, ours), theirs in zip(backbone.named_parameters(), other.parameters(), strict=True):
        assert ours is not theirs, name
        assert ours.data_ptr() == theirs.data_ptr(), name
    images = random_images(backbone, 2)
    expected = backbone.encode_images(images)
    in_form(other, "merged")
    assert not torch.equal(other.encode_images(images), expected)
    assert torch.equal(backbone.encode_images(images), expected)
    assert all(torch.equal(numbers(backbone)[name], tensor) for name, tensor in before.items())
    assert not any(hasattr(p, "_trained_before_adapters") for p in backbone.parameters())


@pytest.mark.parametrize("form", STEP_FORMS)
def test_every_form_runs_on_the_same_towers(backbone, form):
    """Otherwise a comparison of adapters would be one of padded prompts with packed ones."""
    step = step_in_form(backbone, form, random_images(backbone, 2), made_up_prompts(3))
    assert TextTower(step.backbone.model).can_pack


@pytest.mark.slow
@pytest.mark.parametrize(
    "same",
    [
        ("dense", "low_rank_plain", "low_rank"),
        ("loop", "loop_once", "sum_first", "sum_first_plain"),
    ],
)
def test_forms_of_one_adapter_take_the_same_training_steps(backbone, same):
    images, prompts = random_images(backbone, 4), made_up_prompts(3)
    losses = {}
    for form in same:
        step = step_in_form(backbone, form, images, prompts, dropout=0.0)
        for group in step.optimizer.param_groups:
            group["lr"] *= 50  # so that three steps are seen
        losses[form] = [float(step.loss().detach())]
        for _ in range(3):
            step()
            losses[form].append(float(step.loss().detach()))
    first = np.array(losses[same[0]])
    assert abs(first[-1] - first[0]) > 1e-3
    for form in same[1:]:
        # float32; AdamW's first steps divide rounding by rounding where a gradient is near zero
        np.testing.assert_allclose(losses[form], first, atol=1e-4)


@pytest.mark.parametrize("form", STEP_FORMS)
def test_a_step_trains_its_own_parameters_and_leaves_the_backbone(backbone, form):
    before = numbers(backbone)
    step = step_in_form(backbone, form, random_images(backbone, 2), made_up_prompts(3))
    trained = [p for group in step.optimizer.param_groups for p in group["params"]]
    start = [p.detach().clone() for p in trained]
    step()
    step()
    assert all(p.grad is not None for p in trained)
    assert any(not torch.equal(p, s) for p, s in zip(trained, start, strict=True))
    assert all(torch.equal(numbers(backbone)[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_frozen_step_goes_as_deep_as_the_others_without_adapters(backbone):
    images, prompts = random_images(backbone, 2), made_up_prompts(3)
    frozen, adapted = (
        step_in_form(backbone, form, images, prompts) for form in (FROZEN, "low_rank")
    )
    biases = [p for group in frozen.optimizer.param_groups for p in group["params"]]
    assert len(biases) == 2 + 2  # two layers in each tower
    assert torch.allclose(frozen.loss(), adapted.loss(), atol=1e-5)  # B is zero: the same model
    frozen()
    assert all(bias.grad.abs().sum() > 0 for bias in biases)


@pytest.mark.slow
def test_step_times_are_paired_and_summarised_for_both_baselines(backbone):
    forms = (FROZEN, "dense", "low_rank", "sum_first")
    times = training_step_times(backbone, 3, 2, forms, rounds=3, min_seconds=0)
    assert times.groupby("round")["name"].apply(list).tolist() == [list(forms)] * 3
    frame = step_ratios(times, "tiny")
    assert set(frame) >= {"model", "form"} | RATIO_COLUMNS
    assert frame.groupby("baseline")["form"].apply(tuple).to_dict() == {
        "dense": forms,
        "low_rank": forms,
    }


def test_unknown_forms_of_steps_are_named(backbone):
    with pytest.raises(UnknownName, match="unknown form 'sum_frst'; did you mean 'sum_first'"):
        training_step_times(backbone, 3, 2, ["sum_frst"], rounds=3)
    assert WAYS["loop"].config(8, 4).kind == "block_lora"
    assert WAYS["dense"].config(8, 4).n_blocks == 1


def test_the_names_that_stand_in_records_stay():
    path = "frozen_linear dense low_rank loop loop_once sum_first collapsed frozen_a"
    steps = "frozen dense low_rank_plain low_rank loop sum_first_plain sum_first collapsed frozen_a"
    assert path.split() == list(PATH_FORMS)
    assert steps.split() == list(STEP_FORMS)


def test_the_share_is_paired_and_amdahls_law_follows():
    drift = np.array([1, 1, 1, 1, 10, 10, 10.0])  # a machine that becomes ten times slower
    rows = [
        (i + 1, n, c * t)
        for i, t in enumerate(drift)
        for n, c in ((FROZEN, 3.0), ("low_rank", 4.0))
    ]
    share = path_share(pd.DataFrame(rows, columns=["round", "name", "seconds"])).iloc[0]
    assert share["share"] == share["share_low"] == share["share_high"] == 0.25
    assert share["resolved"]
    assert share["speedup_limit"] == pytest.approx(4 / 3)
    assert share["path_median"] == 1
    with pytest.raises(UnknownName, match="unknown step without adapters 'frozn'"):
        path_share(pd.DataFrame(rows, columns=["round", "name", "seconds"]), "frozn")


# inference


@pytest.mark.slow
def test_inference_is_timed_for_each_batch_size_and_drawn(backbone):
    times = inference_times(backbone, [1, 2], rounds=6, forms=ALL_FORMS, min_seconds=0)
    frame = inference_ratios(times)
    assert set(frame) >= {"model", "batch", "form", "images_per_second"} | RATIO_COLUMNS
    assert frame.groupby("batch")["form"].apply(list).tolist() == [list(ALL_FORMS)] * 2
    assert np.allclose(frame["images_per_second"], frame["batch"] / frame["seconds_median"])
    assert latency(frame, 0.05).axes
    with pytest.raises(ValueError, match="no batch size"):
        inference_times(backbone, [])
    with pytest.raises(UnknownName, match="unknown form 'merge'; did you mean 'merged"):
        in_form(backbone, "merge")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-14)])
def test_outputs_say_what_is_rounding_and_what_is_kept(backbone, dtype, tolerance):
    before, tokens = numbers(backbone), backbone.tokenize(made_up_prompts(3))
    frame = inference_outputs(backbone, random_images(backbone, 2), tokens, dtype=dtype)
    assert set(frame["tower"]) == {"vision", "text"}
    by_form = frame.groupby("form")
    assert by_form["max_abs_difference"].max()["merged"] < tolerance
    assert by_form["max_abs_difference"].min()["base"] > 100 * tolerance
    assert by_form["same_bits"].all()[["unmerged again", "loaded, merged", "detached"]].all()
    assert all(torch.equal(numbers(backbone)[name], tensor) for name, tensor in before.items())


def test_weights_are_counted_in_each_form(tiny_clip, backbone):
    spec = BackboneSpec(name=tiny_clip, pretrained="none")
    config = AdapterConfig(kind="lora", rank=2, targets=("q",))
    found = weight_bytes(spec, config=config)
    adapters = 4 * 2 * (32 + 32 + 16 + 16) * 2  # float32, r, d_in + d_out of each tower, two layers
    # q, k, v are one weight of 3 d x d, which is merged and kept as a whole
    assert found["unmerged"] - found["base"] == adapters
    assert found["merged"] == found["base"]
    assert found["merged_kept"] - found["unmerged"] == 4 * 2 * (3 * 32 * 32 + 3 * 16 * 16)


# memory


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that a fresh process can import."""
    (tmp_path / "work_for_a_test.py").write_text(
        "import torch\n"
        "def holding(device, before, within):\n"
        "    if before < 0: raise ValueError('less than\\nnothing')\n"
        "    held = torch.ones(before * 2**18)\n"  # float32: MiB
        "    def work():\n"
        "        gone = torch.ones(within * 2**18)\n"
        "        return float(gone.sum() + held.sum())\n"
        "    return work\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "work_for_a_test"


@pytest.mark.slow
def test_memory_is_what_was_allocated_whatever_came_before(module):
    sizes = [(0, 128), (64, 32), (64, 0), (0, 128)]
    found = peak_memories(f"{module}:holding", [dict(before=b, within=w) for b, w in sizes])
    for (before, within), one in zip(sizes, found, strict=True):
        assert (one.peak_bytes - one.prepared_bytes) / 2**20 == pytest.approx(within, abs=2)
        loaded = found[0].prepared_bytes  # what torch loads at first use: 7 MiB, on Python 3.13 20
        assert (one.prepared_bytes - loaded) / 2**20 == pytest.approx(before, abs=2)
    assert found[0].prepared_bytes < 2**25
    assert abs(found[0].peak_bytes - found[3].peak_bytes) < 2**20


@pytest.mark.slow
def test_a_failing_work_is_reported_in_one_sentence(module):
    with pytest.raises(MeasurementFailed, match=r"holding failed: ValueError: less than nothing$"):
        peak_memories(f"{module}:holding", [dict(before=-1, within=1)])
    with pytest.raises(ValueError, match="name a function as 'module:function'"):
        peak_memories("no_colon", [{}])
    with pytest.raises(MeasurementFailed, match=r"holding was ended after 0 s; give it less to do"):
        peak_memories(f"{module}:holding", [dict(before=1, within=1)], timeout=0.1)


def test_memory_is_drawn_against_the_base():
    rows = [
        (batch, form, i, 100 + k, 2000 * batch + 10 * k + i)
        for batch in (1, 8)
        for k, form in enumerate(ALL_FORMS[:4])
        for i in (1, 2)
    ]
    columns = ["batch", "form", "repeat", "weights_bytes", "peak_bytes"]
    panels = memory(above_base(pd.DataFrame(rows, columns=columns))).axes
    assert [panel.get_title() for panel in panels] == ["1 image at once", "8 images at once"]
    for panel in (
        panels
    ):  # at each batch size above the base of that batch size, whose two peaks are 1 apart
        (merged,) = [line for line in panel.get_lines() if list(line.get_ydata()) == [2, 2]]
        assert merged.get_xdata() * 2**20 == pytest.approx([19.5, 20.5])


def test_memory_is_measured_at_each_batch_size(tiny_clip, monkeypatch):
    asked = []

    def measured(work, arguments, device):
        asked.extend((one["batch"], one["form"]) for one in arguments)
        return [Memory(10 * one["batch"], 100 * one["batch"]) for one in arguments]

    monkeypatch.setattr(inference_measurements, "peak_memories", measured)
    spec = BackboneSpec(name=tiny_clip, pretrained="none")
    frame = inference_memory(spec, [1, 4], ("base", "merged"), repeats=2)
    assert (
        asked == [(1, "base")] * 2 + [(1, "merged")] * 2 + [(4, "base")] * 2 + [(4, "merged")] * 2
    )
    assert (frame["peak_bytes"] == 100 * frame["batch"]).all()
    with pytest.raises(ValueError, match="no batch size to measure"):
        inference_memory(spec, [])


# scripts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("adapter_path", "--width 16 --tokens 8 --ranks 2 --blocks 2", "against 'low_rank'"),
        (
            "training_step",
            "--model {tiny} --classes 3 --forms frozen dense sum_first",
            "share of a step",
        ),
        (
            "inference",
            "--model {tiny} --batches 1 2",
            "merged costs what the base costs, within 5%: ",
        ),
        ("predict", "--model {tiny} --images 3", "merged costs at most 1.05 of the base: "),
    ],
)
def test_scripts_print_a_table_and_write_csv_and_json(
    name, arguments, said, tiny_clip, tmp_path, capsys
):
    given = [*arguments.format(tiny=tiny_clip).split(), "--rounds", "3", "--threads", "1"]
    load_script(name).main([*given, "--output", str(tmp_path / "out" / "found")])
    printed = capsys.readouterr().out
    assert said in printed
    assert "open" in printed
    assert "threads: 1" in printed
    facts = json.loads((tmp_path / "out" / "found.json").read_text())
    assert facts["conditions"]["threads"] == 1
    assert len(facts["rows"]) == len(pd.read_csv(tmp_path / "out" / "found.csv"))


@pytest.mark.slow
def test_the_memory_script_measures_processes(tmp_path, capsys):
    load_script("memory").main(
        [
            "--model",
            "PocketCLIP",
            "--batch",
            "1",
            "--classes",
            "2",
            "--forms",
            "--output",
            str(tmp_path / "m"),
        ]
    )
    assert "merged_kept" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "m.csv").set_index("form")
    assert (frame["peak_bytes"] >= frame["weights_bytes"]).all()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_explain_themselves(name, capsys):
    with pytest.raises(SystemExit) as done:
        load_script(name).main(["--help"])
    assert done.value.code == 0
    told = capsys.readouterr().out
    assert "--output" in told
    for option in re.split(r"\n  (?=-)", told)[2:]:  # the first is -h; a default is told with help
        assert "(default: " in " ".join(option.split()), f"{option} is not explained"


def test_the_readme_names_every_script_and_only_options_that_exist(capsys):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"benchmarks/(\w+)\.py([^\n#`]*)", readme)
    assert SCRIPTS
    assert {name for name, _ in commands} == set(SCRIPTS)
    for name, options in commands:
        with pytest.raises(SystemExit):
            load_script(name).main(["--help"])
        known = re.findall(r"--[\w-]+", capsys.readouterr().out)
        for option in re.findall(r"--[\w-]+", options):
            assert option in known, f"{name} has no {option}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "2"], "error: rounds=2 gives no quartiles"),
        (["--threads", "0"], "--threads: 0 is none; say at least 1"),
        (["--ranks", "0"], "--ranks: 0 is none; say at least 1"),
        (["--dropout", "2"], "error: dropout: Input should be less than 1"),
        (["--output", "/proc/nope/x"], "error: "),  # before it has measured
    ],
)
def test_bad_input_ends_a_script_with_a_sentence(words, told, capsys):
    from blocklora_lib.measure.benchmark_output import run

    given = ["--width", "16", "--tokens", "4", *words]
    with pytest.raises(SystemExit) as ended:
        run(lambda: load_script("adapter_path").main(given))
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err
    assert "against" not in said.out  # no table
    assert issubclass(AdapterError, ValueError)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("step", "--variants independent --delay independant 1", "form to delay 'independant'"),
        ("inference", "--margin 5", "--margin: 5 does not lie between 0 and 1, as 0.05 does"),
        ("predict", "--margin 0", "--margin: 0 does not lie between 0 and 1"),
        ("memory", "--forms sum_frist", "--forms: invalid choice: 'sum_frist' (choose from"),
        ("adapter_path", "--ranks 3 --blocks 2", "none of --blocks cuts one of --ranks"),
        ("adapter_path", "--output {taken}", "is no regular file and is not written over"),
        ("step", "--classes 3 1001", "classes=1001: ImageNet names are taken; use 1 to 1000"),
        ("roofline", "--classes 3 1001", "classes=1001: ImageNet names are taken"),
        ("scaling", "--by-classes 3 1001", "classes=1001: ImageNet names are taken"),
    ],
)
def test_what_would_be_lost_or_mean_nothing_is_refused_before_it_is_measured(
    name, words, told, tmp_path, capsys, monkeypatch
):
    from blocklora_lib.measure import adapter_path, benchmark_output, timing

    for module in (timing, adapter_path):
        monkeypatch.setattr(module, "paired_times", None)
    (tmp_path / "taken.json").mkdir()
    given = words.format(taken=tmp_path / "taken").split()
    with pytest.raises(SystemExit) as ended:
        benchmark_output.run(lambda: load_script(name).main(given))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_path_is_timed_in_every_reading(capsys):
    for reading in ("total_rank", "block_rank", "input"):
        given = f"--reading {reading} --width 16 --tokens 4 --ranks 2 --blocks 2 --rounds 3"
        load_script("adapter_path").main(given.split())
        told = capsys.readouterr().out
        assert told.count("| loop_once ") == 1
        assert told.count("| collapsed ") == (reading != "input")  # which is one B already


@pytest.mark.slow
def test_what_is_given_twice_is_measured_once(backbone, capsys):
    forms = ("base", "base_again")
    times = inference_times(backbone, [1, 1], rounds=3, forms=forms, min_seconds=0)
    assert len(inference_ratios(times)) == 2
    given = "--width 16 --tokens 4 --ranks 2 2 --blocks 2 2 --rounds 3"
    load_script("adapter_path").main(given.split())
    assert capsys.readouterr().out.count("| sum_first ") == 1


def test_steps_without_adapters_can_be_timed_alone(tiny_clip, capsys):
    given = f"--model {tiny_clip} --classes 2 --batch 1 --rounds 3 --forms frozen"
    load_script("training_step").main(given.split())
    assert "share" not in capsys.readouterr().out


def test_ctrl_c_ends_a_script_with_a_sentence(capsys):
    from blocklora_lib.measure.benchmark_output import run

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(interrupted)
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped; nothing is written\n")
