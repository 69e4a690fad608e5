"""Methods that train on features given from outside: logits, loss, gradient and steps by hand, what
they are before training or with a neutral value, and how many numbers they train of ViT-B/16.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feature_context import SCALE, Given, Task, unit
from scipy.special import log_softmax, softmax

from blocklora_lib.clip import towers
from blocklora_lib.learning.loop import TrainingDiverged
from blocklora_lib.methods import MethodSpec

CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 against float64, scores up to 20


def zero_shot(task):
    return SCALE * unit(task.test.rows) @ unit(task.prompts).T


def entropy(scores, labels):
    return -log_softmax(scores, 1)[np.arange(len(labels)), labels].mean()


def error(scores, labels):
    """Slope of the mean cross-entropy along the scores."""
    return (softmax(scores, 1) - np.eye(scores.shape[1])[labels]) / len(labels)


def through_unit(rows, slope):
    """The slope along rows of one along their unit rows."""
    length = (rows**2).sum(-1, keepdims=True) ** 0.5
    u = rows / length
    return (slope - u * (u * slope).sum(-1, keepdims=True)) / length


@pytest.fixture
def projection(monkeypatch):
    """Let a task's tower have its projection."""

    def of(task):
        monkeypatch.setattr(towers, "image_projection", lambda model: task.projection)

    return of


def test_tip_adapter_f_takes_adamws_steps():
    task = Task(noise=3.0)
    beta, alpha, lr = 1.0, 1.17, 1e-3
    f, labels = unit(task.few.rows), task.labels.numpy()
    keys, values = f.copy(), np.eye(task.classes)[labels]
    text = SCALE * f @ unit(task.prompts).T
    m = v = np.zeros_like(keys)
    losses = []
    for step in range(1, 21):  # all images are one batch; the sum does not depend on their order
        near = np.exp(-beta * (1 - f @ keys.T))
        scores = text + alpha * near @ values
        losses.append(entropy(scores, labels))
        slope = (alpha * beta * near * (error(scores, labels) @ values.T)).T @ f
        rate = lr * (1 + math.cos(math.pi * (step - 1) / 20)) / 2
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        keys = keys * (1 - rate * 0.01)
        keys -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-4)
    predictor, found = task.fit("tip_adapter_f", alpha=[2.0], beta=[3.0])
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-4)
    test = unit(task.test.rows)
    expected = zero_shot(task) + 2 * np.exp(-3 * (1 - test @ keys.T)) @ values
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert predictor.images_seen == 20 * len(labels)


def test_tip_adapter_f_starts_as_tip_adapter():
    task = Task()
    _, plain = task.fit("tip_adapter", alpha=[2.0], beta=[3.0])
    _, found = task.fit("tip_adapter_f", alpha=[2.0], beta=[3.0], lr=1e-30)
    torch.testing.assert_close(found, plain)


def test_task_res_takes_adams_steps():
    task = Task(noise=3.0)
    f, labels, base = unit(task.few.rows), task.labels.numpy(), task.prompts.double().numpy()
    x = np.zeros_like(base)
    m = v = np.zeros_like(x)
    losses = []
    for step in range(1, 6):  # five epochs of one batch
        rows = base + 0.5 * x
        scores = SCALE * f @ unit(rows).T
        losses.append(entropy(scores, labels))
        slope = 0.5 * through_unit(rows, SCALE * error(scores, labels).T @ f) + 5e-4 * x
        cosine = (1 + math.cos(math.pi * (step - 2) / 5)) / 2
        rate = 1e-5 if step == 1 else 2e-3 * cosine
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        x -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    predictor, found = task.fit("task_res", epochs=(5, 9))
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-4)
    expected = SCALE * unit(task.test.rows) @ unit(base + 0.5 * x).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "near"),
    [
        ("task_res", dict(alpha=0.0, epochs=(2, 2)), 1e-5),
        ("clip_adapter", dict(ratio=0.0, lr=[0.01], epochs=(2, 2, 2)), 1e-5),
        # one step at 1e-5, the rate of the first epoch
        ("task_res", dict(epochs=(1, 1)), 1e-3),
        ("zs_lp", dict(epochs=1), 5e-3),
        ("clap", dict(epochs=1), 5e-3),
    ],
)
def test_a_neutral_value_and_the_start_are_zero_shot(name, settings, near):
    task = Task()
    _, found = task.fit(name, **settings)
    np.testing.assert_allclose(found, zero_shot(task), atol=near, rtol=1e-5)


def test_clip_adapter_takes_sgds_steps():
    from blocklora_lib.core.seeding import generator

    task = Task(noise=3.0)
    x, labels = task.few.rows.double().numpy(), task.labels.numpy()
    text = unit(task.prompts)
    random, d, inner = generator(1, "adapter"), task.d, task.d // 4
    down = (2 * torch.rand(inner, d, generator=random) - 1).double().numpy() / d**0.5
    up = (2 * torch.rand(d, inner, generator=random) - 1).double().numpy() / inner**0.5
    speed, losses, r = [0.0, 0.0], [], 0.2

    def blend(x):
        hidden = np.maximum(x @ down.T, 0)
        out = np.maximum(hidden @ up.T, 0)
        return hidden, out, r * out + (1 - r) * x

    for step in range(1, 5):
        hidden, out, rows = blend(x)
        assert (out >= 0).all()
        scores = SCALE * unit(rows) @ text.T
        losses.append(entropy(scores, labels))
        slope = through_unit(rows, SCALE * error(scores, labels) @ text) * r * (out > 0)
        slopes = [(slope @ up * (hidden > 0)).T @ x, slope.T @ hidden]
        rate = 1e-5 if step == 1 else 0.05 * (1 + math.cos(math.pi * (step - 2) / 4)) / 2
        for i, weight in enumerate((down, up)):
            speed[i] = 0.9 * speed[i] + slopes[i] + 5e-4 * weight
            weight -= rate * speed[i]
    predictor, found = task.fit("clip_adapter", lr=[0.05], epochs=(9, 4, 9))
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-4)
    expected = SCALE * unit(blend(task.test.rows.double().numpy())[2]) @ text.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "shots", "epochs"),
    [(5, 1, 1), (5, 4, 2), (5, 8, 3), (1000, 1, 1), (1000, 4, 1), (1000, 8, 1)],
)
def test_clip_adapter_has_coops_epochs_on_imagenet_too(classes, shots, epochs):
    task = Task(classes=classes, shots=shots, d=4)
    predictor, _ = task.fit("clip_adapter", lr=0.1, epochs=(1, 2, 3), batch_size=8000)
    assert predictor.updates == epochs  # a batch holds them all


def test_clip_adapters_rate_is_chosen_and_all_rates_are_in_its_budget():
    task = Task(noise=3.0)
    rates, counts = (1e-6, 0.05, 0.5), []
    for lr in rates:
        alone = Task(noise=3.0)
        alone.test = alone.validation
        counts.append((alone.fit("clip_adapter", lr=[lr])[1].argmax(-1) == task.val_labels).sum())
    assert len({*map(int, counts)}) > 1
    predictor, _ = task.fit("clip_adapter", lr=rates)
    assert predictor.choice.settings == {"lr": rates[int(np.argmax(counts))]}
    assert predictor.updates == 3 * len(predictor.loss) == 300
    assert predictor.images_seen == 300 * len(task.labels)


@pytest.mark.parametrize(("name", "strength"), [("zs_lp", 0.0), ("clap", 1.0), ("clap", 0.1)])
def test_clap_and_zs_lp_take_sgds_steps(name, strength):
    task = Task(noise=3.0)
    f, labels, text = unit(task.few.rows), task.labels.numpy(), task.prompts.double().numpy()
    p = softmax(SCALE * f @ unit(text).T, 1)
    lam = np.array([p[labels == k, k].mean() for k in range(task.classes)])
    w, speed, losses = text.copy(), 0.0, []
    for step in range(1, 7):
        scores = SCALE * f @ unit(w).T
        held = strength * (lam * ((w - text) ** 2).sum(1)).mean()
        losses.append(entropy(scores, labels) + held)
        slope = through_unit(w, SCALE * error(scores, labels).T @ f)
        slope = slope + strength * 2 * lam[:, None] * (w - text) / task.classes
        rate = 1e-5 if step == 1 else 0.1 * (1 + math.cos(math.pi * (step - 2) / 6)) / 2
        speed = 0.9 * speed + slope
        w = w - rate * speed
    settings = {} if name == "zs_lp" else {"strength": strength}
    predictor, found = task.fit(name, epochs=6, **settings)
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-4)
    np.testing.assert_allclose(
        found, SCALE * unit(task.test.rows) @ unit(w).T, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_strong_constraint_holds_clap_at_zero_shot():
    task = Task(noise=0.5)  # where zero-shot knows each class, so that no λ is 0
    # rate x strength stays in reach of gradient descent: far above it the steps would overshoot
    _, held = task.fit("clap", strength=1e3, lr=1e-3)
    _, free = task.fit("zs_lp", lr=1e-3)
    away = [np.abs(found.numpy() - zero_shot(task)).max() for found in (held, free)]
    assert away[0] < away[1] / 20


def test_prolip_takes_adams_steps(projection):
    task = Task(noise=3.0, p=12)
    projection(task)
    h, labels = task.few.pooled.double().numpy(), task.labels.numpy()
    first = task.projection.double().numpy()
    w, text, lr = first.copy(), unit(task.prompts), 1e-3
    m = v = np.zeros_like(w)
    losses = []
    for step in range(1, 9):
        rows = h @ w
        scores = SCALE * unit(rows) @ text.T
        losses.append(entropy(scores, labels) + ((w - first) ** 2).sum() / task.shots)
        slope = h.T @ through_unit(rows, SCALE * error(scores, labels) @ text)
        slope += 2 / task.shots * (w - first)
        rate = lr * (1 + math.cos(math.pi * (step - 1) / 8)) / 2
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        w -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-4)
    predictor, found = task.fit("prolip", lr=lr, steps=8)
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-4)
    expected = SCALE * unit(task.test.pooled.double().numpy() @ w) @ text.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_strong_constraint_holds_prolip_at_zero_shot(projection):
    task = Task(noise=3.0, p=12)
    projection(task)
    _, found = task.fit("prolip", strength=1e9, lr=1e-5)
    _, free = task.fit("prolip", strength=0.0, lr=1e-2)
    # Adam's first step has the rate's size whatever the loss is
    np.testing.assert_allclose(found, zero_shot(task), atol=0.02)
    assert np.abs(free.numpy() - zero_shot(task)).max() > 1


def test_prolip_refuses_a_tower_without_a_projection(monkeypatch):
    monkeypatch.setattr(towers, "image_projection", lambda model: None)
    with pytest.raises(ValueError, match=r"image tower, and that of given has none .* ViT-B-16"):
        MethodSpec(name="prolip").load().check(Task().context().backbone, ())


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize(
    ("name", "settings", "numbers"),
    [
        ("zero_shot", {}, lambda k, s: 0),
        ("tip_adapter", dict(alpha=[1.0], beta=[1.0]), lambda k, s: 0),
        ("tip_adapter_f", dict(alpha=[1.0], beta=[1.0], epochs=1), lambda k, s: 512 * k * s),
        ("gda", dict(a=[1.0]), lambda k, s: 0),
        ("proker", dict(beta=[1.0], lam=[1.0]), lambda k, s: 0),
        ("linear_probe", dict(c=[1.0], iterations=2), lambda k, s: 513 * k),
        ("lp_plus", dict(steps=[1]), lambda k, s: 514 * k),
        ("task_res", dict(epochs=(1, 1)), lambda k, s: 512 * k),
        ("clip_adapter", dict(lr=[0.1], epochs=(1, 1, 1)), lambda k, s: 131_072),
        ("zs_lp", dict(epochs=1), lambda k, s: 512 * k),
        ("clap", dict(epochs=1), lambda k, s: 512 * k),
        ("prolip", dict(steps=1), lambda k, s: 393_216),
    ],
)
def test_vit_b_16_has_as_many_numbers_to_train(name, settings, numbers, classes, projection):
    task = Task(classes=classes, shots=2, d=512, p=768)
    projection(task)
    predictor, _ = task.fit(name, **settings)
    assert predictor.trainable_parameters == numbers(classes, 2)


def test_views_are_shown_in_turn():
    """Three views of an image, of which one and only one epoch shows the second."""
    task = Task(views=3, noise=3.0)
    n = len(task.labels)
    predictor, _ = task.fit("task_res", views=3, epochs=(3, 3), alpha=0.0)
    scores = SCALE * unit(task.few.rows) @ unit(task.prompts).T
    for view, loss in enumerate(predictor.loss):
        shown = slice(view * n, (view + 1) * n)
        assert loss == pytest.approx(entropy(scores[shown], task.labels.numpy()), rel=1e-5)


def test_an_epoch_of_clap_is_drawn_from_all_views():
    task = Task(classes=4, shots=70, views=3, noise=3.0)  # 280 images, 840 views, batches of 256
    predictor, _ = task.fit("zs_lp", views=3, epochs=2)
    assert (predictor.updates, predictor.images_seen) == (2, 512)


def test_training_that_leaves_the_numbers_says_so():
    task = Task()
    task.prompts[0, 0] = math.inf
    with pytest.raises(TrainingDiverged, match="step 1 of 2: the loss is not finite"):
        task.fit("zs_lp", epochs=2)


@pytest.mark.parametrize("method", ["tip_adapter", "gda", "clip_adapter"])
def test_a_grid_without_validation_images_is_refused(method):
    from blocklora_lib.methods import get_method

    kind, task = get_method(method), Task()
    few = kind(kind.Settings())
    with pytest.raises(ValueError, match=r"are to be chosen, and there are no validation images"):
        few.fit(task.context(with_validation=False))


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("tip_adapter", dict(beta=[]), "the grid has no values; list one"),
        ("gda", dict(a=[1.0, 1.0]), r"\[1.0, 1.0\] lists a value twice"),
        ("gda", dict(a=[-1.0]), "outside 0 to"),
        ("proker", dict(beta=[1e300]), "outside 0 to"),
        ("proker", dict(lam=[math.nan]), "a finite number"),
        ("task_res", dict(alpha=math.inf), "a finite number"),
        ("tip_adapter_f", dict(eps=math.inf), "a finite number"),
        ("clip_adapter", dict(epochs=[0, 1, 1]), r"epochs\.0\s+Input .* or equal to 1"),
        ("task_res", dict(epochs=[1, -1]), r"epochs\.1\s+Input .* or equal to 1"),
        ("proker", dict(lam=[0.0, 1.0]), r"\[0.0, 1.0\] holds 0, which is no value"),
        ("lp_plus", dict(steps=[]), "the grid has no values; list one"),
        ("lp_plus", dict(steps=[0]), r"\[0\] holds 0"),
        ("task_res", dict(lr=0.0), r"\[0.0\] holds 0"),
        ("linear_probe", dict(rank=2), "unknown key 'rank'"),
        ("task_res", dict(alhpa=2.0), "did you mean 'alpha'"),
    ],
)
def test_bad_settings_are_refused(method, settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name=method, settings=settings)


def test_a_single_value_needs_no_list():
    settings = MethodSpec(name="lp_plus", settings={"steps": 300}).settings
    assert list(settings["steps"]) == [300]


def test_gradients_are_autograds():
    """CLAP's and Tip-Adapter-F's losses in float64, of which torch takes the slope."""
    from blocklora_lib.methods.clap import constraint, multipliers
    from blocklora_lib.methods.tip_adapter import cache_logits

    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    f, text, values = F.normalize(normal(6, 4), dim=-1), normal(3, 4), torch.eye(3).double()
    lam = multipliers(5 * f @ F.normalize(text, dim=-1).T, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert torch.autograd.gradcheck(
        lambda w: constraint(w, text, lam), (normal(3, 4).requires_grad_(),)
    )
    assert torch.autograd.gradcheck(
        lambda keys: cache_logits(f, keys, values, 2.0), (normal(3, 4).requires_grad_(),)
    )


@pytest.mark.parametrize("name", ["linear_probe", "clip_adapter", "tip_adapter_f", "lp_plus"])
def test_what_a_fit_asks_for_again_is_not_encoded_again(name, monkeypatch):
    """The search of the linear probe counted its validation images nine times."""
    asked, task = [], Task()
    few, prompts = Given.features, Given.prompts
    monkeypatch.setattr(Given, "features", lambda *a: asked.append(a[2].digest) or few(*a))
    monkeypatch.setattr(Given, "prompts", lambda *a: asked.append("prompts") or prompts(*a))
    settings = {"steps": [1, 2]} if name == "lp_plus" else {}
    task.fit(name, **settings)
    assert sorted(asked) == ["few", "prompts", "validation"]
