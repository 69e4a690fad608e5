"""open_clip's tokenizers, and how many tokens a prompt has before any of them cuts it."""

from __future__ import annotations

from typing import Any

import open_clip
from open_clip.tokenizer import (
    HFTokenizer,
    SigLipTokenizer,
    SimpleTokenizer,
    basic_clean,
    canonicalize_text,
)

from ..weights.spec import BackboneSpec
from ..weights.tags import open_clip_name


def load_tokenizer(name: str) -> Any:
    """Return open_clip's tokenizer of a model; RuntimeError, in a sentence, if it cannot be had."""
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # of the hub, of transformers, or a package that is not installed
        raise unavailable("tokenizer", name, error) from None


def fetch_parts(spec: BackboneSpec) -> None:
    """Have what a model needs beside weights: tokenizer, text tower's config. Errors: as above."""
    name = open_clip_name(spec.name)
    load_tokenizer(name)
    if tower := open_clip.get_model_config(name)["text_cfg"].get("hf_model_name"):
        try:
            from transformers import AutoConfig

            AutoConfig.from_pretrained(tower)
        except Exception as error:
            raise unavailable("text tower's config", name, error) from None


def unavailable(what: str, name: str, error: Exception) -> RuntimeError:
    """The sentence for a part of a model that other libraries could not give."""
    if isinstance(error, ImportError):
        way = f"install {error.name}" if error.name else "install what it names"
    else:
        way = (
            "if it is not on this machine, fetch it once with a network (HF_HUB_OFFLINE=0): "
            "`blocklora weights fetch --profile` with your profile"
        )
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return RuntimeError(f"the {what} of backbone {name} could not be loaded ({text}); {way}")


def prompt_length(tokenizer: Any, prompt: str) -> int:
    """Number of tokens of a prompt, start and end of text included, if nothing were cut.

    TypeError for a tokenizer of an unknown kind: whether a prompt fits cannot be told.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(prompt)) + 2
    if isinstance(tokenizer, HFTokenizer):
        text, own = tokenizer.clean_fn(prompt), tokenizer.tokenizer
        if tokenizer.tokenizer_mode == "clips":  # start, end and class token are put around
            return len(own(text, add_special_tokens=False).input_ids) + 3
        return len(own(text).input_ids)
    if isinstance(tokenizer, SigLipTokenizer):
        return len(tokenizer.tokenizer(canonicalize_text(basic_clean(prompt))).input_ids)
    raise TypeError(
        f"whether prompts fit a {type(tokenizer).__name__} cannot be told; "
        "use a tokenizer of open_clip"
    )
