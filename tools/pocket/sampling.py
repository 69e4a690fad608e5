"""Which training pairs are drawn how often, and how their pictures are changed each time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# How often a source is drawn: coloured drawings say more than the many monochrome icons.
WEIGHTS = {
    "emojione": 4,
    "emojione-v1": 4,
    "fxemoji": 4,
    "fluent-emoji-flat": 4,
    "streamline-emojis": 4,
    "emojione-monotone": 2.5,
    "openclipart": 2,
    "streamline-color": 2,
    "streamline-plump-color": 2,
    "streamline-ultimate-color": 2,
    "flat-color-icons": 2,
    "streamline-kameleon-color": 2,
    "streamline-stickies-color": 2,
    "fluent-color": 2,
    "flag": 2,
    "flagpack": 2,
    "circle-flags": 2,
}
CHARACTERS_SHARE = 0.10  # letters and digits


def sampling_weights(sources: list[str]) -> Tensor:
    """Probability of each pair."""
    weights = torch.tensor([WEIGHTS.get(source, 1.0) for source in sources])
    fonts = torch.tensor([source == "fonts" for source in sources])
    weights[fonts] = CHARACTERS_SHARE / (1 - CHARACTERS_SHARE) * weights[~fonts].sum() / fonts.sum()
    return weights / weights.sum()


def augment(pixels: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
    """Affine change, coloured or noisy paper, grey, inversion, tint. (B, 3, 64, 64) in 0..1."""
    size = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator) * (high - low) + low

    def chance(p: float) -> Tensor:
        return (torch.rand(size, 1, 1, 1, generator=generator) < p).float()

    paper = uniform(0, 1, 3, 1, 1).expand(-1, -1, 64, 64)
    coarse = F.interpolate(uniform(0, 1, 3, 6, 6), (64, 64), mode="bilinear")
    paper = torch.where(chance(0.5) > 0, paper, coarse)
    white = (pixels.amin(1, keepdim=True) > 0.97).float() * chance(0.1)
    pixels = pixels * (1 - white) + paper * white
    scale, angle = torch.exp(uniform(-0.25, 0.2)), uniform(-0.1, 0.1)
    mirror = torch.where((torch.rand(size, generator=generator) < 0.5) & flip, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first = torch.stack([mirror * cos, -sin, uniform(-0.15, 0.15)], 1)
    second = torch.stack([mirror * sin, cos, uniform(-0.15, 0.15)], 1)
    theta = torch.stack([first, second], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    grey = chance(0.05)
    pixels = pixels * (1 - grey) + pixels.mean(1, keepdim=True) * grey
    pixels = torch.where(chance(0.03) > 0, 1 - pixels, pixels)
    return pixels * (1 - chance(0.1) * uniform(0, 0.5, 3, 1, 1))
