"""Adapter files: safetensors whose metadata says what they hold. Never pickle."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .adapter_config import AdapterConfig, AdapterError
from .files import write_whole

FORMAT = "blocklora-adapter"
FORMAT_VERSION = "1"


class AdapterFile(NamedTuple):
    config: AdapterConfig
    sites: dict[str, str]  # module name -> "attention" or "linear"
    tensors: dict[str, Tensor]  # "<module>.<target>.<tensor>"
    extra: dict[str, str]


def write(path: str | Path, file: AdapterFile) -> None:
    """Write to a temporary name and rename: a reader never sees half a file."""
    path = Path(path)
    for key, value in file.extra.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise AdapterError(f"extra holds {key!r}: {value!r}; keys and values must be strings")
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "config": file.config.model_dump_json(),
        "sites": json.dumps(file.sites),
        "extra": json.dumps(file.extra),
    }
    try:
        write_whole(path, sorted_header(save(file.tensors, metadata=metadata)))
    except OSError as error:
        raise AdapterError(
            f"cannot write the adapter file {path}: {error}; use a folder that exists and can be written"
        ) from error


def read(path: str | Path) -> AdapterFile:
    """Read an adapter file, or say in one sentence why it is none."""
    if not Path(path).is_file():
        raise AdapterError(f"there is no adapter file {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is damaged or no safetensors file ({error}); save the adapters again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise AdapterError(
            f"{path} is a safetensors file, but no adapter file: its metadata lacks format={FORMAT!r}"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format_version {metadata.get('format_version')!r}, "
            f"this library reads {FORMAT_VERSION!r}; "
            f"read it with version {metadata.get('library_version', 'unknown')} of the library"
        )
    try:
        return AdapterFile(
            AdapterConfig.model_validate_json(metadata["config"]),
            json.loads(metadata["sites"]),
            tensors,
            json.loads(metadata["extra"]),
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise AdapterError(
            f"the metadata of {path} are damaged ({error}); save the adapters again"
        ) from error


def sorted_header(data: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in a random order: equal adapters, equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def library_version() -> str:
    try:
        return version("blocklora")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
