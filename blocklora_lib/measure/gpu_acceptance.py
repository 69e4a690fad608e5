"""What a GPU is measured by before it is trusted with a reproduction; `benchmarks/gpu_check.py` judges.

Every function loads its own model with random weights and lets go of it, so that no peak of memory holds what
another case left.  Images are drawn on the CPU and moved: both forms, and every device, see the same ones.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapter_config import AdapterConfig
from ..backbones import Backbone, load_backbone
from ..devices import repeatable
from ..experiment import Workbench, execute
from ..grids import make_spec
from ..image_files import ImageFiles, ahead
from ..inject import AdapterSet, attach
from ..profiles import load_profile
from ..seeding import generator, seeded_torch
from ..specs import BackboneSpec
from ..towers import TextTower
from . import clip_lora
from .cost_measurements import random_images
from .step_variants import class_prompts

Numbers = dict[str, Any]
WARM_UP = 3  # steps before the clock starts: kernels are chosen and memory is taken
DROPOUT = 0.25
LR, DECAY = 2e-4, 1e-2  # CLIP-LoRA's


class NotCovered(ValueError):
    """A model that CLIP-LoRA's code does not run."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.  model: a name of open_clip; images: how many are evaluated."""

    model: str = "ViT-B-16-quickgelu"
    classes: tuple[int, ...] = (10, 100, 1000)
    batch: int = 32
    steps: int = 20
    images: int = 2000

    def load(self, precision: str, device: torch.device) -> Backbone:
        spec = BackboneSpec(name=self.model, pretrained="none", precision=precision)
        return load_backbone(spec, device)


@contextmanager
def products(device: torch.device, strict: bool, tf32: bool = False) -> Iterator[None]:
    """`repeatable`, and with `tf32` float32 products of fewer digits; what was set before is set again."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    with repeatable(device, strict):
        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = tf32
            yield
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


def release(device: torch.device) -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Return when the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def adapted(backbone: Backbone, dropout: float = DROPOUT) -> AdapterSet:
    """Attach Block-LoRA(2, 2) to a backbone, ready to train."""
    config = AdapterConfig(kind="block_lora", rank=2, n_blocks=2, dropout=dropout)
    adapters = attach(backbone.model, config, generator(1, "adapter"))
    for adapter in adapters.adapters.values():
        adapter.train()  # the frozen model stays in eval mode
    return adapters


def our_step(
    backbone: Backbone,
    adapters: AdapterSet,
    classes: int,
    batch: int,
    share_prefix: bool = False,
    checkpoint: bool = False,
    class_chunk: int | None = None,
) -> Callable[[], Tensor]:
    """Return a training step as `training.train` takes it, which waits for no result: it returns the loss."""
    tokens, images = backbone.tokenize(class_prompts(classes)), random_images(backbone, batch)
    prompts = backbone.pack(tokens, share_prefix=share_prefix, class_chunk=class_chunk)
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=LR, weight_decay=DECAY), fused=True)

    def scores() -> Tensor:
        text = backbone.encode_prompts(prompts, checkpoint=checkpoint)
        return backbone.logit_scale * backbone.encode_images(images, checkpoint=checkpoint) @ text.T

    half = backbone.dtype == torch.float16
    return _step(scores, optimizer, classes, images, half, backbone.training_kernels)


def clip_lora_step(backbone: Backbone, classes: int, batch: int, autocast: bool) -> Callable[[], Tensor]:
    """Return the step of CLIP-LoRA's computation, restated: float32, or float16 by autocast as it runs."""
    model, device = backbone.model, backbone.device
    try:
        heads = [tower.resblocks[0].attn.num_heads for tower in (model.visual.transformer, model.transformer)]
    except AttributeError:
        raise NotCovered(f"CLIP-LoRA's code has no towers like those of {backbone.spec.name}") from None
    theirs = clip_lora.ClipLora(model.state_dict(), heads, dropout=DROPOUT)
    theirs = theirs.to(device).reset(generator(1, "adapter")).train()
    tokens, images = backbone.tokenize(class_prompts(classes)), random_images(backbone, batch)
    optimizer, _ = clip_lora.optimisation(theirs.parameters(), LR, steps=1, weight_decay=DECAY)

    def scores() -> Tensor:
        with torch.autocast(device.type, torch.float16) if autocast else nullcontext():
            return theirs.logits(images, tokens)

    return _step(scores, optimizer, classes, images, autocast)


def _step(
    scores: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    classes: int,
    images: Tensor,
    scaled: bool,
    kernels: Callable[[], Any] = nullcontext,
) -> Callable[[], Tensor]:
    labels = (torch.arange(len(images)) % classes).to(images.device)
    scaler = torch.amp.GradScaler(images.device.type, enabled=scaled)

    def step() -> Tensor:
        with kernels():
            loss = F.cross_entropy(scores().float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return step


def step_costs(make: Callable[[], Callable[[], Tensor]], steps: int, device: torch.device) -> Numbers:
    """Return what the step that `make` loads takes: medians in ms, peaks in GiB, model and all.

    ms: until the device has done a step; host_ms: until the step returns, which is how long Python needs to
    ask for it (and waits where the optimiser looks at a number).  before_gib is what others still held.
    """
    gib = _gib(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = gib("memory_allocated")
    step = make()
    times, hosts = [], []
    with seeded_torch(1, "dropout", device):
        for _ in range(WARM_UP):
            step()
        wait(device)
        for _ in range(steps):
            start = time.perf_counter()
            loss = step()
            hosts.append(time.perf_counter() - start)
            wait(device)
            times.append(time.perf_counter() - start)
    return {
        "ms": round(1e3 * statistics.median(times), 2),
        "host_ms": round(1e3 * statistics.median(hosts), 2),
        "peak_gib": gib("max_memory_allocated"),
        "reserved_gib": gib("max_memory_reserved"),
        "before_gib": before,
        "loss": loss.item(),
    }


def _gib(device: torch.device) -> Callable[[str], float | None]:
    """A reader of torch.cuda's statistics; None on a CPU, whose peaks hold all that the process ever did."""
    if device.type != "cuda":
        return lambda what: None
    return lambda what: round(getattr(torch.cuda, what)(device) / 2**30, 3)


def trained(
    sizes: Sizes, device: torch.device, precision: str = "fp32", dropout: float = DROPOUT, steps: int = 5
) -> tuple[list[float], Tensor]:
    """Return the losses of so many steps, and the adapters after them in one row, float64, on the CPU."""
    backbone = sizes.load(precision, device)
    adapters = adapted(backbone, dropout)
    step = our_step(backbone, adapters, min(sizes.classes), min(sizes.batch, 8))
    with seeded_torch(1, "dropout", device):
        losses = [step().item() for _ in range(steps)]
    return losses, torch.cat([p.detach().double().cpu().flatten() for p in adapters.parameters()])


def against_cpu(sizes: Sizes, device: torch.device) -> Numbers:
    """Train without dropout on the CPU and on the device: how far losses and adapters are from each other."""
    (here, ours), (there, theirs) = (trained(sizes, d, dropout=0.0) for d in (torch.device("cpu"), device))
    loss = max(abs(a - b) / abs(a) for a, b in zip(here, there, strict=True))
    return {"cpu": here, "device": there, "losses_relative": loss, "adapters_relative": _apart(theirs, ours)}


def repeats(sizes: Sizes, device: torch.device, precision: str, strict: bool, runs: int = 3) -> Numbers:
    """Train the same thing several times, dropout on: whether all gave the same bits."""
    with products(device, strict):
        found = [trained(sizes, device, precision) for _ in range(runs)]
    losses, adapters = found[0]
    same = all(other == losses and torch.equal(row, adapters) for other, row in found[1:])
    return {"same_bits": same, "losses": losses}


def gradient(sizes: Sizes, device: torch.device, class_chunk: bool, checkpoint: bool, kept: bool) -> Tensor:
    """Return the adapters' gradient, (n,), of a loss over both towers, dropout on.

    class_chunk: prompts in three chunks; checkpoint: blocks are computed again in backward.  kept: the same
    chunks and blocks, with all activations kept: nothing is computed again.
    """
    backbone = sizes.load("fp32", device)
    adapters = adapted(backbone)
    for i, adapter in enumerate(adapters.adapters.values()):  # B = 0 would leave A without a gradient
        adapter.B.data.copy_(torch.empty(adapter.B.shape).normal_(0, 0.05, generator=generator(i, "B")))
    tokens = backbone.tokenize(class_prompts(min(9, *sizes.classes)))
    parts = backbone.pack(tokens, class_chunk=-(-len(tokens) // 3) if class_chunk else None)
    images = random_images(backbone, min(sizes.batch, 4))
    with products(device, strict=True), seeded_torch(1, "dropout", device):
        if kept:
            tower = TextTower(backbone.model)
            text = F.normalize(torch.cat([tower.encode(part) for part in parts]).float(), dim=-1)
        else:
            text = backbone.encode_prompts(parts, checkpoint=checkpoint)
        image = backbone.encode_images(images, checkpoint=checkpoint and not kept)
        ((text @ text.detach().roll(1, 0).T).square().sum() + (image @ text.T).square().sum()).backward()
    return torch.cat([p.grad.flatten() for p in adapters.parameters()])


def recomputed_against_kept(
    sizes: Sizes, device: torch.device, class_chunk: bool = False, checkpoint: bool = False
) -> Numbers:
    """Compare the gradient that is computed again with that of kept activations: other dropout masks show."""
    kept, again = (gradient(sizes, device, class_chunk, checkpoint, keep) for keep in (True, False))
    return {"relative": _apart(again, kept), "norm": float(kept.norm())}


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def evaluation_rate(sizes: Sizes, device: torch.device, source: str) -> Numbers:
    """Images a second through the image tower.  source: 'files' (JPEG, 500 x 375), or 'memory' (pixels)."""
    backbone = sizes.load("fp16" if device.type == "cuda" else "fp32", device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if source == "files":
            images = ImageFiles([_photograph(Path(folder))] * sizes.images)
        else:
            images = torch.zeros(sizes.images, 3, *backbone.view.size, dtype=torch.uint8)
        backbone.encode_images(backbone.preprocess(images[torch.arange(1)]))
        wait(device)
        start = time.perf_counter()
        with closing(ahead(map(backbone.preprocess, images.split(100)))) as batches:  # as `evaluate` reads
            for pixels in batches:
                backbone.encode_images(pixels)
        wait(device)
        return {"images_per_second": round(sizes.images / (time.perf_counter() - start), 1)}


def _photograph(folder: Path) -> Path:
    """A JPEG file of a photograph's size and smoothness."""
    noise = torch.randint(0, 256, (45, 60, 3), dtype=torch.uint8, generator=generator(1, "photograph"))
    path = folder / "photograph.jpg"
    Image.fromarray(noise.numpy()).resize((500, 375), Image.BICUBIC).save(path, quality=92)
    return path


def whole_runs(device: torch.device) -> Numbers:
    """Execute a run of the smoke profile twice on the device: whether its results are equal."""
    profile = load_profile("smoke")
    spec = make_spec(profile, profile.targets[0], "block_lora", profile.shots[0], profile.seeds[0])
    first, second = (execute(spec, Workbench(device)) for _ in range(2))
    same = first.status == second.status == "done" and first.result == second.result
    accuracy = {name: f"{count.correct}/{count.total}" for name, count in first.result.accuracy.items()}
    return {"same_result": same, "accuracy": accuracy, "loss": list(first.result.loss)}
