"""The target set of letters: capital letters in the faces of Debian's font packages."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from image_set import ImageSet
from PIL import Image, ImageDraw, ImageFont
from render import SIZE
from sources import source

NOT_LATIN = re.compile(
    r"(symbol|icon|emoji|dingbat|math|ornament|d050000l|fallback|bullets|initials|jsmath|mathjax)",
    re.I,
)
LETTER_PACKAGES = (
    "adf-accanthis adf-baskervald adf-gillius adf-mekanus adf-oldania adf-romande adf-tribun "
    "adf-universalis adf-verana aenigma atarismall averia-gwf averia-sans-gwf beteckna blankenburg "
    "cantarell century-catalogue cherrybomb courier-prime crosextra-caladea dejavu-core dosis "
    "dustin ecolier-court essays1743 f500 fanwood freefont-ttf georgewilliams gfs-artemisia "
    "gfs-didot goudybookletter hack havana inconsolata jetbrains-mono joscelyn junction jura "
    "kristi league-spartan levien-museum lindenhill lobster manchufont monofur open-sans "
    "quattrocento roboto-slab rufscript sil-charis sjfonts sora spleen staypuft stix tomsontalks "
    "tuffy ubuntu-title vollkorn"
).split()


def font_files(cache: Path, package: str, most: int = 4) -> list[Path]:
    """One file for each of at most `most` families of a Debian font package, the plainest first."""
    families = defaultdict(list)
    for path in sorted((cache / "deb" / package).rglob("*.[ot]tf")):
        if not NOT_LATIN.search(path.name):
            families[re.split(r"[-_ ]|(?<=[a-z])(?=[A-Z])", path.stem)[0].lower()[:9]].append(path)
    return [
        min(files, key=lambda p: (len(p.name), p.name)) for _, files in sorted(families.items())
    ][:most]


def latin(path: Path) -> bool:
    """Whether a font file really draws A and B."""
    try:
        font = ImageFont.truetype(str(path), 40)
        return bytes(font.getmask("A")) != bytes(font.getmask("B"))
    except OSError:
        return False


def glyph(path: Path, character: str, r: np.random.RandomState) -> np.ndarray | None:
    """A character of a font, slightly turned and scaled, in random colours of clear contrast; (64,
    64, 3).
    """
    font = ImageFont.truetype(str(path), 46)
    left, top, right, bottom = font.getbbox(character)
    drawn = font.getmask(character)
    if right - left < 4 or bottom - top < 6 or drawn.getbbox() is None:
        return None  # nothing drawn
    if bytes(drawn) == bytes(font.getmask("\uffff")):
        return None  # the box that stands for a missing character
    mask, corner = Image.new("L", (96, 96), 0), (48 - (left + right) / 2, 48 - (top + bottom) / 2)
    ImageDraw.Draw(mask).text(corner, character, font=font, fill=255)
    mask, side = mask.rotate(r.uniform(-12, 12), Image.BICUBIC), r.randint(62, 92)
    offset = (96 - side) // 2
    mask = mask.crop((offset, offset, offset + side, offset + side)).resize(
        (SIZE, SIZE), Image.LANCZOS
    )
    ink, paper = r.randint(0, 256, 3), r.randint(0, 256, 3)
    while abs(ink.mean() - paper.mean()) <= 70:
        ink, paper = r.randint(0, 256, 3), r.randint(0, 256, 3)
    alpha = np.asarray(mask).astype(np.float32)[..., None] / 255
    return (alpha * ink + (1 - alpha) * paper).clip(0, 255).astype(np.uint8)


def letters(cache: Path) -> ImageSet:
    """Capital letters in the faces of Debian's fonts; a package's faces never cross splits."""
    classes, licence = [f"letter {chr(65 + c)}" for c in range(26)], "LicenseRef-free-fonts"
    credit = "Glyph images of the Debian font packages " + ", ".join(LETTER_PACKAGES)
    notes = (
        "Images of single glyphs; no font file is redistributed. The 'group' column names package "
        "and face; each font's free licence (OFL, GPL with font exception, Apache, public domain "
        "...) is in licences/debian."
    )
    sources = [source("debian:fonts-*", licence, credit)]
    images = ImageSet("letters", "Letters", "target", classes, licence, sources, notes)
    packages = list(LETTER_PACKAGES)
    images.random.shuffle(packages)
    for k, package in enumerate(packages):
        split = "train" if k % 2 else "test"
        for path in filter(latin, font_files(cache, f"fonts-{package}")):
            for c, name in enumerate(images.classes):
                drawing = glyph(path, chr(65 + c), images.rng)
                images.add(drawing, name, split, f"{package}:{path.stem}", "fonts")
    images.cap({"train": 32, "test": 20})
    return images
