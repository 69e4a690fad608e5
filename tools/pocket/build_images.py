"""Build the pocket profile's image sets: pocket/images/*.parquet and their manifests.

    python tools/pocket/fetch.py CACHE
    python tools/pocket/build_images.py CACHE [NAME ...]

Same packages, same bytes: every random choice has a seed of the set's own name, every listing is
sorted. Maintainers run this with the versions of requirements.txt beside it; users never need to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import emoji
import numpy as np
from drawn_sets import chess, clipart, pictograms, sprites
from flags import backdrop, flags
from image_set import ImageSet
from letters import letters
from licences import write_licences
from photo_sets import fashion, mnist, photos, textures
from PIL import Image, ImageEnhance
from render import SIZE, IconPack
from sources import CC_BY, CC_BY_SA, MIT, SAMPLE_PHOTOGRAPHS, npm, sample_photograph

ROOT = Path(__file__).resolve().parents[2]
BACKGROUNDS = ("coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")


def emoji_set(
    cache: Path,
    name: str,
    title: str,
    vendors: tuple[str, ...],
    splits: tuple[str, ...],
    licence: str,
    notes: str,
) -> ImageSet:
    """The drawings by `vendors` of the code points in `splits`."""
    role, variant_of = ("source", None) if "train" in splits else ("variant", "emoji_source")
    classes, sources = list(emoji.CLASSES), npm(cache, *vendors)
    images = ImageSet(name, title, role, classes, licence, sources, notes, variant_of)
    code_points = emoji.split_code_points(cache)
    for vendor in vendors:
        for code, drawing in emoji.drawings(cache, vendor).items():
            class_name, split = code_points.get(code, (None, None))
            if split in splits:
                images.add(drawing, class_name, split, code, vendor)
    return images


def emoji_source(cache: Path) -> ImageSet:
    """ImageNet's role, the source set: 39 classes by three vendors; a code point never crosses
    splits.
    """
    splits, licence = ("train", "val", "test"), "Apache-2.0 AND MIT AND CC-BY-4.0"
    notes = "Classes are Unicode subgroups, some merged. Train, val and test share no code point."
    images = emoji_set(cache, "emoji_source", "Emoji", emoji.SOURCE, splits, licence, notes)
    images.cap({"test": 16})
    return images


def emoji_v2(cache: Path) -> ImageSet:
    """ImageNetV2's role: the same test code points in an older edition by another studio."""
    notes = "Noto's first edition: other drawings of the test code points."
    return emoji_set(cache, "emoji_v2", "Emoji-V2", (emoji.V2,), ("test",), "Apache-2.0", notes)


def emoji_sketch(cache: Path) -> ImageSet:
    """ImageNet-Sketch's role: black and white drawings."""
    notes = "Black and white drawings of the test code points."
    return emoji_set(cache, "emoji_sketch", "Emoji-Sketch", (emoji.SKETCH,), ("test",), MIT, notes)


def emoji_r(cache: Path) -> ImageSet:
    """ImageNet-R's role: outlined renditions."""
    notes = "Outlined renditions of the test code points. A separate work under CC-BY-SA-4.0."
    return emoji_set(cache, "emoji_r", "Emoji-R", (emoji.RENDITION,), ("test",), CC_BY_SA, notes)


def emoji_a(cache: Path) -> ImageSet:
    """ImageNet-A's role: test drawings turned, scaled, dimmed, laid over cluttered photographs."""
    classes, sources = list(emoji.CLASSES), [*npm(cache, "twemoji"), *SAMPLE_PHOTOGRAPHS]
    notes = "Drawings of the test code points over photographs: hard on purpose."
    images = ImageSet(
        "emoji_a", "Emoji-A", "variant", classes, CC_BY, sources, notes, "emoji_source"
    )
    pack, r = IconPack(cache, "twemoji"), images.rng
    names = emoji.icon_names(cache, pack)
    backgrounds = [sample_photograph(name) for name in BACKGROUNDS]
    for code, (class_name, split) in sorted(emoji.split_code_points(cache).items()):
        if split != "test" or (drawing := pack.image(names[code])) is None:
            continue
        scene = backdrop(backgrounds, r, 90, 260)
        drawing = drawing.rotate(r.uniform(-35, 35), Image.BICUBIC, expand=True)
        side = int(128 * r.uniform(0.6, 0.92))
        drawing = drawing.resize((side, side), Image.LANCZOS)
        if r.rand() < 0.5:
            drawing = drawing.transpose(Image.FLIP_LEFT_RIGHT)
        scene.alpha_composite(drawing, (r.randint(0, 128 - side + 1), r.randint(0, 128 - side + 1)))
        scene = ImageEnhance.Brightness(scene.convert("RGB")).enhance(r.uniform(0.55, 1.3))
        images.add(
            np.asarray(scene.resize((SIZE, SIZE), Image.LANCZOS)),
            class_name,
            "test",
            code,
            "twemoji",
        )
    return images


EMOJI = (emoji_source, emoji_v2, emoji_sketch, emoji_a, emoji_r)
TARGETS = (fashion, mnist, flags, letters, pictograms, clipart, photos, textures, chess, sprites)
BUILDERS = {builder.__name__: builder for builder in (*EMOJI, *TARGETS)}


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
