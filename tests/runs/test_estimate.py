"""What a grid costs, against torch's own count of one run's steps and images."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.cli.progress import CARD, forecast
from blocklora_lib.clip.architectures import clip_architecture
from blocklora_lib.core.paths import ROOT
from blocklora_lib.costs.memory import step_memory, total_bytes
from blocklora_lib.costs.prompts import forward_work
from blocklora_lib.costs.step import step_work, total_work
from blocklora_lib.costs.ways import StepWay
from blocklora_lib.data.image_files import KEPT_BYTES, ImageFiles
from blocklora_lib.data.kept_views import KeptViews
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.obtain.miniature import make_fake
from blocklora_lib.methods import MethodSpec
from blocklora_lib.runs.estimate import DAY, estimate, minutes, settings_of
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.spec import RunSpec
from blocklora_lib.runs.step_estimate import PROMPT_TOKENS, host_seconds, parts_of

POCKET = load_profile("pocket")
BENCHMARKS = ROOT / "results" / "reference" / "benchmarks"


def test_a_run_is_its_steps_and_its_evaluated_images():
    spec = make_spec(POCKET, "fashion", "block_lora", 16, 1)
    one = estimate([spec])
    assert (one.runs, one.steps) == (1, 96)
    assert estimate([spec, spec]).flops == 2 * one.flops
    zero = estimate([make_spec(POCKET, "fashion", "zero_shot", 0, 0)])
    assert zero.steps == zero.peak_bytes == 0
    shorter = spec.model_copy(
        update={"training": spec.training.model_copy(update={"steps_per_shot": 5})}
    )
    step = (one.flops - zero.flops) / 96
    # as many steps as the spec says: 16 shots want 80
    assert estimate([shorter]).flops - zero.flops == pytest.approx(80 * step, rel=1e-12)


@pytest.mark.parametrize("model", ["RN50", "PocketSigmoid", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_a_model_without_a_closed_form_is_told_and_the_others_are_priced(model):
    spec = make_spec(POCKET, "fashion", "block_lora", 16, 1)
    own = spec.backbone.model_copy(update={"name": model})
    other = spec.model_copy(update={"backbone": own})
    both = estimate([spec, other])
    assert both.unpriced == {model: 1}
    assert (both.runs, both.flops) == (1, estimate([spec]).flops)
    assert minutes([spec, other], gpu=False) == DAY
    assert f"without 1 of {model}, for which there is no closed form" in forecast([spec, other], 20)
    assert f"no closed form for the model of 1 of {model}" in forecast([other], 20)


@pytest.mark.slow
def test_images_are_those_of_torchs_counter(bundled_clip):
    zero = estimate([make_spec(POCKET, "fashion", "zero_shot", 0, 0)])
    # with a gradient to compute PyTorch takes its plain kernels, which the counter knows
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        bundled_clip.encode_images(images)
    assert zero.flops == 600 / 2 * counter.get_total_flops()  # 600 test images


@pytest.fixture(scope="module")
def bundled_clip():
    from blocklora_lib.clip.backbone import load_backbone

    backbone = load_backbone(POCKET.backbone, "cpu")
    backbone.model.double()  # in float32 frozen products go past the counter, to oneDNN
    return backbone


def test_the_papers_grid_can_be_estimated_without_its_images():
    cost = estimate(expand(load_profile("paper")))
    assert cost.runs == 836
    assert cost.steps == 11 * 5 * 3 * 500 * (
        1 + 2 + 4 + 8 + 16
    )  # sets, methods, seeds, CLIP-LoRA's 500 a shot
    assert 1 < cost.peak_bytes / 2**30 < 24
    assert cost.hours(10) == pytest.approx(2 * cost.hours(20))
    assert PROMPT_TOKENS <= 77


def test_a_miniature_costs_what_its_own_classes_and_images_cost(tmp_path, monkeypatch):
    smoke = load_profile("paper-smoke")
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path))
    (whole,) = expand(smoke, dataset="eurosat", method="zero_shot")
    real = estimate([whole])
    make_fake(load_manifest("eurosat"), tmp_path, per_class=3, classes=2)
    (small,) = expand(smoke, dataset="eurosat", method="zero_shot")
    assert small.data_checksum != whole.data_checksum
    assert estimate([small]).flops == pytest.approx(
        real.flops * (2 * 3) / 8100
    )  # EuroSAT: 8,100 test images


def test_methods_beside_adapters_are_priced_by_their_own_steps():
    """On 16 images of each of ten classes; `pocket` trains 96 steps."""

    def of(method, **settings):
        spec = make_spec(POCKET, "fashion", "lora", 16, 1)
        given = {"method": MethodSpec(name=method, settings=settings)}
        given |= {} if given["method"].scheduled else {"training": None}
        return estimate([spec.model_copy(update=given)])

    zero = estimate([make_spec(POCKET, "fashion", "zero_shot", 0, 0)])
    assert of("coop").steps == of("two_stage").steps == 96
    assert of("coop", schedule={}).steps == 200 * (160 // 32)
    assert of("coop", schedule={"epochs": [1, 1, 1], "batch_size": 50}).steps == 3
    assert of("coop", schedule={"epochs": [2, 2, 2], "batch_size": 500}).steps == 2
    assert of("prograd").flops > of("coop").flops > zero.flops
    assert of("promptsrc").flops > of("maple").flops > of("coop").flops
    assert of("cocoop").flops > 2 * of("coop").flops  # prompts for each image, tested ones too
    # of two_stage's stages one runs both towers there and back, the other the images there
    norms, last = (of("two_stage", share=share).flops - zero.flops for share in (1.0, 0.0))
    assert last == pytest.approx(zero.flops * 96 * POCKET.training.batch_size / 600, rel=1e-12)
    assert norms > 2 * last


def test_images_of_methods_on_features_are_encoded_once_for_all():
    """Ten classes, 16 shots; 600 test images."""
    few = [make_spec(POCKET, "fashion", name, 16, 1) for name in ("linear_probe", "gda")]
    zero = make_spec(POCKET, "fashion", "zero_shot", 0, 0)
    drawn = {spec.method.settings.get("views", 0) for spec in few}
    images = 600 + sum(160 * (1 + views) for views in drawn)
    assert estimate([*few, zero]).flops == pytest.approx(estimate([zero]).flops * images / 600)


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_images_of_methods_that_learn_prompts_alone_are_encoded_once_too(name):
    """DTD: 1,692 test images, which the frozen image tower sees; the prompts are each run's own."""
    paper = load_profile("paper")
    runs = [s for s in expand(paper, "comparison", "dtd", name) if s.shots == 1]
    images = estimate(expand(paper, "comparison", "dtd", "zero_shot")).flops
    cost, alone = estimate(runs), sum(estimate([spec]).flops for spec in runs)
    assert len(runs) == 3
    assert alone - cost.flops == pytest.approx(2 * images, rel=1e-9)
    assert (cost.evaluated, cost.test_images) == (1692, 1692)
    own = {spec.fit_key: spec for spec in expand(paper, "comparison", "dtd", "maple")}
    assert estimate(own.values()).evaluated == 1692 * len(own)  # its images have tokens, too


def test_few_shot_images_of_methods_on_features_are_decoded_too():
    """DTD at 16 shots: 47 classes; `paper`'s TaskRes looks at 20 views of each."""
    comparison = expand(load_profile("paper"), "comparison", "dtd")
    at_16 = [s for s in comparison if (s.shots, s.seed) == (16, 1)]
    views = {n: [s for s in at_16 if s.method.name == n] for n in ("task_res", "linear_probe")}
    cost = estimate([spec for specs in views.values() for spec in specs])
    assert cost.few_shot == 2 * 16 * 47  # once for their views, once for themselves
    assert cost.training_views == 20 * 16 * 47
    assert cost.image_bytes == estimate(views["task_res"]).image_bytes > 0
    assert estimate(views["linear_probe"]).image_bytes == 0


def test_images_of_a_frozen_tower_that_are_not_augmented_are_encoded_once():
    """DTD at 16 shots: 752 images, of which `augment: none` gives the same rows at every step."""
    usual = load_profile("paper").training
    profile = load_profile("paper").model_copy(
        update={"training": usual.model_copy(update={"augment": "none"})}
    )
    spec = make_spec(profile, "dtd", "lora", 16, 1)
    text = {"method": MethodSpec(name="lora", settings={"towers": ("text",)})}
    alone = spec.model_copy(update=text)
    augmented = alone.model_copy(update={"training": usual})
    once, often = estimate([alone]), estimate([augmented])
    image = estimate(expand(load_profile("paper"), "few_shot", "dtd", "zero_shot")).flops / 1692
    logits = 2 * 47 * 512 * 2  # of an image, and backward to the prompts
    assert (once.training_views, once.steps) == (752, often.steps)
    assert often.flops - once.flops == pytest.approx(
        often.training_views * (image + logits) - 752 * image, rel=1e-9
    )
    assert estimate([spec]).training_views == often.training_views  # its image tower learns


def test_texts_go_through_the_text_tower_alone():
    """They stand where images do: PocketCLIP's tower reads 32 tokens and gives 384 numbers."""
    zero, *_, spec = (*expand(POCKET, "texts", None, "zero_shot"), *expand(POCKET, "texts"))
    count, architecture = (
        load_manifest("definitions").counts["test"],
        clip_architecture("PocketCLIP"),
    )
    evaluated, one = estimate([zero]), estimate([spec])
    assert evaluated.flops == 2 * forward_work(architecture.text, count).forward
    assert evaluated.feature_bytes == 4 * 384 * count
    assert one.host_seconds == pytest.approx(one.steps * 3 * 3e-3)  # its layers, without graphs
    config, classes = spec.method.load().settings, load_manifest("definitions").num_classes
    all_of = classes + min(spec.training.batch_size, spec.shots * classes)
    short, long = (
        2 * total_work(step_work(architecture, config, 0, all_of, n)).total * one.steps
        for n in (PROMPT_TOKENS, 32)
    )
    assert short < one.flops - evaluated.flops < long
    alike = [s for s in expand(POCKET, "texts") if s.stack_key == spec.stack_key]
    assert len(alike) > 1
    assert estimate(alike, stack=3).peak_bytes == estimate(alike).peak_bytes  # none is stacked


def test_image_files_are_counted_once_and_as_often_as_they_are_asked_for():
    """DTD: 47 classes, 1,692 test images; what methods on features ask for is encoded once."""
    paper = load_profile("paper")
    runs = [spec for spec in expand(paper, "few_shot", "dtd", "lora") if spec.shots == 16]
    cost = estimate([*runs, *expand(paper, "few_shot", "dtd", "zero_shot")])
    assert len(runs) == 3
    assert (cost.test_images, cost.evaluated, cost.few_shot) == (1692, 3 * 1692, 3 * 16 * 47)
    assert cost.view_bytes == 1692 * 3 * 224 * 224
    assert cost.decoding_hours() == pytest.approx((1692 + 2256) * 6.5e-3 / 3600)
    assert cost.decoding_hours(kept=False) > cost.decoding_hours()
    assert cost.host_seconds == pytest.approx(cost.steps * 2.6e-3)  # by CUDA graphs
    chunked = runs[0].training.model_copy(update={"class_chunk": 10})
    again = estimate([runs[0].model_copy(update={"training": chunked})])
    assert again.host_seconds == pytest.approx(again.steps * 24 * 3e-3)  # a layer of ViT-B/16
    pocket = estimate(expand(POCKET, "few_shot", "fashion"))
    assert (pocket.test_images, pocket.few_shot, pocket.view_bytes) == (0, 0, 0)  # a bundle


def test_views_of_training_images_take_a_core_their_time():
    """Of 32 images a step; of what trains the same, once; of a bundle they lie in memory."""
    paper = load_profile("paper")
    runs = [spec for spec in expand(paper, "few_shot", "dtd", "lora") if spec.shots == 16]
    cost = estimate(runs)
    # of 752 images 24 batches, the last of 16
    assert cost.training_views == cost.steps * 32 - 3 * (8000 // 24) * 16
    assert cost.viewing_hours == pytest.approx(cost.training_views * 1.2e-3 / 3600)
    assert f"{cost.training_views:,} views of training images take" in forecast(runs, 20)
    core = cost.host_hours + cost.decoding_hours() + cost.viewing_hours
    longer = max(core, cost.hours(20))
    assert minutes(runs, gpu=True) == 30 + math.ceil(2 * 60 * longer)
    spec = make_spec(POCKET, "fashion", "lora", 16, 1)
    assert estimate([spec]).training_views == 0
    assert "views" not in forecast([spec], 20)


@pytest.mark.parametrize(("precision", "sustained"), [("fp32", 31), ("fp16", 120)])
def test_it_is_held_against_steps_that_were_measured(precision, sustained):
    """Of ViT-B/16 and 32 images on an H200: the rate that is named, memory, and the host's time."""
    lines = (BENCHMARKS / "gpu_check_h200.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if r["what"] == "step, beside steps by graphs"]
    measured = {r["case"]: r["numbers"] for r in rows}
    paper = load_profile("paper")
    backbone = paper.backbone.model_copy(update={"precision": precision})
    spec = make_spec(paper, "imagenet", "block_lora", 16, 1)
    spec, method, rates = spec.model_copy(update={"backbone": backbone}), spec.method.load(), []
    for classes in (10, 100, 1000):
        (part,) = parts_of(spec, method, classes)
        graph, plain = (
            measured[f"ours, {precision}, strict, {how}graphs, {classes} classes"]
            for how in ("", "no ")
        )
        rates.append(2 * part.work / graph["ms"] * 1e-9)  # TFLOP/s
        assert 0.88 < part.bytes / 2**30 / graph["peak_gib"] < 1.02
        augmentation = 0.7
        assert graph["host_ms"] + augmentation < 1e3 * host_seconds(spec, method) + 0.05
        told = 1e3 * host_seconds(spec, method, graphs=False)
        assert plain["host_ms"] == pytest.approx(told, rel=0.08)
    assert round(min(rates)) == sustained
    assert f"{sustained} in {precision}" in CARD
    said = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    ends = " to ".join(f"{rate:.0f}" for rate in sorted({round(min(rates)), round(max(rates))}))
    form = {"fp32": "TFLOP/s in float32", "fp16": "in fp16 (`--tflops 120`)"}[precision]
    assert f" {ends} {form}" in said


def test_what_evaluates_the_same_is_evaluated_once():
    """Block-LoRA of one block is LoRA: trained once, and its sets are looked at once."""
    paper = load_profile("paper")
    blocks = [s for s in expand(paper, "blocks", "imagenet") if s.shots == 16 and s.seed == 1]
    alike = {}
    for spec in blocks:
        alike.setdefault(spec.fit_key, []).append(spec)
    both = next(specs for specs in alike.values() if len(specs) > 1)
    assert estimate(both).flops == estimate(both[:1]).flops
    assert estimate(both).evaluated == estimate(both[:1]).evaluated


def test_features_and_decoded_images_take_disk_and_memory():
    """DTD: 1,692 test images, 47 classes; ViT-B/16's pooled rows have 768 numbers."""
    paper = load_profile("paper")
    probe = [s for s in expand(paper, "comparison", "dtd", "linear_probe") if s.shots == 16][:1]
    views = probe[0].method.settings.get("views", 0)
    rows = 1692 + 16 * 47 * (1 + views)
    assert estimate(probe).feature_bytes == rows * 768 * 4
    few = [s for s in expand(paper, "few_shot", "dtd", "lora") if s.shots == 16]
    assert estimate(few).image_bytes == 16 * 47 * 3 * 500 * 375
    assert estimate(few).feature_bytes == 0  # its image tower is its own
    large = [s for s in expand(paper, "few_shot", "imagenet", "lora") if s.shots == 16]
    assert estimate(large).image_bytes == KEPT_BYTES


def test_a_file_of_views_takes_what_the_estimate_says(tmp_path):
    files = ImageFiles([tmp_path / f"{i}.png" for i in range(3)])
    for i, path in enumerate(files.paths):
        Image.new("RGB", (300, 200), (i, 0, 0)).save(path)
    files.keep_views(KeptViews(tmp_path / "views", "toys-test", files.paths, {}))
    files.evaluation_views()  # at ViT-B/16's 224 x 224
    (file,) = (tmp_path / "views").iterdir()
    (spec,) = expand(load_profile("paper"), dataset="dtd", method="zero_shot")
    an_image = estimate([spec]).view_bytes / 1692
    assert file.stat().st_size == pytest.approx(3 * an_image, rel=2e-3)  # with head and digests


def test_what_trains_the_same_costs_its_training_once():
    few, across = (expand(load_profile("paper"), name) for name in ("few_shot", "cross_dataset"))
    (one,) = (s for s in few if str(s) == "imagenet lora(2) shots=16 seed=1")
    (other,) = (s for s in across if str(s) == str(one))
    assert one.key != other.key
    alone = [estimate([spec]) for spec in (one, other)]
    both = estimate([one, other])
    assert both.steps == alone[0].steps == alone[1].steps == 8000
    tests = [
        estimate([s for s in e if not s.shots and s.dataset == "imagenet"]).flops
        for e in (few, across)
    ]
    (zero,) = (s for s in few if not s.shots and s.dataset == "imagenet")
    common = tuple(on for on in one.evaluate_on if on in other.evaluate_on)
    twice = estimate([zero.model_copy(update={"evaluate_on": common})]).flops
    training = alone[0].flops - tests[0]
    assert common == ("imagenet",)  # on which both are evaluated, at once
    assert both.flops == pytest.approx(training + sum(tests) - twice, rel=1e-12)


def paper_like(**changes):
    """The profile paper with other settings, and its runs of LoRA on ImageNet at 16 shots."""
    profile = load_profile("paper").model_copy(update=changes)
    runs = expand(profile, "few_shot", "imagenet", "lora")
    return profile, [spec for spec in runs if spec.shots == 16]


def trained_so(**training):
    usual = load_profile("paper").training
    _, runs = paper_like(training=usual.model_copy(update=training))
    return estimate(runs)


def test_settings_of_a_profile_count():
    profile, runs = paper_like()
    usual = estimate(runs, **settings_of(profile))
    assert usual == estimate(runs)
    profile, runs = paper_like(cuda_graphs=False)
    without = estimate(runs, **settings_of(profile))
    assert without.host_seconds == pytest.approx(usual.steps * 24 * 3e-3)  # a layer of ViT-B/16
    profile, runs = paper_like(stack=3)  # as many seeds
    stacked = estimate(runs, **settings_of(profile))
    weights = clip_architecture("ViT-B-16-quickgelu").weights * 2  # bytes, in fp16: they are shared
    above = stacked.peak_bytes - weights, usual.peak_bytes - weights
    assert above[0] == pytest.approx(3 * above[1], rel=0.03)  # adapters and logits grow as well
    assert stacked.host_seconds == without.host_seconds  # a stack has no graphs
    assert estimate(runs[:1], stack=3).peak_bytes == usual.peak_bytes  # with whom?


def test_a_job_is_given_the_time_that_its_host_takes():
    long = POCKET.training.model_copy(update={"steps_per_shot": 5000, "max_steps": None})
    spec = make_spec(POCKET, "fashion", "lora", 16, 1).model_copy(update={"training": long})
    slow = POCKET.model_copy(update={"cuda_graphs": False})
    cost = estimate([spec], **settings_of(slow))
    assert cost.host_hours > cost.hours(20)  # a GPU waits for steps of so small a model
    assert minutes([spec], True, slow) == 30 + math.ceil(2 * 60 * cost.host_hours)
    assert minutes([spec], True, POCKET) < minutes([spec], True, slow)


def test_what_is_encoded_again_takes_time_for_memory():
    usual, chunked = trained_so(), trained_so(class_chunk=250)
    again = trained_so(checkpointing=True)
    shared = trained_so(share_prefix=True)
    least = trained_so(share_prefix=True, checkpointing=True, class_chunk=250)
    assert usual.flops < min(chunked.flops, again.flops)
    assert shared.flops < usual.flops
    assert max(chunked.peak_bytes, again.peak_bytes, shared.peak_bytes) < usual.peak_bytes
    assert least.peak_bytes < min(again.peak_bytes, chunked.peak_bytes)
    backbone = load_profile("paper").backbone
    way = StepWay(share_prefix=True, checkpoint=True, precision=backbone.format, chunks=4)
    given = clip_architecture(backbone.name), AdapterConfig(kind="lora", rank=2, dropout=0.25)
    expected = total_bytes(step_memory(*given, 32, 1000, 5 + 1000 * 5, way))
    assert least.peak_bytes == pytest.approx(expected, rel=0.01)


def test_a_line_says_what_the_profile_lets_be_done():
    profile, runs = paper_like()
    said = forecast(runs, 20, profile)
    assert "a GPU's host takes" in said
    assert "decoded once and kept in" in said
    profile, runs = paper_like(keep_views=False, device="cpu")
    said = forecast(runs, 20, profile)
    assert "a GPU's host" not in said
    assert "kept in" not in said
    assert f"{estimate(runs).evaluated:,} test images are decoded, each as often as runs" in said


@pytest.mark.slow
def test_steps_and_images_are_those_of_runs_that_were_made():
    """Of every setting of pocket's reference run once: a pass over the images may end short."""
    made = {}
    for text in pd.read_parquet(ROOT / "results/reference/pocket/runs.parquet")["record"]:
        record = json.loads(text)
        spec = RunSpec.model_validate(record["spec"])
        if spec.shots and spec.seed == 1 and spec.backbone.name == "PocketCLIP":
            made[spec.method, spec.training, spec.dataset, spec.shots] = spec, record["cost"]
    seen = 0
    for spec, cost in made.values():
        method, classes = spec.method.load(), load_manifest(spec.dataset).num_classes
        if parts := parts_of(spec, method, classes):
            found = [sum(p.steps for p in parts), sum(p.steps * p.images for p in parts)]
            assert found == [cost["budget"][n] for n in ("updates", "images_seen")], spec
            seen += 1
    assert seen > 500


@pytest.mark.slow
def test_the_page_says_what_the_paper_takes():
    paper = load_profile("paper")
    specs = {s.key: s for name in paper.experiments for s in expand(paper, name)}.values()
    family = {"lora", "lora_plus", "block_lora", "frozen_a"}
    whole, part = (
        estimate(s for s in specs if of is None or s.method.name in of).hours(20)
        for of in (None, family)
    )
    said = (ROOT / "docs" / "profiles.md").read_text()
    assert f"about {whole:.0f} hours at 20 TFLOP/s, {part:.0f} of them for LoRA, LoRA+," in said


def test_a_rate_must_be_positive():
    with pytest.raises(ValueError, match="tflops=0 must be positive"):
        estimate([]).hours(0)
