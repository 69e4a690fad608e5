"""From a manifest to images and labels. A bundle is one checked Parquet file of WebP images."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.paths import MANIFESTS
from ..core.schema import UnknownName
from .draw import bundle_items, split_items
from .image_files import ImageFiles
from .layouts import Item, items
from .local import local_manifest
from .manifest import SPLITS, Manifest
from .obtain.verify import other_split_file
from .problems import DataError, command, remedy
from .roots import data_root, find_folder, is_fake
from .whole_images import thorough_faults


class Dataset:
    """Images and labels of one set: a bundle, whose splits are decoded once, when asked for; files.

    root: where external sets lie (see data.roots.data_root).
    """

    def __init__(self, manifest: Manifest, root: Path | None = None) -> None:
        self.manifest, self.is_fake = manifest, False
        self._encoded: dict[str, list[Any]]  # bytes of a bundle's images, paths of files
        self._images: dict[str, Tensor | ImageFiles] = {}
        self._faults: dict[tuple[Path, bool], str] = {}
        if manifest.kind == "bundle":
            self._encoded, self._labels = _read_bundle(manifest)
        else:
            self._folder = find_folder(manifest, data_root(root))
            self.is_fake = is_fake(self._folder)
            self._encoded, self._labels = _read_folder(manifest, self._folder)
            for problem in () if self.is_fake else other_split_file(manifest, self._folder):
                warnings.warn(f"another split file than the published one: {problem}", stacklevel=2)
        self._found = {split: len(images) for split, images in self._encoded.items()}

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt a class: template.format(class name)."""
        return self.manifest.prompts

    def labels(self, split: str) -> Tensor:
        """Class indices: (N,), int64."""
        self._check_split(split)
        return self._labels[split]

    def images(self, split: str) -> Tensor | ImageFiles:
        """Pixels (N, 3, H, W), uint8, decoded once; of an external set, files read late.

        Of a set of texts, their UTF-8 bytes (N, most), uint8, with zeros after them.
        """
        self._check_split(split)
        if split not in self._images:
            found = self._encoded[split]
            bundled = self.manifest.kind == "bundle"
            files = ImageFiles(found, loading=self.manifest.image_loading)
            decode = _decode if self.manifest.holds == "images" else _padded
            self._images[split] = decode(found, self.manifest) if bundled else files
        return self._images[split]

    @cached_property
    def listing(self) -> dict[str, list[Item]]:
        """The train and val images as draws name them, in the order of `labels`."""
        if self.manifest.kind == "external":
            return split_items(self.manifest, self._folder)
        return bundle_items(
            {s: labels.tolist() for s, labels in self._labels.items()}, self.classes
        )

    def unreadable(
        self, split: str, index: Tensor | None = None, thorough: bool = False, code: str = ""
    ) -> dict[int, str]:
        """Which images of a split (of `index`, if given) cannot be read, and why. Looked for once.

        thorough: see ImageFiles.faults; with the name of the code that decodes, once for all
        processes. A bundle is whole, or it is refused when it is opened.
        """
        if self.manifest.kind == "bundle":
            return {}
        self._check_split(split)
        paths = self._encoded[split]
        wanted = range(len(paths)) if index is None else index.tolist()
        new = list({paths[i]: None for i in wanted if (paths[i], thorough) not in self._faults})
        files, once = ImageFiles(new), thorough and code
        looked = thorough_faults(files, self._folder, code) if once else files.faults(thorough)
        for path, fault in zip(new, looked, strict=True):
            self._faults[path, thorough] = fault
        found = {i: self._faults[paths[i], thorough] for i in sorted(set(wanted))}
        return {i: fault for i, fault in found.items() if fault}

    def path(self, split: str, number: int) -> str:
        """An image's path in the folder of an external set, with /."""
        return self._encoded[split][number].relative_to(self._folder).as_posix()

    def refuse(self, split: str, faults: dict[int, str]) -> None:
        """Name images that cannot be read, and what to do; DataError if there are any."""
        if not faults:
            return
        (first, why), *others = ((self._encoded[split][i], fault) for i, fault in faults.items())
        if others:
            named = ", ".join(str(path) for path, _ in others[:3]) + (
                ", ..." if len(others) > 3 else ""
            )
            why += f", and {len(others)} more {split} images of {self.name} cannot be read: {named}"
        leave = (
            "to leave such images out, say --skip-unreadable, "
            "or skip_unreadable: true in the profile"
        )
        raise DataError(first, why, f"{self._verify}; {leave}")

    def without(self, split: str, gone: Collection[int]) -> Dataset:
        """The same set without these images of a split; ValueError names a class that loses all."""
        if not gone:
            return self
        keep = [i for i in range(len(self._encoded[split])) if i not in gone]
        other = copy.copy(self)
        other._encoded = self._encoded | {split: [self._encoded[split][i] for i in keep]}
        other._labels = self._labels | {split: self._labels[split][keep]}
        other._images = {s: images for s, images in self._images.items() if s != split}
        self.refuse_empty(split, self._labels[split], other._labels[split])
        return other

    def refuse_empty(self, split: str, before: Tensor, after: Tensor) -> None:
        """DataError if a class has images before unreadable ones are left out, and none after."""
        if empty := sorted(set(before.tolist()) - set(after.tolist())):
            names = ", ".join(repr(self.classes[label]) for label in empty)
            what = (
                f"has no {split} image left of class {names}: "
                "all that this run would use are unreadable"
            )
            raise DataError(self._folder, what, self._verify)

    @property
    def _verify(self) -> str:
        if self.manifest.layout == "folder":
            return remedy(self.manifest, self._folder)
        return command("verify", self.name, self._folder)

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        facts = self.manifest  # a split file has a checksum, one's own folder no other list
        stated, found = facts.counts.get(split), self._found[split]
        if stated and stated != found and not facts.split_file and facts.layout != "folder":
            what = f"has {found:,} {split} images, its manifest says {stated:,}"
            if split == "test" or not found:
                what += ": an accuracy on part of them would look like any other" * bool(found)
                raise DataError(self._folder, what, self._verify)
            warnings.warn(f"{self._folder} {what}: its draws are other ones", stacklevel=3)
        if not self._encoded[split]:
            present = [s for s in SPLITS if self._encoded[s]]
            raise ValueError(
                f"dataset {self.name} has no {split} images; it has {', '.join(present)}"
            )


def load_dataset(name: str, folder: Path = MANIFESTS, root: Path | None = None) -> Dataset:
    """Open the dataset of this manifest; an external one from its folder under root."""
    return Dataset(local_manifest(name, folder, root), root)


def _read_folder(
    manifest: Manifest, folder: Path
) -> tuple[dict[str, list[Path]], dict[str, Tensor]]:
    found: dict[str, list[Item]] = {split: items(manifest, folder, split) for split in SPLITS}
    paths = {split: [folder / item.path for item in part] for split, part in found.items()}
    return paths, {
        s: torch.tensor([item.label for item in part], dtype=torch.int64)
        for s, part in found.items()
    }


def _read_bundle(manifest: Manifest) -> tuple[dict[str, list[bytes]], dict[str, Tensor]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = manifest.path
    if not path.is_file():
        raise FileNotFoundError(
            f"image file {path} of dataset {manifest.name} is missing; restore it from git"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest.sha256:
        raise ValueError(
            f"image file {path} is damaged: its SHA-256 starts {digest[:12]}, "
            f"the manifest of {manifest.name} says {manifest.sha256[:12]}; restore it from git"
        )
    columns = [manifest.holds.removesuffix("s"), "label", "split"]
    table = pq.ParquetFile(pa.BufferReader(content)).read(columns=columns)
    encoded: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for image, label, split in zip(*(table[c].to_pylist() for c in columns), strict=True):
        if split not in encoded or not 0 <= label < len(manifest.classes):
            raise ValueError(
                f"{path}: split {split!r}, label {label}; splits are {', '.join(SPLITS)} and "
                f"labels below {len(manifest.classes)}: build the file again"
            )
        encoded[split].append(image)
        labels[split].append(label)
    _check_counts(manifest, labels)
    return encoded, {
        split: torch.tensor(values, dtype=torch.int64) for split, values in labels.items()
    }


def _check_counts(manifest: Manifest, labels: dict[str, list[int]]) -> None:
    for split in SPLITS:
        declared = manifest.counts.get(split, 0)
        if len(labels[split]) != declared:
            raise ValueError(
                f"dataset {manifest.name} has {len(labels[split])} {split} images, "
                f"its manifest says {declared}; correct counts or build the file again"
            )
        present = set(labels[split])
        empty = [c for i, c in enumerate(manifest.classes) if i not in present]
        if empty and declared and split != "val":
            raise ValueError(
                f"dataset {manifest.name} has no {split} image of class "
                f"{', '.join(map(repr, empty))}; give it images or take it off the manifest"
            )


def _padded(texts: list[Any], _manifest: Manifest) -> Tensor:
    encoded = [torch.tensor(list(text.encode()), dtype=torch.uint8) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)


def _decode(encoded: list[bytes], manifest: Manifest) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    pixels: np.ndarray | None = None
    for index, content in enumerate(encoded):
        try:
            image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except (UnidentifiedImageError, OSError):
            raise ValueError(
                f"image {index} of {manifest.path} cannot be decoded; build the file again"
            ) from None
        if pixels is None:
            pixels = np.empty((len(encoded), *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            raise ValueError(
                f"image {index} of {manifest.path} is {image.shape[1]}x{image.shape[0]}, "
                f"the first is {pixels.shape[2]}x{pixels.shape[1]}; a bundle has one size"
            )
        pixels[index] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
