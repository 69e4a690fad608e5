"""What the files beside a checkpoint state of its model: preprocessing and activation."""

from __future__ import annotations

import warnings
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from ..core.json_data import read_json
from .checkpoints import Checkpoint
from .files import CONFIG
from .spec import BackboneSpec
from .tags import Source, open_clip_name

# the size is the model's
_PREPROCESSING = "mean", "std", "interpolation", "resize_mode", "fill_color"


def preprocessing(
    spec: BackboneSpec, source: Source | None, openai: bool = False
) -> dict[str, Any]:
    """open_clip's preprocessing settings for these weights: mean, std, interpolation, resize_mode.

    Of a tag they are its own. A checkpoint's are those of the config beside it, of the published
    file that it is, or those on which all tags of the architecture agree; open_clip itself takes
    CLIP's for any path.
    openai: the checkpoint has the marks of OpenAI's own files.
    """
    model = open_clip_name(spec.name)
    if source is not None and (told := _beside(source, "preprocess_cfg")):
        return {key: told[key] for key in _PREPROCESSING if key in told}
    tags = [spec.pretrained] if get_pretrained_cfg(model, spec.pretrained) else []
    configs = [get_pretrained_cfg(model, tag) for tag in tags]
    if not configs and source is not None:
        configs = [get_pretrained_cfg(*pair) for pair in source.published]
    if not configs:
        configs = [get_pretrained_cfg(model, tag) for tag in list_pretrained_tags_by_model(model)]
    found = [{key: config.get(key) for key in _PREPROCESSING} for config in configs]
    found = [config for i, config in enumerate(found) if config not in found[:i]]
    if len(found) > 1 and source is not None and not openai:
        raise ValueError(
            f"{source.checkpoint} does not say how its model sees images, "
            f"and weights of {spec.name} differ in that ({' or '.join(map(str, found))}); "
            f"put an {CONFIG} with preprocess_cfg beside it"
        )
    return found[0] if len(found) == 1 else {}


def refuse_other_activation(spec: BackboneSpec, source: Source, openai: bool) -> None:
    """ValueError if weights trained with QuickGELU are for a model that computes GELU, or reversed.

    The shapes agree, and every number would be wrong.

    openai: the checkpoint has the marks of OpenAI's own files.
    """
    trained, quick = _activations(spec, source, openai), _is_quick(spec)
    if trained and quick not in trained:
        model = open_clip_name(spec.name)
        other = f"{model}-quickgelu" if not quick else model.removesuffix("-quickgelu")
        way = (
            f"use {other}"
            if other in open_clip.list_models()
            else "open_clip has no such model by name"
        )
        words = ("QuickGELU", "GELU") if not quick else ("GELU", "QuickGELU")
        says = f" ({source.files[0]} says so)" if _beside(source, "model_cfg") else ""
        raise ValueError(
            f"the weights {source.name} were trained with {words[0]}{says}, "
            f"and backbone {spec.name} computes {words[1]}: every number would be wrong; {way}"
        )


def doubt_activation(spec: BackboneSpec, source: Source, checkpoint: Checkpoint) -> None:
    """Warn where weights may be OpenAI's, which need QuickGELU, and are for a model without it.

    OpenAI's weights that other code saved again have no marks. What is left to know them by is that
    their matrices are numbers of half precision, which others' seldom are.
    """
    other = f"{open_clip_name(spec.name)}-quickgelu"
    if other not in open_clip.list_models() or _activations(spec, source, checkpoint.openai):
        return
    matrices = [v for key, v in checkpoint.state.items() if key.endswith(".mlp.c_fc.weight")]
    if matrices and all(torch.equal(v, v.half().to(v.dtype)) for v in matrices):
        warnings.warn(
            f"{source.checkpoint} holds numbers of half precision, as OpenAI's weights are, and "
            f"nothing says what it was trained with; {spec.name} computes GELU. If it is OpenAI's, "
            f"every number would be wrong: use {other}; if not, put an {CONFIG} beside it, with "
            '{"model_cfg": {"quick_gelu": false}}',
            stacklevel=3,
        )


def _activations(spec: BackboneSpec, source: Source, openai: bool) -> list[bool]:
    """Whether the weights were trained with QuickGELU, as each says that knows them."""
    config = get_pretrained_cfg(open_clip_name(spec.name), spec.pretrained)
    known = [config] if config else [get_pretrained_cfg(*pair) for pair in source.published]
    known += [told] if (told := _beside(source, "model_cfg")) else []
    return [bool(config.get("quick_gelu")) for config in known] + ([True] if openai else [])


def _is_quick(spec: BackboneSpec) -> bool:
    return bool(open_clip.get_model_config(open_clip_name(spec.name)).get("quick_gelu"))


def _beside(source: Source, part: str) -> dict[str, Any]:
    """A part of the config beside the checkpoint; {} without one."""
    config = source.files[0]
    if config.name != CONFIG:
        return {}
    try:
        facts = read_json(config)
    except ValueError as error:
        raise ValueError(f"{error}; restore it, or take it away") from None
    found = facts.get(part, {}) if isinstance(facts, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{config} holds no settings; restore it, or take it away")
    return found
