"""Few-shot draws: nested within a seed; CoOp's and CLIP-LoRA's index for index."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.data.sampling import draw, draw_clip_lora, draw_clip_lora_imagenet, draw_coop

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


@given(
    train=label_lists,
    val=st.lists(st.integers(0, 4), max_size=30),
    shots=st.integers(1, 8),
    seed=seeds,
)
def test_coop_is_coops_draw(train, val, shots, seed):
    expected = coop_reference(train, val, shots, seed)
    assert list(draw_coop(train, val, shots, seed)) == expected
    assert draw(train, shots, seed, "coop").tolist() == expected[0]


def clip_lora_reference(train, val, num_shots, seed):
    """CLIP-LoRA@358f0d7 restated: main.py seeds, dtd.py draws val, then train, utils.py a split."""

    def generate_fewshot_dataset(data_source, num_shots):
        if num_shots < 1:
            return data_source
        tracker = defaultdict(list)
        for item in data_source:
            tracker[item[1]].append(item)
        dataset = []
        for items in tracker.values():
            enough = len(items) >= num_shots
            dataset.extend(
                random.sample(items, num_shots) if enough else random.choices(items, k=num_shots)
            )
        return dataset

    state = random.getstate()
    random.seed(seed)
    n_shots_val = min(num_shots, 4)
    val = generate_fewshot_dataset(list(enumerate(val)), num_shots=n_shots_val)
    train = generate_fewshot_dataset(list(enumerate(train)), num_shots=num_shots)
    random.setstate(state)
    return [[index for index, _ in split] for split in (train, val)]


def clip_lora_imagenet_reference(targets, num_shots, seed):
    """CLIP-LoRA@358f0d7 datasets/imagenet.py restated."""
    state = random.getstate()
    random.seed(seed)
    num_shots_val = min(4, num_shots)
    split_by_label_dict = defaultdict(list)
    for i in range(len(targets)):
        split_by_label_dict[targets[i]].append(i)
    imgs, imgs_val = [], []
    for items in split_by_label_dict.values():
        samples = random.sample(items, num_shots + num_shots_val)
        imgs = imgs + samples[0:num_shots]
        imgs_val = imgs_val + samples[num_shots : num_shots + num_shots_val]
    random.setstate(state)
    return [imgs, imgs_val]


@given(
    train=label_lists,
    val=st.lists(st.integers(0, 4), max_size=30),
    shots=st.integers(-1, 8),
    seed=seeds,
)
def test_clip_lora_is_clip_loras_draw(train, val, shots, seed):
    expected = clip_lora_reference(train, val, shots, seed)
    assert list(draw_clip_lora(train, val, shots, seed)) == expected
    if val and shots > 0:
        assert draw(train, shots, seed, "clip_lora", val=val).tolist() == expected[0]


@pytest.mark.slow
@given(per_class=st.integers(12, 20), shots=st.integers(1, 8), seed=seeds, order=st.randoms())
def test_clip_lora_on_imagenet_takes_train_and_val_in_one_sample(per_class, shots, seed, order):
    labels = [c for c in range(4) for _ in range(per_class)]
    order.shuffle(labels)
    expected = clip_lora_imagenet_reference(labels, shots, seed)
    train, val = draw_clip_lora_imagenet(labels, shots, seed)
    assert [train, val] == expected
    assert draw(labels, shots, seed, "clip_lora", val=[]).tolist() == train
    assert not set(train) & set(val)
    assert len(val) == 4 * min(shots, 4)


def test_clip_lora_draws_other_images_than_coop_where_there_is_a_val_split():
    train, val = [0] * 50 + [1] * 50, [0] * 20 + [1] * 20
    coop, clip_lora = draw_coop(train, val, 4, 1), draw_clip_lora(train, val, 4, 1)
    assert all(a != b for a, b in zip(coop, clip_lora, strict=True))
    # without a val split the two would start alike, which is why the val labels must be given
    assert draw_clip_lora(train, [], 4, 1)[0] == coop[0]


def test_fewer_than_one_shot_is_the_whole_set_in_order():
    for shots in (0, -1):
        assert list(draw_clip_lora([1, 0, 1], [0, 1], shots, 1)) == [[0, 1, 2], [0, 1]]
        with pytest.raises(ValueError, match=f"shots={shots}; CLIP-LoRA's ImageNet"):
            draw_clip_lora_imagenet([1, 0, 1], shots, 1)


def test_clip_lora_leaves_the_global_stream_alone():
    random.seed(5)
    before = random.getstate()
    draw([0, 1] * 10, 2, 1, "clip_lora", val=[0, 1])
    assert random.getstate() == before


def test_coop_takes_classes_in_order_of_first_appearance_and_leaves_the_global_stream_alone():
    labels = [2, 0, 2, 1, 0, 1]
    random.seed(5)
    before = random.getstate()
    chosen = draw(labels, 2, 1, "coop").tolist()
    assert [labels[i] for i in chosen] == [2, 2, 0, 0, 1, 1]
    assert random.getstate() == before


@pytest.mark.slow
@given(
    per_class=st.lists(st.integers(4, 9), min_size=1, max_size=6), seed=seeds, order=st.randoms()
)
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
        (
            dict(labels=[0, 0, 0, 1], shots=2),
            "class 'cow' has 1 training image; use at most 1 shot,",
        ),
        (dict(labels=[0, 0], shots=1), "no training image of class 'cow'"),
        (dict(labels=[], shots=1), "no training images"),
        (dict(labels=[0, 1], shots=0), "shots=0"),
        (dict(labels=[0, 1], shots=1, how="coup"), "did you mean 'coop'"),
        (dict(labels=[0, 1], shots=1, how="clip_lora"), "give val, the labels of the val split"),
        (dict(labels=[0, 1], shots=1, how="clip_lora", val=[]), "takes 2 training images a class"),
    ],
)
def test_bad_draws_say_what_to_do(arguments, says):
    with pytest.raises(ValueError, match=says):
        draw(seed=1, classes=("dog", "cow"), **arguments)
