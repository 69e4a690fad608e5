"""The one evaluation rule: merged weights, inference mode, class embeddings once, correct answers
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..clip.backbone import Backbone
from ..data.dataset import Dataset
from ..data.image_files import ImageFiles, ahead
from .count import Count
from .feature_cache import BATCH, Features
from .method import Predictor
from .replayed import Replayed

RECALLED = (1, 5)  # among how many nearest a caption, or an image, is looked for


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


def recalls(
    predictor: Predictor, backbone: Backbone, datasets: Iterable[Dataset], split: str
) -> dict[str, dict[str, Count]]:
    """Count finds of retrieval on a split of each set, whose classes are captions.

    'image to text, first k': images whose caption is among their k nearest captions. 'text to
    image, first k': captions that have an image of theirs among their k nearest images. Of two as
    near, the first counts as nearer.
    """
    with torch.inference_mode(), predictor.inference():
        return {d.name: _recalls(predictor, backbone, d, split) for d in datasets}


def first_finds(recall: dict[str, dict[str, Count]]) -> dict[str, Count]:
    """Of each set 'image to text, first 1', which is its accuracy."""
    return {name: finds[f"image to text, first {RECALLED[0]}"] for name, finds in recall.items()}


def _recalls(
    predictor: Predictor, backbone: Backbone, dataset: Dataset, split: str
) -> dict[str, Count]:
    images, labels = dataset.images(split), dataset.labels(split)
    batches = _batches(predictor, backbone, dataset, images, labels)
    scores = torch.cat([scores.cpu() for scores, _ in batches])  # (N, C)
    own = torch.nn.functional.one_hot(labels.cpu(), scores.shape[1]).bool()
    found = {}
    for what, near, true in (("image to text", scores, own), ("text to image", scores.T, own.T)):
        order = near.argsort(dim=1, descending=True, stable=True)
        hits = true.gather(1, order)
        for k in RECALLED:
            count = int(hits[:, :k].any(1).sum())
            found[f"{what}, first {k}"] = Count(correct=count, total=len(hits))
    return found


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
    scored = _batches(predictor, backbone, dataset, images, labels)
    correct = sum(int((s.argmax(-1).cpu() == truth.cpu()).sum()) for s, truth in scored)
    return Count(correct=correct, total=len(labels))


def _batches(
    predictor: Predictor,
    backbone: Backbone,
    dataset: Dataset,
    images: Tensor | ImageFiles | Features,
    labels: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scores (B, C) and labels (B,)."""
    texts = predictor.prompts(dataset.classes) if predictor.prompts else dataset.prompts
    classifier = predictor.classifier(backbone.tokenize(texts))
    seen = 0
    score: Callable[[Any], Tensor]
    inputs: Iterator[Any]
    if isinstance(images, Features):
        inputs = images.split(BATCH)
        score = partial(predictor.scores, classifier=classifier)
    else:
        inputs = map(backbone.preprocess, images.split(BATCH))
        score = partial(predictor.logits, classifier=classifier)
        if predictor.replays:
            score = Replayed(score, Counter(map(len, labels.split(BATCH))), backbone)
    if isinstance(images, ImageFiles):
        inputs = ahead(inputs)  # the next files are read while a batch is classified
    for part, truth in zip(inputs, labels.split(BATCH), strict=True):
        scores = score(part)
        if not scores.isfinite().all():  # argmax would take any of them for an answer
            raise NotFinite(
                f"scores of {dataset.name} are not finite (images {seen} to "
                f"{seen + len(truth) - 1}); look at the backbone's weights, its number format and "
                "the adapters"
            )
        seen += len(truth)
        yield scores, truth
