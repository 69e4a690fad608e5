"""Weights that open_clip knows by a tag: which files, where they are looked for, how they are fetched."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import (
    get_pretrained_cfg,
    get_pretrained_url,
    hf_hub_download,
    list_pretrained_tags_by_model,
)

from .data.fetch import fetch, known_hash
from .files import user_path
from .paths import POCKET_MODEL
from .plain_data import read_json
from .specs import BackboneSpec
from .strict import UnknownName, near
from .weights import CONFIG, POCKET, is_path, sha256, stamps, weight_files

FOLDER = "BLOCKLORA_WEIGHTS"  # a folder of one's own for files that were fetched by hand
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")  # the size is the model's
OPENAI_CACHE = "~/.cache/clip"  # where OpenAI's code, and open_clip's for addresses, keep downloads


@dataclass(frozen=True)
class Source:
    """The files of a backbone's weights, the checkpoint last.

    name: what a record calls the checkpoint, without this machine's folders.  sha256: of all files, which
    were as `stamps` says before they were read for it.  stated: what the publisher says of it.
    """

    files: tuple[Path, ...]
    name: str
    stamps: tuple
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
        return self.files[-1]

    @cached_property
    def published(self) -> list[tuple[str, str]]:
        """(model, tag) of open_clip whose address states this checkpoint's SHA-256, or its first digits."""
        digest = self.sha256 if len(self.files) == 1 else sha256(self.files[-1:])
        return [
            (model, tag)
            for model, tag in open_clip.list_pretrained()
            if (stated := _stated(get_pretrained_url(model, tag))) and digest.startswith(stated)
        ]


@dataclass(frozen=True)
class Offer:
    """One file that a tag stands for: a record's name for it, its address, its places here in turn, and what
    its publisher says of its SHA-256 (all of it, its first digits, or '' where nothing is known)."""

    name: str
    url: str
    places: tuple[Path, ...]
    stated: str

    @property
    def of_hub(self) -> bool:
        """Whether it is a file of the hub's: then its name begins with the repository."""
        return "/" in self.name


def open_clip_name(name: str) -> str:
    """Return open_clip's name of a backbone; PocketCLIP's config is made known to it first.

    Raises ValueError for a name that is no architecture, with the near ones.
    """
    config = POCKET_MODEL / "pocketclip.json"
    if name == POCKET:
        if config.stem not in open_clip.list_models():
            open_clip.add_model_config(config)
        return config.stem
    if name.startswith(("hf-hub:", "local-dir:")):
        place = name.partition(":")[2]
        known = [
            f"name: {model}, pretrained: {tag}"
            for model, tag in open_clip.list_pretrained()
            if place and get_pretrained_cfg(model, tag)["hf_hub"].rstrip("/") == place
        ]
        raise ValueError(
            f"backbone {name!r} names a place, and the suite's counts and costs need open_clip's name of the "
            f"architecture: say {known[0] if known else 'name: (such as ViT-B-16)'}"
            + ("" if known else " and pretrained: the checkpoint's path or its folder")
        )
    known = [POCKET, *(m for m in open_clip.list_models() if m != config.stem)]
    if name not in known:
        raise UnknownName("backbone", name, known)
    return name


def offers(spec: BackboneSpec) -> list[Offer]:
    """The files that a tag stands for, the hub's before the one of a plain address.  Unknown: ValueError."""
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


def locate(spec: BackboneSpec) -> Source | None:
    """Return the files of the spec's weights on this machine; None for random weights and for a tag of which
    none is here.

    ValueError: a file that is here is not what its publisher, or the spec, says that it is.
    """
    open_clip_name(spec.name)
    if spec.pretrained == "none":
        return None
    if spec.pretrained == "bundled" or is_path(spec.pretrained):
        files = weight_files(spec)
        return Source.of(files, files[-1].name)
    wrong = []
    for offer in offers(spec):
        for path in offer.places:
            if not os.path.isfile(path):  # unlike Path.is_file, False for what may not be looked at
                continue
            source = Source.of([path], offer.name, offer.stated)
            if not source.sha256.startswith(offer.stated):
                wrong.append(
                    f"{path} has SHA-256 {source.sha256}, its publisher says {offer.stated}: damaged"
                )
            elif spec.checksum and source.sha256 != spec.checksum:
                wrong.append(f"{path} has SHA-256 {source.sha256}, the spec says {spec.checksum}")
            else:
                return source
    if wrong:
        raise ValueError(
            f"weights {spec.pretrained!r} of {spec.name}: {'; '.join(wrong)}; delete it and fetch it again, "
            "or correct backbone.checksum"
        )
    return None


def obtain(spec: BackboneSpec) -> Source | None:
    """As `locate`, and fetch a tag's file where the network may be used; OSError says what else to do."""
    source = locate(spec)
    if source is not None or spec.pretrained == "none":
        return source
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{missing(spec)}; HF_HUB_OFFLINE=1 forbids to fetch it here: {ways(spec)}")
    return download(spec)


def download(spec: BackboneSpec, say: Callable[[str], None] = lambda text: None) -> Source:
    """Fetch a tag's file as open_clip does from the hub, or else from its address; return it, checked."""
    reasons, hub_answers = [], True
    for offer in offers(spec):
        if offer.of_hub and not hub_answers:
            continue
        try:
            say(f"fetching {offer.url}")
            _fetch(offer, say)
        except RemoteEntryNotFoundError:  # the hub has no file of this name: the next one
            reasons.append(f"{offer.url}: there is no such file")
            continue
        except Exception as error:  # of a dozen kinds: the hub's, requests', the system's
            reasons.append(f"{offer.url}: {_short(error)}")
            hub_answers = False
            continue
        if source := locate(spec):
            return source
        reasons.append(f"{offer.url}: no file came")
    raise OSError(
        f"{missing(spec)} and could not be fetched ({'; '.join(reasons)}): try again, or {by_hand(spec)}"
    )


def _fetch(offer: Offer, say: Callable[[str], None]) -> None:
    if offer.of_hub:
        repository, file = os.path.split(offer.name)
        with quiet("huggingface_hub"):  # it would say each of its tries
            hf_hub_download(repo_id=repository, filename=file)
    elif offer.places:
        whole = offer.stated if len(offer.stated) == 64 else None
        fetch(offer.url, offer.places[0], known_hash(whole, None), say)


def missing(spec: BackboneSpec) -> str:
    """The beginning of a sentence: which file is not here."""
    return f"the weights {spec.pretrained!r} of backbone {spec.name} are not on this machine"


def ways(spec: BackboneSpec) -> str:
    """The end of a sentence: how a tag's file can come to this machine."""
    return (
        "with a network, say `blocklora weights fetch --profile` with your profile (for which "
        f"HF_HUB_OFFLINE=1 does not count); without one, {by_hand(spec)}"
    )


def by_hand(spec: BackboneSpec) -> str:
    """What to do without a network: the address of a tag's file, and its place."""
    offer = _hub_and_address(offers(spec))[-1]
    place = f"${FOLDER}" if offer.of_hub else OPENAI_CACHE
    return f"save {offer.url} as {place}/{offer.name}, or anywhere and set backbone.pretrained to its path"


def preprocessing(spec: BackboneSpec, source: Source | None, openai: bool = False) -> dict[str, Any]:
    """open_clip's preprocessing settings for these weights: mean, std, interpolation, resize_mode.

    Of a tag they are its own.  A checkpoint's are those of the config beside it, of the published file that
    it is, or those on which all tags of the architecture agree; open_clip itself takes CLIP's for any path.
    openai: the checkpoint has the marks of OpenAI's own files.
    """
    model = open_clip_name(spec.name)
    if source is not None and (told := _beside(source, "preprocess_cfg")):
        return {key: told[key] for key in _PREPROCESSING if key in told}
    tags = [spec.pretrained] if get_pretrained_cfg(model, spec.pretrained) else []
    configs = [get_pretrained_cfg(model, tag) for tag in tags]
    if not configs and source is not None:
        configs = [get_pretrained_cfg(*pair) for pair in source.published]
    if not configs:
        configs = [get_pretrained_cfg(model, tag) for tag in list_pretrained_tags_by_model(model)]
    found = [{key: config.get(key) for key in _PREPROCESSING} for config in configs]
    found = [config for i, config in enumerate(found) if config not in found[:i]]
    if len(found) > 1 and source is not None and not openai:
        raise ValueError(
            f"{source.checkpoint} does not say how its model sees images, and weights of {spec.name} differ "
            f"in that ({' or '.join(map(str, found))}); put an {CONFIG} with preprocess_cfg beside it"
        )
    return found[0] if len(found) == 1 else {}


def refuse_other_activation(spec: BackboneSpec, source: Source, openai: bool) -> None:
    """ValueError if the weights are known to be trained with QuickGELU and the model computes GELU, or the
    other way round: the shapes agree, and every number would be wrong.

    openai: the checkpoint has the marks of OpenAI's own files.
    """
    model = open_clip_name(spec.name)
    config = get_pretrained_cfg(model, spec.pretrained)
    known = [config] if config else [get_pretrained_cfg(*pair) for pair in source.published]
    known += [told] if (told := _beside(source, "model_cfg")) else []
    trained = [bool(config.get("quick_gelu")) for config in known] + ([True] if openai else [])
    quick = bool(open_clip.get_model_config(model).get("quick_gelu"))
    if trained and quick not in trained:
        other = f"{model}-quickgelu" if not quick else model.removesuffix("-quickgelu")
        way = f"use {other}" if other in open_clip.list_models() else "open_clip has no such model by name"
        words = ("QuickGELU", "GELU") if not quick else ("GELU", "QuickGELU")
        says = f" ({source.files[0]} says so)" if told else ""
        raise ValueError(
            f"the weights {source.name} were trained with {words[0]}{says}, and backbone {spec.name} "
            f"computes {words[1]}: every number would be wrong; {way}"
        )


@contextmanager
def network(allowed: bool) -> Iterator[None]:
    """Whether the hub's library may use the network in this block, whatever HF_HUB_OFFLINE says."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet(name: str = "") -> Iterator[None]:
    """Keep a library's warnings, or by the root logger everyone's, to itself."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _config(spec: BackboneSpec) -> dict[str, Any]:
    """open_clip's facts of the spec's tag."""
    model, tag = open_clip_name(spec.name), spec.pretrained
    config = get_pretrained_cfg(model, tag)
    if not config:
        known = near(tag, [*list_pretrained_tags_by_model(model), "none"])
        beside = f" (for the file or folder {tag} of this folder write ./{tag})" if Path(tag).exists() else ""
        raise ValueError(
            f"unknown weights {tag!r} of backbone {spec.name}; {known}, or a checkpoint's path{beside}"
        )
    return config


def _hub_and_address(offered: Sequence[Offer]) -> list[Offer]:
    """The hub's preferred file, and the one of a plain address."""
    return [offered[0], *(offer for offer in offered[1:] if not offer.of_hub)]


def _openai_cache() -> list[Path]:
    try:
        return [user_path(OPENAI_CACHE)]
    except ValueError:  # a user without a home folder
        return []


def _stated(url: str) -> str:
    """The SHA-256 that an address holds: OpenAI's whole, open_clip's releases its first eight digits."""
    parts = urlsplit(url).path.split("/")
    if len(parts) > 1 and re.fullmatch(r"[0-9a-f]{64}", parts[-2]):
        return parts[-2]
    digits = re.search(r"-([0-9a-f]{8})\.\w+$", parts[-1]) if "mlfoundations" in parts else None
    return digits[1] if digits else ""


def _blob(cached: Sequence[Path]) -> str:
    """The hub names a large file in its cache by its SHA-256."""
    name = cached[0].resolve().name if cached else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _beside(source: Source, part: str) -> dict[str, Any]:
    """A part of the config beside the checkpoint; {} without one."""
    config = source.files[0]
    if config.name != CONFIG:
        return {}
    try:
        facts = read_json(config)
    except ValueError as error:
        raise ValueError(f"{error}; restore it, or take it away") from None
    found = facts.get(part, {}) if isinstance(facts, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{config} holds no settings; restore it, or take it away")
    return found


def _short(error: BaseException) -> str:
    """What is at the bottom of an error, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}.."
