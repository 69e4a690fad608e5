"""Sets of other tasks: emoji by their own names (retrieval), definitions by category (texts).

    python tools/pocket/fetch.py CACHE
    python tools/pocket/tasks.py CACHE      pocket/images, pocket/texts, data_manifests

Emoji: the drawings of `emoji_source`, each code point's Unicode name its caption, so that no
drawing is made again. Definitions: WordNet's nouns, whose lexicographers' file is the category.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter
from pathlib import Path

import emoji
import pandas as pd
import yaml
from image_set import HEADER
from licences import write_licences

ROOT = Path(__file__).resolve().parents[2]
IMAGES, MANIFESTS = ROOT / "pocket" / "images", ROOT / "data_manifests"

# Number of WordNet's file of nouns -> what the class is called. Left out: Tops, motive, relation,
# whose definitions are few or of everything, and cognition and attribute, which overlap with all.
FILES = {
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "08": "body part",
    "10": "communication",
    "11": "event",
    "12": "feeling",
    "13": "food",
    "14": "group",
    "15": "place",
    "17": "natural object",
    "18": "person",
    "19": "phenomenon",
    "20": "plant",
    "21": "money or property",
    "22": "process",
    "23": "quantity",
    "25": "shape",
    "26": "state",
    "27": "substance",
    "28": "time",
}
TEXTS = {"train": 32, "val": 8, "test": 40}  # a class
WORDS = (4, 16)  # of a definition


def names(cache: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Drawings of the training code points and of the test code points, captioned by name.

    Trained names: two vendors' drawings, the third vendor's are their test.
    """
    table = emoji.unicode_table(cache)
    rows = pd.read_parquet(IMAGES / "emoji_source.parquet")
    rows["caption"] = rows["group"].map(table.label)
    whole = rows.groupby("group")["source"].transform("nunique") == len(emoji.SOURCE)
    known, new = rows[whole & (rows["split"] == "train")].copy(), rows[rows["split"] == "test"]
    known["split"] = (known["source"] == "twemoji").map({True: "test", False: "train"})
    return known, new


def definitions(cache: Path) -> pd.DataFrame:
    """WordNet's definitions of nouns, without examples, drawn at random; none occurs twice."""
    found: dict[str, dict[str, str]] = {name: {} for name in FILES.values()}
    path = cache / "deb/wordnet-base/usr/share/wordnet/data.noun"
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            continue
        offset, file, *_ = line.split()
        text = re.split(r"[;:]", line.partition(" | ")[2])[0].strip()
        text = re.sub(r"^\(.*?\)\s*", "", text)
        if file in FILES and WORDS[0] <= len(text.split()) <= WORDS[1]:
            found[FILES[file]].setdefault(text.lower(), offset)
    seen = Counter(text for texts in found.values() for text in texts)
    twice = {text for text, times in seen.items() if times > 1}
    rng, rows = random.Random(0), []
    for name, texts in found.items():
        drawn = rng.sample(sorted(set(texts) - twice), sum(TEXTS.values()))
        splits = [split for split, n in TEXTS.items() for _ in range(n)]
        rows += [(t, name, s, texts[t], "wordnet") for t, s in zip(drawn, splits, strict=True)]
    return pd.DataFrame(rows, columns=["text", "caption", "split", "group", "source"])


def write(
    rows: pd.DataFrame, name: str, title: str, file: str, classes: list[str], **facts
) -> None:
    """Write the bundle and its manifest; a row's label is the place of its caption."""
    path = ROOT / file
    path.parent.mkdir(exist_ok=True)
    index = {caption: i for i, caption in enumerate(classes)}
    rows = rows.assign(label=rows["caption"].map(index).astype("int16"))
    rows = rows.drop(columns="caption").reset_index(drop=True)
    rows.to_parquet(path, compression={c: "none" if c == "image" else "zstd" for c in rows})
    counts = rows["split"].value_counts()
    manifest = dict(name=name, title=title, role="task", variant_of=None, kind="bundle")
    manifest |= dict(file=file, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    manifest |= facts | dict(
        counts={s: int(counts[s]) for s in ("train", "val", "test") if s in counts},
        classes=classes,
    )
    text = yaml.safe_dump(manifest, sort_keys=False, width=110, allow_unicode=True)
    (MANIFESTS / f"{name}.yaml").write_text(HEADER.replace("build_images", "tasks") + text)
    print(f"{name}: {len(classes)} classes, {manifest['counts']}, {path.stat().st_size:,} bytes")


def main(cache: Path) -> None:
    """Build all of them."""
    source = yaml.safe_load((MANIFESTS / "emoji_source.yaml").read_text())
    facts = {key: source[key] for key in ("template", "licence", "sources")}
    about = (
        ("emoji_names", "Emoji names", "Two vendors to train on, the third vendor's to test."),
        ("emoji_names_new", "New emoji names", "Emoji whose names no run is trained on."),
    )
    for rows, (name, title, notes) in zip(names(cache), about, strict=True):
        classes = sorted(set(rows["caption"]))
        file = f"pocket/images/{name}.parquet"
        write(rows, name, title, file, classes, notes=notes, **facts)
    wordnet = dict(
        package="debian:wordnet-base",
        licence="LicenseRef-WordNet-3.0",
        attribution="WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.",
        url="https://wordnet.princeton.edu/",
    )
    notes = "Definitions of nouns; a class is the lexicographers' file that holds the noun."
    facts = dict(holds="texts", template="{}", licence=wordnet["licence"], sources=[wordnet])
    file, classes = "pocket/texts/definitions.parquet", list(FILES.values())
    write(definitions(cache), "definitions", "Definitions", file, classes, notes=notes, **facts)
    write_licences(cache, MANIFESTS, ROOT / "pocket")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
