"""Images in files: read when a view is needed, and viewed exactly as the backbone does.

`ahead` reads the next batch while the last one is in use; all random numbers are drawn in order all
the same.
Evaluation: the backbone's own view of the original pixels by PIL; of CLIP, shorter side to the
resolution by bicubic, centre crop. Training: torchvision's RandomResizedCrop and flip, with boxes
from an explicit generator, as CLIP-LoRA does it. Pixels stay 0..255.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from .augment import RATIO, RECIPES
from .decoding import Loading, fault, image_size, read
from .views import Box, View

# decoded few-shot images that stay in memory: 16 shots of a hundred classes fit
KEPT_BYTES = 4 * 2**30
WORKERS = min(8, os.cpu_count() or 1)  # PIL decodes and resizes without holding the interpreter

T = TypeVar("T")
_END: Any = object()


class ImageFiles:
    """A sequence of image files in place of a tensor of pixels: len, [indices], split, device.

    `at` sets the view and the device (a number: CLIP's view at that size); loading: see
    `data.decoding`. What `training_views` has decoded is kept, up to KEPT_BYTES, for this sequence
    and all parts of it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        view: View | int = 224,
        device: torch.device | str = "cpu",
        kept: dict[Path, Image.Image] | None = None,
        loading: Loading = "as_clip",
    ) -> None:
        self.paths, self.device, self.loading = list(paths), torch.device(device), loading
        self.view = View.square(view) if isinstance(view, int) else view
        self._kept: dict[Path, Image.Image] = {} if kept is None else kept

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
        return ImageFiles(self.paths, view, device, self._kept, self.loading)

    def evaluation_views(self) -> Tensor:
        """Return what the backbone sees of each image: (N, 3, height, width), uint8."""
        return self._stack(lambda path: self._fit(path, read(path, self.loading)), self.paths)

    def training_views(self, how: str, generator: torch.Generator) -> Tensor:
        """Return a random view of each image: (N, 3, height, width), uint8. how: of `augment`."""
        if how == "none":
            return self._stack(lambda path: self._fit(path, self._read_and_keep(path)), self.paths)
        smallest, mirror = RECIPES[how]
        plans = []  # all random numbers are drawn here, in order; threads only follow
        for path in self.paths:
            width, height = self._size(path)
            box = crop_box(height, width, smallest, generator)
            plans.append((path, box, mirror and torch.rand(1, generator=generator).item() < 0.5))
        return self._stack(lambda plan: self._crop(*plan), plans)

    def faults(self, thorough: bool) -> list[str]:
        """Why each file cannot be read, '' for one that can.

        thorough: decode every file; otherwise read all heads, and decode files that do not end as a
        JPEG or PNG must: this finds those that are missing, cut short, no images, too large or of
        unsure values.
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(lambda path: fault(path, thorough), self.paths))

    def _with(self, paths: list[Path]) -> ImageFiles:
        return ImageFiles(paths, self.view, self.device, self._kept, self.loading)

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

    def _size(self, path: Path) -> tuple[int, int]:
        if path in self._kept:
            return self._kept[path].size
        return image_size(path, self.loading)

    def _read_and_keep(self, path: Path) -> Image.Image:
        image = self._kept.get(path) or read(path, self.loading)
        if (
            path not in self._kept
            and 3 * image.width * image.height * (len(self._kept) + 1) <= KEPT_BYTES
        ):
            # as if all were as large as this one: a bound on memory, not an account
            self._kept[path] = image
        return image

    def _stack(self, look: Callable[[Any], Tensor], plans: Sequence[Any]) -> Tensor:
        with ThreadPoolExecutor(WORKERS) as pool:
            return torch.stack(list(pool.map(look, plans))).to(self.device)


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
