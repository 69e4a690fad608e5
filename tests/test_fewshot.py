"""Few-shot draws: nested within a seed, and CoOp's index for index."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.fewshot import draw, draw_coop

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)
seeds = st.integers(0, 2**31)


def coop_reference(train, val, shots, seed):
    """CoOp's few-shot draw restated with the global `random` that it uses."""
    state = random.getstate()
    random.seed(seed)
    drawn = []
    for source, k in ((train, shots), (val, min(shots, 4))):
        tracker = {}
        for item, label in enumerate(source):
            tracker[label] = [*tracker.get(label, []), item]
        picked = []
        for items in tracker.values():
            if len(items) >= k:
                picked.extend(random.sample(items, k))
            else:
                picked.extend(random.choices(items, k=k))
        drawn.append(picked)
    random.setstate(state)
    return drawn


@given(train=label_lists, val=st.lists(st.integers(0, 4), max_size=30), shots=st.integers(1, 8), seed=seeds)
def test_coop_is_coops_draw(train, val, shots, seed):
    expected = coop_reference(train, val, shots, seed)
    assert [t.tolist() for t in draw_coop(train, val, shots, seed)] == expected
    assert draw(train, shots, seed, "coop").tolist() == expected[0]


def test_coop_takes_classes_in_order_of_first_appearance_and_leaves_the_global_stream_alone():
    labels = [2, 0, 2, 1, 0, 1]
    random.seed(5)
    before = random.getstate()
    chosen = draw(labels, 2, 1, "coop").tolist()
    assert [labels[i] for i in chosen] == [2, 2, 0, 0, 1, 1]
    assert random.getstate() == before


@given(per_class=st.lists(st.integers(4, 9), min_size=1, max_size=6), seed=seeds, order=st.randoms())
def test_nested_draws_are_stratified_distinct_and_nested(per_class, seed, order):
    labels = [c for c, n in enumerate(per_class) for _ in range(n)]
    order.shuffle(labels)
    smaller: set[int] = set()
    for shots in (1, 2, 4):
        chosen = draw(labels, shots, seed).tolist()
        assert len(set(chosen)) == len(chosen)
        assert sorted(labels[i] for i in chosen) == sorted(list(range(len(per_class))) * shots)
        assert smaller <= set(chosen)
        smaller = set(chosen)


def test_nested_draws_differ_by_seed_and_do_not_touch_torchs_stream():
    labels = torch.arange(4).repeat(25)
    state = torch.get_rng_state()
    assert draw(labels, 4, 1).tolist() == draw(labels, 4, 1).tolist()
    assert draw(labels, 4, 1).tolist() != draw(labels, 4, 2).tolist()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_class_does_not_move_the_others_draw():
    labels = [0] * 10 + [1] * 10
    with_third = labels + [2] * 10
    assert draw(with_third, 3, 7).tolist()[:6] == draw(labels, 3, 7).tolist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(labels=[0, 0, 0, 1], shots=2), "class 'cow' has 1 training images; use at most 1 shots"),
        (dict(labels=[0, 0], shots=1), "no training image of class 'cow'"),
        (dict(labels=[], shots=1), "no training images"),
        (dict(labels=[0, 1], shots=0), "shots=0"),
        (dict(labels=[0, 1], shots=1, how="coup"), "did you mean 'coop'"),
    ],
)
def test_bad_draws_say_what_to_do(arguments, says):
    with pytest.raises(ValueError, match=says):
        draw(seed=1, classes=("dog", "cow"), **arguments)
