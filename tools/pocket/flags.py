"""The target set of flags, and how a flag is drawn in wind and weather."""

from __future__ import annotations

import math
from pathlib import Path

import emoji
import numpy as np
from image_set import ImageSet
from PIL import Image, ImageEnhance, ImageFilter
from render import SIZE, IconPack
from sources import CC_BY_SA, SAMPLE_PHOTOGRAPHS, npm, sample_photograph, source

COUNTRIES = (
    "fr it de be nl ie ro ru ua pl at hu bg se no dk fi is gr ch tr jp cn kr in pk il sa br ar mx "
    "ca us gb au nz za ng ke eg"
).split()
FLAG_SOURCES = {
    "train": ("circle-flags", "flag-4x3", "flagpack", "openmoji"),
    "val": ("cif",),
    "test": ("twemoji", "iso", "flag-1x1"),
}
FLAG_COPIES = {"train": 6, "val": 4, "test": 5}
BACKGROUNDS = ("rocket.jpg", "china.jpg", "coffee.png", "flower.jpg", "grass.png")


def flag_code(country: str) -> str:
    """'fr' -> the two regional indicators of its emoji, '1f1eb-1f1f7'."""
    return "-".join(f"{0x1F1E6 + ord(letter) - 97:x}" for letter in country)


def flag_drawing(cache: Path, package: str, country: str) -> Image.Image | None:
    """The flat drawing of a country's flag in one package."""
    if package == "iso":
        path = cache / f"deb/iso-flags-png-320x240/usr/share/iso-flags-png-320x240/{country}.png"
        return Image.open(path).convert("RGBA") if path.exists() else None
    if package in ("twemoji", "openmoji"):
        pack = IconPack(cache, package)
        return pack.image(pack.characters[flag_code(country)])
    if package == "circle-flags" and country in ("ie", "ar", "gb"):
        return None  # aliases and languages there
    if package.startswith("flag-"):  # one pack, two shapes: fr-4x3, fr-1x1
        pack, name = IconPack(cache, "flag"), f"{country}-{package.removeprefix('flag-')}"
    else:
        pack, name = IconPack(cache, package), country
    return pack.image(name) if name in pack.data["icons"] else None


def wave(flag: Image.Image, r: np.random.RandomState) -> Image.Image:
    """A flag as cloth in the wind, lighter and darker along its waves; 96 x 84 RGBA."""
    flag = flag.crop(flag.getchannel("A").getbbox()).resize((96, 72), Image.BILINEAR)
    cloth, waved = np.asarray(flag).astype(np.float32), np.zeros((84, 96, 4), np.float32)
    phase, height, waves = r.uniform(0, 2 * math.pi), r.uniform(1, 4), r.uniform(0.8, 1.8)
    for x in range(96):
        angle = 2 * math.pi * waves * x / 96 + phase
        top = round(6 + height * math.sin(angle))
        waved[top : top + 72, x] = cloth[:, x] * [*[1 + 0.16 * math.cos(angle)] * 3, 1]
    return Image.fromarray(waved.clip(0, 255).astype(np.uint8), "RGBA")


def outdoors(
    flag: Image.Image, backgrounds: list[Image.Image], r: np.random.RandomState
) -> np.ndarray:
    """A flag in wind and weather: waved, turned, on a photograph, dimmed, blurred, noisy; (64, 64,
    3).
    """
    flag = wave(flag, r).rotate(r.uniform(-18, 18), Image.BICUBIC, expand=True)
    scene = backdrop(backgrounds, r, 80, 200)
    scale = r.uniform(0.75, 1.25)
    flag = flag.resize((int(flag.width * scale), int(flag.height * scale)), Image.BILINEAR)
    place = [int(np.clip((128 - side) // 2 + r.randint(-14, 15), 0, 127)) for side in flag.size]
    scene.alpha_composite(flag, tuple(place))
    scene = ImageEnhance.Brightness(scene.convert("RGB")).enhance(r.uniform(0.5, 1.25))
    scene = ImageEnhance.Color(scene).enhance(r.uniform(0.55, 1.2))
    scene = scene.filter(ImageFilter.GaussianBlur(r.uniform(0, 1.2)))
    pixels = np.asarray(scene.resize((SIZE, SIZE), Image.BOX)) + r.normal(0, 5, (SIZE, SIZE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def backdrop(
    backgrounds: list[Image.Image], r: np.random.RandomState, low: int, high: int
) -> Image.Image:
    """A random square of a random photograph, 128 x 128 RGBA."""
    picture, width = backgrounds[r.randint(len(backgrounds))], r.randint(low, high)
    x, y = r.randint(0, picture.width - width), r.randint(0, picture.height - width)
    return (
        picture.crop((x, y, x + width, y + width))
        .resize((128, 128), Image.BILINEAR)
        .convert("RGBA")
    )


def flags(cache: Path) -> ImageSet:
    """Flags of forty countries; train, val and test come from different artists."""
    table = emoji.unicode_table(cache)
    names = [table.label(flag_code(country)) for country in COUNTRIES]
    sources = [
        *npm(cache, "circle-flags", "flagpack", "flag", "cif", "twemoji", "openmoji"),
        source("debian:iso-flags-png-320x240", "public-domain", "ISO country flags"),
        *SAMPLE_PHOTOGRAPHS,
    ]
    notes = "Drawings waved, turned and laid over photographs; "
    notes += "the share-alike part is openmoji's (train)."
    images = ImageSet("flags", "Flags", "target", names, CC_BY_SA, sources, notes)
    backgrounds = [sample_photograph(name) for name in BACKGROUNDS]
    for country, name in zip(COUNTRIES, names, strict=True):
        for split, packages in FLAG_SOURCES.items():
            for package in packages:
                drawing = flag_drawing(cache, package, country)
                for _ in range(FLAG_COPIES[split] if drawing is not None else 0):
                    picture = outdoors(drawing, backgrounds, images.rng)
                    images.add(picture, name, split, f"{country}:{package}", package)
    return images
