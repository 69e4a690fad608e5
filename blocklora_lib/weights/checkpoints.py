"""Read a checkpoint of CLIP's weights in any honest form; load it into a model or say why not.

Read are OpenAI's own TorchScript archives and their plain state dicts, what torch.save wrote of
tensors, and safetensors; what a file is, its first bytes say, not its ending. No Python object of a
file is ever run.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What OpenAI's files hold beside the weights.
_OPENAI = ("input_resolution", "context_length", "vocab_size")
_LFS, _ZIP = b"version https://git-lfs", b"PK\x03\x04"
_AGAIN = "fetch it again"


class BadCheckpoint(ValueError):
    """A checkpoint that cannot be read, or is not of the model."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"checkpoint {path} {what}")


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of a file; openai: whether it has the marks of OpenAI's own files."""

    path: Path
    state: dict[str, Tensor]
    openai: bool


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors of a file, on the CPU, by their names without a wrapper's prefix.

    BadCheckpoint: in a sentence, why it cannot be read.
    """
    loaded = _load(path, _format(path))
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        what = "nothing" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise BadCheckpoint(path, f"holds {what}, no state_dict; save model.state_dict()")
    state = {str(name): value for name, value in loaded.items()}
    # of DataParallel and torch.compile, either way round
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    openai = all(name in state for name in _OPENAI)
    state = {name: value for name, value in state.items() if name not in _OPENAI}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BadCheckpoint(
                path,
                f"holds {name!r}, a {type(value).__name__}, "
                "where weights should be; save model.state_dict()",
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise BadCheckpoint(
                path, f"holds {name} in a form without plain numbers; save it as a dense tensor"
            )
    if not state:
        raise BadCheckpoint(path, "holds no weights; save model.state_dict()")
    return Checkpoint(path, state, openai)


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
                path, f"has {kind} in {key}; {_AGAIN}, or take a checkpoint from before that"
            )
    if "logit_scale" in state and not state["logit_scale"].float().exp().isfinite().all():
        value = float(state["logit_scale"].max())
        raise BadCheckpoint(
            path,
            f"has a logit_scale of {value:.3g}, whose exponential is no number (CLIP's is at most "
            "ln 100 = 4.6); take another checkpoint",
        )
    digest = _digest(state)
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


def _format(path: Path) -> str:
    """'safetensors', 'torch' or 'torchscript', by the content; BadCheckpoint if it is else."""
    with path.open("rb") as file:
        head = file.read(1024)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    what = None
    if not head:
        what = f"is empty; {_AGAIN}"
    elif head.startswith(_LFS):
        what = (
            "is a pointer of git-lfs and not the file itself; "
            "say git lfs pull, or fetch the file itself"
        )
    elif text.startswith(b"<"):
        what = f"is a web page, not weights (a login or an error, when it was fetched); {_AGAIN}"
    elif text.startswith((b"{", b"[")):
        what = "is JSON, not weights; give the file that holds the tensors"
    elif (
        head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"))
        or head[257:262] == b"ustar"
    ):
        what = "is a packed archive; unpack it and give the file inside"
    elif head.startswith(b"\x93NUMPY"):
        what = "is an array of NumPy; convert it to safetensors"
    if what:
        raise BadCheckpoint(path, what)
    if head[8:9] == b"{" and not head.startswith(_ZIP):
        return "safetensors"
    return _zip_format(path) if head.startswith(_ZIP) else "torch"


def _zip_format(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()  # torch itself never compares the parts with their checksums
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise BadCheckpoint(path, f"is cut short or damaged ({error}); {_AGAIN}") from None
    if broken:
        raise BadCheckpoint(
            path,
            f"is damaged: its part {broken} has another checksum than the file says; "
            f"{_AGAIN}, or if it was saved without checksums, save it as safetensors",
        )
    if not any(name.endswith("/data.pkl") for name in names):
        inside = f" (it holds {', '.join(names[:3])})" if names else ""
        raise BadCheckpoint(
            path,
            f"is a zip archive, but not of torch.save{inside}; unpack it and give the file inside",
        )
    return "torchscript" if any(name.endswith("/constants.pkl") for name in names) else "torch"


def _load(path: Path, form: str) -> Any:
    try:
        if form == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)  # its header says every tensor's place, so that none can be cut
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on formats is for those who write them
            if form == "torchscript":
                return torch.jit.load(str(path), map_location="cpu").state_dict()
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch, pickle and zip raise a dozen kinds on damaged files
        found = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)", str(error))
        if "weights_only" in str(error).lower() and found:
            raise BadCheckpoint(
                path,
                f"holds Python objects ({found[1]}) and not tensors alone, "
                "and such are never executed here; where it was made, "
                "save its weights: torch.save(model.state_dict(), file), or safetensors",
            ) from None
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        # to run what the file holds
        advice = "weights only" in reason.lower() or "weights_only" in reason
        reason = "no file of torch.save" if advice else reason[:200]
        raise BadCheckpoint(
            path, f"is damaged, cut short, or no checkpoint ({reason}); {_AGAIN}"
        ) from None


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


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach()
        value = value.float() if value.is_floating_point() else value.long()
        digest.update(f"{key} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).contiguous().numpy())
    return digest.hexdigest()


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
