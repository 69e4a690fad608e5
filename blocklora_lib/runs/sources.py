"""Images of a set by what they hold, as the caches take them: of features, and of decoded views."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from ..data.dataset import Dataset
from ..data.image_files import ImageFiles
from ..data.kept_views import KeptViews
from ..learning.feature_cache import Source
from .code_digest import views_digest
from .images import RunImages
from .record import MachineFailure


def source_of(
    dataset: Dataset, split: str, held: RunImages, index: torch.Tensor | None = None
) -> Source:
    """Return a split's images, or those at `index`, as the feature cache takes them.

    A bundle's split is encoded whole, since it is decoded whole; of files, what is asked for. held:
    knows what files held when they were first looked at.
    """
    manifest = dataset.manifest
    if manifest.kind == "bundle":
        name, count = f"{manifest.sha256}/{split}", len(dataset.labels(split))
        return Source(lambda: dataset.images(split), name, index, count=count)
    wanted = range(len(dataset.labels(split))) if index is None else index.tolist()
    paths = [dataset.path(split, i) for i in wanted]

    def images() -> torch.Tensor | ImageFiles:
        files = dataset.images(split)
        return files if index is None else files[index]

    def unchanged() -> None:
        if path := held.other(dataset.name, paths):
            raise MachineFailure(
                f"{path} changed while it was encoded: nothing is kept of it; once it stays as it "
                "is, the same command goes on from there"
            )

    facts = json.dumps([manifest.image_loading, held.contents(dataset.name, paths)])
    return Source(images, hashlib.sha256(facts.encode()).hexdigest(), None, unchanged, len(paths))


def keep_views(dataset: Dataset, split: str, held: RunImages, folder: Path) -> None:
    """Let a split's image files be decoded once for all who evaluate on them, see `KeptViews`."""
    if dataset.manifest.kind == "bundle":
        return
    files = dataset.images(split)
    assert isinstance(files, ImageFiles)
    if not files.keeps_views:
        source = source_of(dataset, split, held)
        facts = {"images": source.digest, "code": views_digest()}
        title = f"{dataset.name}-{split}"
        files.keep_views(KeptViews(folder, title, files.paths, facts, source.unchanged))
