"""Build the pocket profile's image sets: pocket/images/*.parquet and their manifests.

    python tools/pocket/fetch.py CACHE
    python tools/pocket/build_images.py CACHE [NAME ...]

Same packages, same bytes: every random choice has a seed of the set's own name, every listing is sorted. Maintainers
run this with the versions of requirements.txt beside it; users never need to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from licences import write_licences
from target_sets import CC_BY, CC_BY_SA, SAMPLE_PHOTOGRAPHS, TARGETS, backdrop, npm, sample_photograph

import emoji
from image_set import ImageSet
from render import SIZE, IconPack

ROOT = Path(__file__).resolve().parents[2]


def emoji_set(cache: Path, name: str, title: str, vendors: tuple[str, ...], splits: tuple[str, ...], licence: str, notes: str) -> ImageSet:
    """The drawings by `vendors` of the code points in `splits`."""
    variant = None if "train" in splits else "emoji_source"
    images = ImageSet(name, title, "variant" if variant else "source", list(emoji.CLASSES), licence, npm(cache, *vendors), notes, variant)
    code_points = emoji.split_code_points(cache)
    for vendor in vendors:
        for code, drawing in emoji.drawings(cache, vendor).items():
            class_name, split = code_points.get(code, (None, None))
            if split in splits:
                images.add(drawing, class_name, split, code, vendor)
    return images


def emoji_source(cache: Path) -> ImageSet:
    """The source set (ImageNet's role): 39 classes of emoji by three vendors; a code point never crosses splits."""
    images = emoji_set(cache, "emoji_source", "Emoji", emoji.SOURCE, ("train", "val", "test"), "Apache-2.0 AND MIT AND CC-BY-4.0",
                       "Classes are Unicode subgroups, some merged. Train, val and test share no code point.")
    images.cap({"test": 16})
    return images


def emoji_v2(cache: Path) -> ImageSet:
    """ImageNetV2's role: the same test code points in an older edition by another studio."""
    return emoji_set(cache, "emoji_v2", "Emoji-V2", (emoji.V2,), ("test",), "Apache-2.0", "Noto's first edition: other drawings of the test code points.")


def emoji_sketch(cache: Path) -> ImageSet:
    """ImageNet-Sketch's role: black and white drawings."""
    return emoji_set(cache, "emoji_sketch", "Emoji-Sketch", (emoji.SKETCH,), ("test",), "MIT", "Black and white drawings of the test code points.")


def emoji_r(cache: Path) -> ImageSet:
    """ImageNet-R's role: outlined renditions."""
    return emoji_set(cache, "emoji_r", "Emoji-R", (emoji.RENDITION,), ("test",), CC_BY_SA,
                     "Outlined renditions of the test code points. A separate work under CC-BY-SA-4.0.")


def emoji_a(cache: Path) -> ImageSet:
    """ImageNet-A's role: test drawings turned, scaled, dimmed and laid over cluttered photographs."""
    images = ImageSet("emoji_a", "Emoji-A", "variant", list(emoji.CLASSES), CC_BY, [*npm(cache, "twemoji"), *SAMPLE_PHOTOGRAPHS],
                      "Drawings of the test code points over photographs: hard on purpose.", "emoji_source")
    pack, r = IconPack(cache, "twemoji"), images.rng
    names = emoji.icon_names(cache, pack)
    backgrounds = [sample_photograph(name) for name in ("coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")]
    for code, (class_name, split) in sorted(emoji.split_code_points(cache).items()):
        if split != "test" or (drawing := pack.image(names[code])) is None:
            continue
        scene = backdrop(backgrounds, r, 90, 260)
        drawing, side = drawing.rotate(r.uniform(-35, 35), Image.BICUBIC, expand=True), int(128 * r.uniform(0.6, 0.92))
        drawing = drawing.resize((side, side), Image.LANCZOS)
        if r.rand() < 0.5:
            drawing = drawing.transpose(Image.FLIP_LEFT_RIGHT)
        scene.alpha_composite(drawing, (r.randint(0, 128 - side + 1), r.randint(0, 128 - side + 1)))
        scene = ImageEnhance.Brightness(scene.convert("RGB")).enhance(r.uniform(0.55, 1.3))
        images.add(np.asarray(scene.resize((SIZE, SIZE), Image.LANCZOS)), class_name, "test", code, "twemoji")
    return images


BUILDERS = {builder.__name__: builder for builder in (emoji_source, emoji_v2, emoji_sketch, emoji_a, emoji_r, *TARGETS)}


def main(cache: Path, names: list[str]) -> None:
    """Build the named sets, or all."""
    images, manifests = ROOT / "pocket" / "images", ROOT / "data_manifests"
    for folder in (images, manifests):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names or BUILDERS:
        BUILDERS[name](cache).write(images, manifests, ROOT)
    write_licences(cache, manifests, ROOT / "pocket")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
