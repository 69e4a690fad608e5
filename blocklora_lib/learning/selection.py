"""The one way in which settings are chosen: by validation images, from a method's grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .count import Choice, Count
from .evaluation import NotFinite


def choose(
    grid: Mapping[str, Sequence[float]], logits: Callable[..., Tensor], labels: Tensor
) -> Choice:
    """Return the settings under which most validation images are classified correctly.

    grid: the values of each setting, from the one nearest to doing nothing on: of equal
    combinations the first is taken, the last setting running fastest. logits(**settings) -> (N, C);
    scores that are not finite are never chosen. labels: (N,). NotFinite where no combination is
    left.
    """
    best: tuple[int, dict[str, float]] | None = None
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        scores = logits(**settings)
        if not scores.isfinite().all():
            continue
        correct = int((scores.argmax(-1) == labels.to(scores.device)).sum())
        if best is None or correct > best[0]:
            best = correct, settings
    if best is None:
        raise NotFinite(
            f"no value of {', '.join(grid)} gives finite scores on validation images; "
            "declare another grid"
        )
    return Choice(settings=best[1], validation=Count(correct=best[0], total=len(labels)))
