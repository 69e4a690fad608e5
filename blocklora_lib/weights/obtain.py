"""Find the files of a tag's weights, or fetch them, or say where to put them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from open_clip.pretrained import hf_hub_download

from ..data.obtain.fetch import fetch, known_hash
from .files import FOLDER, is_path, weight_files
from .spec import BackboneSpec
from .tags import OPENAI_CACHE, Offer, Source, hub_and_address, offers, open_clip_name


def locate(spec: BackboneSpec) -> Source | None:
    """Return the files of the spec's weights on this machine; None for random ones, or none here.

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
                    f"{path} has SHA-256 {source.sha256}, "
                    f"its publisher says {offer.stated}: damaged"
                )
            elif spec.checksum and source.sha256 != spec.checksum:
                wrong.append(f"{path} has SHA-256 {source.sha256}, the spec says {spec.checksum}")
            else:
                return source
    if wrong:
        raise ValueError(
            f"weights {spec.pretrained!r} of {spec.name}: {'; '.join(wrong)}; "
            "delete it and fetch it again, or correct backbone.checksum"
        )
    return None


def obtain(spec: BackboneSpec) -> Source | None:
    """As `locate`, and fetch a tag's file where the network may be used; OSError says how else."""
    source = locate(spec)
    if source is not None or spec.pretrained == "none":
        return source
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{missing(spec)}; HF_HUB_OFFLINE=1 forbids to fetch it here: {ways(spec)}"
        )
    return download(spec)


def download(spec: BackboneSpec, say: Callable[[str], None] = lambda text: None) -> Source:
    """Fetch a tag's file as open_clip does from the hub, or from its address; return it checked."""
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
        f"{missing(spec)} and could not be fetched ({'; '.join(reasons)}): "
        f"try again, or {by_hand(spec)}"
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
    offer = hub_and_address(offers(spec))[-1]
    place = f"${FOLDER}" if offer.of_hub else OPENAI_CACHE
    return (
        f"save {offer.url} as {place}/{offer.name}, "
        "or anywhere and set backbone.pretrained to its path"
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


def _short(error: BaseException) -> str:
    """What is at the bottom of an error, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}.."
