"""Read a checkpoint of CLIP's weights in any honest form, or say why it cannot be read.

Read are OpenAI's own TorchScript archives and their plain state dicts, what torch.save wrote of
tensors, and safetensors; what a file is, its first bytes say, not its ending. No Python object of a
file is ever run.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What OpenAI's files hold beside the weights.
_OPENAI = ("input_resolution", "context_length", "vocab_size")
_LFS, _ZIP = b"version https://git-lfs", b"PK\x03\x04"
AGAIN = "fetch it again"


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
    # of DataParallel, torch.compile, Lightning or a class around the model: what stands before
    # logit_scale, whose own name has no dot
    scale = next((name for name in state if name.endswith(".logit_scale")), "logit_scale")
    prefix = scale.removesuffix("logit_scale")
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


def _format(path: Path) -> str:
    """'safetensors', 'torch' or 'torchscript', by the content; BadCheckpoint if it is else."""
    with path.open("rb") as file:
        head = file.read(8192)
    # safetensors: the length of its header, whose bytes may look like text, and padding
    if head[5:8] == bytes(3) and head[8:].lstrip(b" \t\r\n").startswith(b"{"):
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    what = None
    if not head:
        what = f"is empty; {AGAIN}"
    elif head.startswith(_LFS):
        what = (
            "is a pointer of git-lfs and not the file itself; "
            "say git lfs pull, or fetch the file itself"
        )
    elif text.startswith(b"<") and b"\0" not in text:
        what = f"is a web page, not weights (a login or an error, when it was fetched); {AGAIN}"
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
        ValueError,  # names that are no text
    ) as error:
        raise BadCheckpoint(path, f"is cut short or damaged ({error}); {AGAIN}") from None
    if broken:
        raise BadCheckpoint(
            path,
            f"is damaged: its part {broken} has another checksum than the file says; "
            f"{AGAIN}, or if it was saved without checksums, save it as safetensors",
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
            path, f"is damaged, cut short, or no checkpoint ({reason}); {AGAIN}"
        ) from None
