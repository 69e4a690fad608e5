"""The bound by what losses tell: its parts against scikit-learn, enumeration and known laws."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mutual_info_score

from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.theory import information as told


def tossed(members, left_out, seed=1):
    """Losses of pairs whose member errs with one chance and whose other image with another."""
    rng = np.random.default_rng(seed)
    u = rng.integers(2, size=20_000)
    member, left = rng.random(u.size) < members, rng.random(u.size) < left_out
    return np.where(u == 1, member.astype(int) - left, left.astype(int) - member), u


@pytest.mark.parametrize(("members", "left_out"), [(0.05, 0.5), (0.3, 0.3), (0.0, 1.0)])
def test_information_is_that_of_the_counts_and_near_the_law(members, left_out):
    difference, u = tossed(members, left_out)
    found = told.information(difference, u)
    assert found == pytest.approx(mutual_info_score(difference, u), abs=1e-12)
    worse, better = (1 - members) * left_out, members * (1 - left_out)
    law = sum(p * math.log(2 * p / (worse + better)) for p in (worse, better) if p)
    assert found == pytest.approx(law, abs=5e-3)  # 20,000 pairs
    assert told.gap_bound(law) >= left_out - members


def test_rounding_leaves_no_information_below_nothing():
    """Of counts that are independent it was -2e-16, and its root a 'math domain error'."""
    once = [-1, 0, 1, 1, -1]
    nats = told.information(once * 3, [0] * 5 + [1] * 10)
    assert told.gap_bound(nats) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("rates", list(product((0.0, 0.2, 0.9), repeat=2)))
def test_the_bound_holds_for_every_law_and_fails_for_other_coins(rates):
    """In closed form: gap q+ - q-; I = q+ ln(2 q+/(q+ + q-)) + q- ln(2 q-/(q+ + q-))."""
    plus, minus = rates[0], rates[1] * (1 - rates[0])
    nats = sum(p * math.log(2 * p / (plus + minus)) for p in (plus, minus) if p)
    assert told.gap_bound(nats) >= abs(plus - minus) - 1e-12
    if plus - minus > 0.1:
        assert told.gap_bound(0.0) < plus - minus  # coins that are not the training's tell nothing


def test_given_the_supersample_it_is_not_too_low():
    """Two laws of ΔL under the two sides of a coin: the mean of all estimates by enumeration."""
    laws = {0: {-1: 0.1, 0: 0.3, 1: 0.6}, 1: {-1: 0.5, 0: 0.4, 1: 0.1}}
    middle = {x: (laws[0][x] + laws[1][x]) / 2 for x in laws[0]}
    law = sum(p / 2 * math.log(p / middle[x]) for u in laws for x, p in laws[u].items())
    mean = 0.0
    for first, second in product(laws[0], repeat=2):
        runs = pd.DataFrame({"supersample": 1, "pair": 0, "difference": [first, second]})
        mean += laws[0][first] * laws[1][second] * told.given_the_supersample(runs)
    assert mean >= law
    assert mean <= math.log(2)


def test_the_two_sides_of_a_coin_give_ln_2_where_they_differ():
    runs = pd.DataFrame({"supersample": [1, 1, 1, 1, 2, 2], "pair": [0, 1, 0, 1, 0, 0],
                         "difference": [1, 0, -1, 0, 1, 0]})  # fmt: skip
    assert told.given_the_supersample(runs) == pytest.approx(math.log(2) * 2 / 3)
    assert [set(part["supersample"]) for part in told.leave_one_out(runs)] == [{2}, {1}]


@pytest.mark.slow
def test_supersamples_are_pairs_of_a_class_and_the_collapsed_form_answers_alike():
    bench, profile = Workbench("cpu"), load_profile("smoke")
    images, labels, context = told._supersample(bench, profile, "chess", 2, 3)
    assert (labels[:, 0] == labels[:, 1]).all()
    assert labels[:, 0].bincount().tolist() == [2] * len(context.tokens)
    assert len({image.numpy().tobytes() for image in images.flatten(0, 1)}) == 2 * len(labels)
    methods = ("block_lora", "lora_plus")
    with pytest.raises(ValueError, match="supersamples=1; use at least 2"):
        told.loss_differences(bench, profile, "chess", 1, 1, 1, methods)
    runs = told.loss_differences(bench, profile, "chess", 1, 2, 1, methods)
    assert len(runs) == (4 + 1) * len(context.tokens)  # four of the first, one of the second
    first = runs[runs["supersample"] == 1]
    assert (first.groupby(["method", "pair"])["u"].sum() == 1).all()  # turned over
    gap = (1 - 2 * runs["u"]) * runs["difference"]
    assert (gap == runs["left_out"] - runs["member"]).all()
    both = [part["difference"].tolist() for _, part in first.groupby("method")]
    assert both[0] == both[1]
