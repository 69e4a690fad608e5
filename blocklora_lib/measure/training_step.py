"""What whole training steps cost in time and memory in the ways of `costs.ways`, measured.

All times are paired (`timing.py`), and all forms hold the same numbers (`orders.py`). The forms are
the ways by their names, and 'frozen', the step without adapters. So that its backward goes as deep
as with them, the biases of the same q, k and v train in their stead; they add no product to the
forward pass, and a sum over tokens to the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from torch import Tensor, nn

from ..adapters.attach import AdapterSet
from ..clip.backbone import Backbone, load_backbone
from ..core.schema import UnknownName
from ..costs.ways import WAYS
from ..weights.spec import BackboneSpec
from .counted import attach_in_training
from .orders import set_orders
from .peak_memory import peak_memories
from .prompts import made_up_prompts
from .steps import OPTIMIZER, Step, our_step, random_images, twin
from .timing import by_round, in_random_order, paired_times, quartiles, ratios, spread

FROZEN = "frozen"  # the step without adapters
STEP_FORMS = (FROZEN, *(form for form in WAYS if form != "loop_once"))


def step_in_form(
    backbone: Backbone, form: str, images: Tensor, prompts: Sequence[str], **settings: Any
) -> Step:
    """Return the library's step with adapters in this form. settings: of `Way.config`."""
    if form not in (FROZEN, *WAYS):
        raise UnknownName("form", form, (FROZEN, *WAYS))
    chosen, own = WAYS["low_rank" if form == FROZEN else form], twin(backbone)
    adapters = attach_in_training(own.model, chosen.config(**settings))
    if form == FROZEN:
        trained: list[dict[str, Any]] = [{"params": train_biases_instead(adapters)}]
    else:
        trained = set_orders(adapters, chosen.order).parameter_groups(**OPTIMIZER)
    return our_step(own, trained, backbone.tokenize(prompts), images)


def train_biases_instead(adapters: AdapterSet) -> list[nn.Parameter]:
    """Take the adapters off their attention layers, and return the q, k, v biases to train."""
    biases: list[nn.Parameter] = []
    sites: list[tuple[str, Any]] = [*adapters.sites]
    adapters.detach()
    for _, module in sites:
        module.in_proj_bias = nn.Parameter(module.in_proj_bias.detach().clone())
        biases.append(module.in_proj_bias)
    return biases


def prepare_training(
    spec: Mapping[str, Any], classes: int, batch: int, form: str, device: str, **settings: Any
) -> Step:
    """Load a backbone and return one training step in this form; for `peak_memory`."""
    backbone = load_backbone(BackboneSpec(**spec), device)
    images = random_images(backbone, batch)
    return step_in_form(backbone, form, images, made_up_prompts(classes), **settings)


def training_memory(
    spec: BackboneSpec,
    classes: int,
    batch: int,
    forms: Sequence[str] = STEP_FORMS,
    device: str = "cpu",
    **settings: Any,
) -> pd.DataFrame:
    """Return model, form, classes, batch, prepared_bytes, peak_bytes; a process for each form."""
    facts = {"classes": classes, "batch": batch}
    arguments = [{"spec": spec.model_dump(), "form": form} | facts | settings for form in forms]
    found = peak_memories(f"{__name__}:prepare_training", arguments, device)
    return pd.DataFrame(
        {"model": spec.name, "form": form} | facts | asdict(memory)
        for form, memory in zip(forms, found, strict=True)
    )


def training_step_times(
    backbone: Backbone,
    classes: int | Sequence[str],
    batch: int,
    forms: Sequence[str] = STEP_FORMS,
    rounds: int = 11,
    min_seconds: float = 0.02,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Return round, name, seconds of whole training steps; classes: how many, or their prompts.

    settings: rank, n_blocks, reading, dropout of `Way.config`.
    """
    prompts = made_up_prompts(classes) if isinstance(classes, int) else list(classes)
    images = random_images(backbone, batch)

    def make(form: str) -> Step:
        return step_in_form(backbone, form, images, prompts, **settings)

    steps = in_random_order(make, forms, seed)
    return paired_times(
        steps, rounds, device=backbone.device, min_seconds=min_seconds, seed=seed, on_round=on_round
    )


def step_ratios(
    times: pd.DataFrame, model: str, baselines: Sequence[str] = ("dense", "low_rank")
) -> pd.DataFrame:
    """Return model, form and the columns of `timing.ratios`, once for each baseline."""
    frames = [ratios(times, baseline).rename(columns={"name": "form"}) for baseline in baselines]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "model", model)
    return frame


def path_share(times: pd.DataFrame, frozen: str = FROZEN) -> pd.DataFrame:
    """Return what part of a step the adapter path takes: (t - t_frozen) / t, paired by rounds.

    Columns form, path_median, path_q1, path_q3 (seconds), those of `timing.spread` of the share
    (resolved: its interval excludes 0), speedup_limit. By Amdahl's law a path that cost nothing
    would save `share` of the step and make it 1/(1 - share) times as fast; a path made n times
    cheaper saves share (1 - 1/n).
    """
    wide = by_round(times)
    if frozen not in wide:
        raise UnknownName("step without adapters", frozen, wide.columns)
    rows = []
    for form in wide.columns.drop(frozen):
        path = wide[form] - wide[frozen]
        share = path / wide[form]
        rows.append(
            {"form": form} | quartiles(path, "path_median", "path") | spread(share, "share", 0)
        )
    frame = pd.DataFrame(rows)
    return frame.assign(speedup_limit=1 / (1 - frame["share"]))
