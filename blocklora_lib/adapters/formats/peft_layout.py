"""What a PEFT LoRA checkpoint is: a folder, its two files, the names in them.

PEFT's update is ΔW = lora_alpha/r B A (lora_alpha/sqrt(r) with use_rslora), A: (r, d_in), B:
(d_out, r). On nn.MultiheadAttention it has one A and one B for q, k and v together, B: (3 E, r),
and a second pair of the same r for the output projection, whose update it applies twice, in every
release up to 0.21 (merge() adds it, and so does the layer that it calls: huggingface/peft pull
request 3774): what is computed is ΔW_o = 2 lora_alpha/r B A. The tests hold this to the peft that
is installed.

Source: huggingface/peft 0.21.2 tuners/lora (config.py, layer.py), utils/save_and_load.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OUT = ".base_layer.out_proj"  # of an adapted nn.MultiheadAttention
OUT_TIMES, OUT_KNOWN = 2, (0, 21)  # how often its update is applied, and up to which release


class Pair(NamedTuple):
    """A: (r, d_in), B: (d_out, r) of one layer; m: (d_out,), of DoRA."""

    a: Tensor
    b: Tensor
    m: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.a)


def files_of(folder: Path) -> tuple[Path, Path]:
    """Return where the settings and the tensors lie."""
    return folder / CONFIG, folder / WEIGHTS


def check_names(path: Path) -> None:
    """ValueError where a file holds other tensors than those of a PEFT checkpoint."""
    try:
        with safe_open(path, "pt") as opened:
            names = list(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None
    if not all(name.startswith(PREFIX) for name in names):
        raise ValueError("a safetensors file, but of something else")
