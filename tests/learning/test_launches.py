"""A training step on a GPU that is not there: it waits for nothing, and asks for few kernels."""

from __future__ import annotations

import math

import pytest
import torch
from fake_cuda import fake_cuda
from launches import counting, deep_clip, step_launches
from torch import nn

from blocklora_lib.core.seeding import generator
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import TrainingDiverged, train
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.learning.told import WINDOW, Told

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


@pytest.mark.parametrize(("kind", "precision"), BEFORE)
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
