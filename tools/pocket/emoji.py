"""Emoji drawings by vendor and code point, and which vendor plays which role."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from render import IconPack, assign, clusters, descriptors, fit, normalise_code_point

# Every vendor has one role, so that no evaluated drawing is ever seen in pre-training.
SOURCE = ("noto", "fluent-emoji", "twemoji")
V2, SKETCH, RENDITION = "noto-v1", "fluent-emoji-high-contrast", "openmoji"
PRETRAINING = (
    "emojione",
    "emojione-v1",
    "fxemoji",
    "fluent-emoji-flat",
    "emojione-monotone",
    "streamline-emojis",
)
VENDORS = (*SOURCE, V2, SKETCH, RENDITION, *PRETRAINING)

# Class name -> Unicode subgroups (emojibase-data), some merged.
CLASSES: dict[str, tuple[str, ...]] = {
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "insect or bug": ("animal-bug",),
    "flower": ("plant-flower",),
    "plant or leaf": ("plant-other",),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "prepared meal": ("food-prepared",),
    "asian food": ("food-asian",),
    "sweet dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building",),
    "landscape": ("place-geographic", "place-other"),
    "land vehicle": ("transport-ground",),
    "aircraft": ("transport-air",),
    "weather or sky": ("sky-weather",),
    "celebration": ("event",),
    "sports equipment": ("sport",),
    "game": ("game",),
    "clothing": ("clothing",),
    "musical instrument": ("musical-instrument",),
    "computer device": ("computer",),
    "camera or light": ("light-video",),
    "book or paper": ("book-paper",),
    "mail": ("mail",),
    "office supply": ("office",),
    "tool": ("tool",),
    "household item": ("household",),
    "smiling face": ("face-smiling", "face-affection", "face-tongue"),
    "worried face": ("face-concerned",),
    "sick or sleepy face": ("face-unwell", "face-sleepy"),
    "body part": ("body-parts",),
    "warning sign": ("warning", "transport-sign"),
    "arrow": ("arrow",),
    "zodiac sign": ("zodiac",),
    "playback button": ("av-symbol",),
    "athlete": ("person-sport",),
    "money": ("money",),
}


def slug(text: str) -> str:
    """A name without case, blanks and punctuation."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("&", "and"))


class Unicode:
    """emojibase-data: code point -> label, tags, subgroup."""

    def __init__(self, cache: Path):
        folder = cache / "npm" / "emojibase-data" / "package"
        subgroups = json.loads((folder / "meta" / "groups.json").read_text())["subgroups"]
        entries = json.loads((folder / "en" / "data.json").read_text())
        self.entries = {normalise_code_point(entry["hexcode"]): entry for entry in entries}
        grouped = {code: entry for code, entry in self.entries.items() if "subgroup" in entry}
        self.subgroup = {code: subgroups[str(entry["subgroup"])] for code, entry in grouped.items()}
        class_of = {group: name for name, groups in CLASSES.items() for group in groups}
        self.class_name = {
            c: class_of[group] for c, group in self.subgroup.items() if group in class_of
        }
        self.by_slug: dict[str, str] = {}
        for code, entry in self.entries.items():
            self.by_slug.setdefault(slug(entry["label"]), code)
        for code in self.entries:  # older packs name their icons by the character's formal name
            if "-" not in code and (name := unicodedata.name(chr(int(code, 16)), "")):
                self.by_slug.setdefault(slug(name), code)

    def label(self, code: str) -> str:
        """The emoji's English name; 'flag: X' reads 'flag of X'."""
        return self.entries[code]["label"].lower().replace("flag: ", "flag of ")


@lru_cache(maxsize=1)
def unicode_table(cache: Path) -> Unicode:
    """The one Unicode table of a cache folder."""
    return Unicode(cache)


def icon_names(cache: Path, pack: IconPack) -> dict[str, str]:
    """Code point -> icon name, from the pack's own table or by the emoji's name; skin tones are
    left out.
    """
    table = unicode_table(cache)
    names = {code: name for code, name in pack.characters.items() if code in table.entries}
    for name in [*pack.data["icons"], *pack.data.get("aliases", {})]:
        code = table.by_slug.get(slug(name))
        if code is None and name.startswith("flag-for-"):
            code = table.by_slug.get(slug("flag " + name.removeprefix("flag-for-")))
        if code is not None:
            names.setdefault(code, name)
    return names


@cache
def drawings(cache: Path, vendor: str) -> dict[str, np.ndarray]:
    """Code point -> (64, 64, 3) drawing of `vendor`, sorted by code point."""
    pack = IconPack(cache, vendor)
    images = {code: fit(pack.image(name)) for code, name in sorted(icon_names(cache, pack).items())}
    return {code: image for code, image in images.items() if image is not None}


LARGE_CLASS = {"test": 0.46, "train": 0.44, "val": 0.10}
SMALL_CLASS = {
    "train": 0.56,
    "test": 0.44,
}  # sixteen training drawings first, the rest for the test


def split_code_points(cache: Path) -> dict[str, tuple[str, str]]:
    """Code point -> (class name, split). Code points that one vendor draws nearly alike share a
    split.
    """
    table, rng = unicode_table(cache), random.Random(7)
    common = set(drawings(cache, "noto")) & set(drawings(cache, "twemoji"))
    result = {}
    for name in CLASSES:
        codes = [code for code, class_name in table.class_name.items() if class_name == name]
        codes = [code for code in codes if code in common and "-200d-" not in code]
        pairs = []
        for vendor in SOURCE:
            drawn = [code for code in codes if code in drawings(cache, vendor)]
            features = descriptors([drawings(cache, vendor)[code] for code in drawn])
            rows, columns = np.where(np.triu(features @ features.T, 1) > 0.96)
            pairs += [(drawn[a], drawn[b]) for a, b in zip(rows, columns, strict=True)]
        fractions = LARGE_CLASS if len(codes) >= 18 else SMALL_CLASS
        splits = assign(clusters(codes, pairs), fractions, rng)
        result |= {code: (name, split) for code, split in splits.items()}
    return result
