"""Few-shot draws: k images a class, by a seed.  'nested' is ours; 'coop' is, index for index, CoOp's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .seeding import generator
from .strict import UnknownName

COOP_VAL_SHOTS = 4  # CoOp draws min(k, 4) validation images a class


def draw(
    labels: Tensor | Sequence[int],
    shots: int,
    seed: int,
    how: Literal["nested", "coop"] = "nested",
    classes: Sequence[str] | None = None,
) -> Tensor:
    """Return the indices of `shots` images a class.  labels: (N,) -> (classes * shots,), int64.

    nested: a seeded permutation of each class, of which the first k are taken, so the 1-shot image is
    among the 4-shot images.  coop: see `draw_coop`.  `classes` names the classes in messages and finds
    those without images.
    """
    items = torch.as_tensor(labels).tolist()
    if shots < 1:
        raise ValueError(f"shots={shots}; a draw takes at least 1 image a class")
    _refuse_empty_classes(items, classes)
    if how == "coop":
        return draw_coop(items, [], shots, seed)[0]
    if how != "nested":
        raise UnknownName("draw", how, ("nested", "coop"))
    chosen, groups = [], _by_class(items)
    for label, indices in sorted(groups.items()):
        if len(indices) < shots:
            name = repr(classes[label]) if classes else str(label)
            fewest = min(map(len, groups.values()))
            raise ValueError(
                f"shots={shots}, but class {name} has {len(indices)} training images; use at most "
                f"{fewest} shots, or draw='coop', which draws such a class with replacement"
            )
        # a generator for each class: another class more or less does not move this one's images
        order = torch.randperm(len(indices), generator=generator(seed, f"draw/{label}"))
        chosen.append(torch.tensor(indices)[order[:shots]])
    return torch.cat(chosen)


def draw_coop(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return CoOp's (train, val) indices: k training and min(k, 4) validation images a class.

    CoOp seeds Python's `random`, takes the classes in order of first appearance, and for each calls
    `random.sample`, or `random.choices` where the class has fewer than k images; first for train, then for
    val.
    """
    stream = random.Random(seed)  # the same numbers as random.seed(seed), without touching the global state
    return tuple(
        _coop(labels, k, stream) for labels, k in ((train, shots), (val, min(shots, COOP_VAL_SHOTS)))
    )


def _coop(labels: Sequence[int], shots: int, stream: random.Random) -> Tensor:
    chosen: list[int] = []
    for indices in _by_class(labels).values():
        chosen += stream.sample(indices, shots) if len(indices) >= shots else stream.choices(indices, k=shots)
    return torch.tensor(chosen, dtype=torch.int64)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """Indices of each class, classes in order of first appearance."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(int(label), []).append(index)
    return groups


def _refuse_empty_classes(labels: Sequence[int], classes: Sequence[str] | None) -> None:
    if not len(labels):
        raise ValueError(
            "no training images; a few-shot draw needs a set with a train split (variants have none)"
        )
    present = set(labels)
    if classes and (empty := [name for i, name in enumerate(classes) if i not in present]):
        raise ValueError(
            f"no training image of class {', '.join(map(repr, empty))}; "
            "give it images or take it off the manifest"
        )
