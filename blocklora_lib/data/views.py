"""How a backbone looks at an image: open_clip's own geometry, from the model's settings.

CLIP takes the shorter side to the resolution and cuts the middle out; SigLIP and CLIPA squash the
image into a square, others keep all of it and fill the rest with a colour; some resize by bilinear
interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from types import SimpleNamespace
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

Box = tuple[int, int, int, int]  # top, left, height, width
Picture = TypeVar("Picture", Image.Image, Tensor)


@dataclass(frozen=True)
class View:
    """What the model sees of an image; the defaults are CLIP's.

    size: (height, width). resize_mode: 'shortest' side to the size, then the middle; 'longest' side
    to the size, the rest filled with `fill_color` (0..255); 'squash': both sides to the size.
    interpolation: 'bicubic' or 'bilinear'.
    """

    size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    @classmethod
    def square(cls, side: int) -> View:
        """CLIP's view at side x side."""
        return cls((side, side))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> View:
        """Return the view that open_clip's preprocessing settings ask for; by default, CLIP's.

        Raises ValueError for a resize mode or an interpolation that open_clip does not know.
        """
        given = {key: value for key, value in config.items() if value is not None}
        size = given.get("size", 224)
        height, width = (size[0], size[-1]) if isinstance(size, (tuple, list)) else (size, size)
        view = cls(
            (int(height), int(width)),
            given.get("resize_mode", "shortest"),
            given.get("interpolation", "bicubic"),
            given.get("fill_color", 0),
        )
        for what, known in (
            ("resize_mode", ("shortest", "longest", "squash")),
            (
                "interpolation",
                ("bicubic", "bilinear", "random"),
            ),  # 'random' is of training, else bicubic
        ):
            if getattr(view, what) not in known:
                asked = f"{what}={getattr(view, what)!r}"
                raise ValueError(
                    f"the backbone's preprocessing has {asked}; known: {', '.join(known)}"
                )
        return view

    @property
    def filter(self) -> InterpolationMode:
        """torchvision's word for the interpolation."""
        return (
            InterpolationMode.BILINEAR
            if self.interpolation == "bilinear"
            else InterpolationMode.BICUBIC
        )

    @cached_property
    def _geometry(self) -> list[Any]:
        """What open_clip's evaluation transform does before pixels become numbers."""
        from open_clip.transform import MaybeConvertMode, PreprocessCfg, image_transform_v2

        height, width = self.size
        config = PreprocessCfg(
            size=height if height == width else self.size,
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            fill_color=self.fill_color,
        )
        steps = image_transform_v2(config, is_train=False).transforms
        return list(takewhile(lambda step: not isinstance(step, MaybeConvertMode), steps))

    def fit(self, image: Picture) -> Picture:
        """Return the image, or pixels (..., 3, H, W) in 0..255, at `size`, as it is evaluated."""
        if isinstance(image, Tensor) and image.shape[-2:] == self.size:
            return image
        if not isinstance(image, Tensor):
            for step in self._geometry:
                image = step(image)
            return image
        for step in self._geometry:
            image = _keep_ratio(step, image) if hasattr(step, "longest") else step(image)
        return image.clamp(0, 255)  # bicubic overshoots

    def crop(self, image: Image.Image, box: Box, mirror: bool) -> Image.Image:
        """A box of the image at `size`, mirrored or not: CLIP-LoRA's training view in any mode.

        A box is squashed into the size, as torchvision's RandomResizedCrop does, by the backbone's
        own interpolation: training pixels are of the kind that is evaluated.
        """
        cut = TF.resized_crop(image, *box, list(self.size), self.filter)
        return TF.hflip(cut) if mirror else cut


def _keep_ratio(step: Any, pixels: Tensor) -> Tensor:
    """open_clip's ResizeKeepRatio, which asks for PIL's (width, height), on pixels (..., H, W)."""
    height, width = pixels.shape[-2:]
    size = step.get_params(SimpleNamespace(size=(width, height)), step.size, step.longest)
    return TF.resize(pixels, size, step.interpolation)
