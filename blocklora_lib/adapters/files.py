"""Adapter files: safetensors whose metadata says what they hold. Never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.files import package_version, regular_file, user_path, write_whole
from ..core.json_data import parse_json
from ..core.schema import AdapterError, explain
from ..layers.trained_on import SUM, TENSORS_SUM, check_extra, facts_told, tensors_told
from .config import AdapterConfig

FORMAT = "blocklora-adapter"
FORMAT_VERSION = "1"
AGAIN = "save the adapters again"
_HEADER = 2**23  # bytes; of a thousand classes and a hundred layers it has a fiftieth
# halves are widened exactly
FORMATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
Kind = Literal["attention", "linear"]
SITES = TypeAdapter(dict[str, Kind])
EXTRA = TypeAdapter(dict[str, str])


class AdapterFile(NamedTuple):
    config: AdapterConfig
    sites: dict[str, Kind]  # by the name of its module
    tensors: dict[str, Tensor]  # "<module>.<target>.<tensor>"
    extra: dict[str, str]
    tensors_sum: str = ""  # as `tensors_told` has it; "" of a file that does not say


def write(path: str | Path, file: AdapterFile) -> None:
    """Write to a temporary name and rename: a reader never sees half a file."""
    path = user_path(path)
    refuse_values(path, file.tensors, "train or attach them again before saving")
    check_extra(file.extra)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": package_version("blocklora"),
        "config": file.config.model_dump_json(),
        "sites": json.dumps(file.sites),
        "extra": json.dumps(file.extra),
        TENSORS_SUM: tensors_told(file.tensors),
    }
    metadata[SUM] = facts_told(metadata)
    try:
        write_whole(path, sorted_header(save(file.tensors, metadata=metadata)))
    except OSError as error:
        raise AdapterError(
            f"cannot write the adapter file {path}: {error}; "
            "use a folder that exists and can be written"
        ) from error


def read(path: str | Path) -> AdapterFile:
    """Read an adapter file, or say in one sentence why it is none, or not as it was written.

    Its numbers are not looked at yet: `check_numbers`.
    """
    path = user_path(path)
    if not path.is_file():
        raise AdapterError(f"there is no adapter file {path}")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"{path} is damaged or no safetensors file ({error!s:.300}); {AGAIN}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise AdapterError(
            f"{path} is a safetensors file, but no adapter file: "
            f"its metadata lacks format={FORMAT!r}"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format_version {metadata.get('format_version')!r:.40}, "
            f"this library reads {FORMAT_VERSION!r}; "
            f"read it with version {metadata.get('library_version', 'unknown'):.40} of the library"
        )
    try:
        facts = {
            key: parse_json(metadata[key], f"the metadata {key}")
            for key in ("config", "sites", "extra")
        }
        config = AdapterConfig.model_validate(facts["config"])
        sites, extra = SITES.validate_python(facts["sites"]), EXTRA.validate_python(facts["extra"])
    except KeyError as error:
        raise AdapterError(f"the metadata of {path} lack {error}; {AGAIN}") from error
    except ValueError as error:
        why = explain(error) if isinstance(error, ValidationError) else error
        raise AdapterError(f"the metadata of {path} are damaged ({why}); {AGAIN}") from error
    if metadata.get(SUM, told := facts_told(metadata)) != told:
        raise AdapterError(f"the metadata of {path} were changed since it was written; {AGAIN}")
    # they are mapped: whoever takes them looks at shapes first, and then at their numbers
    refuse_values(path, tensors, AGAIN, numbers=False)
    return AdapterFile(config, sites, tensors, extra, metadata.get(TENSORS_SUM, ""))


def check_numbers(path: str | Path, file: AdapterFile) -> None:
    """AdapterError for numbers that are not finite, or are not those that were written."""
    refuse_values(path, file.tensors, AGAIN)
    if file.tensors_sum and file.tensors_sum != tensors_told(file.tensors):
        raise AdapterError(f"the tensors of {path} were changed since it was written; {AGAIN}")


def check_header(path: Path) -> None:
    """ValueError for a header that is long to read, or gives a name twice: the last would win."""
    with regular_file(path) as file:
        if (size := int.from_bytes(file.read(8), "little")) > _HEADER:
            raise ValueError(f"its header has {size:,} bytes, one of its kind at most {_HEADER:,}")
        parse_json(file.read(size).decode("utf-8", "replace"), "its header")


def refuse_values(
    path: str | Path, tensors: dict[str, Tensor], way_out: str, numbers: bool = True
) -> None:
    """Refuse number formats that adapters are not saved in, and (numbers) what is no number."""
    for name, tensor in tensors.items():
        where = f"{name} of {path}"
        if tensor.dtype not in FORMATS:
            raise AdapterError(f"{where} is {tensor.dtype}, adapters are float32; {way_out}")
        if tensor.dim() > 8:  # torch itself ends at 64
            raise AdapterError(f"{where} has {tensor.dim()} dimensions; {way_out}")
        if numbers and tensor.numel() and not tensor.abs().max() <= 1e12:  # products are numbers
            told = "holds values that are not finite, or beyond 1e12"
            raise AdapterError(f"{where} {told}; {way_out}")


def sorted_header(data: bytes) -> bytes:
    """Sort the metadata, which safetensors writes at random: equal adapters, equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
