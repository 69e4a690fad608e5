"""From the drawings of packages to 64 x 64 pixels: icon packs, SVG rasterising, near-duplicate
measures.
"""

from __future__ import annotations

import io
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64  # pixels, the resolution of every pocket image


def normalise_code_point(code: str) -> str:
    """'2764-FE0F' -> '2764': emoji vendors differ in whether they write the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


class IconPack:
    """An @iconify-json package: icons by name, their categories and the pack's licence."""

    def __init__(self, cache: Path, name: str):
        self.name = name
        self.folder = cache / "npm" / name / "package"
        self.data = json.loads((self.folder / "icons.json").read_text())

    @property
    def names(self) -> list[str]:
        """The visible icons, sorted."""
        return sorted(name for name, icon in self.data["icons"].items() if not icon.get("hidden"))

    @cached_property
    def info(self) -> dict:
        """The package's info.json: author and licence as the pack states them."""
        return json.loads((self.folder / "info.json").read_text())

    @cached_property
    def categories(self) -> dict[str, str]:
        """Icon name -> category in lower case, where the pack has categories."""
        path = self.folder / "metadata.json"
        groups = (json.loads(path.read_text()) if path.exists() else {}).get("categories") or {}
        return {name: category.lower() for category, names in groups.items() for name in names}

    @cached_property
    def characters(self) -> dict[str, str]:
        """Code point -> icon name, where the pack maps its icons to Unicode."""
        path = self.folder / "chars.json"
        table = json.loads(path.read_text()) if path.exists() else {}
        return {normalise_code_point(code): name for code, name in table.items()}

    def svg(self, name: str, colour: str = "#000") -> str | None:
        """The icon as an SVG document; None for an alias that turns or mirrors another icon."""
        icon = self.data["icons"].get(name)
        if icon is None:
            alias = self.data.get("aliases", {})[name]
            icon = self.data["icons"].get(alias["parent"])
            if icon is None or any(key in alias for key in ("rotate", "hFlip", "vFlip")):
                return None
        defaults = dict(left=0, top=0, width=16, height=16)
        left, top, width, height = (icon.get(k, self.data.get(k, d)) for k, d in defaults.items())
        body = icon["body"].replace("currentColor", colour)
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        box = f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
        return f'<svg {spaces} {box} color="{colour}">{body}</svg>'

    def image(self, name: str) -> Image.Image | None:
        """The icon as an RGBA image, or None where it cannot be drawn."""
        return rasterise(self.svg(name))


def rasterise(svg: str | None, width: int = 128) -> Image.Image | None:
    """SVG -> RGBA image `width` pixels wide; None where resvg refuses the drawing."""
    if svg is None:
        return None
    try:  # dpi=96: without it a third of openclipart's files have no size
        png = resvg_py.svg_to_bytes(svg_string=svg, width=width, dpi=96.0, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (ValueError, RuntimeError, OSError):
        return None


def fit(
    image: Image.Image | None, pad: int = 3, background: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray | None:
    """Crop to what is drawn and centre it on `background`, `pad` pixels around it.

    Returns (64, 64, 3) uint8, or None if nothing is drawn.
    """
    if image is None:
        return None
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = (SIZE - 2 * pad) / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    method = Image.BOX if scale < 0.25 else Image.LANCZOS if scale < 1 else Image.BICUBIC
    canvas = Image.new("RGBA", (SIZE, SIZE), (*background, 255))
    canvas.alpha_composite(image.resize(size, method), tuple((SIZE - side) // 2 for side in size))
    return np.asarray(canvas.convert("RGB"))


def encode(image: np.ndarray) -> bytes:
    """WebP bytes of a (64, 64, 3) image: lossy at quality 78 or lossless, whichever is smaller."""
    candidates = []
    for options in (dict(quality=78), dict(lossless=True, quality=60)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", method=4, **options)
        candidates.append(buffer.getvalue())
    return min(candidates, key=len)


def decode(data: bytes) -> np.ndarray:
    """WebP bytes -> (64, 64, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def descriptors(
    images: list[np.ndarray] | np.ndarray, cells: int = 16, grey: bool = True
) -> np.ndarray:
    """Unit rows of centred `cells` x `cells` thumbnails: their cosine is the near-duplicate
    measure.
    """
    pixels = np.stack(images).astype(np.float32)
    if grey:
        pixels = pixels.mean(-1, keepdims=True)
    step = SIZE // cells
    thumbs = (
        pixels.reshape(len(pixels), cells, step, cells, step, -1)
        .mean((2, 4))
        .reshape(len(pixels), -1)
    )
    thumbs -= thumbs.mean(1, keepdims=True)
    return thumbs / (np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-6)


def clusters(keys: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Connected components of `keys` under `pairs`, in order of first appearance."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for a, b in pairs:
        parent[root(a)] = root(b)
    groups: dict[str, list[str]] = {}
    for key in parent:
        groups.setdefault(root(key), []).append(key)
    return list(groups.values())


def similar_clusters(
    images: list[np.ndarray], keys: list[str], threshold: float
) -> list[list[str]]:
    """Groups of keys whose images look alike (cosine above `threshold`): a group must not cross
    splits.
    """
    features = descriptors(images)
    rows, columns = np.where(np.triu(features @ features.T, 1) > threshold)
    pairs = [(keys[a], keys[b]) for a, b in zip(rows, columns, strict=True) if keys[a] != keys[b]]
    return clusters(keys, pairs)


def assign(groups: list[list[str]], fractions: dict[str, float], rng) -> dict[str, str]:
    """Give whole groups to splits, largest first, each to the split that is furthest below its
    fraction.
    """
    need = {split: share * sum(map(len, groups)) for split, share in fractions.items()}
    shuffled = list(groups)
    rng.shuffle(shuffled)
    result = {}
    for group in sorted(shuffled, key=len, reverse=True):
        split = max(need, key=need.get)
        need[split] -= len(group)
        result.update(dict.fromkeys(group, split))
    return result
