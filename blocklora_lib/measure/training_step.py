"""What whole training steps cost in time and memory, measured.

All times are paired (`timing.py`), and all forms hold the same numbers (`compared_forms.py`). The
forms:

low_rank       LoRA of rank r as the library computes it
dense          LoRA of rank r as CLIP-LoRA's released code computes it: B A formed, then a dense product
low_rank_plain LoRA of rank r as that code would compute it in the order (x A) B, all else the same
loop           Block-LoRA (r, n) block by block, both products each
loop_once      Block-LoRA (r, n) with x A_s computed once, then block by block
sum_first      Block-LoRA (r, n) as the library computes it: Σ B_i, then one product
collapsed      LoRA of Block-LoRA's width: one B in place of the n
frozen_a       the ablation 'w/o A' of Block-LoRA (r, n)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.attach import AdapterSet, attach
from ..clip.backbone import Backbone, BackboneSpec, load_backbone
from ..core.schema import UnknownName
from ..core.seeding import generator
from .adapter_path import FORMS, form_config
from .compared_forms import replace_forms
from .peak_memory import peak_memories
from .timing import by_round, paired_times, quartiles, ratios, resolution

FROZEN = "frozen"  # the step without adapters
STEP_FORMS = (
    FROZEN,
    "dense",
    "low_rank_plain",
    "low_rank",
    "loop",
    "sum_first",
    "collapsed",
    "frozen_a",
)


# whole steps


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


class TrainingStep:
    """One step of CLIP-LoRA's training: encode images and prompts, cross-entropy, backward, AdamW.

    form 'frozen' has no adapters. So that its backward goes as deep as with them, the biases of the
    same q, k and v train in their stead; they add no product to the forward, and a sum over tokens
    to the backward.
    """

    def __init__(
        self, backbone: Backbone, form: str, images: Tensor, prompts: Sequence[str], **settings: Any
    ) -> None:
        self.backbone, self.images = twin(backbone), images
        self.tokens = backbone.tokenize(prompts)
        draw = generator(1, "labels")
        self.labels = torch.randint(len(prompts), (len(images),), generator=draw).to(images.device)
        config = form_config("low_rank" if form == FROZEN else form, **settings)
        adapters = attach(self.backbone.model, config, generator(1, "adapter"))
        for adapter in adapters.adapters.values():
            adapter.train()  # dropout on; the frozen model stays in eval mode
        if form == FROZEN:
            groups = [{"params": train_biases_instead(adapters)}]
        else:
            replace_forms(adapters, FORMS[form][1] or "fused")
            groups = adapters.parameter_groups(lr=2e-4, weight_decay=1e-2)
        self.optimizer = torch.optim.AdamW(groups, lr=2e-4, weight_decay=1e-2, fused=True)

    def loss(self) -> Tensor:
        classes = self.backbone.encode_prompts(self.tokens)
        logits = self.backbone.logit_scale * self.backbone.encode_images(self.images) @ classes.T
        return F.cross_entropy(logits, self.labels)

    def __call__(self) -> None:
        with self.backbone.training_kernels():
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()


def train_biases_instead(adapters: AdapterSet) -> list[nn.Parameter]:
    """Take the adapters off their attention layers, and return the q, k, v biases of these to
    train.
    """
    biases, sites = [], adapters.sites
    adapters.detach()
    for _, module in sites:
        module.in_proj_bias = nn.Parameter(module.in_proj_bias.detach().clone())
        biases.append(module.in_proj_bias)
    return biases


def prepare_training(
    spec: Mapping[str, Any], classes: int, batch: int, form: str, device: str, **settings: Any
) -> TrainingStep:
    """Load a backbone and return one training step in this form; for `peak_memory`."""
    backbone = load_backbone(BackboneSpec(**spec), device)
    return TrainingStep(
        backbone, form, random_images(backbone, batch), made_up_prompts(classes), **settings
    )


def training_memory(
    spec: BackboneSpec,
    classes: int,
    batch: int,
    forms: Sequence[str] = STEP_FORMS,
    device: str = "cpu",
    **settings: Any,
) -> pd.DataFrame:
    """Return model, form, classes, batch, prepared_bytes, peak_bytes of a training step; a process
    a form.
    """
    facts = {"classes": classes, "batch": batch}
    arguments = [{"spec": spec.model_dump(), "form": form} | facts | settings for form in forms]
    found = peak_memories(f"{__name__}:prepare_training", arguments, device)
    return pd.DataFrame(
        {"model": spec.name, "form": form} | facts | asdict(memory)
        for form, memory in zip(forms, found, strict=True)
    )


def made_up_prompts(classes: int) -> list[str]:
    """Return prompts about as long as ImageNet's, whose mean is 9 tokens of CLIP's."""
    return [f"a photo of a thing {i}." for i in range(1, classes + 1)]


def random_images(backbone: Backbone, batch: int) -> Tensor:
    """Return normalised images of noise: (batch, 3, resolution, resolution). Content costs nothing."""
    size = (batch, 3, *backbone.view.size)
    return torch.randn(size, generator=generator(1, "images")).to(backbone.device)


def training_step_times(
    backbone: Backbone,
    classes: int | Sequence[str],
    batch: int,
    forms: Sequence[str] = STEP_FORMS,
    rounds: int = 11,
    min_seconds: float = 0.02,
    on_round: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Return round, name, seconds of whole training steps; classes: how many, or their prompts.

    settings: rank, n_blocks, reading, dropout of `form_config`.
    """
    prompts = made_up_prompts(classes) if isinstance(classes, int) else list(classes)
    images = random_images(backbone, batch)
    for form in forms:
        if form not in (FROZEN, *FORMS):
            raise UnknownName("form", form, (FROZEN, *FORMS))
    steps = {form: TrainingStep(backbone, form, images, prompts, **settings) for form in forms}
    return paired_times(
        steps, rounds, device=backbone.device, min_seconds=min_seconds, on_round=on_round
    )


def step_ratios(
    times: pd.DataFrame, model: str, baselines: Sequence[str] = ("dense", "low_rank")
) -> pd.DataFrame:
    """Return model, form and the columns of `timing.ratios`, once for each baseline."""
    frames = [ratios(times, baseline).rename(columns={"name": "form"}) for baseline in baselines]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "model", model)
    return frame


def training_step(
    backbone: Backbone,
    classes: int | Sequence[str],
    batch: int,
    forms: Sequence[str] = STEP_FORMS,
    rounds: int = 11,
    baselines: Sequence[str] = ("dense", "low_rank"),
    **settings: Any,
) -> pd.DataFrame:
    """Time whole steps and return `step_ratios`; take `training_step_times` where the share is
    wanted too.
    """
    times = training_step_times(backbone, classes, batch, forms, rounds, **settings)
    return step_ratios(times, backbone.spec.name, baselines)


def path_share(times: pd.DataFrame, frozen: str = FROZEN) -> pd.DataFrame:
    """Return what part of a step the adapter path takes: (t - t_frozen) / t, paired within each
    round.

    Columns form, path_median, path_q1, path_q3 (seconds), share, share_q1, share_q3, share_low,
    share_high, rounds, resolved (the interval of the share excludes 0), speedup_limit. By Amdahl's
    law a path that cost nothing would save `share` of the step and make it 1/(1 - share) times as
    fast; a path made n times cheaper saves share (1 - 1/n).
    """
    wide = by_round(times)
    if frozen not in wide:
        raise UnknownName("step without adapters", frozen, wide.columns)
    rows = []
    for form in wide.columns.drop(frozen):
        path = wide[form] - wide[frozen]
        share = path / wide[form]
        rows.append(
            {"form": form}
            | quartiles(path, "path_median", "path")
            | quartiles(share, "share", "share")
            | resolution(share, "share", 0)
        )
    frame = pd.DataFrame(rows)
    return frame.assign(speedup_limit=1 / (1 - frame["share"]))
