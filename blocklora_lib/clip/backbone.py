"""CLIP backbones through open_clip, with the bundled PocketCLIP among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.devices import resolve_device
from ..core.seeding import seeded_torch
from ..data.image_files import ImageFiles
from ..data.views import View
from ..weights.checkpoints import read_checkpoint
from ..weights.files import with_checksum
from ..weights.loading import load_weights
from ..weights.obtain import obtain, quiet
from ..weights.spec import BackboneSpec
from ..weights.stated import doubt_activation, preprocessing, refuse_other_activation
from ..weights.tags import open_clip_name
from .learnt import Learnt
from .packing import PackedPrompts
from .recomputation import recomputed
from .tokenizers import load_tokenizer, prompt_length, unavailable

Prompts = tuple[Tensor | PackedPrompts, ...]  # token ids, or packed; in chunks of classes


class Backbone(nn.Module):
    """An open_clip model with what few-shot methods need of it. Its own weights are frozen.

    weights: what a record says of them: the checkpoint's name, its SHA-256, and the digest of its
    tensors. A bias on the logits (SigLIP's) is left out: it is the same for all classes, so that
    neither an answer nor a gradient of the cross-entropy depends on it.
    """

    image_mean: Tensor  # (3, 1, 1), of pixels in 0..1
    image_std: Tensor
    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        spec: BackboneSpec,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        from open_clip import get_model_preprocess_cfg
        from open_clip.transform import PreprocessCfg, merge_preprocess_dict

        self.model: Any = model.requires_grad_(False).eval()  # of any of open_clip's classes
        self.spec, self.weights = spec, dict(weights or {})
        # images and prompts that went through each tower, for budgets: who asks takes differences
        self.passes: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._tokens: dict[tuple[str, ...], Tensor] = {}  # of prompts, which all runs of a set ask
        config = merge_preprocess_dict(PreprocessCfg(), get_model_preprocess_cfg(model))
        self.view = View.from_config(config)
        self.register_buffer("image_mean", _per_channel("mean", config), persistent=False)
        self.register_buffer("image_std", _per_channel("std", config), persistent=False)
        # of `normalise`, made once: a GPU is asked for less
        self.register_buffer("_scale", 1 / (255 * self.image_std), persistent=False)
        self.register_buffer("_shift", -self.image_mean / self.image_std, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.image_mean.device

    @property
    def resolution(self) -> int | tuple[int, int]:
        """Side of the square image that the model reads; (height, width) of another one."""
        height, width = self.view.size
        return height if height == width else (height, width)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the frozen products; open_clip keeps embeddings and norms in float32."""
        products = (nn.Conv2d, nn.Linear)
        return next(m.weight.dtype for m in self.model.visual.modules() if isinstance(m, products))

    @property
    def logit_scale(self) -> Tensor:
        """exp of the learnt log scale: logits = logit_scale * cosine."""
        return self.model.logit_scale.detach().float().exp().reshape(())

    def training_kernels(self) -> AbstractContextManager[None]:
        """The attention kernels to train with.

        On a CPU the fused attention's backward in half precision takes ten times as long as plain
        products.
        """
        if self.device.type == "cpu" and self.dtype != torch.float32:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def resize(self, images: Tensor | ImageFiles) -> Tensor | ImageFiles:
        """Pixels (B, 3, H, W), uint8, as the model sees them: (B, 3, *view.size), float32, 0..255.

        Files stay files, to be viewed so.
        """
        if isinstance(images, ImageFiles):
            return images.at(self.view, self.device)
        return self.view.fit(images.to(self.device).float())  # a byte a number goes over

    def preprocess(self, images: Tensor | ImageFiles) -> Tensor:
        """Pixels (B, 3, H, W), uint8, or files, to normalised (B, 3, *view.size), float32."""
        sized = self.resize(images)
        return self.normalise(
            sized.evaluation_views().float() if isinstance(sized, ImageFiles) else sized
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """(pixels / 255 - mean) / std as one product and one sum, on the backbone's device.

        pixels: 0..255, float32, on any device.
        """
        return torch.addcmul(self._shift, pixels.to(self.device), self._scale)

    def encode_images(
        self, images: Tensor, *, checkpoint: bool = False, learnt: Learnt | None = None
    ) -> Tensor:
        """Normalised images (B, 3, H, W) -> unit rows (B, d), float32; how: see `towers`."""
        from .towers import encode_images

        self.passes["image"] += len(images)
        images = images.to(self.device, self.dtype)
        rows = encode_images(self.model, images, checkpoint, learnt=learnt)
        return F.normalize(rows.float(), dim=-1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> token ids (C, context length), int64. Too long a one is an error, not cut."""
        asked = tuple(prompts)
        if asked in self._tokens:
            return self._tokens[asked].to(self.device)
        tokens = self._tokenizer(list(asked))
        for prompt in asked:
            length = prompt_length(self._tokenizer, prompt)
            if length > tokens.shape[1]:
                raise ValueError(
                    f"prompt {prompt!r} has {length} tokens, the text tower of {self.spec.name} "
                    f"reads {tokens.shape[1]}; shorten the class name or the template"
                )
        return self._tokens.setdefault(asked, tokens).to(self.device)

    def pack(
        self, tokens: Tensor, *, share_prefix: bool = False, class_chunk: int | None = None
    ) -> Prompts:
        """Prepare token ids (C, context length) for `encode_prompts`, once for many calls.

        share_prefix: the tokens that all prompts (of a chunk) begin with are encoded once. Exact
        but for dropout, whose masks the classes then share there: another sample of the same
        distribution.
        class_chunk: so many classes are encoded at a time; in training each chunk is encoded again
        for its part of the gradient, so that memory holds the activations of one.
        """
        from .towers import TextTower

        tower = TextTower(self.model)
        return tuple(
            tower.pack(part, share_prefix) for part in tokens.split(class_chunk or len(tokens))
        )

    def encode_prompts(self, prompts: Tensor | Prompts, **how: Any) -> Tensor:
        """Token ids (C, context length), or what `pack` made of them -> unit rows (C, d), float32.

        how: as `embed_prompts` has it.
        """
        return F.normalize(self.embed_prompts(prompts, **how), dim=-1)

    def embed_prompts(
        self,
        prompts: Tensor | Prompts,
        *,
        checkpoint: bool = False,
        learnt: Learnt | None = None,
    ) -> Tensor:
        """As `encode_prompts`, rows of the length that the tower gives them.

        checkpoint, learnt: as `towers` has them; of sets, rows are (B, C, d).
        """
        from .towers import TextTower

        if isinstance(prompts, Tensor):
            prompts = self.pack(prompts)
        given = (part if isinstance(part, Tensor) else part.tokens for part in prompts)
        self.passes["text"] += sum(map(len, given)) * (learnt.sets or 1 if learnt else 1)
        encode = partial(TextTower(self.model).encode, checkpointing=checkpoint, learnt=learnt)
        if len(prompts) > 1:
            encode = partial(recomputed, encode, device=self.device)
        return torch.cat([encode(part) for part in prompts], dim=-2).float()


def _per_channel(what: Literal["mean", "std"], config: Mapping[str, Any]) -> Tensor:
    """(3, 1, 1) of three numbers, or of one for all channels; ValueError for what are no such."""
    given = config[what] if isinstance(config[what], (list, tuple)) else [config[what]]
    try:
        numbers = [float(value) for value in given] * (1 if len(given) == 3 else 3)
    except (TypeError, ValueError):
        numbers = []
    least = 0.0 if what == "std" else -math.inf
    if len(numbers) != 3 or not all(least < number < math.inf for number in numbers):
        raise ValueError(
            f"the backbone's preprocessing has {what}={config[what]!r}; "
            "give three finite numbers, or one" + (", above 0" if what == "std" else "")
        )
    return torch.tensor(numbers, dtype=torch.float32).view(3, 1, 1)


def load_backbone(spec: BackboneSpec, device: str | torch.device = "auto") -> Backbone:
    """Build the model and load its weights; files of any number format are read into `precision`.

    What was hashed is what is loaded: a file that changes meanwhile is refused. Errors are one
    sentence: ValueError for a name, a tag or a file that is not right, OSError for one that is not
    here.
    device: see `resolve_device`; weights in half precision, which a CPU is slow with, go there only
    by name.
    """
    device = resolve_device(device, fallback=spec.format == "fp32")
    spec = with_checksum(spec)
    name = open_clip_name(spec.name)
    source = obtain(spec)
    if source is None:
        model = build(spec, preprocessing(spec, None))
        return Backbone(model, load_tokenizer(name), spec).to(device)
    checkpoint = read_checkpoint(source.checkpoint)
    refuse_other_activation(spec, source, checkpoint.openai)
    doubt_activation(spec, source, checkpoint)
    model = build(spec, preprocessing(spec, source, checkpoint.openai))
    tensors = load_weights(model, checkpoint, spec.name)
    if not source.unchanged() or (spec.checksum and source.sha256 != spec.checksum):
        raise RuntimeError(
            f"{source.checkpoint} changed while it was read; start again when it is at rest"
        )
    weights = {"file": source.name, "sha256": source.sha256, "tensors": tensors}
    return Backbone(model, load_tokenizer(name), spec, weights).to(device)


def build(spec: BackboneSpec, preprocess: Mapping[str, Any]) -> nn.Module:
    """Return the model with the same random weights always; torch's global stream is left alone."""
    import open_clip

    name = open_clip_name(spec.name)
    # they come later, or are asked for
    with seeded_torch(0, f"random weights/{spec.name}"), quiet():
        try:
            model = open_clip.create_model(
                name,
                precision=spec.format,
                # else the base weights of a Hugging Face text tower are fetched
                pretrained_text=False,
                force_preprocess_cfg=dict(preprocess),
            )
        except MemoryError:
            raise
        except Exception as error:  # a package that is not installed, a config that is not here
            raise unavailable("architecture", spec.name, error) from None
    # a text tower of Hugging Face comes in the number format of its config
    return model.float() if spec.format == "fp32" else model
