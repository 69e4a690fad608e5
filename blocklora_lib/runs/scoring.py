"""How a kept adapter does on a set: correct answers, class by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from ..core.paths import MANIFESTS
from ..core.schema import UnknownName
from ..data.dataset import Dataset
from ..data.local import local_manifest
from ..data.manifest import SPLITS
from ..data.user_dataset import own_manifest
from ..learning.count import Count
from ..learning.evaluation import same_prompts
from .classifier import Classifier
from .kept import Trained
from .spec import refuse_other_content

PARTS = (*SPLITS, "all")
TEMPLATES = ("file", "dataset")


def set_for(
    about: Trained,
    dataset: str | Path,
    split: str = "test",
    template: Literal["file", "dataset"] | None = None,
    other_classes: bool = False,
    manifests: Path = MANIFESTS,
    root: Path | None = None,
) -> Dataset:
    """Open a set, by its name or the path of one's own folder, for a classifier to be scored on.

    Its prompts are the file's: one's own folder has none. ValueError for a set of texts; for one of
    other classes, unless `other_classes` lets the classifier tell those apart; and for a list whose
    template is another one, unless `template` says whose is meant. split 'all': every image; of a
    folder without splits, uncut.
    """
    for what, value, known in (("split", split, PARTS), ("template", template, TEMPLATES)):
        if value is not None and value not in known:
            raise UnknownName(what, value, known)
    if isinstance(dataset, Path):
        manifest = own_manifest(
            dataset,
            template=about.template,
            image_loading=about.image_loading,
            whole=split == "all",
        )
        root = dataset.resolve().parent
    else:
        manifest = local_manifest(dataset, manifests, root)
    refuse_other_content(manifest, "classification")
    theirs, ours = set(manifest.classes), set(about.classes)
    if theirs != ours and not other_classes:
        parts = (("has", theirs - ours), ("lacks", ours - theirs))
        told = ", and ".join(f"{verb} {_some(names)}" for verb, names in parts if names)
        raise ValueError(
            f"{manifest.title} is not of the adapter's classes: it {told}; give images of those, "
            "or let it tell the set's own classes apart (--other-classes)"
        )
    if manifest.template != about.template:
        if template is None:
            raise ValueError(
                f"prompts of {manifest.title} are {manifest.template!r}, the adapter was trained "
                f"with {about.template!r}; say which of the two is meant (--template dataset, or "
                "--template file)"
            )
        if template == "file":
            manifest = manifest.model_copy(update={"template": about.template})
    return Dataset(manifest, root)


def remark(about: Trained, dataset: Dataset, split: str = "test") -> str:
    """Say where images of a split, or 'all', may be ones that were trained on; else nothing.

    Which were is in no file. A folder of the same content is cut as it was for training; one that
    has grown is cut anew, and another one may hold copies, so of both it is said.
    """
    told = "images that it was trained on may be among these"
    if split in ("train", "all"):
        return told
    own = dataset.manifest.layout == "folder"
    same = dataset.manifest.sha256 == about.data_sha256
    if same or not (own or dataset.name == about.spec.dataset):
        return ""
    return f"{told}: {dataset.manifest.title} is not, image for image, the set of its training"


def score(
    classifier: Classifier,
    dataset: Dataset,
    split: str = "test",
    left_out: Callable[[Path, str], None] | None = None,
) -> dict[str, Count]:
    """Count correct answers on a split, or 'all', class by class, of those that have images.

    left_out: as `Classifier.predict` takes it. The rule is that of `learning.evaluation`, so a kept
    run scores on its own test images what its record says (on a GPU but for ties by rounding).
    ValueError where classes of one's own have one prompt, or no image can be read.
    """
    own = dataset.manifest.layout == "folder"  # of a published set names stand as they are
    if own and (alike := same_prompts(classifier.backbone, dataset)):
        raise ValueError(
            f"{' and '.join(map(repr, alike[0]))} of {dataset.manifest.title} cannot be told "
            "apart: to the tokenizer of the classifier they are one prompt, or none; rename them"
        )
    classifier.tell(dataset.classes, dataset.manifest.template)
    total = torch.zeros(len(dataset.classes), dtype=torch.int64)
    correct = total.clone()
    for part in dataset.manifest.splits if split == "all" else (split,):
        truth = dataset.labels(part)
        for index, logits in classifier.predict(dataset.images(part), left_out):
            labels = truth[list(index)]
            right = logits.argmax(-1).cpu() == labels
            total += torch.bincount(labels, minlength=len(total))
            correct += torch.bincount(labels[right], minlength=len(total))
    if not total.any():
        raise ValueError(f"no image of {dataset.manifest.title} can be read; look at its files")
    counts = zip(dataset.classes, correct.tolist(), total.tolist(), strict=True)
    return {name: Count(correct=c, total=n) for name, c, n in counts if n}


def _some(names: set[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"class{'es' * (len(shown) > 1)} {', '.join(map(repr, shown[:3]))}{more}"
