"""What the files beside a checkpoint state of its model: preprocessing and activation."""

from __future__ import annotations

from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from ..core.json_data import read_json
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
    model = open_clip_name(spec.name)
    config = get_pretrained_cfg(model, spec.pretrained)
    known = [config] if config else [get_pretrained_cfg(*pair) for pair in source.published]
    known += [told] if (told := _beside(source, "model_cfg")) else []
    trained = [bool(config.get("quick_gelu")) for config in known] + ([True] if openai else [])
    quick = bool(open_clip.get_model_config(model).get("quick_gelu"))
    if trained and quick not in trained:
        other = f"{model}-quickgelu" if not quick else model.removesuffix("-quickgelu")
        way = (
            f"use {other}"
            if other in open_clip.list_models()
            else "open_clip has no such model by name"
        )
        words = ("QuickGELU", "GELU") if not quick else ("GELU", "QuickGELU")
        says = f" ({source.files[0]} says so)" if told else ""
        raise ValueError(
            f"the weights {source.name} were trained with {words[0]}{says}, "
            f"and backbone {spec.name} computes {words[1]}: every number would be wrong; {way}"
        )


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
