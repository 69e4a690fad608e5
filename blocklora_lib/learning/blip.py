"""BLIP by transformers, with adapters on its attention: matching images and texts, and retrieval.

BLIP has two scores of an image and a text. Contrastive: the cosine of two rows. Matching: the text
tower reads the text again and attends to the image, by its cross-attention, and a head says whether
they belong together. Retrieval ranks by the first, and the best of it by both.

Source: Li et al. 2022, arXiv 2201.12086 (losses: section 3.2); salesforce/BLIP
train_retrieval.py (evaluation) and models/blip_retrieval.py; transformers'
BlipForImageTextRetrieval, whose two scores these are.

| | salesforce/BLIP | here |
|---|---|---|
| first token of a text that is matched | [ENC] in place of [CLS] | as transformers: [CLS] |
| contrastive loss | momentum model and queue | the pairs of the batch, temperature 0.07 |
| hard negatives | drawn by similarity | the same |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.attach import AdapterSet, attach_linear
from ..adapters.config import AdapterConfig
from ..core.schema import AdapterError
from ..layers.attention_layers import attention_layers, find_towers, wanted
from ..layers.names import join

TEMPERATURE = 0.07
NOT_RANKED = -100.0  # below every score: what BLIP's evaluation gives what it does not match


def load_blip(source: str | Path) -> tuple[nn.Module, Any]:
    """Return BlipForImageTextRetrieval and its processor (None where a folder has none).

    source: a name such as Salesforce/blip-itm-base-coco (fetched unless HF_HUB_OFFLINE=1), or a
    folder. OSError: it is not here; ValueError: it is another model, or lacks a head.
    """
    try:
        transformers: Any = import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"BLIP needs the package {error.name}; pip install 'blocklora[hugging_face]'",
            name=error.name,
        ) from None
    given = str(source)
    try:
        config = transformers.AutoConfig.from_pretrained(given)
        if config.model_type != "blip":
            raise ValueError(
                f"{given} is a {config.model_type}, no BLIP; use one such as "
                "Salesforce/blip-itm-base-coco"
            )
        model, seen = transformers.BlipForImageTextRetrieval.from_pretrained(
            given, output_loading_info=True
        )
    except OSError as error:
        raise OSError(
            f"no BLIP at {given!r}: {' '.join(str(error).split())}; give a folder, or a name such "
            "as Salesforce/blip-itm-base-coco with the network on (HF_HUB_OFFLINE=0)"
        ) from None
    # buffers that every model makes for itself are no weights
    weights = {name for name, _ in model.named_parameters()}
    if missing := sorted(weights & set(seen["missing_keys"])):
        raise ValueError(
            f"{given} lacks {', '.join(missing[:3])}, which would start at random: it was trained "
            "for another task; use one for image-text matching, as Salesforce/blip-itm-base-coco"
        )
    try:
        processor = transformers.AutoProcessor.from_pretrained(given)
    except (OSError, ValueError):
        processor = None
    return model.eval(), processor


def adapt(
    model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None
) -> AdapterSet:
    """Put adapters on a BLIP's attention, the cross-attention of matching included.

    Of `config`, towers and targets are heeded, as by `attach`; layers have to be all.
    """
    if config.layers != "all":
        raise AdapterError(
            f"layers={config.layers} of a BLIP: its cross-attention is adapted in all layers; "
            'use layers="all", or name the layers with attach_linear'
        )
    names = [
        join(prefix, name)
        for _, prefix, tower in find_towers(model, config.towers)
        for name, (held, _) in attention_layers(tower, cross=True).items()
        if wanted(name, held, config.targets)
    ]
    return attach_linear(model, names, config, generator)


@dataclass(frozen=True)
class Texts:
    """Token ids and their mask, both (N, L); of a padded place the mask is 0."""

    ids: Tensor
    mask: Tensor

    def __getitem__(self, which: Any) -> Texts:
        return Texts(self.ids[which], self.mask[which])

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Texts:
        """The same texts on a device."""
        return Texts(self.ids.to(device), self.mask.to(device))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def image_states(model: Any, images: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W) -> all tokens of the image tower, (N, P, d)."""
    return model.vision_model(pixel_values=images.to(_device(model))).last_hidden_state


def image_rows(model: Any, states: Tensor) -> Tensor:
    """Unit rows (N, e) of what `image_states` gave."""
    return F.normalize(model.vision_proj(states[:, 0]), dim=-1)


def text_rows(model: Any, texts: Texts) -> Tensor:
    """Unit rows (N, e)."""
    texts = texts.to(_device(model))
    seen = model.text_encoder(input_ids=texts.ids, attention_mask=texts.mask)
    return F.normalize(model.text_proj(seen.last_hidden_state[:, 0]), dim=-1)


def matching(model: Any, states: Tensor, texts: Texts) -> Tensor:
    """Logits (N, 2) of pair i of an image's tokens and a text: apart, together."""
    texts = texts.to(_device(model))
    seen = model.text_encoder(
        input_ids=texts.ids,
        attention_mask=texts.mask,
        encoder_hidden_states=states,
        encoder_attention_mask=states.new_ones(states.shape[:2], dtype=torch.long),
    )
    return model.itm_head(seen.last_hidden_state[:, 0])


def loss(model: Any, images: Tensor, texts: Texts, generator: torch.Generator) -> Tensor:
    """Return BLIP's contrastive and matching loss of N pairs; image i belongs to text i.

    Each image is matched with its text and with another that is drawn the likelier the more
    similar it is, and each text likewise: 3 N pairs.
    """
    n = len(images)
    if n < 2:
        raise ValueError(f"{n} pair has nothing to be told apart from; use batches of at least 2")
    states, texts = image_states(model, images), texts.to(_device(model))
    logits = image_rows(model, states) @ text_rows(model, texts).T / TEMPERATURE
    own = torch.arange(n, device=logits.device)
    contrastive = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    with torch.no_grad():
        others = torch.eye(n, dtype=torch.bool, device=logits.device)
        wrong_text, wrong_image = (
            torch.multinomial(
                scores.masked_fill(others, -torch.inf).softmax(-1).cpu(), 1, generator=generator
            )
            .flatten()
            .to(logits.device)
            for scores in (logits, logits.T)
        )
    pairs = matching(
        model,
        torch.cat([states, states, states[wrong_image]]),
        texts[torch.cat([own, wrong_text, own])],
    )
    together = (torch.arange(3 * n, device=logits.device) < n).long()
    return contrastive + F.cross_entropy(pairs, together)


def train(
    adapters: AdapterSet,
    images: Tensor,
    texts: Texts,
    steps: int,
    lr: float,
    batch: int = 8,
    seed: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """Train the adapters on pairs by AdamW; return the losses. Dropout is the adapters' alone.

    ValueError: there are more images than texts, or fewer, or less than two pairs in a batch.
    """
    if len(images) != len(texts):
        raise ValueError(
            f"{len(images)} images and {len(texts)} texts are no pairs; give each image its text"
        )
    model: Any = adapters.model.eval()
    own = nn.ModuleList(adapters.adapters.values()).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=lr, weight_decay=1e-2))
    losses, order = [], torch.randperm(0)
    for step in range(steps):
        if len(order) < min(batch, len(images)):
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch], order[batch:]
        found = loss(model, images[chosen], texts[chosen], generator)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
        if on_step:
            on_step(step, losses[-1])
    own.eval()
    return tuple(losses)


@torch.no_grad()
def retrieval_scores(
    model: Any, images: Tensor, texts: Texts, matched: int = 0, batch: int = 32
) -> tuple[Tensor, Tensor]:
    """Score I images with T texts: for images' texts (I, T), and for texts' images (T, I).

    matched 0: cosines. Otherwise the `matched` best by cosine get cosine + matching logit, as
    BLIP's evaluation has it, and all others stand below them.
    """
    texts = texts.to(_device(model))
    states = torch.cat([image_states(model, part) for part in images.split(batch)])
    text = torch.cat([text_rows(model, texts[i : i + batch]) for i in range(0, len(texts), batch)])
    cosines = image_rows(model, states) @ text.T
    if not matched:
        return cosines, cosines.T
    both = []
    for of_images, scores in ((True, cosines), (False, cosines.T)):
        ranked = torch.full_like(scores, NOT_RANKED)
        for i, row in enumerate(scores):
            best = row.topk(min(matched, len(row))).indices
            pair = (i, best) if of_images else (best, i)
            chosen = states[pair[0]].expand(len(best), -1, -1), texts[pair[1]]
            many = (
                chosen[1]
                if of_images
                else Texts(
                    chosen[1].ids.expand(len(best), -1), chosen[1].mask.expand(len(best), -1)
                )
            )
            ranked[i, best] = row[best] + matching(model, chosen[0], many)[:, 1]
        both.append(ranked)
    return both[0], both[1]


def recall(scores: Tensor, k: int) -> float:
    """Return R@k in %: rows whose own column, i of row i, is among their k best.

    ValueError: a row has no column of its own.
    """
    rows, columns = scores.shape
    if rows > columns:
        raise ValueError(
            f"{rows} rows have {columns} columns, so row {columns} has none of its own; "
            "give one image for each text, in their order"
        )
    own = scores.diagonal()[:, None]
    # of equal scores the own is counted last: a constant score recalls nothing by luck, nor NaN
    rank = (scores < own).logical_not().sum(-1)
    return 100 * float((rank <= k).double().mean())
