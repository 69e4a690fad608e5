"""What adapter_config.json asks for: LoRA and DoRA are read, all else is refused by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core.json_data import read_json
from ...core.schema import AdapterError
from ...layers.names import few
from .peft_layout import WEIGHTS, files_of

UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights"),
    # which layers, that the names of the tensors say too
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    # what says nothing of what is computed
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "runtime_config", "eva_config", "megatron_core", "qalora_group_size"),
}
# starts that leave the frozen weights as they are
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json, and refuse what it asks for beyond LoRA and DoRA."""
    path, weights = files_of(folder)
    if not path.is_file():
        raise AdapterError(
            f"{folder} is no PEFT checkpoint: it has no {path.name}; "
            "give the folder that save_pretrained of peft wrote"
        )
    try:
        settings: Any = read_json(path)
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path} is no JSON ({error}); save the checkpoint again") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise AdapterError(
            f"{path} has peft_type={kind!r:.80}, which has no counterpart here; "
            "peft_type 'LORA' has"
        )
    for name, value in settings.items():
        off = value in (None, False, "none", [], {}, "")
        if not off and name not in UNDERSTOOD:
            raise AdapterError(
                f"{path} has {name}={value!r:.80}, which has no counterpart here; "
                f"train without {name}, or merge by peft and use the merged model"
            )
    for name in ("rank_pattern", "alpha_pattern"):
        check_patterns(path, name, settings.get(name) or {})
    start = settings.get("init_lora_weights", True)
    if start not in STARTS:
        raise AdapterError(
            f"{path} has init_lora_weights={start!r:.80}, which changes the frozen weights too; "
            "save it as a plain LoRA (path_initial_model_for_weight_conversion of save_pretrained)"
        )
    if not weights.is_file():
        others = sorted({p.name for p in folder.glob("adapter_model*")} - {WEIGHTS})
        raise AdapterError(
            f"{folder} has no {WEIGHTS}"
            + (f", but {few(others)}, which may be pickles" if others else "")
            + "; save the checkpoint as safetensors"
        )
    return settings


def check_patterns(path: Path, name: str, patterns: Any) -> None:
    """Refuse what is no map from a pattern of names to a number."""
    try:
        for pattern in patterns.keys():  # noqa: SIM118 (a list has none)
            re.compile(pattern)
            plain = re.sub(r"\\.|\[[^]]*\]", "x", pattern).replace("(?", "(")
            choices = re.findall(r"[*+{?]|\([^()]*\|", plain)
            if re.search(r"\)[*+{]", plain) or len(choices) > 3:
                raise AdapterError(  # choices are tried with each other, which may take for ever
                    f"{path} has {name} with {pattern!r:.80}, which repeats a group, or has more "
                    "than three of *, +, ?, {} and groups of choices; write the names out, with | "
                    "between them"
                )
    except (AttributeError, re.error) as error:
        raise AdapterError(
            f"{path} has {name}={patterns!r:.80}, which is no map from patterns of names to "
            f"numbers ({error}); write it as peft does, such as {{'c_fc': 4}}"
        ) from None


def by_pattern(settings: dict[str, Any], patterns: str, name: str, key: str, default: int) -> float:
    """Return a setting of a layer as peft finds it: by the first pattern at the name's end."""
    value = settings.get(key, default)
    for pattern, own in (settings.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise AdapterError(
            f"{key} of {name} is {value!r:.40}; it has to be a number above 0 and below 2^31"
        )
    return value
