"""One training step on the same images and classes, by this library and by other code.

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

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone, load_backbone
from ..core.schema import UnknownName
from ..core.seeding import generator, seeded_torch
from ..costs.ways import OUR_STEPS, STEPS
from ..learning.replayed import WARM_UP, WORTH, Replayed
from ..weights.spec import BackboneSpec
from .counted import attach_in_training
from .other_code import clip_lora, peft_lora
from .prompts import class_prompts

OPTIMIZER: dict[str, Any] = {"lr": 2e-4, "weight_decay": 1e-2}  # of AdamW, as CLIP-LoRA has it


class NotCovered(ValueError):
    """A model that CLIP-LoRA's code does not run."""


class Step:
    """One training step: cross-entropy of `logits`, backward, AdamW.

    A call returns the loss and does not wait for the device, as `learning.loop` takes its steps.
    backbone: whose numbers live as long as the step. logits: of images (B, 3, H, W) and prompts'
    token ids (C, context length) -> (B, C). scaled: the loss is scaled, for float16. The labels are
    0, 1, .., C - 1, 0, ..: values cost nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens: Tensor,
        images: Tensor,
        logits: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        kernels: Callable[[], AbstractContextManager[Any]] = nullcontext,
        scaled: bool = False,
    ) -> None:
        self.backbone, self.tokens, self.optimizer = backbone, tokens, optimizer
        self._logits, self._kernels = logits, kernels
        self.images = images
        self._labels = (torch.arange(len(images)) % len(tokens)).to(images.device)
        self._scaler = torch.amp.GradScaler(images.device.type, enabled=scaled)
        self._replayed: Replayed | None = None

    def loss(self) -> Tensor:
        """Make the graph of the loss."""
        return F.cross_entropy(self._logits().float(), self._labels)

    def passes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Go forward and backward with the step's own images; return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss()
        self._scaler.scale(loss).backward()
        return loss.detach()

    def replay(self) -> Step:
        """Compute both passes by a CUDA graph from now on, after `replayed.WARM_UP` steps."""
        self._scaler.scale(self._labels.new_ones((), dtype=torch.float32))  # makes its factor
        groups = self.optimizer.param_groups
        trained = [parameter for group in groups for parameter in group["params"]]
        left = {len(self.images): WARM_UP + WORTH}
        self._replayed = Replayed(self.passes, left, self.backbone, trained)
        return self

    @property
    def graphs(self) -> int:
        """How many graphs it has made: 0 or 1."""
        return self._replayed.graphs if self._replayed else 0

    def __call__(self) -> Tensor:
        with self._kernels():
            loss = (self._replayed or self.passes)(self.images, self._labels)
            self._scaler.step(self.optimizer)
            self._scaler.update()
        return loss


def our_step(
    backbone: Backbone,
    trained: list[dict[str, Any]],
    tokens: Tensor,
    images: Tensor,
    share_prefix: bool = False,
    checkpoint: bool = False,
    class_chunk: int | None = None,
) -> Step:
    """Return the library's step on an adapted backbone; trained: the optimizer's groups."""
    prompts = backbone.pack(tokens, share_prefix=share_prefix, class_chunk=class_chunk)

    def logits() -> Tensor:
        text = backbone.encode_prompts(prompts, checkpoint=checkpoint)
        return backbone.logit_scale * backbone.encode_images(images, checkpoint=checkpoint) @ text.T

    optimizer = torch.optim.AdamW(trained, **OPTIMIZER, fused=True)
    half = backbone.dtype == torch.float16
    return Step(backbone, tokens, images, logits, optimizer, backbone.training_kernels, half)


def clip_lora_step(
    backbone: Backbone,
    config: AdapterConfig,
    tokens: Tensor,
    images: Tensor,
    autocast: bool = False,
) -> Step:
    """Return the step of CLIP-LoRA's computation, restated: float32, or float16 by autocast."""
    model = backbone.model
    try:
        towers = model.visual.transformer, model.transformer
        heads = [tower.resblocks[0].attn.num_heads for tower in towers]
    except AttributeError:
        raise NotCovered(
            f"CLIP-LoRA's code has no towers like those of {backbone.spec.name}; "
            "leave out 'clip_lora'"
        ) from None
    theirs = clip_lora.ClipLora(
        model.state_dict(), (heads[0], heads[1]), config.rank, config.dropout
    )
    theirs = theirs.to(images.device).reset(generator(1, "adapter")).train()
    optimizer, _ = clip_lora.optimisation(theirs.parameters(), steps=1, **OPTIMIZER)

    def logits() -> Tensor:
        with torch.autocast(images.device.type, torch.float16) if autocast else nullcontext():
            return backbone.logit_scale * theirs.cosines(images, tokens)

    return Step(backbone, tokens, images, logits, optimizer, scaled=autocast)


def peft_step(backbone: Backbone, config: AdapterConfig, tokens: Tensor, images: Tensor) -> Step:
    """Return the step of peft's LoRA; ModuleNotFoundError where peft is not installed."""
    with seeded_torch(1, "adapter", backbone.device):  # peft draws from the global generator
        model = peft_lora.with_peft(backbone.model, config.rank, config.dropout).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIMIZER)

    def logits() -> Tensor:
        return backbone.logit_scale * peft_lora.cosines(model, images, tokens)

    return Step(backbone, tokens, images, logits, optimizer)


# the same step in every variant


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
        """The adapter of our variants."""
        n = 1 if self.kind == "lora" else self.n_blocks
        return AdapterConfig(kind=self.kind, rank=self.rank, n_blocks=n, dropout=self.dropout)


def make_step(backbone: Backbone, variant: str, size: Size) -> Step:
    """Return the step of a variant on this backbone's numbers, which variants share.

    The backbone's precision must be the variant's, see `precision`. Raises ModuleNotFoundError
    where 'peft' is not installed, and NotCovered for a model that the restatement does not cover.
    """
    if variant not in STEPS:
        raise UnknownName("variant", variant, STEPS)
    tokens = backbone.tokenize(class_prompts(size.classes))
    inputs = tokens, random_images(backbone, size.batch)
    own, config = twin(backbone), size.adapter
    if variant == "clip_lora":
        return clip_lora_step(own, config, *inputs)
    if variant == "peft":
        return peft_step(own, config, *inputs)
    trained = attach_in_training(own.model, config).parameter_groups(**OPTIMIZER)
    way = OUR_STEPS[variant]
    return our_step(own, trained, *inputs, way.share_prefix, way.checkpoint, size.class_chunk)


def random_images(backbone: Backbone, batch: int) -> Tensor:
    """Return normalised images of noise: (batch, 3, resolution, resolution)."""
    size = (batch, 3, *backbone.view.size)
    return torch.randn(size, generator=generator(1, "images")).to(backbone.device)


def twin(backbone: Backbone) -> Backbone:
    """Return a second backbone on the same memory: own modules and parameters, shared numbers.

    So forms are timed side by side without a copy of the weights for each. What replaces a weight
    in one (adapters, a merge) leaves the other as it is.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in backbone.parameters()
    }
    memo |= {id(b): b for b in backbone.buffers()}
    memo[id(backbone._tokenizer)] = backbone._tokenizer
    return copy.deepcopy(backbone, memo)


def precision(variant: str) -> str:
    """The precision in which the backbone of a variant is to be loaded."""
    return OUR_STEPS[variant].precision if variant in OUR_STEPS else "fp32"


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
    how: Any = precision(variant)
    backbone = load_backbone(BackboneSpec(**spec, precision=how), device)
    return make_step(backbone, variant, Size(**size))
