"""The feature cache: a frozen image tower reads each list of images once, whoever asks for it.

Kept are the tower's pooled rows, before its projection, in memory (what was asked for last) and in
files: by what the images hold, the backbone, its view, and all else that moves a bit of them. A
list is always encoded whole and in the same batches, so that a row never depends on what was asked
for before; nor do the seconds that a method takes: with what is kept stands how long it took, and
`owed` holds it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.backbone import Backbone
from ..clip.towers import encode_images, image_projection
from ..core.devices import numerics
from ..core.files import holds_none, package_version
from ..core.locks import locked
from ..core.seeding import generator
from ..data.augment import augment
from ..data.image_files import ImageFiles
from .feature_files import Encoded, read_features, write_features
from .texts import TextBackbone

BATCH = 100  # images a forward pass; larger ones fall out of a CPU's cache
HELD = 2**31  # bytes of features in memory: images of fifteen sets, or draws of the last runs
RECIPE: Literal["half"] = "half"  # of random views
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "pillow")


@dataclass(frozen=True)
class Source:
    """Images to be encoded.

    images: returns pixels (N, 3, H, W) or files. digest: of what they hold and how they are read;
    '' if they are not to be kept. index: the rows that are meant, None for all. unchanged: raises
    where the images are no more what the digest says. count: how many images there are, 0 where
    that is not known.
    """

    images: Callable[[], Tensor | ImageFiles]
    digest: str = ""
    index: Tensor | None = None
    unchanged: Callable[[], None] = lambda: None
    count: int = 0

    def rows(self, views: int) -> int:
        """How many are encoded, of so many random views of each; 0 where that is not known."""
        meant = self.count if self.index is None or not views else len(self.index)
        return meant * max(views, 1)


@dataclass(frozen=True)
class Features:
    """Images as a frozen tower gives them, float32: pooled (N, p), and rows (N, d), projected."""

    pooled: Tensor
    rows: Tensor

    @cached_property
    def unit(self) -> Tensor:
        """Rows of length one: (N, d)."""
        return F.normalize(self.rows, dim=-1)

    @property
    def nbytes(self) -> int:
        """Bytes that they take, `unit` among them."""
        return self.pooled.nbytes + 2 * self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Features:
        return Features(self.pooled[index], self.rows[index])

    def split(self, n: int) -> Iterator[Features]:
        """Yield parts of n images; the last may be shorter."""
        return (self[i : i + n] for i in range(0, len(self), n))


class FeatureCache:
    """Features of images and rows of prompts, each encoded once.

    folder: where they are kept for other processes; None: in memory alone. code: what else names
    them, such as a digest of the code. encoded: how many images went through a tower here.
    owed: seconds to be added to those that passed, so that whoever asked has taken what it takes to
    encode what was asked for, and nothing else: less is owed for a list that was encoded whole.
    around: within which it encodes and reads what is kept, for who measures all else.
    """

    def __init__(self, folder: Path | None = None, code: str = "") -> None:
        self.folder, self.code, self.encoded, self.owed = folder, code, 0, 0.0
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._features: dict[str, tuple[Features, float]] = {}
        self._prompts: dict[tuple[str, bytes], Encoded] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def features(
        self, backbone: Backbone, source: Source, views: int = 0, seed: int = 0
    ) -> Features:
        """Features of the images that are meant, or of so many random views of each.

        Of views, row v N + i is view v of image i: a crop of at least half of the image's area,
        mirrored half of the time, which the seed determines.
        """
        start = time.perf_counter()
        facts = _facts(backbone, self.code) | {"images": source.digest}
        if views:
            which = None if source.index is None else source.index.tolist()
            facts |= {"views": [RECIPE, views, seed], "index": which}
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        known = self._features.get(name) if source.digest else None
        if known is None:
            make = partial(self._encode, backbone, source, views, seed)
            projection = _projection(backbone)
            shape = source.rows(views), 0 if projection is None else len(projection)
            with self.around():
                made = self._kept(name, make, source, shape)
                known = _projected(backbone, made.rows.to(backbone.device)), made.seconds
        if source.digest:
            self._hold(name, known)
        whole, seconds = known
        found = whole
        if source.index is not None and not views:
            found = whole[source.index.to(backbone.device)]
        # what it takes, whether or not it was kept
        backbone.passes["image"] += len(found)
        self.owed += seconds * len(found) / max(len(whole), 1) - (time.perf_counter() - start)
        return found

    @torch.no_grad()
    def encode(self, backbone: Backbone, pixels: Tensor) -> Features:
        """Features of normalised images (B, 3, H, W) that no one keeps."""
        backbone.passes["image"] += len(pixels)
        self.encoded += len(pixels)
        return _projected(backbone, _pooled(backbone, pixels))

    @torch.inference_mode(False)
    @torch.no_grad()
    def prompts(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        """Rows of prompts, as long as the tower gives them: (C, d). tokens: (C, context length)."""
        start = time.perf_counter()
        name = json.dumps(_facts(backbone)), tokens.cpu().numpy().tobytes()
        if name not in self._prompts:
            backbone.passes["text"] -= len(tokens)
            with self.around():
                self._prompts[name] = _encoded(backbone, lambda: backbone.embed_prompts(tokens))
        backbone.passes["text"] += len(tokens)
        self.owed += self._prompts[name].seconds - (time.perf_counter() - start)
        return self._prompts[name].rows

    def _hold(self, name: str, known: tuple[Features, float]) -> None:
        """Keep features in memory as those asked for last; the first ones go where that is full."""
        self._features.pop(name, None)
        self._features[name] = known
        while len(self._features) > 1 and sum(f.nbytes for f, _ in self._features.values()) > HELD:
            del self._features[next(iter(self._features))]

    def _kept(
        self, name: str, make: Callable[[], Encoded], source: Source, shape: tuple[int, int]
    ) -> Encoded:
        """Pooled rows from the file, which one process makes while others wait for it."""
        if self.folder is None or not source.digest:
            return make()
        path = self.folder / f"{name}.safetensors"
        with suppress(ValueError, OSError):  # it is told below
            return read_features(path, name, shape)
        with ExitStack() as held:
            with suppress(OSError):  # it is told by what writes
                path.parent.mkdir(parents=True, exist_ok=True)
                tell = partial(print, file=sys.stderr, flush=True)
                held.enter_context(locked(path.with_name(f".{name}.lock"), tell))
            try:
                return read_features(path, name, shape)
            except ValueError as error:
                warnings.warn(f"{error}; its images are encoded again", stacklevel=4)
            except OSError as error:
                if not holds_none(error):
                    warnings.warn(f"{error}; its images are encoded again", stacklevel=4)
            made = make()
            source.unchanged()  # else rows of other images would stand under this name
            try:
                write_features(path, name, made)
            except OSError as error:  # nothing depends on it
                warnings.warn(f"{error}; other processes encode these images again", stacklevel=4)
            return made

    def _encode(self, backbone: Backbone, source: Source, views: int, seed: int) -> Encoded:
        return _encoded(backbone, lambda: self._rows(backbone, source, views, seed))

    def _rows(self, backbone: Backbone, source: Source, views: int, seed: int) -> Tensor:
        images, randomness = source.images(), generator(seed, "views")
        if views and source.index is not None:
            images = images[source.index]
        rows = []
        for _ in range(max(views, 1)):
            for part in images.split(BATCH):
                sized = backbone.resize(part)
                pixels = (
                    backbone.normalise(augment(sized, RECIPE, randomness))
                    if views
                    else backbone.preprocess(sized)
                )
                rows.append(_pooled(backbone, pixels))
                self.encoded += len(part)
        return torch.cat(rows)


def _encoded(backbone: Backbone, make: Callable[[], Tensor]) -> Encoded:
    start, rows = time.perf_counter(), make()
    if backbone.device.type == "cuda":  # which is behind
        torch.cuda.synchronize(backbone.device)
    return Encoded(rows, time.perf_counter() - start)


def _pooled(backbone: Backbone, pixels: Tensor) -> Tensor:
    if isinstance(backbone, TextBackbone):
        return backbone.embed_prompts(pixels)
    pixels = pixels.to(backbone.device, backbone.dtype)
    return encode_images(backbone.model, pixels, projected=False).float()


def _projection(backbone: Backbone) -> Tensor | None:
    """What pooled rows are multiplied by, (p, d); None where they stand as they are."""
    return None if isinstance(backbone, TextBackbone) else image_projection(backbone.model)


def _projected(backbone: Backbone, pooled: Tensor) -> Features:
    projection = _projection(backbone)
    rows = pooled if projection is None else pooled @ projection.detach().float()
    return Features(pooled, rows)


def _facts(backbone: Backbone, code: str = "") -> dict[str, Any]:
    """All but images that determines features, bit for bit."""
    strict, device = torch.are_deterministic_algorithms_enabled(), backbone.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "backbone": backbone.spec.model_dump(mode="json"),
        "weights": backbone.weights.get("tensors", ""),
        "view": str(backbone.view),
        "mean, std": [
            backbone.image_mean.flatten().tolist(),
            backbone.image_std.flatten().tolist(),
        ],
        "device": [device.type, gpu, torch.backends.cpu.get_cpu_capability()],
        "numerics": numerics(device, strict, backbone.spec.tf32),
        "threads": torch.get_num_threads(),
        "versions": [package_version(package) for package in _PACKAGES],
        "code": code,
    }
