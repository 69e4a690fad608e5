"""Methods that train nothing, and the two linear probes, on features given from outside: what their
equations say, in NumPy.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from feature_context import SCALE, Task, unit
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 against float64, scores up to 20


def close_in_scale(found, expected):
    """Within 1e-5 of the largest score, where scores go up to some hundreds."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def zero_shot(task, images=None):
    images = task.test if images is None else images
    return SCALE * unit(images.rows) @ unit(task.prompts).T


def best(task, grid, scores):
    """The first combination with the most correct answers on the validation images."""
    combinations = list(itertools.product(*grid.values()))
    counts = [
        (scores(task.validation, *values).argmax(-1) == task.val_labels.numpy()).sum()
        for values in combinations
    ]
    assert len({*counts}) > 1, "a grid whose values say the same tests no choice"
    return dict(zip(grid, combinations[int(np.argmax(counts))], strict=True)), max(counts)


def same_choice(predictor, expected, correct, task):
    assert predictor.choice.settings == expected
    assert predictor.choice.validation.correct == correct
    assert predictor.choice.validation.total == len(task.val_labels)


def test_zero_shot():
    task = Task()
    predictor, found = task.fit("zero_shot")
    np.testing.assert_allclose(found, zero_shot(task), **CLOSE)
    assert predictor.trainable_parameters == predictor.updates == 0


def tip(task, images, keys, beta, alpha):
    cached = np.zeros((len(images), task.classes))
    for i, f in enumerate(unit(images.rows)):
        for key, label in zip(keys, task.labels.tolist(), strict=True):
            cached[i, label] += math.exp(-beta * (1 - f @ key))
    return zero_shot(task, images) + alpha * cached


@pytest.mark.parametrize("seed", range(3))
def test_tip_adapter(seed):
    task = Task(seed=seed)
    grid = {"beta": (0.5, 2.0, 6.0), "alpha": (0.1, 10.0, 100.0)}
    keys = unit(task.few.rows)

    def scores(images, beta, alpha):
        return tip(task, images, keys, beta, alpha)

    predictor, found = task.fit("tip_adapter", **grid)
    chosen, correct = best(task, grid, scores)
    same_choice(predictor, chosen, correct, task)
    np.testing.assert_allclose(found, scores(task.test, **chosen), **CLOSE)
    assert predictor.trainable_parameters == 0


def test_tip_adapters_keys_are_means_over_views():
    task = Task(views=4)
    predictor, found = task.fit("tip_adapter", beta=[2.0], alpha=[3.0], views=4)
    rows = task.few.rows.double().numpy().reshape(4, len(task.labels), -1).mean(0)
    np.testing.assert_allclose(found, tip(task, task.test, unit(rows), 2.0, 3.0), **CLOSE)
    assert predictor.choice is None


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_without_its_cache_it_is_zero_shot(name):
    task = Task()
    _, found = task.fit(name, alpha=[0.0], beta=[1.0])
    np.testing.assert_allclose(found, zero_shot(task), **CLOSE)


def test_a_sharp_cache_knows_its_own_images():
    task = Task(noise=3.0)
    task.test = task.few
    _, found = task.fit("tip_adapter", alpha=[1e4], beta=[200.0])
    assert (found.argmax(-1) == task.labels).all()
    assert (torch.as_tensor(zero_shot(task)).argmax(-1) != task.labels).any()


def gaussian(task, a, images, views=1):
    f, labels = unit(task.few.rows), task.labels.repeat(views).numpy()
    means = np.stack([f[labels == k].mean(0) for k in range(task.classes)])
    spread = np.concatenate([f[labels == k] - means[k] for k in range(task.classes)])
    n, d = spread.shape
    covariance = np.cov(spread.T)
    precision = d * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(d))
    weight = means @ precision
    bias = np.log(1 / task.classes) - np.einsum("kd,de,ke->k", means, precision, means) / 2
    return zero_shot(task, images) + a * (unit(images.rows) @ weight.T + bias)


@pytest.mark.parametrize("views", [0, 3])
def test_gda(views):
    task = Task(views=views, seed=2)
    grid = {"a": (1e-3, 0.1, 10.0)}

    def scores(images, a):
        return gaussian(task, a, images, max(views, 1))

    predictor, found = task.fit("gda", views=views, **grid)
    chosen, correct = best(task, grid, scores)
    same_choice(predictor, chosen, correct, task)
    close_in_scale(found, scores(task.test, **chosen))


def test_gda_of_weight_zero_and_of_one_shot_is_zero_shot():
    _, found = Task().fit("gda", a=[0.0])
    np.testing.assert_allclose(found, zero_shot(Task()), **CLOSE)
    task = Task(shots=1)  # no spread about a mean of one
    _, found = task.fit("gda", a=[100.0])
    np.testing.assert_allclose(
        found - found.mean(-1, keepdim=True),
        zero_shot(task) - zero_shot(task).mean(-1, keepdims=True),
        atol=1e-4,  # 100 log K is added to every class and taken off again
        rtol=1e-5,
    )
    assert not np.linalg.pinv(np.zeros((3, 3))).any()  # so do the authors, by a pseudoinverse
    seen = Task(shots=1, views=10)  # and by their ten views of an image, which do spread
    _, found = seen.fit("gda", a=[100.0], views=10)
    assert np.abs(found.numpy() - zero_shot(seen)).max() > 1


def ridge(task, beta, lam, images):
    keys, text = unit(task.few.rows), unit(task.prompts)
    truth = np.eye(task.classes)[task.labels.numpy()]
    system = np.exp(-beta * (1 - keys @ keys.T)) / lam + np.eye(len(keys))
    solved = np.linalg.inv(system) @ (truth - keys @ text.T)
    f = unit(images.rows)
    return f @ text.T + np.exp(-beta * (1 - f @ keys.T)) @ solved


@pytest.mark.parametrize("seed", range(3))
def test_proker(seed):
    task = Task(seed=seed)
    grid = {"beta": (0.5, 4.0), "lam": (1e-3, 0.1, 3.0)}
    predictor, found = task.fit("proker", **grid)
    chosen, correct = best(task, grid, lambda images, beta, lam: ridge(task, beta, lam, images))
    same_choice(predictor, chosen, correct, task)
    np.testing.assert_allclose(found, ridge(task, **chosen, images=task.test), **CLOSE)


def test_proker_leaves_out_a_value_whose_system_rounding_makes_singular():
    task = Task()
    predictor, found = task.fit("proker", beta=[0.0, 2.0], lam=[1e-40, 0.1])
    assert predictor.choice.settings["lam"] == 0.1
    assert found.isfinite().all()


def test_proker_goes_from_zero_shot_to_smoothing():
    task = Task()
    f, keys, text = unit(task.test.rows), unit(task.few.rows), unit(task.prompts)
    _, found = task.fit("proker", beta=[1.0], lam=[1e-9])
    np.testing.assert_allclose(found, f @ text.T, **CLOSE)
    residual = np.eye(task.classes)[task.labels.numpy()] - keys @ text.T
    smoothed = f @ text.T + np.exp(-(1 - f @ keys.T)) @ residual
    _, found = task.fit("proker", beta=[1.0], lam=[1e9])
    np.testing.assert_allclose(found, smoothed, **CLOSE)


def logistic(x, labels, classes, c):
    """scikit-learn's problem, by its solver, in NumPy."""
    truth, wide = np.eye(classes)[labels], np.c_[x, np.ones(len(x))]

    def objective(flat):
        w = flat.reshape(classes, -1)
        scores = wide @ w.T
        free = np.c_[w[:, :-1], np.zeros(classes)]
        value = -(log_softmax(scores, 1) * truth).sum() / len(x)
        slope = (softmax(scores, 1) - truth).T @ wide / len(x) + free / (c * len(x))
        return value + (free**2).sum() / (2 * c * len(x)), slope.ravel()

    options = dict(maxiter=1000, maxls=50, gtol=1e-4, ftol=64 * np.finfo(float).eps)
    start = np.zeros(classes * wide.shape[1])
    found = minimize(objective, start, method="L-BFGS-B", jac=True, options=options)
    return found.x.reshape(classes, -1)


@pytest.mark.parametrize("c", [1e-2, 1.0, 1e3])
def test_a_linear_probe_at_one_c(c):
    task = Task()
    predictor, found = task.fit("linear_probe", c=[c])
    x, labels = task.few.rows.double().numpy(), task.labels.numpy()
    w = logistic(x, labels, task.classes, c)
    test = np.c_[task.test.rows.double().numpy(), np.ones(len(task.test))]
    np.testing.assert_allclose(found, test @ w.T, **CLOSE)
    theirs = LogisticRegression(C=c, max_iter=1000).fit(x, labels)
    np.testing.assert_allclose(found, theirs.decision_function(task.test.rows), **CLOSE)
    assert predictor.trainable_parameters == (task.d + 1) * task.classes
    assert predictor.updates == len(predictor.loss) == theirs.n_iter_[0]
    assert predictor.images_seen == predictor.updates * len(task.labels)


@pytest.mark.slow
def test_the_search_for_c_is_coops():
    task = Task(seed=1, noise=2.0, classes=3, d=6)
    x, labels = task.few.rows.double().numpy(), task.labels.numpy()
    chosen_by = task.validation.rows.numpy()

    def correct(c):
        model = LogisticRegression(C=c, max_iter=1000).fit(x, labels)
        return (model.predict(chosen_by) == task.val_labels.numpy()).sum()

    falling = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
    peak = falling[int(np.argmax([correct(c) for c in falling]))]
    low, high = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(8):
        middle = (low + high) / 2
        if correct(10**low) < correct(10**high):
            low, final = middle, high
        else:
            high, final = middle, low
    predictor, _ = task.fit("linear_probe")
    assert predictor.choice.settings["c"] == pytest.approx(10**final)


def lp_plus(task, steps, clear):
    """LP++ by hand: gradients written out."""
    f, text = unit(task.few.rows), unit(task.prompts)
    cosines, truth = f @ text.T, np.eye(task.classes)[task.labels.numpy()]
    n = len(f)
    w, b = truth.T @ f, np.zeros(task.classes)
    per_class = [cosines[task.labels == k, k].mean() for k in range(task.classes)]
    alpha = np.full(task.classes, 250 * np.mean(per_class))
    rate = 4 * n / np.linalg.eigvalsh(f.T @ f).max()
    alpha_rate = n / (4 * (cosines**2).sum(0).max())
    speed_w, speed_b, total = 0.0, 0.0, 0.0
    losses, first = [], None
    for step in range(1, steps + 1):
        scores = f @ w.T + b + alpha * cosines
        losses.append(-(log_softmax(scores, 1) * truth).sum() / n)
        error = (softmax(scores, 1) - truth) / n
        slope = (error * cosines).sum(0)
        first = (error.T @ f, error.sum(0), slope) if first is None else first
        total = slope if clear else total + slope
        speed_w = 0.9 * speed_w + error.T @ f
        speed_b = 0.9 * speed_b + error.sum(0)
        w, b = w - rate * speed_w, b - rate * speed_b
        if step % 10 == 0:
            alpha = alpha - alpha_rate * total
    test = unit(task.test.rows)
    return test @ w.T + b + alpha * (test @ text.T), losses


@pytest.mark.parametrize(("gradient", "clear"), [("code", False), ("step", True)])
def test_lp_plus(gradient, clear):
    task = Task(noise=2.0)
    expected, losses = lp_plus(task, 30, clear)
    predictor, found = task.fit("lp_plus", steps=[30], gradient=gradient)
    # thirty steps in float32 of rate 4 N/λ against float64
    np.testing.assert_allclose(predictor.loss, losses, rtol=1e-5, atol=1e-6)
    close_in_scale(found, expected)
    assert predictor.trainable_parameters == (task.d + 2) * task.classes
    assert predictor.updates == 30
    one, _ = lp_plus(task, 1, clear)
    np.testing.assert_allclose(task.fit("lp_plus", steps=[1])[1], one, **CLOSE)


def test_lp_plus_may_end_where_validation_is_best():
    task = Task(noise=2.0)
    steps = (40, 20, 5, 1)
    predictor, found = task.fit("lp_plus", steps=steps)
    counts = []
    for end in steps:
        alone = Task(noise=2.0)
        alone.test = alone.validation
        counts.append((alone.fit("lp_plus", steps=[end])[1].argmax(-1) == task.val_labels).sum())
    end = steps[int(np.argmax(counts))]
    assert predictor.choice.settings == {"steps": end}
    assert len(predictor.loss) == end
    assert predictor.updates == 40
    torch.testing.assert_close(found, task.fit("lp_plus", steps=[end])[1])
