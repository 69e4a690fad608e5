"""What adapters cost at inference: latency, peak memory and outputs of base and merged models.

base         the model without adapters
unmerged     adapters beside the frozen weights: x Wᵀ + x ΔWᵀ
merged       W + ΔW in the weights, the adapters taken off: what is deployed
merged_kept  the same with W kept, for `unmerge` (for memory: it computes as 'merged')
base_again   a second base, to see what a measurement makes of two equal models
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..adapters.attach import AdapterSet, attach
from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone, load_backbone
from ..clip.towers import TextTower, encode_images
from ..core.schema import UnknownName
from ..core.seeding import generator
from ..weights.spec import BackboneSpec
from .peak_memory import peak_memories
from .steps import random_images, twin
from .timing import in_random_order, paired_times, ratios_by

MODEL_FORMS = ("base", "unmerged", "merged")
MEMORY_FORMS = (*MODEL_FORMS, "merged_kept")
ALL_FORMS = (*MEMORY_FORMS, "base_again")
DEFAULT = AdapterConfig(kind="block_lora", rank=2, n_blocks=2)


def attach_random(backbone: Backbone, config: AdapterConfig = DEFAULT) -> AdapterSet:
    """Attach adapters that change the outputs, as trained ones do: B is drawn, not zero."""
    draw = generator(1, "adapter")
    adapters = attach(backbone.model, config, draw)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.eval()
            start = torch.empty(adapter.B.shape).normal_(0.0, 0.05, generator=draw)
            adapter.B.copy_(start)
    return adapters


def in_form(
    backbone: Backbone, form: str, config: AdapterConfig = DEFAULT
) -> tuple[Backbone, AdapterSet | None]:
    """Put the backbone into one of ALL_FORMS, in place; return it with what adapters are left."""
    if form not in ALL_FORMS:
        raise UnknownName("form", form, ALL_FORMS)
    if form.startswith("base"):
        return backbone, None
    adapters = attach_random(backbone, config)
    if form == "merged":
        adapters.merge_and_unload()
        return backbone, None
    if form == "merged_kept":
        adapters.merge()
    return backbone, adapters


def inference_times(
    backbone: Backbone,
    batches: Sequence[int] = (1, 8, 32),
    rounds: int = 11,
    forms: Sequence[str] = MODEL_FORMS,
    config: AdapterConfig = DEFAULT,
    min_seconds: float = 0.02,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return model, batch, round, name, seconds of encoding each batch of images in each form."""
    if not batches:
        raise ValueError("no batch size to measure; give at least one, as [1, 8]")

    def make(form: str) -> Callable[[], object]:
        model = in_form(twin(backbone), form, config)[0]

        def run() -> Tensor:
            with torch.inference_mode():
                return model.encode_images(images)

        return run

    frames = []
    for batch in dict.fromkeys(batches):
        images = random_images(backbone, batch)
        times = paired_times(
            in_random_order(make, forms, seed), rounds, device=backbone.device,
            min_seconds=min_seconds, seed=seed, on_round=on_round,
        )  # fmt: skip
        frames.append(times.assign(model=backbone.spec.name, batch=batch))
    return pd.concat(frames, ignore_index=True)


def inference_ratios(times: pd.DataFrame, baseline: str = "base") -> pd.DataFrame:
    """Return model, batch, form, images_per_second and the columns of `timing.ratios`."""
    frame = ratios_by(times, ["model", "batch"], baseline)
    frame.insert(3, "images_per_second", frame["batch"] / frame["seconds_median"])
    return frame


# memory


def inference_memory(
    spec: BackboneSpec,
    batches: Sequence[int],
    forms: Sequence[str] = MEMORY_FORMS,
    config: AdapterConfig = DEFAULT,
    device: str = "cpu",
    repeats: int = 1,
) -> pd.DataFrame:
    """Return model, batch, form, repeat, weights_bytes, prepared_bytes, peak_bytes.

    Each row is a fresh process. weights_bytes is counted, not measured: every number that the model
    holds in that form.
    """
    if not batches:
        raise ValueError("no batch size to measure; give at least one, as [1, 8]")
    weights = weight_bytes(spec, forms, config)
    cases = [(batch, form, i) for batch in batches for form in forms for i in range(1, repeats + 1)]
    shared = {"spec": spec.model_dump(), "config": config.model_dump()}
    arguments = [shared | {"batch": batch, "form": form} for batch, form, _ in cases]
    found = peak_memories(f"{__name__}:prepare_inference", arguments, device)
    facts = pd.DataFrame(cases, columns=["batch", "form", "repeat"])
    facts.insert(0, "model", spec.name)
    facts["weights_bytes"] = facts["form"].map(weights)
    return facts.join(pd.DataFrame(map(asdict, found)))


def prepare_inference(
    spec: Mapping[str, Any], batch: int, form: str, config: Mapping[str, Any], device: str
) -> Callable[[], None]:
    """Load the backbone in one form and return the encoding of a batch; for `peak_memory`."""
    # what a merge loads, in every form
    attach(nn.MultiheadAttention(64, 1), AdapterConfig(**config)).merge()
    loaded = load_backbone(BackboneSpec(**spec), device)
    backbone, adapters = in_form(loaded, form, AdapterConfig(**config))
    images = random_images(backbone, batch)

    def work() -> None:
        with torch.inference_mode():
            backbone.encode_images(images)

    # they hold the original weights of 'merged_kept'
    work.__dict__["adapters"] = adapters
    return work


def weight_bytes(
    spec: BackboneSpec, forms: Sequence[str] = MEMORY_FORMS, config: AdapterConfig = DEFAULT
) -> dict[str, int]:
    """Return the bytes of all numbers that each form holds, weights kept beside included."""
    backbone, found = load_backbone(spec, "cpu"), {}
    for form in forms:
        model = twin(backbone)
        _, adapters = in_form(model, form, config)
        tensors = [*model.parameters(), *model.buffers()]
        tensors += adapters.originals() if adapters else []
        found[form] = sum(t.nbytes for t in tensors)
    return found


# outputs


def inference_outputs(
    backbone: Backbone,
    images: Tensor,
    tokens: Tensor,
    config: AdapterConfig = DEFAULT,
    dtype: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """Return tower, form, compared_with, precision, max_abs_difference, same_bits of outputs.

    Differences are divided by the largest output of the unmerged model. 'unmerged again' is after
    merge and unmerge; 'loaded, merged' was saved to a file, loaded on another copy of the model and
    merged there; 'detached' is after taking the adapters off. 'base' against 'unmerged' shows what
    the adapters change.
    """
    backbone = copy.deepcopy(backbone).to(dtype)
    other, model, inputs = copy.deepcopy(backbone), backbone.model, (images.to(dtype), tokens)
    seen = {"base": encode(model, *inputs)}
    adapters = attach_random(backbone, config)
    if dtype == torch.float64:
        adapters.double()
    seen["unmerged"] = encode(model, *inputs)
    seen["merged"] = encode(adapters.merge().model, *inputs)
    seen["unmerged again"] = encode(adapters.unmerge().model, *inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        adapters.save(path)
        loaded = AdapterSet.load(path, other.model)
    for adapter in loaded.adapters.values():
        adapter.eval()
    seen["loaded, merged"] = encode(loaded.merge_and_unload(), *inputs)
    seen["detached"] = encode(adapters.detach(), *inputs)
    rows = []
    for form, reference in COMPARED:
        for tower, found in seen[form].items():
            expected, largest = seen[reference][tower], float(seen["unmerged"][tower].abs().max())
            difference = float((found - expected).abs().max()) / largest
            rows.append(
                {"tower": tower, "form": form, "compared_with": reference}
                | {"precision": str(dtype).removeprefix("torch."), "max_abs_difference": difference}
                | {"same_bits": torch.equal(found, expected)}
            )
    return pd.DataFrame(rows)


COMPARED = (
    ("base", "unmerged"),
    ("merged", "unmerged"),
    ("unmerged again", "unmerged"),
    ("loaded, merged", "merged"),
    ("detached", "base"),
)


def encode(model: nn.Module, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Both towers' outputs in the model's own precision, (B, d) and (C, d), not yet unit rows."""
    with torch.inference_mode():
        return {"vision": encode_images(model, images), "text": TextTower(model).encode(tokens)}
