"""PocketCLIP's training pairs: drawings with captions, none of them an evaluated image or close to
one.

    python tools/pocket/corpus.py CACHE [JOBS]   writes CACHE/corpus/{images.npy,captions.json}

Captions of a pair: names (what the drawing is called), tags (keywords) and kinds (category words;
where a word of the name is the Unicode name of an emoji, the class of that emoji). The vendors of
the evaluated sets are left out, and so is every pair whose image is close to an evaluated one
(cosine of 32 x 32 thumbnails above 0.97).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import emoji
import numpy as np
import pandas as pd
from drawn_sets import CLIPART, LARGEST_DRAWING, OPENCLIPART
from flags import COUNTRIES, flag_code, outdoors
from letters import LETTER_PACKAGES, font_files, glyph, latin
from photo_sets import DIGITS
from PIL import Image
from render import IconPack, decode, descriptors, fit, rasterise
from scipy import ndimage
from sources import sample_photograph
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]


class Pair(NamedTuple):
    """One training pair: an image and the words that may caption it."""

    image: np.ndarray
    names: list[str]
    tags: list[str]
    kinds: list[str]
    source: str


# Pack -> pattern of the icons taken (one weight of each family of variants).
PACKS = {
    "game-icons": "",
    "healthicons": r"^(?!.*(outline|negative|24px))",
    "mdi": "",
    "temaki": "",
    "maki": "",
    "fluent-mdl2": "",
    "streamline-freehand": "",
    "streamline-pixel": "",
    "material-symbols": r"^(?!.*(outline|rounded|sharp))",
    "ph": r"-(duotone|fill)$",
    "solar": r"(bold|bold-duotone)$",
    "streamline-color": r"-flat$",
    "streamline-plump-color": r"-flat$",
    "streamline-ultimate-color": "",
    "streamline-kameleon-color": "",
    "streamline-stickies-color": "",
    "icon-park": "",
    "fluent-color": r"-(32|48)$",
    "flat-color-icons": "",
    "meteocons": r"(?<!-fill)$",
}
STYLE = re.compile(
    r"-(outline|outlined|rounded|sharp|fill|filled|bold|duotone|thin|light|line|linear|broken|flat|solid|"
    r"variant|alt|remix|\d+px|regular|duo|\d+)\b"
)
EMPTY_CATEGORIES = {*"travel others base abstract ui symbols content edit".split(), "brand / logo"}
# Words of emoji names that mean other things elsewhere ("star face", "post box").
AMBIGUOUS = set(
    "face with and of button the person playing mark sign red blue black white green open closed "
    "cat up down left right social no hot new heart hand man woman sun star eyes love web bar post "
    "box pill home ring ball page paper light disk case line set key map meeting wave check circle "
    "square ear back nose leg foot tongue mouth bone ship band coin note drop fire bath "
    "travel".split()
)


def words_to_classes(cache: Path) -> dict[str, str]:
    """Word or phrase of a Unicode emoji name -> emoji class, where it names one class only."""
    table, classes = emoji.unicode_table(cache), defaultdict(set)
    for code, class_name in table.class_name.items():
        words = re.sub(r"[^a-z ]", " ", table.label(code)).split()
        if len(words) <= 2:
            classes[" ".join(words)].add(class_name)
            if words and len(words[-1]) > 2:
                classes[words[-1]].add(class_name)
    return {
        word: names.pop()
        for word, names in classes.items()
        if len(names) == 1 and word not in AMBIGUOUS
    }


def kinds_of(name: str, classes: dict[str, str]) -> list[str]:
    """The emoji classes that words of `name` point to, at most two."""
    words, found = re.sub(r"[^a-z ]", " ", name.lower()).split(), []
    for i in range(len(words)):
        for phrase in (" ".join(words[i : i + 2]), words[i]):
            for form in (phrase, phrase.removesuffix("s")):
                if form in classes and classes[form] not in found:
                    found.append(classes[form])
    return found[:2]


def icons(cache: Path, pack_name: str) -> Iterator[Pair]:
    """Icons of a pack that no evaluated set draws from."""
    pack, classes = IconPack(cache, pack_name), words_to_classes(cache)
    for icon in pack.names:
        if not re.search(PACKS[pack_name], icon) or pack.categories.get(icon) == "brand / logo":
            continue
        name = STYLE.sub("", STYLE.sub("", icon)).replace("-", " ").strip()
        image = fit(pack.image(icon))
        if name and image is not None and image.std() >= 4:
            category = pack.categories.get(icon, "")
            kinds = [category] if category and category not in EMPTY_CATEGORIES else []
            yield Pair(image, [name], [], kinds + kinds_of(name, classes), pack_name)


# Photographs that no evaluated image is cut from.
BACKGROUNDS = ("astronaut.png", "camera.png", "motorcycle_left.png", "color.png")


def flag_pairs(
    image: np.ndarray, name: str, source: str, r: np.random.RandomState
) -> Iterator[Pair]:
    """A flag as drawn, and five times in wind and weather."""
    yield Pair(image, [name], [], ["country flag"], source)
    alpha = np.where(edge_connected((image > 250).all(-1)), 0, 255).astype(np.uint8)
    cloth = Image.fromarray(np.dstack([image, alpha]), "RGBA")
    backgrounds = [sample_photograph(file) for file in BACKGROUNDS]
    for _ in range(5):
        yield Pair(outdoors(cloth, backgrounds, r), [name], [], [], "outdoors")


def edge_connected(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that touches the border: the paper around a drawing, not the white within
    it.
    """
    labels, _ = ndimage.label(mask)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.isin(labels, border[border > 0])


def emoji_pairs(cache: Path) -> Iterator[Pair]:
    """Emoji of the vendors kept for pre-training; flags among them."""
    table, r = emoji.unicode_table(cache), np.random.RandomState(1)
    for vendor in emoji.PRETRAINING:
        for code, image in emoji.drawings(cache, vendor).items():
            if table.subgroup.get(code) == "country-flag":
                yield from flag_pairs(image, table.label(code), vendor, r)
            elif code in table.subgroup:
                kind = table.class_name.get(code) or table.subgroup[code].replace("-", " ")
                tags = table.entries[code].get("tags", [])
                yield Pair(image, [table.label(code)], tags[:8], [kind], vendor)


NOT_A_TITLE = re.compile(
    r"(architetto|francesco|rollandin|archi|inkscape|^$|arc$|svg|clip ?art|unsorted|http|\d{3,}|"
    r"hash|public domain)",
    re.I,
)
SKIPPED_FOLDERS = (
    "shapes/stars",
    "special",
    "signs_and_symbols/led",
    "unsorted/duplicates",
    "recreation/games/chess",
    "recreation/games/cards",
)


def openclipart(cache: Path) -> Iterator[Pair]:
    """Openclipart outside the evaluated folders, captioned by title, keywords and folder."""
    folder, classes = cache / OPENCLIPART, words_to_classes(cache)
    evaluated = {sub for folders in CLIPART.values() for sub in folders.split()}
    for path in sorted(folder.rglob("*.svg")):
        place = str(path.parent.relative_to(folder))
        if (
            place in evaluated
            or place.startswith(SKIPPED_FOLDERS)
            or path.stat().st_size > LARGEST_DRAWING
        ):
            continue
        text = path.read_text(errors="replace")
        image = fit(rasterise(text))
        if image is None or image.std() < 4:
            continue
        title = (re.search(r"<dc:title>([^<]*)</dc:title>", text) or ["", ""])[1]
        title = title.replace("_", " ").strip().lower()
        if NOT_A_TITLE.search(title):
            title = re.sub(r"[_\-\d]+", " ", path.stem).strip().lower()
        tags = re.findall(r"<rdf:li>([^<]*)</rdf:li>", text)
        tags = [tag.lower() for tag in tags if not NOT_A_TITLE.search(tag) and len(tag) < 30]
        kinds = [part.replace("_", " ") for part in place.split("/")[-2:]]
        name = title[:60] or kinds[-1]
        yield Pair(image, [name], tags[:8], kinds + kinds_of(title, classes), "openclipart")


def other_flags(cache: Path) -> Iterator[Pair]:
    """Flags of the countries that the flag set does not ask for."""
    table, r = emoji.unicode_table(cache), np.random.RandomState(2)
    for pack_name, suffix in (("flagpack", ""), ("flag", "-4x3"), ("circle-flags", "")):
        pack = IconPack(cache, pack_name)
        for icon in pack.names:
            country = icon.removesuffix(suffix)
            if len(country) != 2 or country in COUNTRIES or not icon.endswith(suffix):
                continue
            if (code := flag_code(country)) in table.entries:
                image = fit(pack.image(icon))
                if image is not None:
                    yield from flag_pairs(image, table.label(code), pack_name, r)


def characters(cache: Path) -> Iterator[Pair]:
    """Letters and digits in the faces of font packages that the letter set does not draw from."""
    r = np.random.RandomState(0)
    evaluated = {f"fonts-{name}" for name in LETTER_PACKAGES}
    for package in sorted(path.name for path in (cache / "deb").glob("fonts-*")):
        for path in filter(latin, font_files(cache, package) if package not in evaluated else []):
            for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "0123456789" * 3:
                image = glyph(path, character, r)
                if image is None:
                    continue
                if character.isdigit():
                    name = DIGITS[int(character)]
                    yield Pair(
                        image, [name], [f"digit {name}", f"number {name}"], ["digit"], "fonts"
                    )
                else:
                    yield Pair(image, [f"letter {character}"], [], [], "fonts")


def close_to_evaluated(images: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """Which `images` are near-duplicates of an evaluated one: cosine > 0.95 in grey 16 x 16, then >
    0.97 in colour 32 x 32.
    """
    grey, colour = descriptors(evaluated), descriptors(evaluated, 32, grey=False).astype(np.float16)
    close = np.zeros(len(images), bool)
    for start in tqdm(range(0, len(images), 1000), desc="near-duplicates"):
        part = images[start : start + 1000]
        rows, columns = np.where(descriptors(part) @ grey.T > 0.95)
        fine = descriptors(part, 32, grey=False)
        for block in range(0, len(rows), 20000):
            a, b = rows[block : block + 20000], columns[block : block + 20000]
            close[start + a[(fine[a] * colour[b].astype(np.float32)).sum(1) > 0.97]] = True
    return close


def drawn(source: partial[Iterator[Pair]]) -> list[Pair]:
    """All pairs of a source."""
    return list(source())


def main(cache: Path, jobs: int = 1) -> None:
    """Collect the pairs, drop what is close to an evaluated image and what occurs twice, write the
    corpus. Sources are drawn in `jobs` processes; the pairs and their order are the same.
    """
    sources = [partial(icons, cache, pack) for pack in PACKS]
    sources += [partial(s, cache) for s in (emoji_pairs, openclipart, other_flags, characters)]
    with Pool(jobs) as pool:
        drawings = tqdm(pool.imap(drawn, sources), desc="sources", total=len(sources))
        pairs = [pair for source in drawings for pair in source]
    images = np.stack([pair.image for pair in pairs])
    bundles = sorted((ROOT / "pocket" / "images").glob("*.parquet"))
    encoded = [data for path in bundles for data in pd.read_parquet(path, columns=["image"]).image]
    close = close_to_evaluated(images, np.stack([decode(data) for data in encoded]))
    seen, keep = set(), []
    for i, pair in enumerate(pairs):
        key = (pair.image.tobytes(), pair.names[0])
        if not close[i] and key not in seen:
            seen.add(key)
            keep.append(i)
    dropped = dict(Counter(pairs[i].source for i in np.where(close)[0]))
    kept = dict(Counter(pairs[i].source for i in keep))
    print(f"{len(pairs)} pairs, {close.sum()} close to an evaluated image: {dropped}")
    print(f"{len(keep)} kept: {kept}")
    folder = cache / "corpus"
    folder.mkdir(exist_ok=True)
    np.save(folder / "images.npy", images[keep])
    captions = [
        {key: getattr(pairs[i], key) for key in ("names", "tags", "kinds", "source")} for i in keep
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    summary = dict(
        pairs=len(pairs), close=int(close.sum()), kept=len(keep), dropped=dropped, sources=kept
    )
    (folder / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
