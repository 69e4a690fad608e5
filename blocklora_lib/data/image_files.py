"""Images in files: read when a view is needed, and viewed exactly as the backbone does.

`ahead` reads the next batch while the last one is in use; all random numbers are drawn in order all
the same.
Evaluation: the backbone's own view of the original pixels by PIL; of CLIP, shorter side to the
resolution by bicubic, centre crop. Training: torchvision's RandomResizedCrop and flip, with boxes
from an explicit generator, as CLIP-LoRA does it. Pixels stay 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..core.devices import moved
from ..core.machine import usable_cpus
from .augment import RATIO, RECIPES
from .decoding import Loading, fault, image_size, read
from .kept_views import KeptViews
from .views import Box, View

# decoded few-shot images that stay in memory: 16 shots of a hundred classes fit
KEPT_BYTES = 4 * 2**30
MOST_WORKERS = 8

T = TypeVar("T")
_END: Any = object()


@dataclass
class _Held:
    """What a sequence of files and its parts hold: decoded images and sizes, and kept views."""

    images: dict[Path, Image.Image] = field(default_factory=dict)
    room: int = KEPT_BYTES  # bytes that may still be kept
    lock: Lock = field(default_factory=Lock)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    views: KeptViews | None = None


class ImageFiles:
    """A sequence of image files in place of a tensor of pixels: len, [indices], split, device.

    `at` sets the view and the device (a number: CLIP's view at that size); loading: see
    `data.decoding`. What `training_views` has decoded is kept, up to KEPT_BYTES, for this sequence
    and all parts of it, and so are evaluation views, once `keep_views` says where.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        view: View | int = 224,
        device: torch.device | str = "cpu",
        loading: Loading = "as_clip",
        held: _Held | None = None,
    ) -> None:
        self.paths, self.device, self.loading = list(paths), torch.device(device), loading
        self.view = View.square(view) if isinstance(view, int) else view
        self._held = held or _Held()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> ImageFiles:
        return self._with([self.paths[i] for i in index.tolist()])

    def split(self, n: int) -> Iterator[ImageFiles]:
        """Yield parts of n images; the last may be shorter."""
        for start in range(0, len(self), n):
            yield self._with(self.paths[start : start + n])

    def at(self, view: View | int, device: torch.device | str) -> ImageFiles:
        """The same files, viewed so, on a device."""
        return ImageFiles(self.paths, view, device, self.loading, self._held)

    @property
    def keeps_views(self) -> bool:
        """Whether evaluation views are taken from where they are kept."""
        return self._held.views is not None

    def keep_views(self, views: KeptViews) -> None:
        """Take evaluation views of this sequence, and of all its parts, from these from now on."""
        self._held.views = views

    def evaluation_views(self) -> Tensor:
        """Return what the backbone sees of each image: (N, 3, height, width), uint8."""
        views = self._held.views
        kept = views.read(self.view, self.paths, self._evaluated) if views else None
        return moved(self._evaluated(self.paths) if kept is None else kept, self.device)

    def training_views(self, how: str, generator: torch.Generator) -> Tensor:
        """Return a random view of each image: (N, 3, height, width), uint8. how: of `augment`."""
        if how == "none":
            fit = self._views(lambda path: self._fit(path, self._read_and_keep(path)), self.paths)
            return moved(fit, self.device)
        new = [path for path in dict.fromkeys(self.paths) if path not in self._held.sizes]
        found = self._workers(lambda path: image_size(path, self.loading), new)
        self._held.sizes.update(zip(new, found, strict=True))
        smallest, mirror = RECIPES[how]
        plans = []  # all random numbers are drawn here, in order; threads only follow
        for path in self.paths:
            width, height = self._held.sizes[path]
            box = crop_box(height, width, smallest, generator)
            plans.append((path, box, mirror and torch.rand(1, generator=generator).item() < 0.5))
        return moved(self._views(lambda plan: self._crop(*plan), plans), self.device)

    def faults(self, thorough: bool) -> list[str]:
        """Why each file cannot be read, '' for one that can.

        thorough: decode every file; otherwise read all heads, and decode files that do not end as a
        JPEG or PNG must: this finds those that are missing, cut short, no images, too large or of
        unsure values.
        """
        return self._workers(lambda path: fault(path, thorough), self.paths)

    def _with(self, paths: list[Path]) -> ImageFiles:
        return ImageFiles(paths, self.view, self.device, self.loading, self._held)

    def _evaluated(self, paths: Sequence[Path]) -> Tensor:
        """Views of these files; one that was decoded for training is not decoded again."""
        kept, loading = self._held.images, self.loading
        return self._views(lambda p: self._fit(p, kept.get(p) or read(p, loading)), paths)

    def _fit(self, path: Path, image: Image.Image) -> Tensor:
        try:
            return pil_to_tensor(self.view.fit(image))
        except ValueError as error:  # such as a side of no pixel at all
            raise ValueError(
                f"image {path} of {image.width} x {image.height} pixels cannot be viewed at "
                f"{self.view.size[1]} x {self.view.size[0]} ({error}); crop it or leave it out"
            ) from None

    def _crop(self, path: Path, box: Box, mirror: bool) -> Tensor:
        return pil_to_tensor(self.view.crop(self._read_and_keep(path), box, mirror))

    def _read_and_keep(self, path: Path) -> Image.Image:
        held = self._held
        image = held.images.get(path) or read(path, self.loading)
        size = 3 * image.width * image.height
        with held.lock:  # workers keep side by side
            if path not in held.images and size <= held.room:
                held.images[path] = image
                held.room -= size
        return image

    def _views(self, make: Callable[[Any], Tensor], plans: Sequence[Any]) -> Tensor:
        """make(plan) of each, in order: (N, 3, height, width), uint8.

        The workers put them side by side; one thread that stacked them took a fifth of the time.
        """
        views = torch.empty(len(plans), 3, *self.view.size, dtype=torch.uint8)
        rows = views.numpy()  # a worker is in no inference mode, whatever its caller is in

        def put(i: int) -> None:
            rows[i] = make(plans[i]).numpy()

        self._workers(put, range(len(plans)))
        return views

    @staticmethod
    def _workers(look: Callable[[Any], T], plans: Sequence[Any]) -> list[T]:
        """look(plan) of each, in order; PIL decodes and resizes without holding the interpreter."""
        with ThreadPoolExecutor(min(MOST_WORKERS, usable_cpus())) as pool:
            return list(pool.map(look, plans))


def ahead(made: Iterable[T]) -> Generator[T]:
    """Yield the same values in the same order; a second thread makes one while one is in use.

    An error in making a value is raised where that value is asked for. Close the iterator to leave
    early.
    """
    source = iter(made)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, _END)
        while (value := coming.result()) is not _END:
            coming = pool.submit(next, source, _END)
            yield value


def crop_box(height: int, width: int, smallest: float, generator: torch.Generator) -> Box:
    """Draw a box as torchvision's RandomResizedCrop.get_params does, bit for bit, from a generator.

    Area uniform in (smallest, 1), log aspect ratio uniform; after ten boxes that stick out the
    middle is taken, as near to the allowed ratios as the image permits.
    """
    low, high = torch.log(torch.tensor(RATIO))
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(smallest, 1.0, generator=generator).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator)
            left = torch.randint(0, width - w + 1, (1,), generator=generator)
            return int(top), int(left), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w
