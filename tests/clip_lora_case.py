"""The same training on both sides: this library's own path, and CLIP-LoRA's re-statement."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision import transforms

from blocklora_lib.adapters.adapter import Adapter
from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core.seeding import generator
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import batches
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.measure.other_code import clip_lora as reference
from blocklora_lib.methods import get_method
from blocklora_lib.weights.spec import BackboneSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEMPLATE = "a photo of a {}."
BICUBIC = transforms.InterpolationMode.BICUBIC
CLASS_NAMES = ("forest", "annual crop land", "river", "sea_or_lake")
SEED, STEPS = 1, 5
# What float32 allows: relative L2 norms of the worst tensor.  In brackets what was seen at ViT-B/16
# size.
BARS = {
    "logits": 1e-4,  # [3e-6] less their mean over the classes
    "loss": 1e-5,  # [1e-6]
    # CosineAnnealingLR multiplies its way along the cosine, so roundings of float64 add up
    "lr": 1e-9,
    "gradient": 1e-3,  # [1e-5] of A and of B, from equal parameters
    # Adam divides a gradient by its own size, so an entry of B whose gradient is as small as its
    # rounding error may step the other way.  What five steps changed [2e-3]: one such entry in 10^4
    # makes 2 sqrt(10^-4) = 2e-2.  The gradient of A is a product with that B [4e-4].
    "change": 2e-2,
    "later gradients": 2e-2,
    # While B = 0, A has no gradient and only decays, by lr * weight_decay = 2e-6.  One rounding is
    # 6e-8.
    "decay": 3e-7,
}
# The tiny model has so few entries that none of them is that small [4e-6, 2e-6].
TINY_BARS = BARS | {"change": 1e-4, "later gradients": 1e-4}


def prompts(class_names: Iterable[str]) -> list[str]:
    return [TEMPLATE.format(name.replace("_", " ")) for name in class_names]


def evaluation_transform(size: int = 224) -> transforms.Compose:
    """PIL image -> (3, size, size): the shorter side to `size`, then its middle."""
    return transforms.Compose(
        [transforms.Resize(size, BICUBIC), transforms.CenterCrop(size), *to_tensor()]
    )


def to_tensor() -> list:
    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


class Step(NamedTuple):
    loss: float
    lr: float
    gradients: dict[tuple[str, int, str], tuple[Tensor, Tensor]]  # of A and B
    parameters: dict[tuple[str, int, str], tuple[Tensor, Tensor]]  # after the step


def normalise(pixels: Tensor) -> Tensor:
    """ToTensor and Normalize. pixels: (N, 3, H, W), 0..255."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def train(
    model: reference.ClipLora,
    tokens: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: float = 2e-4,
    n_iters: int = 500,
    shots: int = 1,
    weight_decay: float = 1e-2,
    scheduler_first: bool = False,
) -> list[Step]:
    """Take n_iters * shots steps over (pixels 0..255, labels). `scheduler_first` is a mistake."""
    optimizer, scheduler = reference.optimisation(
        model.parameters(), lr, n_iters * shots, weight_decay
    )
    steps: list[Step] = []
    model.train()
    for (pixels, labels), _ in zip(batches, range(n_iters * shots), strict=False):
        if scheduler_first:
            scheduler.step()
        loss = F.cross_entropy(model.logits(normalise(pixels), tokens), labels)
        used = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradients = {k: (m.A.grad.clone(), m.B.grad.clone()) for k, m in model.adapters().items()}
        after = {
            k: (m.A.detach().clone(), m.B.detach().clone()) for k, m in model.adapters().items()
        }
        steps.append(Step(loss.item(), used, gradients, after))
        if not scheduler_first:
            scheduler.step()
    return steps


def predict(model: reference.ClipLora, images: Tensor, tokens: Tensor) -> Tensor:
    """The class of the largest cosine: (N,)."""
    with torch.no_grad():
        return model.eval().cosines(images, tokens).topk(1, 1, True, True)[1][:, 0]


class Case:
    """Random weights, four images with their labels, the prompts; both sides train on them."""

    def __init__(self, backbone: str) -> None:
        self.backbone = load_backbone(BackboneSpec(name=backbone, pretrained="none"), "cpu")
        # random weights start at 1/0.07; OpenAI's weights have ln 100
        self.backbone.model.logit_scale.data.fill_(math.log(reference.LOGIT_SCALE))
        self.tokens = self.backbone.tokenize(prompts(CLASS_NAMES))
        self.images = pictures(len(CLASS_NAMES), self.backbone.resolution)
        self.labels = torch.arange(len(CLASS_NAMES))
        self.training = TrainingSpec(steps_per_shot=STEPS, batch_size=2, augment="none")

    def context(self, training: TrainingSpec | None = None, on_step=None) -> Context:
        training = training or self.training
        return Context(
            self.backbone, self.tokens, self.images, self.labels, training, 1, SEED, on_step
        )

    def fit(self, method: str = "lora", training: dict | None = None, **settings):
        """Train by the library's own path; return the predictor and what every step did."""
        steps: list[Step] = []
        rates: list[float] = []

        def record(step: int, of: int, loss: float) -> None:
            found = self.adapters()
            steps.append(Step(loss, rates[-1], gradients(found), values(found)))

        context = self.context(self.training.model_copy(update=training or {}), record)
        with recorded_rates(rates):
            cls = get_method(method)
            predictor = cls(cls.Settings(**{"n_blocks": 1, "dropout": 0.0} | settings)).fit(context)
        return predictor, steps

    def adapters(self) -> dict[tuple[str, int, str], Adapter]:
        """Return the library's adapters by (tower, layer, q k v or o)."""
        found = {}
        for name, module in self.backbone.model.named_modules():
            if isinstance(module, Adapter):
                words = name.split(".")
                found["vision" if words[0] == "visual" else "text", int(words[-4]), words[-1]] = (
                    module
                )
        return found

    def theirs(self, dropout: float = 0.0, scale: float | None = None) -> reference.ClipLora:
        """CLIP-LoRA on the same weights, its A drawn from the same stream by nn.init."""
        model = self.backbone.model
        heads = [
            t.resblocks[0].attn.num_heads for t in (model.visual.transformer, model.transformer)
        ]
        theirs = reference.ClipLora(model.state_dict(), heads, dropout=dropout, scale=scale)
        return theirs.reset(generator(SEED, "adapter"))

    def train_theirs(self, **changes) -> tuple[reference.ClipLora, list[Step]]:
        # CLIP-LoRA's loader shuffles too; the order is handed over
        order = batches(len(self.images), self.training.batch_size, generator(SEED, "shuffle"))
        theirs = self.theirs()
        given = ((self.images[index].float(), self.labels[index]) for index in order)
        return theirs, train(theirs, self.tokens, given, n_iters=STEPS, **changes)


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random colours with some noise: (n, 3, size, size), uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=random) * 255
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return (smooth + 12 * torch.randn(smooth.shape, generator=random)).clamp(0, 255).round().byte()


def factors(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """A and B of an adapter, whatever its kind calls them."""
    return getattr(adapter, "A", getattr(adapter, "A_s", None)), adapter.B


def gradients(adapters: dict) -> dict:
    """Gradients of A and B, B without the dimension of its n = 1 blocks."""
    return {
        k: tuple(p.grad.clone().reshape(p.shape[-2:]) for p in factors(a))
        for k, a in adapters.items()
    }


@contextmanager
def recorded_rates(rates: list[float]) -> Iterator[None]:
    """Append the learning rate of every optimizer step that is taken meanwhile."""
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    try:
        yield
    finally:
        hook.remove()


def apart(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, L2."""
    return float((ours.reshape(theirs.shape) - theirs).norm() / theirs.norm())


def steps_apart(ours: list[Step], theirs: list[Step], start: dict) -> dict[str, float]:
    """The largest distance, over steps and tensors, of each of BARS but the logits."""
    assert len(ours) == len(theirs) == STEPS
    assert ours[0].gradients.keys() == theirs[0].gradients.keys()
    pairs = list(zip(ours, theirs, strict=True))
    gradient = [
        [
            apart(mine[i], step.gradients[key][i])
            for key, mine in own.gradients.items()
            for i in (0, 1)
            if step.gradients[key][i].any() or mine[i].any()  # A's first gradient is zero: B is
        ]
        for own, step in pairs
    ]
    change = [
        apart(
            mine[i].reshape(start[key][i].shape) - start[key][i],
            theirs[-1].parameters[key][i] - start[key][i],
        )
        for key, mine in ours[-1].parameters.items()
        for i in (0, 1)
    ]
    a, b = ([step[0].parameters[key][0] for key in start] for step in (ours, theirs))
    return {
        "loss": max(abs(x.loss / y.loss - 1) for x, y in pairs),
        "lr": max(abs(x.lr / y.lr - 1) for x, y in pairs),
        "gradient": max(gradient[0]),
        "later gradients": max(max(of_step) for of_step in gradient[1:]),
        "change": max(change),
        "decay": max(float((x / y - 1).abs().max()) for x, y in zip(a, b, strict=True)),
    }


def values(adapters: dict) -> dict:
    """Copies of A and B of either side's adapters."""
    return {k: tuple(p.detach().clone() for p in factors(a)) for k, a in adapters.items()}


def put(adapters: dict, given: dict) -> None:
    """Write A and B of `given` into either side's adapters."""
    with torch.no_grad():
        for key, tensors in given.items():
            for parameter, tensor in zip(factors(adapters[key]), tensors, strict=True):
                parameter.copy_(tensor.view_as(parameter))


def large_updates(case: Case, std: float = 0.05) -> dict:
    """A as at the start, B at random, so that ΔW weighs in every product and A has a gradient."""
    random = torch.Generator().manual_seed(7)
    start = values(case.theirs().adapters())
    return {
        k: (a, torch.empty_like(b).normal_(0, std, generator=random)) for k, (a, b) in start.items()
    }


def centred(logits: Tensor) -> Tensor:
    """Logits less their mean over the classes, which the softmax does not see."""
    return logits.detach() - logits.detach().mean(-1, keepdim=True)


def tiny_case(folder: Path) -> Case:
    """Two layers a tower, QuickGELU, 77 positions of text, images of 32 px."""
    import open_clip

    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "layers": 2,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    path = folder / "TinyQuickGELU-parity.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(path)
    return Case(path.stem)
