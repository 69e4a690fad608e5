"""The one evaluation rule: merged weights, inference mode, class embeddings once, correct answers
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..clip.backbone import Backbone
from ..data.dataset import Dataset
from ..data.image_files import ImageFiles, ahead
from .count import Count
from .feature_cache import BATCH, Features
from .method import Predictor


class NotFinite(ValueError):
    """Scores that say nothing: a run that gives them has failed."""


def evaluate(
    predictor: Predictor,
    backbone: Backbone,
    datasets: Iterable[Dataset],
    split: str,
    features: Callable[[Dataset], Features] | None = None,
) -> dict[str, Count]:
    """Count correct answers on a split of each set, with the set's own classes and template.

    features: of a set's split, as kept; for a predictor whose image tower is the frozen one.
    """
    with torch.inference_mode(), predictor.inference():
        return {
            d.name: _count(
                predictor,
                backbone,
                d,
                features(d) if features else d.images(split),
                d.labels(split),
            )
            for d in datasets
        }


def evaluate_images(
    predictor: Predictor,
    backbone: Backbone,
    dataset: Dataset,
    images: Tensor | ImageFiles | Features,
    labels: Tensor,
) -> Count:
    """Count correct answers on these images, by the same rule."""
    with torch.inference_mode(), predictor.inference():
        return _count(predictor, backbone, dataset, images, labels)


def same_prompts(backbone: Backbone, dataset: Dataset) -> list[list[str]]:
    """Return the classes whose prompts are the same tokens, in groups: of each one alone is ever
    predicted.

    A class alone in its group is one of whose name the tokenizer reads nothing.
    """
    empty = dataset.manifest.template.format("")
    *rows, nothing = backbone.tokenize((*dataset.prompts, empty)).tolist()
    groups: dict[tuple[int, ...], list[str]] = {}
    for tokens, name in zip(rows, dataset.classes, strict=True):
        groups.setdefault(tuple(tokens), []).append(name)
    return [names for tokens, names in groups.items() if len(names) > 1 or tokens == tuple(nothing)]


def _count(
    predictor: Predictor,
    backbone: Backbone,
    dataset: Dataset,
    images: Tensor | ImageFiles | Features,
    labels: Tensor,
) -> Count:
    texts = predictor.prompts(dataset.classes) if predictor.prompts else dataset.prompts
    classifier = predictor.classifier(backbone.tokenize(texts))
    correct = seen = 0
    score: Callable[[Any, Any], Tensor] = predictor.logits
    inputs: Iterator[Any]
    if isinstance(images, Features):
        score, inputs = predictor.scores, images.split(BATCH)
    else:
        inputs = map(backbone.preprocess, images.split(BATCH))
    if isinstance(images, ImageFiles):
        inputs = ahead(inputs)  # the next files are read while a batch is classified
    for part, truth in zip(inputs, labels.split(BATCH), strict=True):
        scores = score(part, classifier)
        if not scores.isfinite().all():  # argmax would take any of them for an answer
            raise NotFinite(
                f"scores of {dataset.name} are not finite (images {seen} to "
                f"{seen + len(truth) - 1}); look at the backbone's weights, its number format and "
                "the adapters"
            )
        seen += len(truth)
        correct += int((scores.argmax(-1).cpu() == truth.cpu()).sum())
    return Count(correct=correct, total=len(labels))
