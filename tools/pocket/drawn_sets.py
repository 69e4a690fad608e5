"""Target sets of drawings: chess pieces, game sprites, pictograms and clip art."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from image_set import ImageSet
from PIL import Image, ImageDraw, ImageFont
from render import IconPack, assign, fit, rasterise, similar_clusters
from sources import npm, source

# ------------------------------------------------------------------------------------------- chess
PIECES = "king queen rook bishop knight pawn".split()
NOT_A_CHESS_SET = ("ttf", "makruk", "sittuyin")  # the fonts' folder, and other games
ALSO_DRAWN = ("leipzig", "magnetic", "maya", "merida", "cheq")  # fonts that are SVG sets as well
LIGHT, DARK, DARK_UNDER_FONTS = (225, 205, 170), (170, 130, 90), (200, 160, 115)  # squares


def chess(cache: Path) -> ImageSet:
    """Chess pieces of PyChess's drawn sets and chess fonts; a set never crosses splits."""
    folder = cache / "deb/pychess/usr/share/pychess/pieces"
    classes, licence = [f"chess {piece}" for piece in PIECES], "GPL-3.0-or-later"
    credit = "PyChess piece sets, the PyChess team; source: the Debian source package pychess"
    notes = "A separate work under GPL-3; its source is the Debian source package."
    sources = [source("debian:pychess", licence, credit)]
    images = ImageSet("chess", "Chess", "target", classes, licence, sources, notes)
    sets = sorted(d.name for d in folder.iterdir() if d.is_dir() and d.name not in NOT_A_CHESS_SET)
    images.random.shuffle(sets)
    for k, name in enumerate(sets):
        split = "train" if k < 8 else "val" if k < 9 else "test"
        for colour in "wb":
            for c, letter in enumerate("kqrbnp"):
                path = folder / name / f"{colour}{letter}.svg"
                if path.exists():
                    piece = rasterise(path.read_text(errors="replace"))
                    drawing = fit(piece, background=LIGHT if (k + c) % 2 else DARK)
                    images.add(drawing, classes[c], split, name, "pychess")
    fonts = sorted(f for f in (folder / "ttf").glob("*.ttf") if f.stem not in ALSO_DRAWN)
    images.random.shuffle(fonts)
    for k, path in enumerate(fonts):
        split, font = (
            "train" if k < 4 else "val" if k < 5 else "test",
            ImageFont.truetype(str(path), 90),
        )
        for letters in ("kqrbnp", "lwtvmo"):  # white, black
            for c, letter in enumerate(letters):
                left, top, right, bottom = font.getbbox(letter)
                if right - left < 10 or bottom - top < 10:
                    continue
                piece = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
                ImageDraw.Draw(piece).text(
                    (30 - left, 30 - top), letter, font=font, fill=(0, 0, 0, 255)
                )
                drawing = fit(piece, background=LIGHT if (k + c) % 2 else DARK_UNDER_FONTS)
                images.add(drawing, classes[c], split, f"ttf {path.stem}", "pychess")
    return images


# -------------------------------------------------------------------------------------------
# sprites
SPRITES = {  # class: folder of units
    "drake": "drakes",
    "dwarf": "dwarves",
    "elf": "elves-wood",
    "goblin": "goblins",
    "human soldier": "human-loyalists",
    "human mage": "human-magi",
    "human outlaw": "human-outlaws",
    "desert human": "dunefolk",
    "mermaid": "merfolk",
    "naga": "nagas",
    "orc": "orcs",
    "lizard man": "saurians",
    "troll": "trolls",
    "skeleton": "undead-skeletal",
    "dark sorcerer": "undead-necromancers",
    "ghost or undead": "undead",
    "beast": "monsters",
}
NOT_A_UNIT = re.compile(
    r"(halo|projectile|death|die|fire-|breath|explo|blast|missile|blob|wail|lightning)"
)
UNIT_FRACTIONS = {"train": 0.45, "test": 0.47, "val": 0.08}


def sprites(cache: Path) -> ImageSet:
    """Unit sprites of Battle for Wesnoth; a unit never crosses splits."""
    folder = cache / "deb/wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images/units"
    licence = "GPL-2.0-or-later"
    credit = "Battle for Wesnoth units, the Wesnoth project; "
    credit += "source: the Debian source package wesnoth-1.16"
    notes = "A separate work under GPL-2 or later; its source is the Debian source package."
    sources = [source("debian:wesnoth-1.16-data", licence, credit)]
    images = ImageSet("sprites", "Sprites", "target", list(SPRITES), licence, sources, notes)
    quota = {"train": 34, "val": 8, "test": 30}
    for name, sub in SPRITES.items():
        units = defaultdict(list)
        for path in sorted((folder / sub).rglob("*.png")):
            if NOT_A_UNIT.search(path.stem):
                continue
            picture = Image.open(path).convert("RGBA")
            if 60 <= picture.width <= 110 and (np.asarray(picture)[..., 3] > 128).sum() >= 450:
                units[
                    f"{path.parent.relative_to(folder)}/{re.split(r'[-+[]', path.stem)[0]}"
                ].append(path)
        split = assign([[unit] for unit in sorted(units)], UNIT_FRACTIONS, images.random)
        taken = dict.fromkeys(quota, 0)
        for turn in range(16):  # one frame a unit and turn, spread over its animation
            for unit in sorted(units):
                frames, part = units[unit], split[unit]
                if taken[part] < quota[part] and turn < len(frames):
                    frame = frames[(turn * max(1, len(frames) // 16)) % len(frames)]
                    images.add(fit(Image.open(frame)), name, part, unit, "wesnoth")
                    taken[part] += 1
    return images


# -------------------------------------------------------------------------------------------
# pictograms
PICTOGRAMS = (
    "battery bell book bookmark building calendar camera car chat check clipboard clock cloud code "
    "dice filter folder hand heart home image link lock mail map music pause pencil phone play "
    "plus receipt search shield stop volume wifi"
).split()
PICTOGRAM_PACKS = {
    "train": ("lucide", "bi", "ri", "carbon", "hugeicons", "iconoir"),
    "test": ("tabler", "ion", "heroicons", "uil", "fa6-solid", "mynaui"),
}
VARIANT = re.compile(r"-(outline|sharp|fill|filled|line|solid|\d\d|bold|duotone|glyph)$")


def pictograms_of(word: str, icons: list[str]) -> list[str]:
    """The icons whose first word is `word`, plain ones first."""
    plain = {icon: VARIANT.sub("", icon) for icon in icons}
    matching = [icon for icon in icons if plain[icon].split("-")[0] == word]
    return sorted(matching, key=lambda icon: (len(plain[icon]), icon))


def pictograms(cache: Path) -> ImageSet:
    """User-interface icons named by their first word; train and test come from different packs."""
    packs = {name: IconPack(cache, name) for names in PICTOGRAM_PACKS.values() for name in names}
    licence = "MIT AND ISC AND Apache-2.0 AND CC-BY-4.0"
    images = ImageSet("pictograms", "Pictograms", "target", PICTOGRAMS, licence, npm(cache, *packs))
    quota = {"train": 36, "test": 15}
    for word in PICTOGRAMS:
        for part, names in PICTOGRAM_PACKS.items():
            queues, taken = {name: pictograms_of(word, packs[name].names) for name in names}, 0
            while taken < quota[part] and any(queues.values()):
                for name in names:  # in turn, so that no pack dominates a class
                    if taken == quota[part] or not queues[name]:
                        continue
                    icon = queues[name].pop(0)
                    image = fit(packs[name].image(icon))
                    if image is not None and image.std() >= 4:
                        split = "val" if part == "train" and taken >= 30 else part
                        images.add(image, word, split, f"{name}:{icon}", name)
                        taken += 1
    return images


# ------------------------------------------------------------------------------------------- clip
# art
CLIPART = {  # class: folders of drawings
    "bird": "animals/birds",
    "insect": "animals/bugs",
    "mammal": "animals/mammals",
    "fruit": "food/fruit",
    "dessert": "food/desserts",
    "beverage": "food/beverages food/beverages/alcohol",
    "meat or egg": "food/meats_and_eggs",
    "vehicle": "transportation/vehicles",
    "boat": "transportation/boating",
    "road sign": "transportation/roadsigns",
    "house": "buildings/homes",
    "flower": "plants/flowers",
    "smiley face": "people/smilies",
    "stick figure": "people/stickmen",
    "musical instrument": "recreation/music",
    "sport": "recreation/sports",
    "tool": "tools",
    "arrow": "shapes/arrows",
    "computer hardware": "computer/hardware",
    "weather": "signs_and_symbols/weather",
    "jigsaw piece": "shapes/jigsaw",
    "map symbol": "signs_and_symbols/map_symbols",
    "playing card": "recreation/games/cards/white recreation/games/cards/simple "
    "recreation/games/cards/ornamental recreation/games/cards/bordered",
}
OPENCLIPART = "deb/openclipart-svg/usr/share/openclipart/svg"
LARGEST_DRAWING = 3_000_000  # bytes of SVG


def clipart(cache: Path) -> ImageSet:
    """Drawings of openclipart by folder; look-alikes go to the same split."""
    folder, licence = cache / OPENCLIPART, "public-domain"
    sources = [source("debian:openclipart-svg", licence, "Open Clip Art Library contributors")]
    images = ImageSet("clipart", "Clip art", "target", list(CLIPART), licence, sources)
    for name, folders in CLIPART.items():
        paths = [path for sub in folders.split() for path in sorted((folder / sub).glob("*.svg"))]
        paths = [path for path in paths if path.stat().st_size <= LARGEST_DRAWING]
        drawn = {
            str(p.relative_to(folder)): fit(rasterise(p.read_text(errors="replace"))) for p in paths
        }
        drawn = {
            key: image for key, image in drawn.items() if image is not None and image.std() >= 4
        }
        groups = similar_clusters(list(drawn.values()), list(drawn), 0.94)
        split = assign(groups, {"train": 0.5, "test": 0.5}, images.random)
        for key, image in drawn.items():
            images.add(image, name, split[key], key, "openclipart")
    images.cap({"train": 32, "test": 25})
    return images
