"""Load the tensors of a checkpoint into a model of open_clip, or say why they are not of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import AGAIN, BadCheckpoint, Checkpoint

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(model: nn.Module, checkpoint: Checkpoint, name: str) -> str:
    """Copy a checkpoint into the model, in its number formats; return the digest of the tensors.

    The digest is the SHA-256 of names, shapes and values as float32: two files with the same
    weights have the same one. BadCheckpoint: tensors are missing, left over, of another shape, no
    floating-point numbers, not finite, or too large for the model's format or an exponential. name:
    what the user calls the model.
    """
    path, state = checkpoint.path, _as_open_clip(model, checkpoint.state)
    _compare(path, state, model.state_dict(), name)
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            kind = "NaN" if value.isnan().any() else "infinite numbers"
            raise BadCheckpoint(
                path, f"has {kind} in {key}; {AGAIN}, or take a checkpoint from before that"
            )
    if "logit_scale" in state and not state["logit_scale"].float().exp().isfinite().all():
        scale = float(state["logit_scale"].max())
        raise BadCheckpoint(
            path,
            f"has a logit_scale of {scale:.3g}, whose exponential is no number (CLIP's is at most "
            "ln 100 = 4.6); take another checkpoint",
        )
    digest = tensors_digest(state)
    model.load_state_dict(state)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            largest, kind = (
                float(state[key].double().abs().max()),
                str(value.dtype).removeprefix("torch."),
            )
            raise BadCheckpoint(
                path,
                f"has {key} with values up to {largest:.3g}, which overflow in {kind}; "
                "say precision: bf16 or fp32 in the profile's backbone",
            )
    return digest


def _as_open_clip(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by open_clip's names, as its load_checkpoint has it.

    But no grid of another size is interpolated: that checkpoint is of another model.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    wanted = model.state_dict()
    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and "positional_embedding" not in wanted:
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # one number, with or without an axis
        if key in state and key in wanted and state[key].numel() == wanted[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key].shape)
    # the same for all classes: no answer depends on it
    if "logit_bias" in wanted and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(wanted["logit_bias"])
    # the model's own constants, such as the causal mask, which scripts and older versions saved
    constants = {key for key, _ in model.named_buffers()} - wanted.keys()
    return {key: value for key, value in state.items() if key not in constants}


def _compare(
    path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str
) -> None:
    """BadCheckpoint if names, shapes or kinds of numbers are not the model's."""
    problems = []
    for names, what in (
        (wanted.keys() - state.keys(), "lacks"),
        (state.keys() - wanted.keys(), "has beside"),
    ):
        if names:
            problems.append(f"{what} {len(names)} tensors ({_some(names)})")
    shared = sorted(wanted.keys() & state.keys())
    if shapes := [key for key in shared if state[key].shape != wanted[key].shape]:
        key = shapes[0]
        problems.append(
            f"has {len(shapes)} of another shape ({key}: "
            f"{_by(state[key])} instead of {_by(wanted[key])})"
        )
    for key in shared:
        given, own = state[key].dtype, wanted[key].dtype
        if (given not in _FLOATS) if own.is_floating_point else (given != own):
            kind = str(given).removeprefix("torch.")
            problems.append(f"has {key} in {kind}, which are no weights of a CLIP")
            break
    if not problems:
        return
    hint = f"give the name of its own architecture{_likely(state)}, or another checkpoint"
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        hint = "it is a checkpoint of transformers; take open_clip's form of it"
    raise BadCheckpoint(path, f"is not of {name}: it {', '.join(problems)}; {hint}")


def _likely(state: Mapping[str, Tensor]) -> str:
    """The names of open_clip's CLIPs of these sizes, in brackets; '' if there is none."""
    import open_clip

    blocks = "visual.transformer.resblocks."
    try:
        text, patches = state["text_projection"].shape, state["visual.conv1.weight"].shape
        sizes = (
            *text[::-1],
            patches[0],
            patches[-1],
            len(state["visual.positional_embedding"]) - 1,
        )
        sizes += (len({key.split(".")[3] for key in state if key.startswith(blocks)}),)
    except (KeyError, IndexError, TypeError, ValueError):
        return ""  # no CLIP of two plain towers
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if (
            "multimodal_cfg" in config
            or config.get("custom_text")
            or "hf_model_name" in config["text_cfg"]
        ):
            continue
        image = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12} | config[
            "vision_cfg"
        ]
        width = config["text_cfg"].get("width", 512)
        grid = (image["image_size"] // image["patch_size"]) ** 2 if image["patch_size"] else 0
        own = (
            config["embed_dim"],
            width,
            image["width"],
            image["patch_size"],
            grid,
            image["layers"],
        )
        found += [name] if own == sizes else []
    return f" (its sizes are those of {' or '.join(found[:4])})" if found else ""


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values as float32: of the same weights, the same one."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach()
        value = value.float() if value.is_floating_point() else value.long()
        digest.update(f"{key} {tuple(value.shape)} ".encode())
        numbers: Any = value.reshape(-1).contiguous().cpu().numpy()
        digest.update(numbers)
    return digest.hexdigest()


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
