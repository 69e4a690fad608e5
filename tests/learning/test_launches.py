"""A training step on a GPU that is not there: it waits for nothing, and asks for few kernels."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import mostly_rare
from fake_cuda import fake_cuda
from launches import counting, deep_clip, step_launches
from torch import nn

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.core.seeding import generator
from blocklora_lib.learning import evaluation, replayed
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import TrainingDiverged, train
from blocklora_lib.learning.replayed import WARM_UP, Replayed, can_replay
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.learning.told import WINDOW, Told
from blocklora_lib.methods import get_method

NAMES = ["cat", "red car", "dog"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return deep_clip(tmp_path_factory.mktemp("deep"))


@pytest.fixture
def gpu():
    with fake_cuda() as found:
        yield found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_waits_for_nothing(gpu, tiny_clip, precision):
    found = step_launches(tiny_clip, 10, precision)
    assert not +found.waited
    assert found.kernels.total() > 100


# Kernels of a step at 1000 classes before q, k, v, attention and factors were computed together, as
# `python tests/launches.py` counted them; what it counts does not depend on widths.
BEFORE = {("lora", "fp32"): 1700, ("block_lora", "fp16"): 2044}


@pytest.mark.parametrize(("kind", "precision"), mostly_rare(BEFORE, {("lora", "fp32")}))
def test_a_step_asks_for_half_as_many_kernels_at_any_number_of_classes(gpu, deep, kind, precision):
    found = {n: step_launches(deep, n, precision, batch=1, kind=kind) for n in (10, 60)}
    few, more = (counted.kernels.total() for counted in found.values())
    assert 2 * more <= BEFORE[kind, precision]
    assert more == few  # however many lengths there are


def line(device, steps, nan_at=None, **context):
    """Losses of a linear classifier, trained on the device by the loop."""
    weight, seen = nn.Parameter(torch.zeros(3, 4).to(device)), []

    def logits(x):
        seen.append(1)
        return x @ weight.T * (math.nan if len(seen) == nan_at else 1.0)

    spec = TrainingSpec(steps_per_shot=steps, batch_size=2, augment="none", lr=0.1)
    rows, labels = torch.randn(4, 4, generator=generator(1, "rows")), torch.arange(4) % 3
    given = Context(None, None, rows.to(device), labels, spec, 1, 1, **context)
    try:
        return train(given, [{"params": [weight], "lr": 0.1}], logits, scaled=True)[0], seen
    except TrainingDiverged as error:
        return str(error), seen


def fitted(name, tiny_clip, steps, **context):
    """A method that learns through the towers, trained on the stand-in: losses, logits, passes."""
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cuda")
    draw = generator(1, "images")
    images = torch.randint(0, 256, (12, 3, *backbone.view.size), dtype=torch.uint8, generator=draw)
    spec = TrainingSpec(steps_per_shot=1, min_steps=steps, batch_size=8, augment="light", lr=1e-2)
    tokens, labels = backbone.tokenize([f"a photo of a {n}." for n in NAMES]), torch.arange(12) % 3
    few = backbone.resize(images), labels.to("cuda"), spec
    method = get_method(name)
    given = {"context": "an image of"} if "context" in method.Settings.model_fields else {}
    found = method(method.Settings(**given)).fit(
        Context(backbone, tokens, *few, 1, 1, names=NAMES, **context)
    )
    passes = backbone.passes.copy()
    with torch.inference_mode(), found.inference():
        classes = found.classifier(
            backbone.tokenize(found.prompts(NAMES)) if found.prompts else tokens
        )
        scores = found.logits(backbone.preprocess(images), classes).cpu()
    found.close()
    return found.loss, scores, passes


THROUGH_TOWERS = mostly_rare(
    ("block_lora", "coop", "cocoop", "promptsrc", "dora", "vera", "prograd", "maple"),
    {"block_lora", "coop", "cocoop"},
)


@pytest.mark.parametrize("name", THROUGH_TOWERS)
def test_a_method_computed_by_graphs_is_the_same_bits(gpu, tiny_clip, name, monkeypatch):
    """Batches of 8 and 4 images: two graphs, each replayed; what a graph cannot hold raises."""
    monkeypatch.setattr(replayed, "WORTH", 3)
    made = []
    kept = replayed._Graph.__init__
    monkeypatch.setattr(
        replayed._Graph, "__init__", lambda self, *a: (made.append(len(a[1][0])), kept(self, *a))[1]
    )
    plain = fitted(name, tiny_clip, 10, cuda_graphs=False)
    assert not made
    losses, scores, passes = fitted(name, tiny_clip, 10)
    assert sorted(made) == [4, 8]
    assert losses == plain[0]
    assert torch.equal(scores, plain[1])
    assert passes == plain[2]  # what a replay takes is counted as what it repeats


def test_a_graph_reads_what_it_is_given_at_each_replay(gpu, monkeypatch):
    weight = nn.Parameter(torch.ones(2).to("cuda"))
    draws = []

    def step(x, labels):
        weight.grad = None
        loss = (weight * x).sum() * torch.rand(1, device="cuda")[0] + labels.sum()
        loss.backward()
        return loss.detach()

    backbone = SimpleNamespace(passes=Counter(), device=torch.device("cuda"))
    given = [torch.full((1, 2), float(i)).to("cuda") for i in range(WARM_UP + 4)]
    for graphs in (False, True):
        gpu.manual_seed(3)
        monkeypatch.setattr(replayed, "WORTH", 1)
        run = Replayed(step, {1: len(given)}, backbone, [weight]) if graphs else step
        found = []
        for x in given:
            loss = run(x, torch.ones(1).to("cuda"))
            found.append((loss, weight.grad.clone()))
        draws.append([(loss.item(), grad.tolist()) for loss, grad in found])
    assert draws[0] == draws[1]
    assert len({loss for loss, _ in draws[0]}) == len(given)


def test_what_waits_cannot_be_in_a_graph(gpu, monkeypatch):
    monkeypatch.setattr(replayed, "WORTH", 1)
    weight = nn.Parameter(torch.ones(2).to("cuda"))

    def step(x, labels):
        return (weight * x).sum() * x.sum().item()

    run = Replayed(
        step, {1: 9}, SimpleNamespace(passes=Counter(), device=torch.device("cuda")), [weight]
    )
    x = torch.ones(1, 2).to("cuda")
    for _ in range(WARM_UP):
        run(x, x)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        run(x, x)


@pytest.mark.parametrize("name", THROUGH_TOWERS)
def test_training_through_towers_waits_for_nothing_from_step_to_step(gpu, tiny_clip, name):
    waited = []
    for steps in (4, 7):
        with counting() as counted:
            fitted(name, tiny_clip, steps=steps, cuda_graphs=False)
        waited.append(counted.waited)
    assert waited[0] == waited[1]


@pytest.mark.parametrize("name", ["block_lora", "cocoop"])
def test_images_are_evaluated_by_graphs_to_the_same_bits(gpu, tiny_clip, name, monkeypatch):
    monkeypatch.setattr(replayed, "WORTH", 2)
    monkeypatch.setattr(evaluation, "BATCH", 3)
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cuda")
    images = (
        torch.rand(20, 3, *backbone.view.size, generator=generator(1, "images")).mul(255).byte()
    )
    labels, prompts = torch.arange(20) % 3, [f"a photo of a {n}." for n in NAMES]
    spec = TrainingSpec(steps_per_shot=1, batch_size=3, augment="none", lr=1e-2)
    few = backbone.resize(images[:3]), labels[:3].to("cuda"), spec
    method = get_method(name)
    context = Context(backbone, backbone.tokenize(prompts), *few, 1, 1, names=NAMES)
    predictor = method(method.Settings()).fit(context)
    dataset = SimpleNamespace(prompts=prompts, classes=NAMES, name="x")
    found, sizes = [], []
    real = Replayed.__call__
    monkeypatch.setattr(
        Replayed, "__call__", lambda self, x: (real(self, x), sizes.append(self.graphs))[0]
    )
    for graphs in (False, True):
        predictor.replays, before = graphs, backbone.passes.copy()
        with torch.inference_mode(), predictor.inference():
            batches = evaluation._batches(predictor, backbone, dataset, images, labels)
            found.append(
                (torch.cat([scores.cpu() for scores, _ in batches]), backbone.passes - before)
            )
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert sizes == [0, 0, 0, 1, 1, 1, 1]  # seven batches; the last, of two images, as it is
    predictor.close()


def test_only_what_asks_for_the_same_each_time_is_replayed(gpu, tiny_clip):
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cuda")
    assert can_replay(backbone, recomputes=False)
    assert not can_replay(backbone, recomputes=True)
    backbone.model.visual.register_forward_hook(lambda *given: None)  # it may look at numbers
    assert not can_replay(backbone, recomputes=False)
    there = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    assert not can_replay(there, recomputes=False)


def test_losses_are_read_every_twenty_steps_and_told_in_order(gpu):
    waited, told = [], []
    for steps in (WINDOW, WINDOW + 1, 2 * WINDOW):
        with counting() as counted:
            losses, _ = line("cuda", steps, on_step=lambda *given: told.append(given))
        waited.append(counted.waited["tolist"])
        assert len(losses) == steps
    assert waited[1] - waited[0] == waited[2] - waited[0] == 2  # losses, and the loss's factors
    assert [step for step, *_ in told[-2 * WINDOW :]] == list(range(1, 2 * WINDOW + 1))
    assert tuple(loss for *_, loss in told[-2 * WINDOW :]) == losses
    assert losses == pytest.approx(line("cpu", 2 * WINDOW)[0])


@pytest.mark.parametrize("step", [1, 7, 21, 30])
def test_what_diverges_is_noticed_within_twenty_steps_and_said_as_on_a_cpu(gpu, step):
    (here, at_once), (there, later) = (line(device, 50, step) for device in ("cpu", "cuda"))
    assert f"diverged at step {step} of 50: the loss is not finite" in here
    assert here == there
    assert len(at_once) == step
    assert step <= len(later) < step + WINDOW


@pytest.mark.parametrize("steps", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_each_step_is_looked_at_once_in_order_whenever_it_is_read(steps):
    for device in ("cpu", "cuda"):
        seen: list = []
        asked = []
        told = Told(torch.device(device), steps, lambda *values, seen=seen: seen.append(values))
        for step in range(1, steps + 1):
            told.tell(torch.tensor(float(step)), torch.tensor(-step))
            asked.append(len(seen))
        assert seen == [(step, float(step), -step) for step in range(1, steps + 1)]
        assert all(step - done < WINDOW for step, done in enumerate(asked, 1))
        assert device == "cuda" or asked == list(range(1, steps + 1))
