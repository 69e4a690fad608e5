"""The search on a bundled set: its rows against the models and codes that they are of."""

from __future__ import annotations

import math

import pytest
import torch

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.data.sampling import draw
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.theory.code_search import Choice, Search, search_codes
from blocklora_lib.theory.compression import CodeSpace

PLACES = [
    AdapterConfig(
        kind="frozen_a", rank=r, n_blocks=1, targets=("v", "o"), towers=("text",), dropout=0
    )
    for r in (1, 2)
]
SPACE = CodeSpace(PLACES, (2, 5), (2, 3), (1.0,))


@pytest.fixture(scope="module")
def bench():
    return Workbench("cpu")


@pytest.mark.slow
def test_rows_are_of_zero_shot_of_each_code_and_of_the_half(bench):
    profile = load_profile("smoke")
    tried = [Choice(PLACES[0], 2, 3, 1.0), Choice(PLACES[1], 5, 2, 1.0)]
    search = Search(SPACE, steps=1, sweeps=0)
    rows = search_codes(bench, profile, ["chess"], search, tried, tried[0])
    assert [row["setting"] for row in rows] == [
        "zero-shot",
        "vo r=1, k=2, L=3",
        "vo r=2, k=5, L=2",
        "half: Block-LoRA",
        "half + vo r=1, k=2, L=3",
    ]
    assert [row["prior"] for row in rows] == 3 * ["fixed beforehand"] + 2 * ["from the data"]
    header = 3  # one bit each names a place, k and L; a single Δ needs none
    assert [row["bits"] for row in rows] == [0, header + 4, header + 5, 0, header + 4]  # 3^2 <= 2^4
    assert [row["decodes"] for row in rows] == [None, True, True, None, True]

    data, backbone = bench.dataset("chess"), bench.backbone(profile.backbone)
    half = draw(data.labels("train"), rows[3]["samples"] // len(data.classes), search.seed)
    with torch.no_grad():
        text = backbone.encode_prompts(backbone.tokenize(data.prompts))
        seen = backbone.encode_images(backbone.preprocess(data.images("train")[half]))
        wrong_half = int(((seen @ text.T).argmax(1) != data.labels("train")[half]).sum())
        wrong = {
            split: int(
                (
                    (
                        backbone.encode_images(backbone.preprocess(data.images(split))) @ text.T
                    ).argmax(1)
                    != data.labels(split)
                ).sum()
            )
            for split in ("train", "val", "test")
            if data.manifest.counts.get(split)
        }
    sampled = sum(data.manifest.counts.get(split, 0) for split in ("train", "val"))
    assert rows[0]["samples"] == sampled
    assert rows[0]["wrong"] == sum(n for split, n in wrong.items() if split != "test")
    assert (rows[0]["better"], rows[0]["worse"]) == (0, 0)
    assert rows[0]["test_error"] == wrong["test"] / data.manifest.counts["test"]
    shots = int(torch.cat([data.labels(s) for s in wrong if s != "test"]).bincount().min()) // 2
    assert rows[3]["samples"] == shots * len(data.classes)  # the other half has trained
    for row, zero_shot in zip(rows, [rows[0]["wrong"]] * 3 + [wrong_half] * 2, strict=True):
        assert row["better"] - row["worse"] == zero_shot - row["wrong"]  # on the same images
        assert row["better"] <= zero_shot


def test_a_choice_says_its_payload_and_its_name():
    choice = Choice(PLACES[1], 5, 3, 0.5)
    assert choice.payload == pytest.approx(5 * math.log2(3))
    parts = (choice.placement.rank, 5, 3, round(10 * choice.scale))
    gamma = [len(f"{number:b}") * 2 - 1 for number in parts]  # as many zeros as digits follow
    assert choice.universal_header == 4 + sum(gamma)
    assert str(choice) == "vo r=2, k=5, L=3"
