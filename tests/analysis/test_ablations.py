"""Frames of the ablations, against numbers worked out by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from blocklora_lib.analysis.ablations import by_blocks, by_place, by_start, minus_default, placed


def blocks(*rows):
    columns = ["n_blocks", "seed", "accuracy", "trainable_parameters"]
    return pd.DataFrame(rows, columns=columns).assign(reading="input", rank=4, dataset="a")


def test_blocks_are_compared_with_one_block_of_the_same_seed():
    runs = blocks((1, 1, 0.5, 80), (1, 2, 0.6, 80), (2, 1, 0.4, 60), (2, 2, 0.7, 60))
    table = by_blocks(runs).set_index("n_blocks")
    assert table["mean"].tolist() == pytest.approx([55, 55])
    assert table["parameters"].tolist() == [80, 60]
    assert table["minus_one"].tolist() == pytest.approx([0, 0])  # (-10 + 10) / 2
    assert table["pairs"].tolist() == [2, 2]
    one_pair = by_blocks(runs.iloc[[0, 2, 3]]).set_index("n_blocks")  # seed 2 has no one block
    assert one_pair.loc[2, ["minus_one", "pairs"]].tolist() == pytest.approx([-10, 1])
    assert one_pair["complete"].tolist() == [False, True]


def test_without_one_block_nothing_is_compared():
    table = by_blocks(blocks((2, 1, 0.4, 60), (4, 1, 0.7, 50)))
    assert table["minus_one"].isna().all()
    assert table["pairs"].tolist() == [0, 0]
    assert table["mean"].tolist() == pytest.approx([40, 70])


def test_what_a_start_came_to_is_held_against_zero_shot():
    runs = pd.DataFrame(
        [
            ("a", 0.1, 1.0, 1, 0.3, 0.9),
            ("a", 0.1, 1.0, 2, 0.6, 1.0),
            ("a", 0.9, 1.0, 1, 0.2, 0.3),  # seed 2 diverged
            ("b", 0.1, 1.0, 1, 0.4, 0.8),
        ],
        columns=["dataset", "lr", "init_scale", "seed", "accuracy", "train_accuracy"],
    )
    table = by_start(runs, {"a": 0.5, "b": 0.4}).set_index(["dataset", "lr"])
    assert table["test"].tolist() == pytest.approx([45, 20, 40])
    assert table["worst"].tolist() == pytest.approx([30, 20, 40])
    assert table["training"].tolist() == pytest.approx([95, 30, 80])
    assert table["seeds"].tolist() == [2, 1, 1]
    assert table["of"].tolist() == [2, 2, 1]
    assert table["zero_shot"].tolist() == pytest.approx([50, 50, 40])
    assert table["below"].tolist() == [1, 1, 0]  # as good as zero-shot is not below it


@pytest.mark.parametrize(
    ("method", "group", "place"),
    [
        ("block_lora,targets=q+k+v", "projections", "q, k, v (default)"),
        ("block_lora,targets=o", "projections", "o"),
        ("lora,towers=text", "towers", "text tower only"),
        ("lora,layers=0", "layers", "first layer only"),
        ("lora,layers=-1", "layers", "last layer only"),
        ("lora,layers=0+1+2", "layers", "first 3 layers"),
        ("lora,layers=-2+-1", "layers", "last 2 layers"),
    ],
)
def test_a_place_is_read_from_the_methods_name(method, group, place):
    (row,) = placed(pd.DataFrame({"method": [method]})).itertuples()
    assert (row.group, row.place) == (group, place)


def at_places(*names):
    sizes = {"targets=q+k+v": 30, "targets=q": 10, "towers=text": 12, "layers=0": 5}
    rows = [
        (f"block_lora,{name}", "a", seed, (50 + sizes[name] + seed) / 100, sizes[name])
        for name in names
        for seed in (1, 2)
    ]
    columns = ["method", "dataset", "seed", "accuracy", "trainable_parameters"]
    return placed(pd.DataFrame(rows, columns=columns))


def test_places_stand_by_group_and_size_and_are_compared_with_the_default():
    runs = at_places("layers=0", "towers=text", "targets=q+k+v", "targets=q")
    rows = by_place(runs)
    assert rows["place"].tolist() == [
        *("q", "q, k, v (default)", "text tower only", "first layer only")
    ]
    assert rows["parameters"].tolist() == [10, 30, 12, 5]
    assert rows["mean"].tolist() == pytest.approx([61.5, 81.5, 63.5, 56.5])
    apart = minus_default(runs).set_index("place")
    assert apart["mean"].to_dict() == pytest.approx(
        {"q": -20, "q, k, v (default)": 0, "text tower only": -18, "first layer only": -25}
    )
    assert apart["n"].unique().tolist() == [2]


def test_without_the_default_no_place_is_compared():
    apart = minus_default(at_places("targets=q", "layers=0"))
    assert apart["n"].tolist() == [0, 0]
    assert all(map(math.isnan, apart["mean"]))


@pytest.mark.parametrize(
    ("varied", "place"),
    [
        ("layers=0", "first layer only"),
        ("layers=-1", "last layer only"),
        ("layers=0+1+2", "first 3 layers"),
        ("layers=-2+-1", "last 2 layers"),
        ("layers=1", "layer 1"),
        ("layers=-2", "layer -2"),
        ("layers=0+2", "layers 0, 2"),
        ("layers=all", "layers all"),
        ("towers=text", "text tower only"),
        ("towers=vision+text", "vision and text towers"),
        ("targets=q+k+v", "q, k, v (default)"),
        ("rank=4", "4"),
    ],
)
def test_a_place_is_called_as_it_is(varied, place):
    runs = pd.DataFrame([(f"block_lora,{varied}", "a", 1, 0.5, 80)])
    runs.columns = ["method", "dataset", "seed", "accuracy", "trainable_parameters"]
    found = placed(runs)
    assert found["place"].tolist() == [place]
    assert by_place(found)["mean"].tolist() == pytest.approx([50])
