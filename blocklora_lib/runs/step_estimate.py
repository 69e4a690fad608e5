"""What the training steps of a run cost: work and memory by the cost model, time of a GPU's host.

No torch. Of a step's settings all count that move these: parts that are encoded again backwards,
classes in chunks, a shared prefix, number formats, runs that are trained at once.
"""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import Any, Literal, NamedTuple

from ..adapters.config import AdapterConfig
from ..clip.architectures import clip_architecture
from ..costs.memory import step_memory, total_bytes
from ..costs.prompts import forward_work, norms_work, prompt_work
from ..costs.step import Work, step_work, total_work
from ..costs.ways import StepWay
from ..learning.prompt_method import PromptMethod
from ..learning.spec import DasslSchedule, TrainingSpec, recomputes
from ..methods import MethodSpec
from ..methods.two_stage import StageSettings
from ..weights.spec import BackboneSpec
from .spec import RunSpec

PROMPT_TOKENS = 10  # of a prompt: start, 'a photo of a', and
NAME_TOKENS = 5  # a name of 2 or 3 tokens, full stop, end
# s of a GPU's host for a step: by CUDA graphs, views of images in memory included; and without, a
# layer of either tower. Measured on the host of an H200 (gpu_check_h200.jsonl): 1.3 to 1.9 ms and
# 0.7 ms of augmentation; 68 to 77 ms of ViT-B/16's 24 layers.
GRAPH, LAYER = 2.6e-3, 3e-3

How = TrainingSpec | DasslSchedule


class Part(NamedTuple):
    """So many equal steps of a run: multiply-adds, and bytes, of one; the images that it views."""

    steps: int
    work: int
    bytes: int = 0
    images: int = 0


def parts_of(spec: RunSpec, method: Any, classes: int, at_once: int = 1) -> list[Part]:
    """The steps of a run of a method that trains through a tower.

    at_once: with so many runs that differ in their seed alone it is trained, which takes memory.
    """
    few, backbone, how = spec.shots * classes, spec.backbone, _how(spec, method)
    if how is None:
        return []
    if isinstance(how, DasslSchedule):
        batch = min(how.batch_size, few)
        steps = how.of(spec.shots, classes) * (few // batch)
        few -= few % batch  # what is short is left out
    else:
        steps = how.steps(spec.shots)
    parts = _batches(steps, few, how.batch_size)
    if isinstance(method, PromptMethod):
        return [Part(n, *_prompt_step(backbone, spec.method, b, classes, how), b) for n, b in parts]
    if isinstance(method.settings, AdapterConfig):
        runs, given = at_once if can_stack(spec, method) else 1, _given(spec, method)
        rest = classes, how, runs, given
        steps_of = ((n, _step(backbone, method.settings, b, *rest), b) for n, b in parts)
        return [Part(n, *step, 0 if given == "rows" else b) for n, step, b in steps_of]
    if isinstance(method.settings, StageSettings):
        first = int(steps * method.settings.share)
        norms, last = (_batches(n, few, how.batch_size) for n in (first, steps - first))
        return [
            *(Part(n, *_norm_step(backbone, b, classes, how), b) for n, b in norms),
            *(Part(n, images_work(backbone.name, b), 0, b) for n, b in last),
        ]
    return []


def encoded_before(spec: RunSpec, method: Any, classes: int) -> int:
    """How many images a run encodes before its first step, which then sees their rows alone."""
    before = isinstance(method.settings, AdapterConfig) and _given(spec, method) == "rows"
    return spec.shots * classes if before else 0


def _given(spec: RunSpec, method: Any) -> Literal["images", "texts", "rows"]:
    """What a step of adapters sees: rows of a frozen image tower where images stay as they are."""
    if spec.task == "texts":
        return "texts"
    alike = spec.training is not None and spec.training.augment == "none"
    return "rows" if alike and "vision" not in method.settings.towers else "images"


def _batches(steps: int, few: int, most: int) -> list[tuple[int, int]]:
    """(steps, images of each) of so many steps; the last of a pass over the images may be short."""
    each, left = -(-few // most), few % most
    short = steps // each if left and few > most else 0
    batches = (steps - short, min(most, few)), (short, left)
    return [(n, size) for n, size in batches if n]


def host_seconds(spec: RunSpec, method: Any, graphs: bool = True) -> float:
    """Seconds of a GPU's host for a step.

    graphs: it is repeated by a CUDA graph, which what encodes again backwards, texts in place of
    images, and 2SFS, never are.
    """
    how, texts = _how(spec, method), spec.task == "texts"
    none = (how and recomputes(how)) or isinstance(method.settings, StageSettings) or texts
    if none or not graphs:
        architecture = clip_architecture(spec.backbone.name)
        return LAYER * (architecture.text.layers + (0 if texts else architecture.vision.layers))
    return GRAPH


def can_stack(spec: RunSpec, method: Any) -> bool:
    """Whether a run may be trained with others that differ in their seed alone."""
    training = spec.training
    adapters = isinstance(method.settings, AdapterConfig) and spec.task != "texts"
    return adapters and training is not None and training.stackable


def words_of(method: PromptMethod, backbone: str) -> int:
    """How many tokens it learns, a token a word, where so many have a place."""
    context: int | str = method.settings.context
    words = context if isinstance(context, int) else len(context.split())
    return min(words, clip_architecture(backbone).text.tokens - 1 - NAME_TOKENS)


@cache
def images_work(backbone: str, images: int, texts: bool = False) -> int:
    """Multiply-adds of the frozen image tower, which is what merged adapters cost, too.

    texts: of the text tower, where these stand in place of images, each as long as it reads.
    """
    architecture = clip_architecture(backbone)
    tower = architecture.text if texts else architecture.vision
    return forward_work(tower, images).forward if images else 0


def _how(spec: RunSpec, method: Any) -> How | None:
    return getattr(method.settings, "schedule", None) or spec.training


@cache
def _prompt_step(
    backbone: BackboneSpec, spec: MethodSpec, batch: int, classes: int, how: How
) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step with learnt tokens; kept is what adapters there would keep,
    of rank one.
    """
    method = spec.load()
    architecture, words = clip_architecture(backbone.name), words_of(method, backbone.name)
    image, own = "image" in method.towers, method.reads_images
    more = method.plain_images, method.backwards
    work = prompt_work(architecture, batch, classes, words, NAME_TOKENS, image, own, *more)
    kept = AdapterConfig(kind="lora", rank=1, towers=("vision", "text") if image else ("text",))
    sets = batch if own else 1
    tokens = sets * (1 + words + classes * NAME_TOKENS)
    total = work.total + _again(work, recomputes(how))
    return total, _memory(backbone, kept, batch, sets * classes, tokens, how, classes)


@cache
def _norm_step(backbone: BackboneSpec, batch: int, classes: int, how: How) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step that trains norms, which keep what adapters would keep."""
    architecture = clip_architecture(backbone.name)
    tokens = min(PROMPT_TOKENS, architecture.text.tokens)
    work = norms_work(architecture, batch, classes, tokens)
    kept = _memory(backbone, AdapterConfig(), batch, classes, classes * tokens, how, classes)
    return work.total + _again(work, recomputes(how)), kept


@cache  # runs of a grid differ in seeds and sets more than in their steps
def _step(
    backbone: BackboneSpec,
    config: AdapterConfig,
    batch: int,
    classes: int,
    how: How,
    runs: int,
    given: Literal["images", "texts", "rows"],
) -> tuple[int, int]:
    """(multiply-adds, bytes) of a step with adapters; of so many runs at once, the bytes of all.

    given: in place of images; texts are taken to be as long as the text tower reads.
    """
    architecture = clip_architecture(backbone.name)
    tokens = min(PROMPT_TOKENS, architecture.text.tokens)
    images, prompts = batch if given == "images" else 0, classes
    if texts := given == "texts":
        prompts += batch
        tokens = (classes * tokens + batch * architecture.text.tokens) // prompts
    shared = tokens - NAME_TOKENS if getattr(how, "share_prefix", False) and not texts else 0
    parts = step_work(architecture, config, images, prompts, tokens - shared)
    vision = parts["vision"] + parts["vision adapters"]
    text = parts["text"] + parts["text adapters"]
    work = total_work(parts).total + _again(vision, how.checkpointing)
    work += _again(text, how.checkpointing + (how.class_chunk is not None))
    sequences, kept = runs * prompts, shared + prompts * (tokens - shared)
    return work, _memory(backbone, config, runs * images, sequences, runs * kept, how, classes)


def _again(work: Work, times: int) -> int:
    """Multiply-adds of a tower that is encoded so often again for its backward pass."""
    return work.forward * times if work.backward else 0


def _memory(
    backbone: BackboneSpec,
    config: AdapterConfig,
    batch: int,
    prompts: int,
    tokens: int,
    how: How,
    classes: int,
) -> int:
    """Bytes of a step; tokens: of all prompts together."""
    share, chunk = getattr(how, "share_prefix", False), how.class_chunk or classes
    way = StepWay(share, how.checkpointing, backbone.format, ceil(classes / chunk))
    architecture = clip_architecture(backbone.name)
    return int(total_bytes(step_memory(architecture, config, batch, prompts, tokens, way)))
