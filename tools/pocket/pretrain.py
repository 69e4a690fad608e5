"""Pre-train a pocket family: have its text tower, train its image tower against that.

    python tools/pocket/pretrain.py text   CACHE [--family F]             15 minutes on one thread
    python tools/pocket/pretrain.py image  CACHE [--family F] --images N  40 minutes a million
    python tools/pocket/pretrain.py export CACHE [--family F]             pocket/model/*.safetensors

Text from scratch on 60,000 captions learns nothing; a sentence encoder knows already what words
mean. So the text tower of PocketCLIP first learns to give the encoder's embeddings (centred,
normalised), is then frozen, and the image tower is trained against it (locked-text tuning: Zhai et
al. 2022, LiT, with the roles of the towers exchanged). The other families (`families.py`) take
PocketCLIP's text tower, or learn from it, and train their image towers, which begin with its trunk,
for their own objective (`objectives/`). Every stage checkpoints each minute, goes on where it
stopped, and appends to CACHE/train/FAMILY/STAGE.jsonl; the rate falls to zero over the last third,
whose end `--images` may move during the run.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import distillation_texts, pair_captions
from families import FAMILIES, ROOT, begin_image, begin_text, embed, texts_and_targets, untrained
from objectives.batch import Batch, autocast, of_text_tower, trained
from safetensors.torch import save_file
from sampling import augment, sampling_weights
from stage import Stage, learning_rate, set_learning_rate
from torch.nn.attention import SDPBackend, sdpa_kernel

from blocklora_lib.clip.towers import TextTower
from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.manifest_files import all_manifests
from blocklora_lib.weights.spec import BUNDLED


def train_text(cache: Path, name: str, texts_in_all: int, batch: int = 512) -> None:
    """Distil the text tower: 1 - cosine to what it should give for captions and other texts."""
    backbone, family = untrained(name), FAMILIES[name]
    begin_text(name, backbone)
    model, folder = backbone.model, cache / "train" / name
    parameters = [p for name, p in model.named_parameters() if of_text_tower(name)]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    stage, tower, losses = Stage(folder, "text", {"model": model}, optimizer), TextTower(model), []
    if family.text == "shared":
        stage.save()
        return
    texts, target = texts_and_targets(family, cache, model.visual.output_dim)
    tokens = backbone._tokenizer(texts)
    generator = torch.Generator().manual_seed(stage.seen)
    lengths = (tokens != 0).sum(1)
    while stage.seen < texts_in_all:
        set_learning_rate(optimizer, learning_rate(1e-3, stage.seen, texts_in_all))
        pool = torch.randint(len(texts), (batch * 8,), generator=generator)
        batches = pool[lengths[pool].argsort()].view(8, batch)  # of texts alike in length
        for index in batches[torch.randperm(8, generator=generator)]:
            given = F.normalize(tower.encode(tokens[index]), dim=-1)
            loss = 1 - (given * target[index]).sum(-1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
        stage.seen += batch * 8
        if len(losses) >= 80:
            stage.report(loss=round(float(np.mean(losses)), 4), texts=len(texts))
            losses = []
        stage.save(every=60)
    stage.save()


@torch.inference_mode()
def zero_shot_on_training_splits(backbone, most: int = 300) -> dict[str, float]:
    """Zero-shot accuracy on the evaluated sets' training splits: what may be looked at while
    training.
    """
    accuracy = {}
    for name, manifest in all_manifests().items():
        if manifest.role not in ("source", "target") or manifest.kind != "bundle":
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


def train_image(
    cache: Path,
    name: str,
    images_in_all: int,
    batch: int = 128,
    negatives: int = 1024,
    peak: float = 1e-3,
) -> None:
    """Train all but the text tower; a pair's own captions are no negatives."""
    backbone = untrained(name)
    model, folder = backbone.model, cache / "train" / name
    state = torch.load(folder / "text.pt", weights_only=True)["modules"]["model"]
    texts = {key: tensor for key, tensor in state.items() if of_text_tower(key)}
    model.load_state_dict(texts, strict=False)
    begin_image(name, backbone)
    captions, rows, caption_weights, sources = pair_captions(cache / "corpus")
    classes, tokens = embed(backbone, captions), backbone._tokenizer(captions)
    words = tokens.unique()
    words = words[words != 0]
    if hasattr(model, "text_decoder"):  # open_clip leaves the decoder's last matrix unset
        table = torch.zeros_like(model.text_decoder.text_projection)
        table[:, words] = F.normalize(model.text.token_embedding.weight[words], dim=-1).T
        model.text_decoder.text_projection.data.copy_(table)
    pixels = torch.from_numpy(np.load(cache / "corpus" / "images.npy")).permute(0, 3, 1, 2)
    weights = sampling_weights(sources)
    flip = torch.tensor(
        [source not in ("fonts", "flag", "flagpack", "circle-flags") for source in sources]
    )
    moved = trained(model)
    for _, p in moved:
        p.requires_grad_(True)
    decay = [p for _, p in moved if p.ndim > 1]
    rest = [p for _, p in moved if p.ndim <= 1]
    groups = [dict(params=decay, weight_decay=0.05), dict(params=rest, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    stage = Stage(folder, "image", {"model": model}, optimizer)
    losses, looked = [], time.monotonic()
    size = f"{len(pixels)} pairs, {len(captions)} captions"
    print(f"{size}, from {stage.seen} images: {dict(Counter(sources))}", flush=True)
    generator = torch.Generator().manual_seed(stage.seen)
    while stage.seen < images_in_all:
        set_learning_rate(optimizer, learning_rate(peak, stage.seen, images_in_all))
        index = torch.multinomial(weights, batch, replacement=True, generator=generator)
        target = rows[
            index, torch.multinomial(caption_weights[index], 1, generator=generator)[:, 0]
        ]
        others = torch.randint(len(captions), (negatives,), generator=generator)
        pool, position = torch.unique(torch.cat([target, others]), return_inverse=True)
        own = position[:batch]
        also_true = (rows[index][:, :, None] == pool).any(1).scatter(1, own[:, None], False)
        with autocast():
            augmented = augment(pixels[index].float() / 255, flip[index], generator) * 255
        images = backbone.normalise(augmented)
        given = Batch(images, classes[pool], own, also_true, tokens[target], words)
        # a CPU's fused attention takes ten times as long backward in half precision
        with sdpa_kernel(SDPBackend.MATH):
            loss = FAMILIES[name].loss(model, given)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in moved], 1.0)
        optimizer.step()
        stage.seen += batch
        losses.append(loss.item())
        if len(losses) == 100:
            scale = round(float(model.logit_scale.exp()), 1)
            stage.report(loss=round(float(np.mean(losses)), 3), scale=scale)
            losses = []
        if time.monotonic() - looked > 600 or stage.seen >= images_in_all:
            stage.report(zero_shot=zero_shot_on_training_splits(backbone))
            looked = time.monotonic()
        stage.save(every=60)
    stage.save()


def export(cache: Path, name: str) -> None:
    """Write the float16 weights; token rows that no training text used become zero."""
    backbone = untrained(name)
    state = torch.load(cache / "train" / name / "image.pt", weights_only=True)["modules"]["model"]
    captions, *_ = pair_captions(cache / "corpus")
    texts = distillation_texts(captions, cache, ROOT / "data_manifests")
    used = backbone._tokenizer(texts).unique()
    table = next(key for key in state if key.endswith("token_embedding.weight"))
    keep = torch.zeros(len(state[table]), 1)
    keep[used] = 1
    state[table] *= keep
    state["logit_scale"].clamp_(max=math.log(60))
    state.pop("attn_mask", None)  # computed, not learnt
    tensors = {key: tensor.to(torch.float16).contiguous() for key, tensor in sorted(state.items())}
    path = ROOT / "pocket" / "model" / f"{BUNDLED[name]}.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    weights = sum(tensor.numel() for tensor in tensors.values())
    print(f"{len(used)} token rows of {len(keep)} in use, {weights:,} weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("text", "image", "export"))
    parser.add_argument("cache", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="PocketCLIP")
    parser.add_argument("--texts", type=int, default=1_500_000)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.stage == "text":
        train_text(arguments.cache, arguments.family, arguments.texts)
    elif arguments.stage == "image":
        train_image(arguments.cache, arguments.family, arguments.images)
    else:
        export(arguments.cache, arguments.family)
