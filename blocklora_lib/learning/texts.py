"""A CLIP's text tower as an encoder of texts: they stand where images stand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..clip.backbone import Backbone


class TextBackbone(Backbone):
    """Texts and class prompts through one text tower; the image tower is not looked at.

    What is an image elsewhere is a text here: UTF-8 bytes (N, most), uint8, with zeros after them,
    as `Dataset.images` has them, and then token ids (N, context length), int64. A text longer than
    the tower reads is cut.
    """

    @classmethod
    def of(cls, backbone: Backbone) -> TextBackbone:
        """The same model, seen so."""
        own = cls(backbone.model, backbone._tokenizer, backbone.spec, backbone.weights)
        return own.to(backbone.device)

    def resize(self, images: Any) -> Any:
        """Bytes to token ids; token ids stay."""
        if images.is_floating_point() or images.dtype.itemsize > 1:
            return images
        texts = [bytes(row.tolist()).rstrip(b"\0").decode() for row in images.cpu()]
        return self._tokenizer(texts).to(self.device)

    def preprocess(self, images: Any) -> Tensor:
        """As `resize`: nothing is normalised."""
        return self.resize(images)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Token ids, which the training loop holds as float32, exactly, to int64."""
        return pixels.long()

    def encode_images(self, images: Tensor, **how: Any) -> Tensor:
        """Token ids (N, context length) -> unit rows (N, d), float32."""
        return self.encode_prompts(images, **how)
