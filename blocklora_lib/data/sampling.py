"""Few-shot draws: k images a class, by a seed.

'nested' is ours; 'coop' and 'clip_lora' are, index for index, what the code of CoOp and of
CLIP-LoRA draws. The two take the same steps in another order, so the same seed gives other images:

    coop        train with k shots first, then val with min(k, 4)
    clip_lora   val with min(k, 4) shots first, then train with k; ImageNet in a way of its own

Sources: KaiyangZhou/CoOp@ff61507 datasets/dtd.py (and its kin); MaxZanella/CLIP-LoRA@358f0d7
datasets/utils.py, datasets/dtd.py (and its kin), datasets/imagenet.py, utils.py, main.py.

torch is imported where its random numbers are asked for, by 'nested' alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..core.schema import UnknownName

if TYPE_CHECKING:
    from torch import Tensor

Draws = Literal["nested", "coop", "clip_lora"]
DRAWS = ("nested", "coop", "clip_lora")
Indices = tuple[list[int], list[int]]  # of train and of val
VAL_SHOTS = 4  # CoOp and CLIP-LoRA draw min(k, 4) validation images a class


def draw(
    labels: Tensor | Sequence[int],
    shots: int,
    seed: int,
    how: Draws = "nested",
    classes: Sequence[str] | None = None,
    val: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Return the indices of `shots` images a class. labels: (N,) -> (classes * shots,), int64.

    nested: a seeded permutation of each class, of which the first k are taken, so the 1-shot image
    is among the 4-shot images. coop: see `draw_coop`. clip_lora: see `draw_clip_lora`; it draws
    validation images before training images, so it needs `val`, the labels of the val split (empty
    for a set without one, such as ImageNet: see `draw_clip_lora_imagenet`). `classes` names the
    classes in messages and finds those without images.
    """
    import torch

    from ..core.seeding import generator

    items = torch.as_tensor(labels).tolist()
    if shots < 1:
        raise ValueError(f"shots={shots}; a draw takes at least 1 image a class")
    refuse_empty_classes(items, classes)
    if how == "coop":
        return torch.tensor(draw_coop(items, [], shots, seed)[0])
    if how == "clip_lora":
        if val is None:
            raise ValueError(
                "draw='clip_lora' draws validation images before training images; "
                "give val, the labels of the val split (empty for a set without one)"
            )
        val = torch.as_tensor(val).tolist()
        drawn = (
            draw_clip_lora(items, val, shots, seed)
            if val
            else draw_clip_lora_imagenet(items, shots, seed)
        )
        return torch.tensor(drawn[0])
    if how != "nested":
        raise UnknownName("draw", how, DRAWS)
    chosen, groups = [], _by_class(items)
    for label, indices in sorted(groups.items()):
        if len(indices) < shots:
            name = repr(classes[label]) if classes else str(label)
            fewest = min(map(len, groups.values()))
            images = f"{len(indices)} training image{'s' if len(indices) > 1 else ''}"
            raise ValueError(
                f"shots={shots}, but class {name} has {images}; "
                f"use at most {fewest} shot{'s' if fewest > 1 else ''}, "
                "or draw='coop', which draws such a class with replacement"
            )
        # a generator for each class: another class more or less does not move this one's images
        order = torch.randperm(len(indices), generator=generator(seed, f"draw/{label}"))
        chosen.append(torch.tensor(indices)[order[:shots]])
    return torch.cat(chosen)


def draw_coop(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> Indices:
    """Return CoOp's (train, val) indices: k training and min(k, 4) validation images a class.

    CoOp seeds Python's `random`, takes the classes in order of first appearance, and for each calls
    `random.sample`, or `random.choices` where the class has fewer than k images; first for train,
    then for val. ImageNet has no val split there: only train is drawn (pass val=[]), from images in
    the order in which the file system lists a folder (datasets/imagenet.py, listdir_nohidden), so
    the published draw of another disk follows from its own listing only, not from the file names.
    """
    # the same numbers as random.seed(seed), without touching the global state
    stream = random.Random(seed)
    return _coop(train, shots, stream), _coop(val, min(shots, VAL_SHOTS), stream)


def draw_clip_lora(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> Indices:
    """Return CLIP-LoRA's (train, val) indices for its ten sets other than ImageNet.

    `set_random_seed` (utils.py) seeds Python's `random`, NumPy and torch; the draw reads Python's
    only, and nothing between the seeding and the data set (clip.load, main.py) takes a number from
    it. Each set then draws val with min(k, 4) shots and after it train with k, both by
    `generate_fewshot_dataset` (datasets/utils.py): classes in order of first appearance,
    `random.sample`, or `random.choices` where a class has fewer images than asked for. So the val
    draw moves the train draw, and for the same seed the images are not CoOp's. shots < 1 (its
    num_shots=-1) draws nothing: all images, in the split's order.
    """
    stream = random.Random(seed)
    chosen_val = _coop(val, min(shots, VAL_SHOTS), stream)
    return _coop(train, shots, stream), chosen_val


def draw_clip_lora_imagenet(train: Sequence[int], shots: int, seed: int) -> Indices:
    """Return CLIP-LoRA's (train, val) indices for ImageNet, both of the train split.

    datasets/imagenet.py takes one `random.sample` of k + min(k, 4) training images for each class,
    in order of the class folders: the first k are train, the rest val. Images stand in
    torchvision's ImageFolder order (folders sorted, file names sorted). There is no replacement: a
    class with fewer images is an error there and here, and so is shots < 1 (a sample of negative
    size). Its test set is the official validation set.
    """
    if shots < 1:
        raise ValueError(f"shots={shots}; CLIP-LoRA's ImageNet draws at least 1 image a class")
    stream = random.Random(seed)
    both = shots + min(shots, VAL_SHOTS)
    chosen: tuple[list[int], list[int]] = [], []
    for label, indices in _by_class(train).items():
        if len(indices) < both:
            raise ValueError(
                f"shots={shots} takes {both} training images a class ({shots} to train, "
                f"{both - shots} to validate) where a set has no val split, "
                f"but class {label} has {len(indices)}; use fewer shots, or draw='coop'"
            )
        sample = stream.sample(indices, both)
        chosen[0].extend(sample[:shots])
        chosen[1].extend(sample[shots:])
    return chosen


def draw_validation(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Return the indices of min(shots, 4) images a class, or of all that a class has: our own draw.

    For draws that name no validation images. A seeded permutation of each class, of which the first
    are taken, so those at 1 shot are among those at 4.
    """
    import torch

    from ..core.seeding import generator

    chosen: list[int] = []
    for label, indices in sorted(_by_class(labels).items()):
        order = torch.randperm(len(indices), generator=generator(seed, f"validation/{label}"))
        chosen += [indices[i] for i in order[: min(shots, VAL_SHOTS)]]
    return chosen


def _coop(labels: Sequence[int], shots: int, stream: random.Random) -> list[int]:
    """`generate_fewshot_dataset` of one split; CoOp's (Dassl) and CLIP-LoRA's are the same."""
    if shots < 1:
        return list(range(len(labels)))
    chosen: list[int] = []
    for indices in _by_class(labels).values():
        chosen += (
            stream.sample(indices, shots)
            if len(indices) >= shots
            else stream.choices(indices, k=shots)
        )
    return chosen


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """Indices of each class, classes in order of first appearance."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(int(label), []).append(index)
    return groups


def refuse_empty_classes(labels: Sequence[int], classes: Sequence[str] | None) -> None:
    """Name the classes without images in one sentence."""
    if not len(labels):
        raise ValueError(
            "no training images; "
            "a few-shot draw needs a set with a train split (variants have none)"
        )
    present = set(labels)
    if classes and (empty := [name for i, name in enumerate(classes) if i not in present]):
        raise ValueError(
            f"no training image of class {', '.join(map(repr, empty))}; "
            "give it images or take it off the manifest"
        )
