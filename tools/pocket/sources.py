"""Where pictures come from: the source entries of manifests, and the sample photographs of PyPI
packages.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from PIL import Image
from render import IconPack

MIT, CC0, CC_BY, CC_BY_SA = "MIT", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"


def npm(cache: Path, *names: str) -> list[dict]:
    """Source entries of icon packs, with author and licence as the packs state them."""
    entries = []
    for name in names:
        info = IconPack(cache, name).info
        author = info["author"]
        entries.append(
            dict(
                package=f"npm:@iconify-json/{name}",
                licence=info["license"]["spdx"],
                attribution=f"{info['name']} by {author['name']}, resized to 64 x 64",
                url=author.get("url"),
            )
        )
    return entries


def source(package: str, licence: str, attribution: str) -> dict:
    """A source entry of a Debian or PyPI package."""
    return dict(package=package, licence=licence, attribution=attribution)


SAMPLE_PHOTOGRAPHS = [
    source(
        "pypi:scikit-image",
        CC0,
        "scikit-image sample images (CC0, public domain or no known restriction), patches",
    ),
    source(
        "pypi:scikit-learn",
        "CC-BY-2.0",
        "china.jpg by danielbuechele and flower.jpg by vultilion (Flickr), crops",
    ),
]


def sample_photograph(name: str) -> Image.Image:
    """A sample photograph shipped by scikit-image or scikit-learn."""
    folder = "sklearn.datasets.images" if name in ("china.jpg", "flower.jpg") else "skimage.data"
    return Image.open(files(folder.split(".")[0]).joinpath(*folder.split(".")[1:], name)).convert(
        "RGB"
    )
