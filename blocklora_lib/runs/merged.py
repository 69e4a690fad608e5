"""A kept adapter merged into its backbone, as a checkpoint that open_clip loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..adapters.files import sorted_header
from ..core.files import check_replaces, user_path, write_whole
from ..core.writable import check_folder
from ..weights.tags import open_clip_name
from .classifier import open_kept

MARK = {"blocklora": "W + ΔW"}  # by which a checkpoint that may be replaced is known


def write_merged(path: Path | str, into: Path | str, **how: Any) -> list[str]:
    """Write the state dict, with W + ΔW, as safetensors; return the Python that loads it again.

    open_clip alone is needed for that. The config of an architecture that it does not have is
    written beside the checkpoint, as <name>.json. how: as `classifier.open_kept`. ValueError for
    a name by whose ending open_clip would take it for another kind of file, and for one where
    something else stands already, the backbone's own checkpoint or the adapter above all; OSError
    for a folder that is not there. Both before anything is loaded.
    """
    import open_clip
    from safetensors.torch import save

    file = user_path(into)
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} would be taken for another kind of file by open_clip, which goes by the "
            "ending; give a name that ends in .safetensors"
        )
    check_folder(file)
    check_replaces(file, _merged, "checkpoint that was merged here")
    backbone, adapters, _ = open_kept(path, device="cpu", **how)
    name, told = open_clip_name(backbone.spec.name), ["import open_clip"]
    config, text = file.with_suffix(".json"), ""
    if not (Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").is_file():
        text = json.dumps(open_clip.get_model_config(name), indent=1) + "\n"
        same = config.is_file() and config.read_bytes() == text.encode()
        if config.exists() and not same:
            raise ValueError(
                f"{config}, which is there, is not the config of {name}, which open_clip needs "
                "beside the checkpoint; move it away, or give another file"
            )
        name, told = config.stem, [*told, f"open_clip.add_model_config({str(config)!r})"]
    view = open_clip.get_model_preprocess_cfg(backbone.model)
    state = adapters.merge_and_unload().state_dict()
    content = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    write_whole(file, sorted_header(save(content, metadata={"format": "pt"} | MARK)))
    if text:
        write_whole(config, text)
    given = {"pretrained": str(file)} | {
        f"image_{key}": view[key] for key in ("mean", "std", "interpolation", "resize_mode")
    }
    words = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in given.items())])
    return [*told, f"model, _, preprocess = open_clip.create_model_and_transforms({words})"]


def _merged(file: Path) -> None:
    """ValueError where the file is no checkpoint of `write_merged`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None
    if not about.items() >= MARK.items():
        raise ValueError("a safetensors file, but of something else")
