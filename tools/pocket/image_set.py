"""An image set in the making, and how it is written: one parquet file and its manifest."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from render import encode

SPLITS = ("train", "val", "test")
HEADER = "# Written by tools/pocket/build_images.py; the text is the source of truth, "
HEADER += "the numbers are counted.\n"


@dataclass
class ImageSet:
    """Images with label, split, group (the object drawn: it never crosses splits) and source
    package.
    """

    name: str
    title: str
    role: str
    classes: list[str]
    licence: str
    sources: list[dict]
    notes: str = ""
    variant_of: str | None = None
    rows: list[tuple[np.ndarray, int, str, str, str]] = field(default_factory=list)

    def __post_init__(self):
        seed = zlib.crc32(
            self.name.encode()
        )  # a seed a set: building one alone gives the same bytes
        self.rng, self.random = np.random.RandomState(seed % 2**31), random.Random(seed)

    def add(
        self, image: np.ndarray | None, class_name: str, split: str, group: str, source: str
    ) -> None:
        """Append one image; None (a drawing that failed) is left out."""
        if image is not None:
            self.rows.append((image, self.classes.index(class_name), split, group, source))

    def cap(self, per_class: dict[str, int]) -> None:
        """Keep at most `per_class[split]` images a class, drawn at random, in their order."""
        order, taken, keep = list(range(len(self.rows))), {}, []
        self.random.shuffle(order)
        for i in order:
            key = self.rows[i][1:3]
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= per_class.get(key[1], len(self.rows)):
                keep.append(i)
        self.rows = [self.rows[i] for i in sorted(keep)]

    def write(self, images: Path, manifests: Path, root: Path) -> dict:
        """Write images/NAME.parquet and manifests/NAME.yaml; return the manifest.

        Left out is what is tested and is, to the byte, also among what is trained on or chosen by:
        packages hold a drawing twice, under two names or in two folders, two classes then.
        """
        path = images / f"{self.name}.parquet"
        rows = [(encode(image), *told) for image, *told in self.rows]
        seen = {image for image, _, split, *_ in rows if split != "test"}
        rows = [row for row in rows if row[2] != "test" or row[0] not in seen]
        drawings, labels, splits, groups, packages = zip(*rows, strict=True)
        columns = dict(
            image=pa.array(drawings, pa.binary()),
            label=pa.array(labels, pa.int16()),
            split=splits,
            group=groups,
            source=packages,
        )
        compression = dict.fromkeys(columns, "zstd") | {
            "image": "none"
        }  # WebP does not get smaller
        pq.write_table(pa.table(columns), path, compression=compression)
        counts = {split: splits.count(split) for split in SPLITS if split in splits}
        per_class = Counter(zip(splits, labels, strict=True))
        fewest = {
            split: min(per_class[split, c] for c in range(len(self.classes))) for split in counts
        }
        manifest = dict(
            name=self.name,
            title=self.title,
            role=self.role,
            variant_of=self.variant_of,
            kind="bundle",
            file=str(path.relative_to(root)),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            template="a photo of a {}.",
            counts=counts,
            licence=self.licence,
            sources=self.sources,
            notes=self.notes,
            classes=list(self.classes),
        )
        text = yaml.safe_dump(manifest, sort_keys=False, width=110, allow_unicode=True)
        (manifests / f"{self.name}.yaml").write_text(HEADER + text)
        size = f"{path.stat().st_size // 1024} KB"
        print(
            f"{self.name}: {len(self.classes)} classes, {counts}, fewest a class {fewest}, {size}"
        )
        return manifest
