"""Features given from outside, as a method on features meets them: no image, no tower."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import torch

from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.feature_cache import Features, Source
from blocklora_lib.methods import get_method

SCALE = 20.0  # τ


class Given:
    """A cache that has what it was given: the few images (or views of them), and those to choose
    by.
    """

    def __init__(self, few: Features, prompts: torch.Tensor, validation: Features | None) -> None:
        self.few, self.rows, self.validation = few, prompts, validation

    def features(self, backbone, source, views=0, seed=0):
        return self.validation if source.digest == "validation" else self.few

    def prompts(self, backbone, tokens):
        return self.rows


class Task:
    """K classes whose images lie about points that are near their prompts: features of few images,
    of others, labels.
    """

    def __init__(self, classes=5, shots=3, d=16, p=None, seed=0, views=0, noise=1.5):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random)

        self.projection = None if p is None else normal(p, d) / p**0.5
        self.prompts = 3 * normal(classes, d)  # not unit rows, as the tower's are not
        middle = self.prompts + 3 * normal(classes, d)
        self.labels = torch.arange(classes).repeat_interleave(shots)
        self.val_labels = torch.arange(classes).repeat(4)
        self.test_labels = torch.arange(classes).repeat(4)
        self.classes, self.shots, self.d, self.views = classes, shots, d, views

        def images(labels):
            if p is not None:
                pooled = normal(len(labels), p)
                return Features(pooled, pooled @ self.projection)
            rows = middle[labels] + 3 * noise * normal(len(labels), d)
            return Features(rows, rows)

        self.few = images(self.labels.repeat(max(views, 1)))
        self.validation, self.test = images(self.val_labels), images(self.test_labels)

    def context(self, with_validation=True, seed=1) -> Context:
        backbone = SimpleNamespace(
            logit_scale=torch.tensor(SCALE),
            device=torch.device("cpu"),
            passes=Counter(),
            model=None,
            spec=SimpleNamespace(name="given"),
        )
        validation = (Source(lambda: None, "validation"), self.val_labels)
        return Context(
            backbone=backbone,
            tokens=torch.zeros(self.classes, 4, dtype=torch.int64),
            images=None,
            labels=self.labels,
            training=None,
            shots=self.shots,
            seed=seed,
            source=Source(lambda: None, "few"),
            validation=validation if with_validation else None,
            cache=Given(self.few, self.prompts, self.validation),
        )

    def fit(self, name, **settings):
        """The method's predictor, and its scores (N, K) of the test images."""
        method = get_method(name)
        predictor = method(method.Settings.model_validate(settings)).fit(self.context())
        return predictor, predictor.scores(self.test, self.prompts)


def unit(x):
    """Rows of length one, in NumPy."""
    x = x.double().numpy() if isinstance(x, torch.Tensor) else x
    return x / (x**2).sum(-1, keepdims=True) ** 0.5
