"""What a GPU is measured by before it is trusted; `benchmarks/gpu_check.py` judges.

Every function loads its own model with random weights and lets go of it, so that no peak of memory
holds what another case left. Images are drawn on the CPU and moved: both forms, and every device,
see the same ones.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapters.attach import AdapterSet
from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone, load_backbone
from ..clip.towers import TextTower
from ..core.devices import repeatable
from ..core.seeding import generator, seeded_torch
from ..data.image_files import ImageFiles, ahead
from ..data.kept_views import KeptViews
from ..learning.feature_cache import BATCH
from ..learning.replayed import WARM_UP, Replayed, can_replay
from ..runs.execute import execute
from ..runs.grid import make_spec
from ..runs.profile_files import load_profile
from ..runs.workbench import Workbench
from ..weights.spec import BackboneSpec
from .counted import attach_in_training
from .gpu_steps import Numbers
from .prompts import class_prompts
from .steps import OPTIMIZER, Step, our_step, random_images
from .timing import synchronise

DROPOUT = 0.25


@dataclass(frozen=True)
class Sizes:
    """What is measured. model: a name of open_clip; images: how many are evaluated."""

    model: str = "ViT-B-16-quickgelu"
    classes: tuple[int, ...] = (10, 100, 1000)
    batch: int = 32
    steps: int = 20
    images: int = 2000

    def load(self, precision: Any, device: torch.device) -> Backbone:
        """Return the model with random weights, in this number format."""
        spec = BackboneSpec(name=self.model, pretrained="none", precision=precision)
        return load_backbone(spec, device)


def adapted(backbone: Backbone, dropout: float = DROPOUT) -> AdapterSet:
    """Attach Block-LoRA(2, 2) to a backbone, ready to train."""
    return attach_in_training(backbone.model, AdapterConfig(rank=2, n_blocks=2, dropout=dropout))


def step_of(backbone: Backbone, adapters: AdapterSet, classes: int, batch: int, **way: Any) -> Step:
    """Return the library's training step. way: keywords of `our_step`."""
    tokens, images = backbone.tokenize(class_prompts(classes)), random_images(backbone, batch)
    return our_step(backbone, adapters.parameter_groups(**OPTIMIZER), tokens, images, **way)


def trained(
    sizes: Sizes,
    device: torch.device,
    precision: str = "fp32",
    dropout: float = DROPOUT,
    steps: int = 5,
) -> tuple[list[float], Tensor]:
    """Return the losses of so many steps, and the adapters after them: (n,), float64, on a CPU."""
    return _trained(sizes, device, precision, dropout, steps)[:2]


def _trained(
    sizes: Sizes,
    device: torch.device,
    precision: str,
    dropout: float = DROPOUT,
    steps: int = 5,
    graphs: bool = False,
) -> tuple[list[float], Tensor, int]:
    """As `trained`, and how many CUDA graphs were made."""
    backbone = sizes.load(precision, device)
    adapters = adapted(backbone, dropout)
    step = step_of(backbone, adapters, min(sizes.classes), min(sizes.batch, 8))
    if graphs:
        step.replay()
    with seeded_torch(1, "dropout", device):
        losses = [step().item() for _ in range(steps)]
    row = torch.cat([p.detach().double().cpu().flatten() for p in adapters.parameters()])
    return losses, row, step.graphs


def against_cpu(sizes: Sizes, device: torch.device) -> Numbers:
    """Train without dropout on the CPU and on the device: how far losses and adapters are apart."""
    here, ours = trained(sizes, torch.device("cpu"), dropout=0.0)
    there, theirs = trained(sizes, device, dropout=0.0)
    loss = max(abs(a - b) / abs(a) for a, b in zip(here, there, strict=True))
    apart = {"losses_relative": loss, "adapters_relative": _apart(theirs, ours)}
    return {"cpu": here, "device": there, **apart}


def repeats(
    sizes: Sizes, device: torch.device, precision: str, strict: bool, runs: int = 3
) -> Numbers:
    """Train the same thing several times, dropout on: whether all gave the same bits."""
    with repeatable(device, strict, precision == "tf32"):
        found = [trained(sizes, device, precision) for _ in range(runs)]
    losses, adapters = found[0]
    same = all(other == losses and torch.equal(row, adapters) for other, row in found[1:])
    return {"same_bits": same, "losses": losses}


def graphs_against_none(sizes: Sizes, device: torch.device, precision: str) -> Numbers:
    """Train the same thing by CUDA graphs and without, dropout on: whether bits are the same.

    graphs: how many were made, for a step that makes none would be the same, too.
    """
    with repeatable(device, tf32=precision == "tf32"):
        steps = WARM_UP + 10
        losses, plain, _ = _trained(sizes, device, precision, steps=steps)
        found, row, graphs = _trained(sizes, device, precision, steps=steps, graphs=True)
    same = losses == found and torch.equal(plain, row)
    return {"same_bits": same, "graphs": graphs, "losses": losses}


def gradient(
    sizes: Sizes,
    device: torch.device,
    class_chunk: bool = False,
    checkpoint: bool = False,
    kept: bool = True,
    precision: str = "fp32",
) -> Tensor:
    """Return the adapters' gradient, (n,), of a loss over both towers, dropout on.

    class_chunk: prompts in three chunks; checkpoint: blocks are computed again in backward. kept:
    the same chunks and blocks, with all activations kept: nothing is computed again.
    """
    backbone = sizes.load(precision, device)
    adapters = adapted(backbone)
    for i, adapter in enumerate(adapters.adapters.values()):  # B = 0: A would get no gradient
        start = torch.empty(adapter.B.shape).normal_(0, 0.05, generator=generator(i, "B"))
        adapter.B.data.copy_(start)
    tokens = backbone.tokenize(class_prompts(min(9, *sizes.classes)))
    parts = backbone.pack(tokens, class_chunk=-(-len(tokens) // 3) if class_chunk else None)
    images = random_images(backbone, min(sizes.batch, 4))
    exact = repeatable(device, tf32=precision == "tf32")
    with exact, seeded_torch(1, "dropout", device):
        if kept:
            tower = TextTower(backbone.model)
            text = F.normalize(torch.cat([tower.encode(part) for part in parts]).float(), dim=-1)
        else:
            text = backbone.encode_prompts(parts, checkpoint=checkpoint)
        image = backbone.encode_images(images, checkpoint=checkpoint and not kept)
        loss = (text @ text.detach().roll(1, 0).T).square().sum() + (image @ text.T).square().sum()
        loss.backward()
    return torch.cat([p.grad.flatten() for p in adapters.parameters() if p.grad is not None])


def recomputed_against_kept(
    sizes: Sizes, device: torch.device, class_chunk: bool = False, checkpoint: bool = False
) -> Numbers:
    """Compare the gradient of recomputed activations with that of kept ones: other masks show."""
    kept, again = (gradient(sizes, device, class_chunk, checkpoint, keep) for keep in (True, False))
    return {"relative": _apart(again, kept), "norm": float(kept.norm())}


def against_fp32(sizes: Sizes, device: torch.device, precision: str) -> Numbers:
    """Compare the gradient of a number format with that of float32 on the same device."""
    full, found = (gradient(sizes, device, precision=p).double() for p in ("fp32", precision))
    return {"relative": _apart(found, full), "cosine": float(F.cosine_similarity(found, full, 0))}


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def evaluation_rate(sizes: Sizes, device: torch.device, source: str) -> Numbers:
    """Images a second through the image tower.

    source: 'files' (JPEG, 500 x 375), 'kept views' of such files, as runs read them from the second
    on, or 'memory'.
    """
    backbone = sizes.load("fp16" if device.type == "cuda" else "fp32", device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        images: ImageFiles | Tensor
        if source != "memory":
            images = files = ImageFiles(_photographs(Path(folder), sizes.images))
            if source == "kept views":
                _keep_views(files, Path(folder), backbone)
        else:
            images = torch.zeros(sizes.images, 3, *backbone.view.size, dtype=torch.uint8)
        encode: Callable[[Tensor], Tensor] = backbone.encode_images
        encode(backbone.preprocess(images[torch.arange(1)]))
        if can_replay(backbone, recomputes=False):
            lengths = Counter(len(part) for part in images.split(BATCH))
            encode = Replayed(encode, lengths, backbone)
        synchronise(device)
        start = time.perf_counter()
        # as `evaluate` reads
        with closing(ahead(map(backbone.preprocess, images.split(BATCH)))) as batches:
            for pixels in batches:
                encode(pixels)
        synchronise(device)
        return {"images_per_second": round(sizes.images / (time.perf_counter() - start), 1)}


def _photographs(folder: Path, n: int) -> list[Path]:
    """n JPEG files of a photograph's size and smoothness, all the same."""
    draw = generator(1, "photograph")
    noise = torch.randint(0, 256, (45, 60, 3), dtype=torch.uint8, generator=draw)
    first = folder / "photograph.jpg"
    Image.fromarray(noise.numpy()).resize((500, 375), Image.Resampling.BICUBIC).save(
        first, quality=92
    )
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for path in paths:
        path.symlink_to(first)
    return paths


def _keep_views(images: ImageFiles, folder: Path, backbone: Backbone) -> None:
    """Make the file of their views, which is checked when it is read."""
    views = KeptViews(folder, "photographs", images.paths, {})
    images.keep_views(views)
    images.at(backbone.view, "cpu").evaluation_views()


def whole_runs(device: torch.device) -> Numbers:
    """Execute a run of the smoke profile twice on the device: whether its results are equal."""
    profile = load_profile("smoke")
    spec = make_spec(profile, profile.targets[0], "block_lora", profile.shots[0], profile.seeds[0])
    first, second = (execute(spec, Workbench(device)) for _ in range(2))
    same = first.status == second.status == "done" and first.result == second.result
    found: Any = first.result
    accuracy = {name: f"{c.correct}/{c.total}" for name, c in found.accuracy.items()}
    return {"same_result": same, "accuracy": accuracy, "loss": list(found.loss)}
