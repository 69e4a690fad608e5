"""The models that are pre-trained here: which objective, and where the text tower comes from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captions import distillation_texts, pair_captions, teacher_embeddings
from objectives import captioning, contrastive, sigmoid
from objectives.batch import Batch, of_text_tower
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from blocklora_lib.clip.backbone import Backbone, load_backbone  # noqa: E402
from blocklora_lib.weights.spec import BackboneSpec  # noqa: E402


class Family(NamedTuple):
    """loss: what the image tower is trained for. text: how the text tower is had. trunk: whether
    the image tower begins with PocketCLIP's patches, positions and layers; what pools is new.

    'encoder': distilled from the packaged sentence encoder. 'shared': PocketCLIP's as it is.
    'narrowed': distilled from PocketCLIP's, its embeddings turned to their leading directions.
    """

    loss: Callable[[nn.Module, Batch], Tensor]
    text: str
    trunk: bool


FAMILIES = {
    "PocketCLIP": Family(contrastive.loss, "encoder", trunk=False),
    "PocketSigmoid": Family(sigmoid.loss, "shared", trunk=True),
    "PocketCoCa": Family(captioning.loss, "narrowed", trunk=True),
}


def untrained(name: str) -> Backbone:
    """The family's model before it is trained, on the CPU."""
    return load_backbone(BackboneSpec(name=name, pretrained="none"), "cpu")


def pocketclip() -> Backbone:
    """The model whose text tower the others learn from."""
    return load_backbone(BackboneSpec(name="PocketCLIP", pretrained="bundled"), "cpu")


def texts_and_targets(family: Family, cache: Path, width: int) -> tuple[list[str], Tensor]:
    """All texts to distil with, and the unit rows (N, width) that the text tower should give."""
    captions, *_ = pair_captions(cache / "corpus")
    texts = distillation_texts(captions, cache, ROOT / "data_manifests")
    index = {text: i for i, text in enumerate(texts)}
    of_captions = [index[caption] for caption in captions]
    store = cache / "train" / f"teacher_{family.text}.npy"
    if store.exists() and len(targets := np.load(store)) == len(texts):
        return texts, torch.from_numpy(targets)
    if family.text == "encoder":
        given = teacher_embeddings(texts)
        # The centre is that of the captions that the images are trained with.
        targets = given - given[of_captions].mean(0)
    else:
        given = embed(pocketclip(), texts)
        _, _, directions = torch.linalg.svd(given[of_captions], full_matrices=False)
        targets = given @ directions[:width].T
    store.parent.mkdir(parents=True, exist_ok=True)
    targets = F.normalize(targets, dim=-1)
    np.save(store, targets.numpy())
    return texts, targets


@torch.no_grad()
def embed(backbone: Backbone, texts: list[str]) -> Tensor:
    """Unit rows (N, e) of a model's text tower."""
    parts = backbone._tokenizer(texts).split(512)
    return torch.cat([backbone.encode_prompts(part) for part in parts])


def begin_text(name: str, backbone: Backbone) -> None:
    """Give a text tower what it begins with: PocketCLIP's, its words alone, or nothing."""
    way = FAMILIES[name].text
    if way == "encoder":
        return
    own = backbone.model.text.state_dict()
    given = {k: v for k, v in pocketclip().model.state_dict().items() if of_text_tower(k)}
    if way == "shared":
        given = {key: given[key] for key in own}
    else:
        table = given["token_embedding.weight"]
        _, _, directions = torch.linalg.svd(table[table.any(1)], full_matrices=False)
        width = own["token_embedding.weight"].shape[1]
        given = {"token_embedding.weight": table @ directions[:width].T}
    backbone.model.text.load_state_dict(given, strict=way == "shared")


TRUNK = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.", "transformer.")


def begin_image(name: str, backbone: Backbone) -> None:
    """Give an image tower PocketCLIP's trunk, where the family begins with it.

    From a random start both were still near chance after 200,000 images; PocketCLIP took ten times
    as many to form its trunk.
    """
    if FAMILIES[name].trunk:
        given = pocketclip().model.visual.state_dict()
        given = {key: tensor for key, tensor in given.items() if key.startswith(TRUNK)}
        found = backbone.model.visual.load_state_dict(given, strict=False)
        if found.unexpected_keys:
            raise ValueError(f"the image tower of {name} has no {found.unexpected_keys}")
