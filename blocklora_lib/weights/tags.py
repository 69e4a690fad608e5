"""Weights that open_clip knows by a tag: which files, where they are looked for, how fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import (
    get_pretrained_cfg,
    get_pretrained_url,
    list_pretrained_tags_by_model,
)

from ..core.files import user_path
from ..core.paths import POCKET_MODEL, bundled
from ..core.schema import UnknownName, near
from .files import FOLDER, sha256, stamps
from .spec import BUNDLED, BackboneSpec

OPENAI_CACHE = "~/.cache/clip"  # where OpenAI's code, and open_clip's for addresses, keep downloads


@dataclass(frozen=True)
class Source:
    """The files of a backbone's weights, the checkpoint last.

    name: what a record calls the checkpoint, without this machine's folders. sha256: of all files,
    which were as `stamps` says before they were read for it. stated: what the publisher says of it.
    """

    files: tuple[Path, ...]
    name: str
    stamps: tuple[tuple[int, ...], ...]
    sha256: str
    stated: str = ""

    @classmethod
    def of(cls, files: Sequence[Path], name: str, stated: str = "") -> Source:
        """Look at these files."""
        return cls(tuple(files), name, stamps(files), sha256(files), stated)

    def unchanged(self) -> bool:
        """Whether the files are still those whose checksum was taken."""
        return stamps(self.files) == self.stamps

    @property
    def checkpoint(self) -> Path:
        """The file of the weights themselves."""
        return self.files[-1]

    @cached_property
    def published(self) -> list[tuple[str, str]]:
        """(model, tag) of open_clip whose address states this SHA-256, or its first digits."""
        digest = self.sha256 if len(self.files) == 1 else sha256(self.files[-1:])
        return [
            (model, tag)
            for model, tag in open_clip.list_pretrained()
            if (stated := _stated(get_pretrained_url(model, tag))) and digest.startswith(stated)
        ]


@dataclass(frozen=True)
class Offer:
    """One file that a tag stands for: its name in records, its address, its places here in turn.

    stated: what its publisher says of its SHA-256, all of it, its first digits, or ''.
    """

    name: str
    url: str
    places: tuple[Path, ...]
    stated: str

    @property
    def of_hub(self) -> bool:
        """Whether it is a file of the hub's: then its name begins with the repository."""
        return "/" in self.name


def open_clip_name(name: str) -> str:
    """Return open_clip's name of a backbone; a bundled one's config is made known to it first.

    Raises ValueError for a name that is no architecture, with the near ones.
    """
    if own := BUNDLED.get(name):
        if own not in open_clip.list_models():
            open_clip.add_model_config(bundled(POCKET_MODEL / f"{own}.json"))
        return own
    if name.startswith(("hf-hub:", "local-dir:")):
        place = name.partition(":")[2]
        known = [
            f"name: {model}, pretrained: {tag}"
            for model, tag in open_clip.list_pretrained()
            if place and get_pretrained_cfg(model, tag)["hf_hub"].rstrip("/") == place
        ]
        raise ValueError(
            f"backbone {name!r} names a place, and the suite's counts and costs need open_clip's "
            f"name of the architecture: say {known[0] if known else 'name: (such as ViT-B-16)'}"
            + ("" if known else " and pretrained: the checkpoint's path or its folder")
        )
    known = [*BUNDLED, *(m for m in open_clip.list_models() if m not in BUNDLED.values())]
    if name not in known:
        raise UnknownName("backbone", name, known)
    return name


def offers(spec: BackboneSpec) -> list[Offer]:
    """The files that a tag stands for, the hub's before an address's. Unknown: ValueError."""
    config = _config(spec)
    own = [user_path(os.environ[FOLDER])] if os.environ.get(FOLDER) else []
    found = []
    if config.get("hf_hub"):
        repository, name = os.path.split(config["hf_hub"])
        safe = HF_SAFE_WEIGHTS_NAME if not name else f"{os.path.splitext(name)[0]}.safetensors"
        for file in dict.fromkeys((safe, name or HF_WEIGHTS_NAME)):
            cached = try_to_load_from_cache(repository, file, cache_dir=constants.HF_HUB_CACHE)
            cached = [Path(cached)] if isinstance(cached, str) else []
            places = (*(folder / repository / file for folder in own), *cached)
            url = f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"
            found.append(Offer(f"{repository}/{file}", url, places, _blob(cached)))
    if config.get("url"):
        url, file = config["url"], os.path.basename(config["url"])
        places = tuple(folder / file for folder in (*own, *_openai_cache()))
        found.append(Offer(file, url, places, _stated(url)))
    return found


def _config(spec: BackboneSpec) -> dict[str, Any]:
    """open_clip's facts of the spec's tag."""
    model, tag = open_clip_name(spec.name), spec.pretrained
    config = get_pretrained_cfg(model, tag)
    if not config:
        known = near(tag, [*list_pretrained_tags_by_model(model), "none"])
        beside = (
            f" (for the file or folder {tag} of this folder write ./{tag})"
            if Path(tag).exists()
            else ""
        )
        raise ValueError(
            f"unknown weights {tag!r} of backbone {spec.name}; "
            f"{known}, or a checkpoint's path{beside}"
        )
    return config


def hub_and_address(offered: Sequence[Offer]) -> list[Offer]:
    """The hub's preferred file, and the one of a plain address."""
    return [offered[0], *(offer for offer in offered[1:] if not offer.of_hub)]


def _openai_cache() -> list[Path]:
    try:
        return [user_path(OPENAI_CACHE)]
    except ValueError:  # a user without a home folder
        return []


def _stated(url: str) -> str:
    """The SHA-256 that an address holds: OpenAI's whole, of open_clip's releases eight digits."""
    parts = urlsplit(url).path.split("/")
    if len(parts) > 1 and re.fullmatch(r"[0-9a-f]{64}", parts[-2]):
        return parts[-2]
    digits = re.search(r"-([0-9a-f]{8})\.\w+$", parts[-1]) if "mlfoundations" in parts else None
    return digits[1] if digits else ""


def _blob(cached: Sequence[Path]) -> str:
    """The hub names a large file in its cache by its SHA-256."""
    name = cached[0].resolve().name if cached else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""
