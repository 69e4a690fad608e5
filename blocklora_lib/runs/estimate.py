"""What a grid will cost before it runs: work and memory by the cost model, hours at an assumed
rate. No torch.

Counted are training steps and the images that are evaluated, in the products that torch's FLOP
counter counts; the image files that are decoded, and the disk that keeps their views; and what a
GPU's host does, which a fast GPU waits for. The rates of a machine are the reader's assumption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from ..clip.architectures import NoClosedForm, clip_architecture
from ..core.paths import MANIFESTS
from ..core.schema import UnknownName
from ..costs.step import whole_work
from ..data.local import local_manifest
from ..data.manifest import Manifest, Split
from .profile import Profile
from .spec import RunSpec
from .step_estimate import (
    NAME_TOKENS,
    can_stack,
    encoded_before,
    host_seconds,
    images_work,
    parts_of,
    words_of,
)

DAY = 24 * 60  # minutes
TFLOPS = 20.0  # that a GPU is assumed to sustain
CPU_TFLOPS = 0.02  # and one thread of a CPU
# s of one core to decode a JPEG of 500 x 375 and view it at 224 x 224: measured, 5 to 6.5 ms
DECODING = 6.5e-3
# and for a training view of such an image once it is decoded: measured, 1.15 to 1.22 ms
VIEWING = 1.2e-3
IMAGE_BYTES = 3 * 500 * 375  # of such an image, decoded, as those that a run trains on are kept
KEPT_BYTES = 4 * 2**30  # of them at most, see `data.image_files`, which needs torch


@dataclass(frozen=True)
class Estimate:
    """runs; steps of training, of runs that train the same once; floating-point operations (two a
    multiply-add); bytes of the largest step; runs of models that have no closed form, which are in
    none of these, by model.

    host_seconds: of a GPU's host, for the steps. Of sets in image files: test_images, each
    once; evaluated, as often as runs ask for them; few_shot, once a training, or once for all that
    read their features; training_views, of a batch each step, or of all for features; view_bytes,
    what the views of the test images take of the disk; image_bytes, what decoded training images
    take of the host's memory, at most. feature_bytes: what features of frozen towers take of the
    disk.
    """

    runs: int
    steps: int
    flops: float
    peak_bytes: int
    unpriced: Mapping[str, int]
    host_seconds: float = 0.0
    test_images: int = 0
    evaluated: int = 0
    few_shot: int = 0
    view_bytes: int = 0
    training_views: int = 0
    image_bytes: int = 0
    feature_bytes: int = 0

    def hours(self, tflops: float) -> float:
        """Hours on one device that does `tflops` 10^12 operations a second, sustained."""
        if tflops <= 0:
            raise ValueError(
                f"tflops={tflops} must be positive: the rate that your device sustains, such as 20"
            )
        return self.flops / (tflops * 1e12) / 3600

    @property
    def host_hours(self) -> float:
        """Hours that a GPU's host takes to ask for all steps."""
        return self.host_seconds / 3600

    def decoding_hours(self, kept: bool = True) -> float:
        """Hours of one core to decode the images; kept: of test images views are, as by default."""
        return (self.few_shot + (self.test_images if kept else self.evaluated)) * DECODING / 3600

    @property
    def viewing_hours(self) -> float:
        """Hours of one core to view images of files for training."""
        return self.training_views * VIEWING / 3600


def estimate(
    specs: Iterable[RunSpec], manifests: Path = MANIFESTS, graphs: bool = True, stack: int = 1
) -> Estimate:
    """Add up the runs: training, and evaluation; images whose image tower is the frozen one are
    encoded once for all that ask for them. What methods on features do with those costs next to
    nothing.

    graphs, stack: as a profile has them (cuda_graphs, stack). Of runs that are trained at once,
    which have no graphs, the host is taken to need as long as of each alone: it was not measured.
    """
    specs = list(specs)
    stacked: dict[str, set[str]] = {}  # runs that may be trained at once
    for spec in specs if stack > 1 else ():
        stacked.setdefault(spec.stack_key, set()).add(spec.fit_key)
    runs, steps, work, peak = 0, 0, 0, 0
    unpriced: Counter[str] = Counter()
    sets = cache(lambda name: local_manifest(name, manifests))
    evaluation = cache(lambda model, on, *rest: _evaluation(model, sets(on), *rest))
    encoded: dict[tuple[object, ...], int] = {}  # by the frozen image tower, by what it is of
    loaded = cache(lambda method: method.load())  # the runs of a grid share their methods
    files: dict[tuple[str, str, str], tuple[int, int]] = {}  # test images, bytes of their views
    fitted: dict[str, str] = {}  # what was trained -> the first run that does
    kept: dict[tuple[object, ...], int] = {}  # bytes of features, by what they are of
    done: dict[tuple[object, ...], str] = {}  # training and set -> the first run that evaluates it
    host, asked_for, few_shot, viewed, most = 0.0, 0, 0, 0, 0
    for spec in specs:
        if not _has_closed_form(spec.backbone.name):
            unpriced[spec.backbone.name] += 1
            continue
        runs += 1
        method, model, classes = (
            loaded(spec.method),
            spec.backbone.name,
            sets(spec.dataset).num_classes,
        )
        words = words_of(method, model) if getattr(method, "reads_images", False) else 0
        frozen, texts = "image" not in method.towers, spec.task == "texts"
        a_row = _row_bytes(model, texts)
        asked = [(model, on, spec.split) for on in spec.evaluate_on]
        fresh = [t for t in asked if done.setdefault((spec.fit_key, *t), spec.key) == spec.key]
        for one in fresh:
            on, count = one[1], _count(sets(one[1]), spec.split)
            if frozen:
                kept[one], encoded[one] = count * a_row, images_work(model, count, texts)
            if sets(on).kind == "external":
                files[one] = _views(model, count)
                asked_for += 0 if frozen else count
        if method.on_features:
            views = getattr(method.settings, "views", 0)
            drawn = model, spec.dataset, spec.draw, spec.shots, spec.seed, views
            few = spec.shots * classes
            if few and drawn not in kept and sets(spec.dataset).kind == "external":
                few_shot, viewed = few_shot + few, viewed + few * views
                most = max(most, min(few * IMAGE_BYTES, KEPT_BYTES) if views else 0)
            kept[drawn] = few * (1 + views) * a_row
            encoded[drawn] = images_work(model, few * (1 + views), texts)
            continue
        once = fitted.setdefault(spec.fit_key, spec.key) == spec.key
        at_once = min(stack, len(stacked.get(spec.stack_key, ()))) if stack > 1 else 1
        parts = parts_of(spec, method, classes, at_once) if once else []
        before = encoded_before(spec, method, classes) if once else 0
        alone = at_once == 1 or not can_stack(spec, method)
        if once and sets(spec.dataset).kind == "external":
            few_shot += spec.shots * classes
            most = max(most, min(spec.shots * classes * IMAGE_BYTES, KEPT_BYTES))
            viewed += sum(part.steps * part.images for part in parts) + before
        host += sum(part.steps for part in parts) * host_seconds(spec, method, graphs and alone)
        steps += sum(part.steps for part in parts)
        peak = max([peak, *(part.bytes for part in parts)])
        work += sum(evaluation(*one, words, frozen, texts) for one in fresh)
        work += sum(part.steps * part.work for part in parts) + images_work(model, before)
    images, size = (sum(column) for column in zip((0, 0), *files.values(), strict=True))
    flops = 2.0 * (work + sum(encoded.values()))
    asked_for = max(asked_for, images)  # once at least, for a frozen image tower
    counted = images, asked_for, few_shot, size, viewed, most, sum(kept.values())
    return Estimate(runs, steps, flops, peak, unpriced, host, *counted)


def settings_of(profile: Profile | None) -> dict[str, Any]:
    """What a profile says of how runs are computed, as keywords of `estimate`."""
    return {"graphs": profile.cuda_graphs, "stack": profile.stack} if profile else {}


@cache
def _has_closed_form(model: str) -> bool:
    """Whether the model's towers are plain transformers; a name that nobody has is an error."""
    try:
        clip_architecture(model)
    except NoClosedForm:
        return False
    return True


def minutes(specs: Iterable[RunSpec], gpu: bool, profile: Profile | None = None) -> int:
    """Return what a job of these runs may take: twice what the cost model says, plus half an hour.

    Of a GPU's work and what one core of its host does meanwhile, asking for steps and reading
    images, the longer counts. At most a day, and a day for a model without a closed form or a set
    that is not known: a job that is ended by it goes on, in its next attempt, with the run that it
    was at.
    """
    try:
        cost = estimate(specs, **settings_of(profile))
    except (UnknownName, FileNotFoundError):
        return DAY
    if cost.unpriced:
        return DAY
    reading = cost.decoding_hours(not profile or profile.keep_views) + cost.viewing_hours
    if gpu:
        hours = max(cost.hours(TFLOPS), cost.host_hours + reading)
    else:
        hours = cost.hours(CPU_TFLOPS) + reading
    return min(DAY, 30 + ceil(2 * 60 * hours))


def _evaluation(
    backbone: str, manifest: Manifest, split: Split, words: int, encoded: bool, texts: bool
) -> int:
    """Multiply-adds of a set's images, which may be encoded, and of their own prompts behind so
    many learnt tokens.
    """
    images, text = _count(manifest, split), clip_architecture(backbone).text
    length, classes = 1 + words + NAME_TOKENS, manifest.num_classes
    own = whole_work(text, classes, length, 1 + words).forward if words else 0
    return images * own + (0 if encoded else images_work(backbone, images, texts))


def _row_bytes(backbone: str, texts: bool) -> int:
    """Of what a frozen tower gives: of an image before the projection, of a text behind it."""
    vision = clip_architecture(backbone).vision
    return 4 * (vision.embed_dim if texts else vision.width)


def _count(manifest: Manifest, split: Split) -> int:
    """Images of a split."""
    return manifest.counts.get(split) or manifest.counts_unverified.get(split, 0)


@cache
def _views(backbone: str, images: int) -> tuple[int, int]:
    """(images, bytes of what the backbone sees of them)."""
    vision = clip_architecture(backbone).vision
    return images, images * (vision.tokens - 1) * vision.inputs
