"""Augmentation of whole batches by one affine resampling; boxes and flips come from a generator."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.devices import moved

# Least share of the image's area that a crop keeps, and whether to mirror.
# CLIP-LoRA: RandomResizedCrop(scale=(0.08, 1)) and a horizontal flip.
# Tip-Adapter and its kin: RandomResizedCrop(scale=(0.5, 1)) and a horizontal flip.
RECIPES = {"clip_lora": (0.08, True), "light": (0.6, False), "half": (0.5, True)}
RATIO = (3 / 4, 4 / 3)


class Files(Protocol):
    """Images in files (see image_files), which are cropped as they are read."""

    def training_views(self, how: str, generator: torch.Generator) -> Tensor:
        """Return a random view of each image, uint8."""


def augment(
    images: Tensor | Files,
    how: Literal["clip_lora", "light", "half", "none"],
    generator: torch.Generator,
) -> Tensor:
    """Return randomly cropped (and mirrored) views. images: (B, 3, H, W), 0..255 -> same, float32.

    Files are cropped from their original pixels, exactly as CLIP-LoRA's code does it.
    """
    if not isinstance(images, Tensor):
        return images.training_views(how, generator).float()
    x = images.float()
    if how == "none":
        return x
    smallest, mirror = RECIPES[how]
    width, height, left, top = random_boxes(len(x), smallest, generator)
    # A crop box maps the output's coordinates, -1..1, to the input's: scale to its size, move to
    # its centre.
    flip = (
        torch.randint(2, (len(x),), generator=generator) * 2 - 1 if mirror else torch.ones(len(x))
    )
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(moved(theta, x.device), list(x.shape), align_corners=False)
    # bilinear: crops are enlarged, never reduced, and on small images bicubic costs more than it
    # gives
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_boxes(
    n: int, smallest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw n boxes as torchvision's RandomResizedCrop: width, height, left, top, shares of a side.

    Area uniform in (smallest, 1), log aspect ratio uniform; a box that sticks out is drawn again,
    ten times at most, after which the whole image is taken.
    """
    log_ratio = (math.log(RATIO[0]), math.log(RATIO[1]))
    area = torch.empty(10, n).uniform_(smallest, 1.0, generator=generator)
    ratio = torch.empty(10, n).uniform_(*log_ratio, generator=generator).exp()
    widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    first = fits.int().argmax(0)
    pick = (first, torch.arange(n))
    whole = ~fits.any(0)
    width, height = widths[pick].masked_fill(whole, 1.0), heights[pick].masked_fill(whole, 1.0)
    place = torch.rand(2, n, generator=generator)
    return width, height, place[0] * (1 - width), place[1] * (1 - height)
