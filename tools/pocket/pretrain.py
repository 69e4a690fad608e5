"""Pre-train PocketCLIP: distil its text tower from a sentence encoder, train its image tower
against that.

    python tools/pocket/pretrain.py text   CACHE             15 minutes on one thread
    python tools/pocket/pretrain.py image  CACHE --images N  40 minutes a million, on one thread
    python tools/pocket/pretrain.py export CACHE             pocket/model/pocketclip.safetensors

Text from scratch on 60,000 captions learns nothing; a sentence encoder knows already what words
mean. So the text tower first learns to give the encoder's embeddings (centred, normalised), is then
frozen, and the image tower is trained contrastively against it (locked-text tuning: Zhai et al.
2022, LiT, with the roles of the towers exchanged). Where there is a second core, the image tower
may begin against the teacher itself (`--against teacher`) while the text tower is being distilled;
it always ends against the text tower. Every stage checkpoints each minute, goes on where it
stopped, and appends to CACHE/train/STAGE.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import distillation_texts, pair_captions, teacher_embeddings
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from blocklora_lib.clip.backbone import load_backbone  # noqa: E402
from blocklora_lib.clip.towers import TextTower, encode_images  # noqa: E402
from blocklora_lib.data.dataset import load_dataset  # noqa: E402
from blocklora_lib.data.manifest_files import all_manifests  # noqa: E402
from blocklora_lib.weights.spec import BackboneSpec  # noqa: E402


class Stage:
    """A resumable loop: state on disk each minute, one JSON line a report."""

    def __init__(
        self,
        folder: Path,
        name: str,
        modules: dict[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.modules, self.optimizer = modules, optimizer
        self.seen, self.seconds, self.saved = 0, 0.0, time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            optimizer.load_state_dict(state["optimizer"])
            self.seen, self.seconds = state["seen"], state["seconds"]

    def save(self, every: float = 0.0) -> None:
        """Write the checkpoint (to a temporary name first) when `every` seconds have passed."""
        now = time.monotonic()
        if now - self.saved >= every:
            self.seconds, self.saved = self.seconds + now - self.saved, now
            state = dict(
                modules={k: m.state_dict() for k, m in self.modules.items()},
                optimizer=self.optimizer.state_dict(),
                seen=self.seen,
                seconds=self.seconds,
            )
            torch.save(state, self.path.with_suffix(".tmp"))
            os.replace(self.path.with_suffix(".tmp"), self.path)

    def report(self, **values) -> None:
        """Append to the curve and say it."""
        line = dict(
            seen=self.seen, seconds=round(self.seconds + time.monotonic() - self.saved), **values
        )
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def learning_rate(
    peak: float, seen: int, total: int, warm_up: int = 20_000, cool_down: float = 0.3
) -> float:
    """Warm up, stay, and fall linearly to zero over the last part: the end may be moved during the
    run.
    """
    return peak * min(1.0, (seen + 1) / warm_up, max(1 - seen / total, 0.0) / cool_down)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group of the optimizer the rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def of_text_tower(name: str) -> bool:
    """Whether a parameter of an open_clip CLIP belongs to its text tower."""
    return not name.startswith("visual.") and name != "logit_scale"


def train_text(cache: Path, texts_in_all: int, batch: int = 512) -> None:
    """Distil the text tower: 1 - cosine to the teacher's centred embedding of captions and other
    texts.
    """
    backbone = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    model, folder = backbone.model.train(), cache / "train"
    folder.mkdir(exist_ok=True)
    captions, *_ = pair_captions(cache / "corpus")
    texts = distillation_texts(captions, cache, ROOT / "data_manifests")
    store = folder / "teacher.npy"
    if not store.exists() or len(np.load(store, mmap_mode="r")) != len(texts):
        embeddings = teacher_embeddings(texts)
        index = {text: i for i, text in enumerate(texts)}
        # The centre is that of the captions that the images are trained with.
        centre = embeddings[[index[caption] for caption in captions]].mean(0)
        np.save(store, F.normalize(embeddings - centre, dim=-1).numpy())
    target = torch.from_numpy(np.load(store))
    tokens = backbone._tokenizer(texts)
    parameters = [p for name, p in model.named_parameters() if of_text_tower(name)]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    stage, tower, losses = Stage(folder, "text", {"model": model}, optimizer), TextTower(model), []
    generator = torch.Generator().manual_seed(stage.seen)
    lengths = (tokens != 0).sum(1)
    while stage.seen < texts_in_all:
        set_learning_rate(optimizer, learning_rate(1e-3, stage.seen, texts_in_all))
        pool = torch.randint(len(texts), (batch * 8,), generator=generator)
        batches = pool[lengths[pool].argsort()].view(8, batch)  # of texts alike in length
        for index in batches[torch.randperm(8, generator=generator)]:
            loss = (
                1
                - (F.normalize(tower.encode(tokens[index]), dim=-1) * target[index]).sum(-1).mean()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
        stage.seen += batch * 8
        if len(losses) >= 200:
            stage.report(loss=round(float(np.mean(losses)), 4), texts=len(texts))
            losses = []
        stage.save(every=60)
    stage.save()


# How often a source is drawn: coloured drawings say more than the many monochrome icons.
WEIGHTS = {
    "emojione": 4,
    "emojione-v1": 4,
    "fxemoji": 4,
    "fluent-emoji-flat": 4,
    "streamline-emojis": 4,
    "emojione-monotone": 2.5,
    "openclipart": 2,
    "streamline-color": 2,
    "streamline-plump-color": 2,
    "streamline-ultimate-color": 2,
    "flat-color-icons": 2,
    "streamline-kameleon-color": 2,
    "streamline-stickies-color": 2,
    "fluent-color": 2,
    "flag": 2,
    "flagpack": 2,
    "circle-flags": 2,
}
CHARACTERS_SHARE = 0.10  # letters and digits


def sampling_weights(sources: list[str]) -> Tensor:
    """Probability of each pair."""
    weights = torch.tensor([WEIGHTS.get(source, 1.0) for source in sources])
    fonts = torch.tensor([source == "fonts" for source in sources])
    weights[fonts] = CHARACTERS_SHARE / (1 - CHARACTERS_SHARE) * weights[~fonts].sum() / fonts.sum()
    return weights / weights.sum()


def augment(pixels: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
    """Affine change, coloured or noisy paper, grey, inversion, tint. (B, 3, 64, 64) in 0..1."""
    size = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator) * (high - low) + low

    def chance(p: float) -> Tensor:
        return (torch.rand(size, 1, 1, 1, generator=generator) < p).float()

    paper = uniform(0, 1, 3, 1, 1).expand(-1, -1, 64, 64)
    coarse = F.interpolate(uniform(0, 1, 3, 6, 6), (64, 64), mode="bilinear")
    paper = torch.where(chance(0.5) > 0, paper, coarse)
    white = (pixels.amin(1, keepdim=True) > 0.97).float() * chance(0.1)
    pixels = pixels * (1 - white) + paper * white
    scale, angle = torch.exp(uniform(-0.25, 0.2)), uniform(-0.1, 0.1)
    mirror = torch.where((torch.rand(size, generator=generator) < 0.5) & flip, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first = torch.stack([mirror * cos, -sin, uniform(-0.15, 0.15)], 1)
    second = torch.stack([mirror * sin, cos, uniform(-0.15, 0.15)], 1)
    theta = torch.stack([first, second], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    grey = chance(0.05)
    pixels = pixels * (1 - grey) + pixels.mean(1, keepdim=True) * grey
    pixels = torch.where(chance(0.03) > 0, 1 - pixels, pixels)
    return pixels * (1 - chance(0.1) * uniform(0, 0.5, 3, 1, 1))


@torch.inference_mode()
def zero_shot_on_training_splits(backbone, most: int = 300) -> dict[str, float]:
    """Zero-shot accuracy on the evaluated sets' training splits: what may be looked at while
    training.
    """
    accuracy = {}
    for name, manifest in all_manifests().items():
        if manifest.kind != "bundle" or "train" not in manifest.counts:
            continue
        data = load_dataset(name)
        index = torch.randperm(
            len(data.labels("train")), generator=torch.Generator().manual_seed(0)
        )[:most]
        features = backbone.encode_images(backbone.preprocess(data.images("train")[index]))
        classes = backbone.encode_prompts(backbone.tokenize(data.prompts))
        correct = (features @ classes.T).argmax(1).eq(data.labels("train")[index])
        accuracy[name] = round(correct.float().mean().item(), 4)
    return accuracy


def caption_embeddings(cache: Path, backbone, captions: list[str], against: str) -> Tensor:
    """Frozen unit rows (N, 384) of the captions: the distilled text tower's, or their teacher's."""
    if against == "teacher":
        texts = distillation_texts(captions, cache, ROOT / "data_manifests")
        index = {text: i for i, text in enumerate(texts)}
        embeddings = np.load(cache / "train" / "teacher.npy")
        return torch.from_numpy(embeddings[[index[caption] for caption in captions]])
    state = torch.load(cache / "train" / "text.pt", weights_only=True)["modules"]["model"]
    tower = {name: tensor for name, tensor in state.items() if of_text_tower(name)}
    backbone.model.load_state_dict(tower, strict=False)
    with torch.inference_mode():
        parts = [backbone.encode_prompts(part) for part in backbone._tokenizer(captions).split(512)]
        return torch.cat(parts).clone()


def train_image(
    cache: Path,
    images_in_all: int,
    against: str,
    batch: int = 128,
    negatives: int = 1024,
    peak: float = 1e-3,
) -> None:
    """Train the image tower contrastively against the text tower; a pair's own captions are no
    negatives.
    """
    backbone = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    model, folder = backbone.model, cache / "train"
    captions, rows, caption_weights, sources = pair_captions(cache / "corpus")
    pixels = torch.from_numpy(np.load(cache / "corpus" / "images.npy")).permute(0, 3, 1, 2)
    weights = sampling_weights(sources)
    flip = torch.tensor(
        [source not in ("fonts", "flag", "flagpack", "circle-flags") for source in sources]
    )
    parameters = [*model.visual.parameters(), model.logit_scale]
    for p in parameters:
        p.requires_grad_(True)
    decay = [p for p in model.visual.parameters() if p.ndim > 1]
    rest = [p for p in model.visual.parameters() if p.ndim <= 1] + [model.logit_scale]
    groups = [dict(params=decay, weight_decay=0.05), dict(params=rest, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    stage, losses, looked = (
        Stage(folder, "image", {"model": model}, optimizer),
        [],
        time.monotonic(),
    )
    # After the checkpoint, since its text tower may be older.
    classes = caption_embeddings(cache, backbone, captions, against)
    size = f"{len(pixels)} pairs, {len(captions)} captions"
    print(f"{size}, from {stage.seen} images: {dict(Counter(sources))}", flush=True)
    generator = torch.Generator().manual_seed(stage.seen)
    model.visual.train()
    while stage.seen < images_in_all:
        set_learning_rate(optimizer, learning_rate(peak, stage.seen, images_in_all))
        index = torch.multinomial(weights, batch, replacement=True, generator=generator)
        target = rows[
            index, torch.multinomial(caption_weights[index], 1, generator=generator)[:, 0]
        ]
        others = torch.randint(len(captions), (negatives,), generator=generator)
        pool, position = torch.unique(torch.cat([target, others]), return_inverse=True)
        position = position[:batch]
        also_true = (rows[index][:, :, None] == pool).any(1).scatter(1, position[:, None], False)
        with torch.autocast("cpu", torch.bfloat16):
            augmented = augment(pixels[index].float() / 255, flip[index], generator) * 255
            features = encode_images(model, backbone.normalise(augmented))
        scale = model.logit_scale.exp().clamp(max=60)
        logits = scale * F.normalize(features.float(), dim=-1) @ classes[pool].T
        loss = F.cross_entropy(logits.masked_fill(also_true, -math.inf), position)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        stage.seen += batch
        losses.append(loss.item())
        if len(losses) == 200:
            stage.report(loss=round(float(np.mean(losses)), 3), scale=round(scale.item(), 1))
            losses = []
        if time.monotonic() - looked > 300 or stage.seen >= images_in_all:
            if against == "tower":
                model.visual.eval()
                stage.report(zero_shot=zero_shot_on_training_splits(backbone))
                model.visual.train()
            looked = time.monotonic()
        stage.save(every=60)
    stage.save()


def export(cache: Path) -> None:
    """Write the float16 weights; token rows that no training text used become zero."""
    backbone = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    state = torch.load(cache / "train" / "image.pt", weights_only=True)["modules"]["model"]
    captions, *_ = pair_captions(cache / "corpus")
    used = backbone._tokenizer(
        distillation_texts(captions, cache, ROOT / "data_manifests")
    ).unique()
    keep = torch.zeros(len(state["token_embedding.weight"]), 1)
    keep[used] = 1
    state["token_embedding.weight"] *= keep
    state["logit_scale"].clamp_(max=math.log(60))
    state.pop("attn_mask", None)  # computed, not learnt
    tensors = {
        name: tensor.to(torch.float16).contiguous() for name, tensor in sorted(state.items())
    }
    save_file(
        tensors, ROOT / "pocket" / "model" / "pocketclip.safetensors", metadata={"format": "pt"}
    )
    weights = sum(tensor.numel() for tensor in tensors.values())
    print(f"{len(used)} token rows of {len(keep)} in use, {weights:,} weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("text", "image", "export"))
    parser.add_argument("cache", type=Path)
    parser.add_argument("--texts", type=int, default=1_500_000)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--against", choices=("tower", "teacher"), default="tower")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.stage == "text":
        train_text(arguments.cache, arguments.texts)
    elif arguments.stage == "image":
        train_image(arguments.cache, arguments.images, arguments.against)
    else:
        export(arguments.cache)
