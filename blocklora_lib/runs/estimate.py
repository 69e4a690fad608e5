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
from typing import Any, NamedTuple

from ..adapters.config import AdapterConfig
from ..clip.architectures import NoClosedForm, clip_architecture
from ..core.paths import MANIFESTS
from ..core.schema import UnknownName
from ..costs.memory import step_memory, total_bytes
from ..costs.prompts import forward_work, norms_work, prompt_work
from ..costs.step import step_work, total_work, whole_work
from ..costs.ways import StepWay
from ..data.local import local_manifest
from ..data.manifest import Manifest, Split
from ..learning.prompt_method import PromptMethod
from ..learning.spec import recomputes
from ..methods import MethodSpec
from ..methods.two_stage import StageSettings
from ..weights.spec import BackboneSpec
from .spec import RunSpec

DAY = 24 * 60  # minutes
TFLOPS = 20.0  # that a GPU is assumed to sustain
CPU_TFLOPS = 0.02  # and one thread of a CPU
PROMPT_TOKENS = 10  # of a prompt: start, 'a photo of a', and
NAME_TOKENS = 5  # a name of 2 or 3 tokens, full stop, end
# s of one core to decode a JPEG of 500 x 375 and view it at 224 x 224: measured, 5 to 6.5 ms
DECODING = 6.5e-3
# s of a GPU's host for a step: by CUDA graphs, images made ready included; and without, a layer of
# either tower. Measured on the host of an H200 (gpu_check_h200.jsonl): 1.3 to 1.9 ms and 0.7 ms of
# augmentation; 68 to 77 ms of ViT-B/16's 24 layers.
GRAPH, LAYER = 2.6e-3, 3e-3


@dataclass(frozen=True)
class Estimate:
    """runs; steps of training, of runs that train the same once; floating-point operations (two a
    multiply-add); bytes of the largest step; runs of models that have no closed form, which are in
    none of these, by model.

    host_seconds: of a GPU's host, for the steps. Of sets in image files: test_images, each
    once; evaluated, as often as runs ask for them; few_shot, once a training; view_bytes, what the
    views of the test images take of the disk.
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


def estimate(specs: Iterable[RunSpec], manifests: Path = MANIFESTS) -> Estimate:
    """Add up the runs: training, images encoded for methods on features once for all that ask for
    them, and evaluation. What those methods do with features costs next to nothing.
    """
    runs, steps, work, peak = 0, 0, 0, 0
    unpriced: Counter[str] = Counter()
    sets = cache(lambda name: local_manifest(name, manifests))
    evaluation = cache(lambda model, on, *rest: _evaluation(model, sets(on), *rest))
    encoded: dict[tuple[object, ...], int] = {}  # what methods on features read, by what it is of
    loaded = cache(lambda method: method.load())  # the runs of a grid share their methods
    files: dict[tuple[str, str, str], tuple[int, int]] = {}  # test images, bytes of their views
    fitted: dict[str, str] = {}  # what was trained -> the first run that does
    host, asked_for, few_shot = 0.0, 0, 0
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
        words = _words(method, model) if getattr(method, "reads_images", False) else 0
        asked = [(model, on, spec.split, words) for on in spec.evaluate_on]
        tests = {test: evaluation(*test) for test in asked}
        for on in spec.evaluate_on:
            if sets(on).kind == "external":
                one = model, on, spec.split
                if one not in files:
                    files[one] = _views(model, _count(sets(on), spec.split))
                asked_for += 0 if method.on_features else files[one][0]
        if method.on_features:
            views = getattr(method.settings, "views", 0)
            drawn = model, spec.dataset, spec.draw, spec.shots, spec.seed, views
            encoded |= tests | {drawn: _images(model, spec.shots * classes * (1 + views))}
            continue
        once = fitted.setdefault(spec.fit_key, spec.key) == spec.key
        parts = _training(spec, method, classes) if once else []
        few_shot += spec.shots * classes * (once and sets(spec.dataset).kind == "external")
        host += sum(part.steps for part in parts) * _host(spec, method)
        steps += sum(part.steps for part in parts)
        peak = max([peak, *(part.bytes for part in parts)])
        work += sum(tests.values()) + sum(part.steps * part.work for part in parts)
    images, size = (sum(column) for column in zip((0, 0), *files.values(), strict=True))
    flops = 2.0 * (work + sum(encoded.values()))
    asked_for = max(asked_for, images)  # once at least, for methods on features
    return Estimate(runs, steps, flops, peak, unpriced, host, images, asked_for, few_shot, size)


@cache
def _has_closed_form(model: str) -> bool:
    """Whether the model's towers are plain transformers; a name that nobody has is an error."""
    try:
        clip_architecture(model)
    except NoClosedForm:
        return False
    return True


class _Part(NamedTuple):
    """So many equal steps of a run: multiply-adds, and bytes, of one."""

    steps: int
    work: int
    bytes: int = 0


def _training(spec: RunSpec, method: Any, classes: int) -> list[_Part]:
    """The steps of a run of a method that trains through a tower."""
    few, backbone = spec.shots * classes, spec.backbone
    schedule = getattr(method.settings, "schedule", None)
    if schedule:
        batch = min(schedule.batch_size, few)
        steps = schedule.of(spec.shots, classes) * (few // batch)
    elif spec.training:
        steps, batch = spec.training.steps(spec.shots), min(spec.training.batch_size, few)
    else:
        return []
    if isinstance(method, PromptMethod):
        return [_Part(steps, *_prompt_step(backbone, spec.method, batch, classes))]
    if isinstance(method.settings, AdapterConfig):
        return [_Part(steps, *_step(backbone, method.settings, batch, classes))]
    if isinstance(method.settings, StageSettings):
        first, last = int(steps * method.settings.share), _images(backbone.name, batch)
        norms = _Part(first, *_norm_step(backbone, batch, classes))
        return [norms, _Part(steps - first, last)]
    return []


@cache
def _prompt_step(
    backbone: BackboneSpec, spec: MethodSpec, batch: int, classes: int
) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step with learnt tokens; kept is what adapters there would keep,
    of rank one.
    """
    method = spec.load()
    architecture, words = clip_architecture(backbone.name), _words(method, backbone.name)
    image, own = "image" in method.towers, method.reads_images
    more = method.plain_images, method.backwards
    work = prompt_work(architecture, batch, classes, words, NAME_TOKENS, image, own, *more)
    kept = AdapterConfig(kind="lora", rank=1, towers=("vision", "text") if image else ("text",))
    sets = batch if own else 1
    tokens = sets * (1 + words + classes * NAME_TOKENS)
    return work.total, _memory(backbone, kept, batch, sets * classes, tokens)


@cache
def _norm_step(backbone: BackboneSpec, batch: int, classes: int) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step that trains norms, which keep what adapters would keep."""
    architecture = clip_architecture(backbone.name)
    tokens = min(PROMPT_TOKENS, architecture.text.tokens)
    work = norms_work(architecture, batch, classes, tokens)
    return work.total, _memory(backbone, AdapterConfig(), batch, classes, classes * tokens)


def minutes(specs: Iterable[RunSpec], gpu: bool) -> int:
    """Return what a job of these runs may take: twice what the cost model says, plus half an hour.

    At most a day, and a day for a model without a closed form or a set that is not known: a job
    that is ended by it goes on, in its next attempt, with the run that it was at.
    """
    try:
        cost = estimate(specs)
    except (UnknownName, FileNotFoundError):
        return DAY
    if cost.unpriced:
        return DAY
    hours = cost.hours(TFLOPS if gpu else CPU_TFLOPS)
    return min(DAY, 30 + ceil(2 * 60 * hours))


@cache  # runs of a grid differ in seeds and sets more than in their steps
def _step(
    backbone: BackboneSpec, config: AdapterConfig, batch: int, classes: int
) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step with adapters."""
    architecture = clip_architecture(backbone.name)
    tokens = min(PROMPT_TOKENS, architecture.text.tokens)
    step = total_work(step_work(architecture, config, batch, classes, tokens))
    return step.total, _memory(backbone, config, batch, classes, classes * tokens)


def _memory(
    backbone: BackboneSpec, config: AdapterConfig, batch: int, prompts: int, tokens: int
) -> int:
    """Bytes of a step; tokens: of all prompts together."""
    architecture, way = clip_architecture(backbone.name), StepWay(precision=backbone.format)
    return int(total_bytes(step_memory(architecture, config, batch, prompts, tokens, way)))


def _evaluation(backbone: str, manifest: Manifest, split: Split, words: int) -> int:
    """Multiply-adds of a set's images, and of their own prompts behind so many learnt tokens."""
    images, text = _count(manifest, split), clip_architecture(backbone).text
    length, classes = 1 + words + NAME_TOKENS, manifest.num_classes
    own = whole_work(text, classes, length, 1 + words).forward if words else 0
    return _images(backbone, images) + images * own


def _count(manifest: Manifest, split: Split) -> int:
    """Images of a split."""
    return manifest.counts.get(split) or manifest.counts_unverified.get(split, 0)


@cache
def _views(backbone: str, images: int) -> tuple[int, int]:
    """(images, bytes of what the backbone sees of them)."""
    vision = clip_architecture(backbone).vision
    return images, images * (vision.tokens - 1) * vision.inputs


def _host(spec: RunSpec, method: Any) -> float:
    """Seconds of a GPU's host for a step; what encodes again backwards, and 2SFS, has no graph."""
    how = getattr(method.settings, "schedule", None) or spec.training
    if (how and recomputes(how)) or isinstance(method.settings, StageSettings):
        return LAYER * sum(tower.layers for tower in clip_architecture(spec.backbone.name).towers)
    return GRAPH


def _words(method: PromptMethod, backbone: str) -> int:
    """How many tokens it learns, a token a word, where so many have a place."""
    context: int | str = method.settings.context
    words = context if isinstance(context, int) else len(context.split())
    return min(words, clip_architecture(backbone).text.tokens - 1 - NAME_TOKENS)


@cache
def _images(backbone: str, images: int) -> int:
    """Multiply-adds of the frozen image tower, which is what merged adapters cost, too."""
    return forward_work(clip_architecture(backbone).vision, images).forward if images else 0
