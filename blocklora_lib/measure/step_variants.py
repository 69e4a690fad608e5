"""One training step on the same images and classes, as this library takes it and as other code
does.

independent    ours; dropout masks drawn for every class and token, as CLIP-LoRA draws them
shared_prefix  ours; the tokens that all prompts begin with are encoded once
checkpointing  ours; shared prefix, and backward computes each block again
bf16           ours; shared prefix, frozen weights in bfloat16
clip_lora      CLIP-LoRA's computation, restated in `clip_lora.py`: LoRA, float32
peft           the `peft` library's LoRA in a plain loop: see `peft_lora.py`

Every step encodes images and prompts, takes cross-entropy, backward, and AdamW. Adapters sit on q,
k, v of every block of both towers. Values cost nothing: weights are random, images noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.attach import attach
from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone, load_backbone
from ..core.schema import UnknownName
from ..core.seeding import generator
from ..weights.spec import BackboneSpec
from .other_code import clip_lora, peft_lora
from .training_step import random_images, twin

PROMPT = "a photo of a {}."
SCALE = 100.0  # of the cosines, in every variant


@dataclass(frozen=True)
class OurWay:
    """The settings of this library's step: as `TrainingSpec` has them, and the precision of the
    weights.
    """

    share_prefix: bool = False
    checkpoint: bool = False
    precision: str = "fp32"


OURS: Mapping[str, OurWay] = MappingProxyType(
    {
        "independent": OurWay(),
        "shared_prefix": OurWay(share_prefix=True),
        "checkpointing": OurWay(share_prefix=True, checkpoint=True),
        "bf16": OurWay(share_prefix=True, precision="bf16"),
    }
)
OTHERS = ("clip_lora", "peft")  # LoRA of rank r, whatever adapter ours has
VARIANTS = (*OURS, *OTHERS)


@dataclass(frozen=True)
class Size:
    """What is encoded at every step, and by which adapter. kind: 'block_lora' or 'lora'."""

    classes: int
    batch: int
    kind: str = "block_lora"
    rank: int = 2
    n_blocks: int = 2
    dropout: float = 0.25
    class_chunk: int | None = None

    @property
    def adapter(self) -> AdapterConfig:
        cut = {} if self.kind == "lora" else {"n_blocks": self.n_blocks}
        return AdapterConfig(kind=self.kind, rank=self.rank, dropout=self.dropout, **cut)


class Step:
    """One training step: `loss` makes the graph; a call takes backward and AdamW too and returns
    it.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        kernels: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.loss, self.optimizer, self._kernels = loss, optimizer, kernels

    def __call__(self) -> float:
        with self._kernels():
            loss = self.loss()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()


def make_step(backbone: Backbone, variant: str, size: Size) -> Step:
    """Return the step of a variant on this backbone's numbers, which variants share; see the
    module's text.

    The backbone's precision must be the variant's, see `precision`. Raises ModuleNotFoundError
    where 'peft' is not installed, and ValueError for a model that the restatement does not cover.
    """
    if variant not in VARIANTS:
        raise UnknownName("variant", variant, VARIANTS)
    tokens, images = (
        backbone.tokenize(class_prompts(size.classes)),
        random_images(backbone, size.batch),
    )
    draw = generator(1, "labels")
    labels = torch.randint(size.classes, (size.batch,), generator=draw).to(images.device)
    make = {"clip_lora": _clip_lora, "peft": _peft}.get(variant)
    if make is None:
        made = _ours(twin(backbone), OURS[variant], size, images, tokens)
    else:
        made = make(twin(backbone), size, images, tokens)
    cosines, optimizer, kernels = made
    return Step(lambda: F.cross_entropy(SCALE * cosines(), labels), optimizer, kernels)


def _ours(backbone: Backbone, way: OurWay, size: Size, images: Tensor, tokens: Tensor) -> tuple:
    adapters = attach(backbone.model, size.adapter, generator(1, "adapter"))
    for adapter in adapters.adapters.values():
        adapter.train()  # dropout on; the frozen model stays in eval mode
    prompts = backbone.pack(tokens, share_prefix=way.share_prefix, class_chunk=size.class_chunk)

    def cosines() -> Tensor:
        text = backbone.encode_prompts(prompts, checkpoint=way.checkpoint)
        return backbone.encode_images(images, checkpoint=way.checkpoint) @ text.T

    groups = adapters.parameter_groups(lr=2e-4, weight_decay=1e-2)
    return (
        cosines,
        torch.optim.AdamW(groups, fused=True),
        backbone.training_kernels,
    )  # as `learning.loop` has it


def _clip_lora(backbone: Backbone, size: Size, images: Tensor, tokens: Tensor) -> tuple:
    model = backbone.model
    try:
        heads = [
            t.resblocks[0].attn.num_heads for t in (model.visual.transformer, model.transformer)
        ]
    except AttributeError:
        raise ValueError(
            f"CLIP-LoRA's code has no towers like those of {backbone.spec.name}; leave out "
            "'clip_lora'"
        ) from None
    theirs = clip_lora.ClipLora(model.state_dict(), heads, size.rank, size.dropout)
    theirs = theirs.to(images.device).reset(generator(1, "adapter")).train()
    optimizer, _ = clip_lora.optimisation(theirs.parameters(), lr=2e-4, steps=1)
    return lambda: theirs.cosines(images, tokens), optimizer, nullcontext


def _peft(backbone: Backbone, size: Size, images: Tensor, tokens: Tensor) -> tuple:
    model = peft_lora.with_peft(backbone.model, size.rank, size.dropout).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=1e-2)
    return lambda: peft_lora.cosines(model, images, tokens), optimizer, nullcontext


def precision(variant: str) -> str:
    """The precision in which the backbone of a variant is to be loaded."""
    return OURS[variant].precision if variant in OURS else "fp32"


def class_prompts(classes: int) -> list[str]:
    """CLIP-LoRA's prompts of the first ImageNet classes, 9.15 tokens each on average."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as NAMES

    if not 1 <= classes <= len(NAMES):
        raise ValueError(f"classes={classes}: ImageNet names are taken; use 1 to {len(NAMES)}")
    return [PROMPT.format(name) for name in NAMES[:classes]]


class Delayed:
    """A function that takes so many seconds more: to see that a benchmark tells slower from faster."""

    def __init__(self, function: Callable[[], object], seconds: float) -> None:
        self.function, self.seconds = function, seconds

    def __call__(self) -> object:
        time.sleep(self.seconds)
        return self.function()


def load(
    spec: BackboneSpec, variants: Sequence[str], device: str | torch.device
) -> dict[str, Backbone]:
    """Load the backbone once for each precision that the variants need: {precision: backbone}."""
    kinds = dict.fromkeys(precision(variant) for variant in variants)
    return {
        kind: load_backbone(spec.model_copy(update={"precision": kind}), device) for kind in kinds
    }


def prepare(spec: Mapping[str, Any], variant: str, size: Mapping[str, Any], device: str) -> Step:
    """Load a backbone and return one step; for `peak_memory`."""
    backbone = load_backbone(BackboneSpec(**spec, precision=precision(variant)), device)
    step = make_step(backbone, variant, Size(**size))
    step.model = nn.ModuleList(
        [backbone]
    )  # what is shared between variants lives as long as the step
    return step
