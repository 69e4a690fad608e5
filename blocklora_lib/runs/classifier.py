"""A classifier of a kept adapter: merged into its backbone, at the cost of the backbone alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters import files as adapter_files
from ..adapters.attach import AdapterSet
from ..clip.backbone import Backbone, load_backbone
from ..core.devices import repeatable
from ..core.schema import AdapterError
from ..data.decoding import UnreadableImage
from ..data.image_files import ImageFiles, ahead
from ..learning.evaluation import NotFinite
from ..learning.feature_cache import BATCH
from .kept import Trained, trained, view_of, weights_digest


class Classifier:
    """What a backbone makes of images, `predict`: one that holds W + ΔW, and no adapters."""

    about: Trained  # of one that `load_classifier` returns

    def __init__(self, backbone: Backbone, classes: Sequence[str], template: str) -> None:
        self.backbone = backbone
        self.tell(classes, template)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """With products as precise as those of the run; any kernel will do."""
        tf32 = self.backbone.spec.tf32
        with torch.inference_mode(), repeatable(self.backbone.device, False, tf32):
            yield

    def tell(self, classes: Sequence[str], template: str) -> None:
        """Tell these classes apart from now on; ValueError where a prompt is too long."""
        self.classes = tuple(classes)
        with self._inference():
            tokens = self.backbone.tokenize([template.format(name) for name in classes])
            self._rows = self.backbone.encode_prompts(tokens)

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> τ cos: (B, C)."""
        with self._inference():
            rows = self.backbone.encode_images(images)
            scores = self.backbone.logit_scale * rows @ self._rows.T
        if not scores.isfinite().all():
            raise NotFinite(
                "scores of the images are not finite; look at the backbone's weights and its "
                "number format"
            )
        return scores

    def predict(
        self, images: Tensor | ImageFiles, left_out: Callable[[Path, str], None] | None = None
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield the numbers of the images of a batch and their logits (B, C), batch by batch.

        images: pixels (N, 3, H, W), uint8, or files, of which the next are read while a batch is
        classified. left_out(path, why) is called for a file that cannot be read, which then has no
        logits; without it such a file is UnreadableImage.
        """
        numbers = iter(torch.arange(len(images)).split(BATCH))

        def look(files: Tensor | ImageFiles) -> tuple[list[int], Tensor | None]:
            index: list[int] = next(numbers).tolist()
            if isinstance(files, Tensor):
                return index, self.backbone.preprocess(files)
            try:
                return index, self.backbone.preprocess(files)
            except UnreadableImage:
                if left_out is None:
                    raise
            faults = files.faults(thorough=True)
            for path, why in zip(files.paths, faults, strict=True):
                if why:
                    left_out(path, why)
            whole = torch.tensor([i for i, why in enumerate(faults) if not why], dtype=torch.int64)
            pixels = self.backbone.preprocess(files[whole]) if len(whole) else None
            return [index[i] for i in whole.tolist()], pixels

        for index, pixels in ahead(map(look, images.split(BATCH))):
            if pixels is not None:
                yield index, self.logits(pixels)


class Opened(NamedTuple):
    """A kept adapter on its backbone."""

    backbone: Backbone
    adapters: AdapterSet
    about: Trained


def open_kept(
    path: Path | str,
    device: str | torch.device = "auto",
    weights: str = "",
    other_weights: bool = False,
) -> Opened:
    """Load the backbone that a file names, and its adapters onto it.

    weights: where the backbone's weights lie here, as `backbone.pretrained` of a profile; '': where
    the file says. AdapterError where they, or the view of images, are not those that the adapters
    were trained on; other_weights takes them all the same, if they have the same shapes.
    """
    file = adapter_files.read(path)
    about = trained(path, file)
    spec = about.spec.backbone
    # whether these are the weights is asked below, of the tensors: a file of another format may be
    spec = spec.model_copy(update={"pretrained": weights or spec.pretrained, "checksum": ""})
    try:
        backbone = load_backbone(spec, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} was trained on weights that are not here ({error}); say where they lie "
            "(--weights)"
        ) from None
    if not other_weights:
        refuse_others(path, about, backbone)
    adapters = AdapterSet.load(path, backbone.model, other_weights=True)  # as asked above
    for adapter in adapters.adapters.values():
        adapter.eval()
    return Opened(backbone, adapters, about)


def refuse_others(path: Path | str, about: Trained, backbone: Backbone) -> None:
    """AdapterError where a backbone is not the one that a file's adapters were trained on."""
    spec, there = about.spec.backbone, weights_digest(backbone)
    way_out = (
        "give the weights that it was trained on (--weights), or take these all the same "
        "(--other-weights)"
    )
    if there != about.weights["tensors"]:
        raise AdapterError(
            f"{path} was trained on weights of {spec.name} with digest "
            f"{about.weights['tensors'][:12]}, and those of {backbone.spec.pretrained} have "
            f"{there[:12]}; {way_out}"
        )
    here = view_of(backbone)
    for name, value in about.view.items():
        if here.get(name) != value:
            raise AdapterError(
                f"{path} was trained on images seen with {name}={value}, and {spec.name} of "
                f"{backbone.spec.pretrained} sees them with {name}={here.get(name)}; {way_out}"
            )


def load_classifier(path: Path | str, **how: Any) -> Classifier:
    """Return the classifier of a file, its adapters merged for good; how: as `open_kept`.

    AdapterError for one that was trained to tell texts apart.
    """
    backbone, adapters, about = open_kept(path, **how)
    if about.spec.task == "texts":
        raise AdapterError(
            f"{path} was trained to tell texts apart, and what is classified here are images; load "
            "it with AdapterSet.load"
        )
    adapters.merge_and_unload()
    classifier = Classifier(backbone, about.classes, about.template)
    classifier.about = about
    return classifier
