"""Benchmarks of whole steps and runs: the variants take the same step, records have their form,
slower is slower.

Nothing here depends on how fast this machine is: what must be slower is made so by a delay.
"""

from __future__ import annotations

import ast
import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_scripts import FOLDER, load_script

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.clip.architectures import clip_architecture
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.core import machine
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.costs.memory import clip_lora_code_memory, total_bytes
from blocklora_lib.costs.step import adapter_work, frozen_work, logits_work
from blocklora_lib.costs.ways import OUR_STEPS, STEPS
from blocklora_lib.display.figures.benchmark import (
    growth_lines,
    growth_table,
    roofline_table,
    steps_by_classes,
    steps_table,
)
from blocklora_lib.measure import growth, step_costs
from blocklora_lib.measure.other_code import clip_lora, plain_prompts
from blocklora_lib.measure.peak_memory import MeasurementFailed
from blocklora_lib.measure.products import GROUPS, Product, roofline, squares, step_products
from blocklora_lib.measure.prompt_steps import (
    LORA,
    OURS,
    PLAIN,
    counted_flops,
    prompt_steps,
)
from blocklora_lib.measure.prompts import class_prompts
from blocklora_lib.measure.records import FIELDS, read_records
from blocklora_lib.measure.stacked import ALONE, AT_ONCE, stacked_trainings
from blocklora_lib.measure.steps import NotCovered, Size, load, make_step, precision, random_images

SMALL = Size(classes=3, batch=2, kind="lora", dropout=0.0)


@pytest.fixture(scope="module")
def backbones(quick_clip):
    return load(BackboneSpec(name=quick_clip, pretrained="none"), STEPS, "cpu")


# variants


@pytest.mark.parametrize(
    "file",
    [
        clip_lora.__file__,
        plain_prompts.__file__,
        str(Path(clip_lora.__file__).with_name("peft_lora.py")),
    ],
)
def test_what_we_compare_with_uses_nothing_of_the_library(file):
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            assert not (node.module or "").startswith("blocklora_lib")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("blocklora_lib") for alias in node.names)


@pytest.mark.parametrize("variant", STEPS)
def test_without_dropout_every_variant_takes_the_same_step(backbones, variant):
    """The first loss, at B = 0, is that of open_clip's own towers; AdamW then changes it."""
    backbone = backbones[precision(variant)]
    step = make_step(backbone, variant, SMALL)
    tokens = backbone.tokenize(class_prompts(SMALL.classes))
    images = random_images(backbone, SMALL.batch)
    with torch.no_grad():
        text = torch.nn.functional.normalize(backbone.model.encode_text(tokens).float(), dim=-1)
        image = backbone.model.encode_image(images.to(backbone.dtype)).float()
        cosines = torch.nn.functional.normalize(image, dim=-1) @ text.T
    scores, labels = backbone.logit_scale * cosines, torch.arange(SMALL.batch)
    expected = torch.nn.functional.cross_entropy(scores, labels).item()
    # bfloat16 has 8 bits: cosines of 1 are off by 2^-8, and count as often as the scale says
    assert step().item() == pytest.approx(expected, abs=0.3 if variant == "bf16" else 1e-4)
    for _ in range(3):
        last = step().item()
    assert last != pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("variant", ["independent", "shared_prefix", "checkpointing", "peft"])
def test_gradients_without_dropout_are_those_of_clip_loras_code(backbones, variant):
    """From the same A, and B = 0: the norms of the gradients of all B agree."""
    found = {}
    for name in ("clip_lora", variant):
        step = make_step(backbones["fp32"], name, SMALL)
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        assert sum(p.numel() for p in parameters) == 2 * 2 * 3 * 2 * (32 + 16)
        with (
            torch.no_grad()
        ):  # the same A for all, whatever order they draw theirs in; rows of x sum to 0
            for p in parameters:
                if p.any():
                    p.copy_(torch.arange(p.shape[-1]).cos().expand_as(p))
        step.loss().backward()
        found[name] = sorted(
            float(p.grad.norm()) for p in parameters if p.grad is not None and p.grad.any()
        )
    assert found[variant] == pytest.approx(found["clip_lora"], rel=1e-3)


def test_variants_share_numbers_and_leave_the_backbone_alone(backbones):
    before = {name: p.clone() for name, p in backbones["fp32"].named_parameters()}
    for variant in ("independent", "clip_lora", "peft"):
        make_step(backbones["fp32"], variant, SMALL)()
    for name, p in backbones["fp32"].named_parameters():
        assert torch.equal(p, before[name]), name
    assert isinstance(
        backbones["fp32"].model.transformer.resblocks[0].attn, torch.nn.MultiheadAttention
    )


def test_unknown_variants_and_sizes_are_refused(backbones):
    with pytest.raises(
        UnknownName, match="unknown variant 'independant'; did you mean 'independent'"
    ):
        make_step(backbones["fp32"], "independant", SMALL)
    with pytest.raises(ValueError, match="classes=1001: ImageNet names are taken; use 1 to 1000"):
        class_prompts(1001)


def test_what_does_not_fit_is_left_out_with_the_reason(monkeypatch):
    size = Size(1000, 8)
    reason = step_costs.missing("clip_lora", "ViT-B-16", size, 16 * 2**30)
    assert "clip_lora at 1000 classes needs about" in reason
    assert "16 GiB are free" in reason
    assert step_costs.missing("clip_lora", "ViT-B-16", size, 2**50) is None
    assert step_costs.missing("independent", "ViT-B-16", size, 2**30) is None
    monkeypatch.setattr(step_costs, "find_spec", lambda name: None)
    assert "pip install peft" in step_costs.missing("peft", "ViT-B-16", Size(3, 2), 2**50)


def test_a_class_more_of_clip_loras_code_takes_what_it_keeps_by_hand():
    shape, lora = clip_architecture("ViT-B-16"), AdapterConfig(kind="lora")
    few, many = (
        total_bytes(clip_lora_code_memory(shape, lora, 8, classes, size=4, mask=4))
        for classes in (100, 1000)
    )
    kept = 12 * 77 * 4 * (2 * (512 + 2) + 3 * 2 * 512 + 4 * 512 + 8 + 2 * 2048)
    assert (many - few) / 900 == pytest.approx(kept, rel=0.1)


def test_free_memory_is_the_machines_or_the_groups(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemAvailable:   2048 kB\n")
    assert machine.free_memory(tmp_path / "meminfo", tmp_path) == 2 * 2**20
    (tmp_path / "memory.max").write_text("1500000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert machine.free_memory(tmp_path / "meminfo", tmp_path) == 10**6
    assert machine.free_memory(tmp_path / "none", tmp_path) == float("inf")


# growth


def test_a_line_is_found_within_drifting_rounds():
    drift = np.array([1, 5, 1, 2, 1, 3, 1.0])
    rows = [(i, x, d * (0.2 + 0.01 * x)) for i, d in enumerate(drift) for x in (10, 20, 40)]
    line = growth.time_line(pd.DataFrame(rows, columns=["round", "name", "seconds"]))
    assert line["slope"] == pytest.approx(0.01)
    assert line["intercept"] == pytest.approx(0.2)
    assert line["slope_low"] == pytest.approx(0.01)  # the second smallest of 7 would be 0.01 too
    assert line["residual"] < 1e-12


def test_a_memory_line_has_its_interval():
    exact = growth.memory_line([1, 2, 3, 4], [7, 9, 11, 13])
    assert (exact["slope"], exact["intercept"]) == pytest.approx((2, 5))
    assert exact["slope_high"] - exact["slope_low"] < 1e-6
    rough = growth.memory_line([1, 2, 3, 4], [7, 9.5, 10.5, 13])
    assert rough["slope_low"] < 2 < rough["slope_high"]
    assert np.isnan(growth.memory_line([1, 2], [7, 9])["slope_low"])


def test_points_change_one_thing():
    base = Size(50, 4, rank=2, n_blocks=2)
    assert growth.points("images", [1, 2], base) == {
        1: replace(base, batch=1),
        2: replace(base, batch=2),
    }
    assert list(growth.points("rank", [1, 2, 4], base)) == [2, 4]  # r = 1 cannot be cut in two
    assert {size.rank for size in growth.points("blocks", [1, 2, 3], base).values()} == {6}


# roofline


@pytest.mark.parametrize("name", ["PocketCLIP", "ViT-B-16"])
def test_the_products_of_a_step_are_the_closed_forms(name):
    shape, lora = clip_architecture(name), AdapterConfig(kind="lora", rank=4)
    products = step_products(shape, [9] * 20, images=3, rank=4)
    found = {g: sum(p.flops * n for p, n in products.items() if p.group == g) / 2 for g in GROUPS}
    frozen = frozen_work(shape.vision, lora, 3) + frozen_work(shape.text, lora, 20, 9)
    assert found["frozen"] + found["attention"] == (frozen + logits_work(shape, lora, 3, 20)).total
    apart = [
        adapter_work(shape.vision, lora, 3, order="plain"),
        adapter_work(shape.text, lora, 20, 9, order="plain"),
    ]
    assert found["adapters"] == sum(work.total for work in apart)


def test_unequal_prompts_are_the_sum_of_their_own_and_a_prefix_is_taken_once():
    shape = clip_architecture("PocketCLIP")

    def frozen(lengths, prefix=0):
        found = step_products(shape, lengths, 1, prefix)
        return sum(
            p.flops * n for p, n in found.items() if p.group == "frozen" and p.m > len(lengths)
        )

    e, m, layers = shape.text.width, shape.text.mlp_width, shape.text.layers
    a_token = 2 * (
        (2 * (layers - 1) - 1) * 3 * e * e + 2 * (layers - 1) * (e * e + 2 * e * m) + 2 * 2 * e * e
    )
    assert frozen([5, 9]) - frozen([5, 8]) == a_token
    assert frozen([5, 9]) - frozen([5, 9], prefix=4) == 4 * a_token


def test_the_share_is_of_the_products_alone():
    tops = squares([100])
    products = {"a": (Product("frozen", 2, 3, 4), 2), "b": (Product("adapters", 2, 3, 1), 1)}
    seconds = pd.DataFrame(
        {"a": [1.0] * 6, "b": [1.0] * 6, "square 100": [2.0] * 6, "step": [4.0] * 6}
    )
    found = roofline(seconds, products, "step", tops).set_index("products")
    assert found.loc["frozen", "share"] == 0.5
    assert found.loc["frozen + attention + adapters", "share"] == 0.75
    assert found.loc["frozen", "gflop"] == 2 * 48 / 1e9
    assert found.loc["frozen", "best_rate"] == 1e6 / 1e9
    assert tuple(found.loc["frozen", ["share_low", "share_high"]]) == (0.5, 0.5)


@pytest.mark.parametrize(
    "product",
    [
        Product("frozen", 2, 3, 4),
        Product("frozen", 2, 3, 4, 1, False),
        Product("attention", 2, 3, 4, 5),
    ],
)
def test_a_product_has_its_shape(product):
    assert product.prepared(torch.device("cpu"))().shape[-2:] == (2, 4)


# scripts


def script(name, arguments, model, folder):
    given = arguments.format(tiny=model).split()
    load_script(name).main([*given, "--threads", "1", "--output", str(folder / name)])
    facts = json.loads((folder / f"{name}.json").read_text())
    assert facts["benchmark"] == name
    assert set(FIELDS) <= set(facts)
    assert len(facts["rows"]) == len(pd.read_csv(folder / f"{name}.csv"))
    return facts


@pytest.mark.parametrize("learnt", [dict(tokens=4), dict(tokens=2, depth=2, image=3)])
def test_both_steps_of_learnt_tokens_are_the_same(backbones, learnt):
    steps = prompt_steps(backbones["fp32"], classes=3, batch=2, **learnt)
    losses = {name: [step().item() for _ in range(3)] for name, step in steps.items()}
    assert losses[OURS] == pytest.approx(losses[PLAIN], rel=1e-5)
    assert losses[OURS][0] != losses[OURS][-1]
    found = {name: counted_flops(step) for name, step in steps.items()}
    with torch.backends.mkldnn.flags(enabled=False):  # torch's own products, of which it knows
        assert found == {name: counted_flops(step) for name, step in steps.items()}
    assert found[PLAIN] / 20 < found[OURS] < found[PLAIN]


def test_learnt_tokens_are_held_against_loras_step_too(backbones):
    """Which moves its adapters, encodes the same images and as many prompts."""
    steps = prompt_steps(backbones["fp32"], classes=3, batch=2, tokens=4, against=LORA)
    assert set(steps) == {OURS, LORA}
    assert steps[LORA].optimizer.param_groups[0]["params"] != []
    losses = [steps[LORA]().item() for _ in range(3)]
    assert losses[0] != losses[-1]
    assert counted_flops(steps[LORA]) > counted_flops(steps[OURS])  # gradients of both towers


def test_tokens_are_not_learnt_where_they_have_no_place(backbones):
    with pytest.raises(ValueError, match=r"depth=3: a tower of .* has 2 blocks; say --depth 2"):
        prompt_steps(backbones["fp32"], classes=3, batch=2, tokens=2, depth=3)
    backbone = load_backbone(BackboneSpec(name="PocketSigmoid", pretrained="none"), "cpu")
    with pytest.raises(NotCovered, match="of two plain transformers, and PocketSigmoid is none"):
        prompt_steps(backbone, classes=3, batch=2)


@pytest.mark.slow
def test_prompts_are_timed_against_all_positions(quick_clip, tmp_path, capsys):
    chosen = "--model {tiny} --classes 3 --rounds 3 --tokens 4 --depth 2"
    rows = pd.DataFrame(script("prompts", chosen, quick_clip, tmp_path)["rows"])
    assert set(rows["case"]) == {"coop", "deep"}
    ours = rows[rows["form"] == "ours"]
    assert (ours["flop_ratio"] < 1).all()
    assert "floor" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_at_once_are_timed_against_one_after_the_other(quick_clip, tmp_path):
    chosen = "--model {tiny} --runs 2 --classes 3 --batch 2 --steps 2 --rounds 3"
    rows = pd.DataFrame(script("stack", chosen, quick_clip, tmp_path)["rows"])
    assert set(rows["form"]) == {ALONE, AT_ONCE}
    assert (rows["baseline"] == ALONE).all()


@pytest.mark.slow
def test_both_ways_to_train_runs_give_the_same_losses(backbones):
    config = AdapterConfig(rank=2, n_blocks=2, dropout=0.25)
    ways = stacked_trainings(backbones["fp32"], 2, classes=3, batch=2, steps=3, config=config)
    alone, at_once = (ways[name]() for name in (ALONE, AT_ONCE))
    for one, other in zip(alone, at_once, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert alone[0] != pytest.approx(alone[1], rel=1e-2)


def test_runs_of_a_model_that_cannot_be_stacked_are_refused(tmp_path):
    import open_clip

    vision = dict(image_size=32, patch_size=16, width=32, layers=1, head_width=16)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
    config = dict(embed_dim=16, vision_cfg=vision, text_cfg=text | {"no_causal_mask": True})
    path = tmp_path / "TinyNoMask.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(path)
    backbone = load_backbone(BackboneSpec(name=path.stem, pretrained="none"), "cpu")
    with pytest.raises(ValueError, match="TinyNoMask are not trained at once: its towers are"):
        stacked_trainings(backbone, 2, 3, batch=2, steps=2, config=AdapterConfig())


@pytest.mark.slow
def test_step_reports_a_delayed_baseline_as_slower(quick_clip, tmp_path, capsys):
    chosen = (
        "--model {tiny} --classes 3 5 --batch 2 --rounds 6 --no-memory --adapters block_lora lora"
    )
    chosen += " --variants independent shared_prefix clip_lora peft --delay clip_lora 0.1"
    rows = pd.DataFrame(script("step", chosen, quick_clip, tmp_path)["rows"])
    ours = rows[rows["name"].str.startswith(tuple(OUR_STEPS)) & (rows["baseline"] == "clip_lora")]
    assert set(ours["name"]) == {
        "independent",
        "independent lora",
        "shared_prefix",
        "shared_prefix lora",
    }
    assert set(ours["classes"]) == {3, 5}
    assert (ours["ratio"] < 1).all()
    assert set(rows["baseline"]) == {"clip_lora", "peft"}
    assert "| time / clip_lora" in capsys.readouterr().out
    (record,) = read_records("step", tmp_path)
    assert "1 threads" in record.where
    assert steps_by_classes(record.frame()).axes


def test_the_table_of_steps_holds_ratios_to_every_baseline():
    columns = ["name", "baseline", "seconds_median", "ratio", "ratio_low", "ratio_high"]
    rows = [
        ("ours", "other", 2.0, 0.5, 0.4, 0.6),
        ("other", "other", 4.0, 1.0, 1.0, 1.0),
        ("ours", "third", 2.0, 2.0, math.nan, math.nan),
    ]
    rows = pd.DataFrame(rows, columns=columns).assign(classes=10, peak_ratio=math.nan)
    rows["peak_bytes"] = 2**29 * rows["seconds_median"]
    assert steps_table(rows).to_dict("list") == {
        "classes": [10, 10],
        "name": ["ours", "other"],
        "s a step": ["2", "4"],
        "peak GiB": ["1.00", "2.00"],
        "time / other": ["0.5 [0.4, 0.6]", "-"],
        "peak / other": ["-", "-"],
        "time / third": ["2", "-"],
        "peak / third": ["-", "-"],
    }


@pytest.mark.slow
def test_step_measures_peaks_and_leaves_out_what_does_not_fit(
    quick_clip, tmp_path, capsys, monkeypatch
):
    module = load_script("step")
    monkeypatch.setattr(
        module, "missing", lambda v, *_: "no room for peft" if v == "peft" else None
    )
    monkeypatch.setattr(module, "step_memory", lambda spec, forms, device: pd.DataFrame(
        {"name": list(forms), "prepared_bytes": 1, "peak_bytes": [2**30, 2**31]}))  # fmt: skip
    chosen = "--classes 3 --batch 1 --rounds 3 --variants independent clip_lora peft --threads 1"
    module.main([*chosen.split(), "--model", quick_clip, "--output", str(tmp_path / "m")])
    assert "left out: no room for peft" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "m.csv").set_index("name")
    assert rows["peak_ratio"].to_dict() == {"independent": 0.5, "clip_lora": 1.0}


@pytest.mark.slow
def test_times_stay_where_memory_cannot_be_measured(quick_clip, tmp_path, capsys, monkeypatch):
    def failed(*_):
        raise MeasurementFailed("there was no room")

    monkeypatch.setattr(step_costs, "step_memory", failed)
    common = "--model {tiny} --variants independent --batch 1 --rounds 3"
    growths = "--by-classes 2 3 --by-images --by-rank 2 3 4 --by-blocks --by-threads 1"
    for name, sizes in (("step", "--classes 2"), ("scaling", f"--classes 2 {growths}")):
        found = pd.DataFrame(script(name, f"{common} {sizes}", quick_clip, tmp_path)["rows"])
        told = capsys.readouterr().out
        assert "left out: there was no room" in told
        assert (found["seconds_median"] > 0).all()
    assert set(found["axis"]) == {"classes", "rank"}
    assert "left out: rank [3], which n = 2 does not divide" in told
    assert "left out: threads, whose line asks for two values or more" in told


@pytest.mark.slow
def test_the_peak_of_a_step_is_measured_in_a_process_of_its_own():
    spec = BackboneSpec(name="PocketCLIP", pretrained="bundled")
    forms = {"few": ("independent", Size(2, 1)), "many": ("independent", Size(200, 1))}
    peaks = step_costs.step_memory(spec, forms, "cpu").set_index("name")["peak_bytes"]
    assert peaks["many"] > peaks["few"] + 2**20


@pytest.mark.slow
def test_scaling_writes_points_and_lines(quick_clip, tmp_path):
    chosen = "--model {tiny} --by-classes 2 3 4 --by-images 1 2 --by-rank 2 4 --by-blocks 1 2"
    chosen += " --by-threads 1 2 --classes 2 --batch 1 --rounds 3 --no-memory"
    script("scaling", chosen, quick_clip, tmp_path)
    (record,) = read_records("scaling", tmp_path)
    rows, lines = record.frame(), record.frame("lines")
    assert rows.groupby("axis")["value"].count().to_dict() == dict(
        classes=3, images=2, rank=2, blocks=2, threads=2
    )
    assert set(lines["axis"]) == {"classes", "images", "rank", "blocks"}
    assert {"slope", "slope_low", "slope_high", "residual"} <= set(lines)
    assert len(growth_lines(rows, lines).axes) == 5
    growths = ["ms a class", "ms an image", "ms a unit of rank", "ms a block"]
    assert list(growth_table(lines)["growth"]) == growths


def test_growth_is_drawn_with_its_slope():
    seconds = {classes: 1 + 0.02 * classes for classes in (10, 20, 40)}
    rows = pd.DataFrame(
        {"axis": "classes", "value": seconds.keys(), "seconds_median": seconds.values()}
    )
    rows = rows.assign(
        seconds_q1=rows["seconds_median"] - 0.1, seconds_q3=rows["seconds_median"] + 0.1
    )
    threads = pd.DataFrame([{**rows.iloc[0], "axis": "threads", "value": v} for v in (1, 2)])
    times = [(i, classes, s) for i in range(6) for classes, s in seconds.items()]
    times = pd.DataFrame(times, columns=["round", "name", "seconds"])
    line = {"variant": "independent", "axis": "classes", "quantity": "seconds"} | growth.time_line(
        times
    )
    left, right = growth_lines(pd.concat([rows, threads]), pd.DataFrame([line])).axes
    assert left.get_title() == "20 ms a class"
    x, y = left.lines[-1].get_data()
    assert list(y) == pytest.approx([1 + 0.02 * v for v in x])
    assert not right.get_title()
    (unsure,) = growth_lines(rows, pd.DataFrame([line | {"slope_low": -1e-3}])).axes
    assert unsure.get_title() == "slope open"


@pytest.mark.slow
def test_roofline_writes_shares_and_products(quick_clip, tmp_path):
    chosen = "--model {tiny} --classes 3 --batch 2 --rounds 3 --sides 32"
    facts = script("roofline", chosen, quick_clip, tmp_path)
    rows, products = pd.DataFrame(facts["rows"]), pd.DataFrame(facts["products"])
    assert len(rows) == 2 * len(GROUPS)
    assert set(rows["variant"]) == {"independent", "shared_prefix"}
    assert (rows["share"] > 0).all()
    assert set(products["group"]) == {*GROUPS, "square"}
    (record,) = read_records("roofline", tmp_path)
    table = roofline_table(record.frame())
    assert table["GFLOP/s in a step"].tolist() == rows["step_rate"].tolist()
    assert table["share"].tolist() == rows["share"].tolist()


@pytest.mark.slow
def test_pocket_run_compares_whole_processes(monkeypatch, tmp_path, capsys):
    """The processes themselves are stood in for; the next test runs the plain loop."""
    module, commands = load_script("pocket_run"), []

    def output(command, threads):
        if command[2] == module.START:
            return ""
        commands.append(command)
        if "run" not in command:
            return json.dumps({"accuracy": {"fashion": 0.5}, "train_seconds": 1.0 + len(commands)})
        path = Path(command[command.index("--results") + 1]) / "record.json"
        result = {"accuracy": {"fashion": {"correct": 3, "total": 4}}}
        path.write_text(json.dumps({"result": result, "cost": {"seconds": {"train": 0.5}}}))
        return str(path)

    monkeypatch.setattr(module, "output", output)
    module.main(["--rounds", "6", "--methods", "block_lora", "--delay", "0.02", "--threads", "1",
                 "--output", str(tmp_path / "pocket_run")])  # fmt: skip
    rows = pd.read_csv(tmp_path / "pocket_run.csv").set_index(["part", "name"])
    found = dict(block_lora=0.75, peft=0.5)
    assert rows.loc["training", "accuracy"].to_dict() == found
    assert rows.loc["process", "accuracy"].dropna().to_dict() == found
    assert {"imports alone", *found} == set(rows.loc["process"].index)
    assert (rows.xs("block_lora", level="name")["ratio"] < 1).all()
    assert "times as fast as peft, process" in capsys.readouterr().out
    # what each process says of itself, the warm-up left out: ours is the same number in every run
    assert rows.loc[("training", "block_lora"), "seconds_median"] == 0.5
    told = pd.DataFrame(json.loads((tmp_path / "pocket_run.json").read_text())["times"])
    told = told[(told["part"] == "training") & (told["name"] == "peft")].set_index("round")[
        "seconds"
    ]
    assert (
        list(told) == [1 + i for i, command in enumerate(commands, 1) if "run" not in command][1:]
    )
    shared = (
        "--profile pocket --dataset fashion --shots 16 --seed 1 --threads 1 --device cpu".split()
    )
    assert all(any(c[i : i + len(shared)] == shared for i in range(len(c))) for c in commands)


@pytest.mark.slow
def test_the_plain_loop_trains_as_a_run_does(capsys):
    load_script("plain_peft_loop").main(
        ["--profile", "smoke", "--dataset", "chess", "--shots", "1"]
    )
    found = json.loads(capsys.readouterr().out.strip().rpartition("\n")[2])
    assert found["steps"] == 3
    assert found["trainable_parameters"] == 13824  # LoRA of r = 2 on q, k, v of both towers
    assert set(found["accuracy"]) == {"chess"}
    assert 0 <= found["accuracy"]["chess"] <= 1


def test_bad_input_ends_the_plain_loop_with_a_sentence(monkeypatch):
    script = FOLDER / "plain_peft_loop.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--dataset", "nosuch"])
    with pytest.raises(SystemExit, match=r"^error: unknown dataset 'nosuch'; Known: "):
        runpy.run_path(str(script), run_name="__main__")


def test_a_file_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text('{"benchmark": "step"}')
    with pytest.raises(
        ValueError, match=r"broken\.json is no record of a benchmark: it lacks date"
    ):
        read_records("step", tmp_path)
    assert read_records("step", tmp_path / "nothing") == []


@pytest.mark.parametrize("conditions", [None, 3, "cpu", [], {"device": "cpu", "torch": "2"}])
def test_a_record_that_does_not_say_its_machine_is_none(tmp_path, conditions):
    """Whoever told of it, a notebook, ended in a KeyError."""
    facts = dict.fromkeys(FIELDS, "step") | {"rows": [], "conditions": conditions}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"a\.json is no record of a benchmark: it lacks .*condit"):
        read_records("step", tmp_path)
