"""Means of runs: what they rest on, against numbers worked out by hand and by scipy."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import synthetic_runs

from blocklora_lib.analysis.comparisons import (
    difference_by_set,
    matched,
    over_sets,
    over_sets_by_shots,
)
from blocklora_lib.analysis.summaries import AVERAGE, few_shot_summary, gains, seeds_told, summarise
from blocklora_lib.analysis.transfer import set_differences
from blocklora_lib.runs.results import PLANNED, experiment_runs


def rows(**values):
    """A frame of runs: method -> {seed: accuracy}, on one set."""
    return pd.DataFrame(
        [("set", m, seed, v) for m, by_seed in values.items() for seed, v in by_seed.items()],
        columns=["dataset", "method", "seed", "accuracy"],
    )


def test_a_group_has_mean_interval_deviation_and_what_it_rests_on():
    table = summarise(rows(a={1: 0.2, 2: 0.4, 3: 0.6}, b={2: 0.5}), ["method"]).set_index("method")
    assert table["mean"].tolist() == pytest.approx([0.4, 0.5])
    assert table["n"].tolist() == [3, 1]
    assert table["expected"].tolist() == [3, 3]
    assert table["complete"].tolist() == [True, False]
    # 0.4 ± t(0.975, 2) * 0.2 / sqrt(3)
    assert table["high"]["a"] == pytest.approx(0.4 + 4.302652729911275 * 0.2 / math.sqrt(3))
    assert table["sd"]["a"] == pytest.approx(0.2)
    assert table[["low", "high", "sd"]].loc["b"].isna().all()
    with pytest.raises(KeyError, match="no column accurcy"):
        summarise(rows(a={1: 0.2}), ["method"], "accurcy")


def test_as_many_seeds_are_not_the_same_seeds():
    """Two means over two seeds each, but not the same two: neither may stand beside the other."""
    table = summarise(rows(a={1: 0.2, 2: 0.4}, b={2: 0.5, 3: 0.5}), ["method"])
    assert table["n"].tolist() == [2, 2]
    assert table["expected"].tolist() == [3, 3]
    assert not table["complete"].any()


def test_a_seed_that_all_lack_is_missed_if_it_was_planned():
    runs = rows(a={1: 0.2, 2: 0.4}, b={1: 0.5, 2: 0.5})
    assert summarise(runs, ["method"])["complete"].all()
    table = summarise(runs.assign(**{PLANNED: 3}), ["method"])
    assert table["expected"].tolist() == [3, 3]
    assert not table["complete"].any()


def test_neighbours_are_those_that_agree_within():
    runs = pd.concat([rows(a={1: 0.1, 2: 0.2}), rows(a={1: 0.1}).assign(dataset="other")])
    assert summarise(runs, ["dataset", "method"], within=["dataset"])["complete"].all()
    assert summarise(runs, ["dataset", "method"])["expected"].tolist() == [2, 2]


def test_a_repetition_may_be_a_set_and_a_seed():
    runs = pd.concat(
        [rows(a={1: 0.1, 2: 0.2}, b={1: 0.3}), rows(a={1: 0.5}, b={1: 0.7}).assign(dataset="d")]
    )
    table = summarise(runs, ["method"], over=["dataset", "seed"]).set_index("method")
    assert table["mean"].tolist() == pytest.approx([0.8 / 3, 0.5])
    assert table[["n", "expected"]].to_numpy().tolist() == [[3, 3], [2, 3]]
    plan = summarise(runs.assign(**{PLANNED: 2}), ["method"], over=["dataset", "seed"])
    assert plan["expected"].tolist() == [4, 4]  # two sets, two seeds


def test_a_value_that_is_no_number_is_a_missing_one():
    table = summarise(rows(a={1: 0.2, 2: math.nan}, b={1: math.nan, 2: math.nan}), ["method"])
    assert table["n"].tolist() == [1, 0]
    assert table["expected"].tolist() == [2, 2]
    assert math.isnan(table["mean"][1])


def test_two_runs_of_one_seed_are_no_two_seeds():
    runs = pd.concat([rows(a={1: 0.2}), rows(a={1: 0.4})])
    with pytest.raises(ValueError, match=r"several runs of method=a, seed=1 in one mean"):
        summarise(runs, ["method"])
    with pytest.raises(ValueError, match=r", or give the experiment one of it"):  # of a profile
        summarise(runs, ["method"])


numbers = st.floats(0, 1, width=32)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 6), st.tuples(st.none() | numbers, st.none() | numbers), min_size=1
    )
)
def test_summaries_and_pairs_of_any_seeds_agree_with_scipy(by_seed):
    """a and b have any seeds: means are over their own, differences over those that both have."""
    a = {seed: v[0] for seed, v in by_seed.items() if v[0] is not None}
    b = {seed: v[1] for seed, v in by_seed.items() if v[1] is not None}
    if not a or not b:
        return
    runs = rows(lora=a, block_lora=b).assign(shots=1, evaluated_on="set", method_label="x")
    table = summarise(runs, ["method"]).set_index("method")
    assert table["mean"]["lora"] == pytest.approx(sum(a.values()) / len(a), abs=1e-12)
    every = set(a) | set(b)
    assert table["complete"].to_dict() == {"lora": set(a) == every, "block_lora": set(b) == every}
    both = sorted(set(a) & set(b))
    (pair,) = difference_by_set(runs, "lora", "block_lora").itertuples()
    assert (pair.n, pair.expected, pair.complete) == (
        len(both),
        len(every),
        len(both) == len(every),
    )
    if len(both) > 1:
        assert pair.mean == pytest.approx(
            100 * sum(a[s] - b[s] for s in both) / len(both), abs=1e-9
        )
        if pair.sd > 1e-3:
            theirs = stats.ttest_rel([100 * a[s] for s in both], [100 * b[s] for s in both])
            interval = theirs.confidence_interval()
            assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    if both:
        assert matched(runs, ["seed"], ["lora", "block_lora"]).n == len(both)
    else:
        with pytest.raises(ValueError, match="have no run of the same seed"):
            matched(runs, ["seed"], ["lora", "block_lora"])


def without(runs, method, seed, dataset=None):
    """The runs but those of a method and seed (on one set)."""
    gone = (runs["method"] == method) & (runs["seed"] == seed)
    return runs[~(gone & (runs["dataset"] == dataset if dataset else True))]


def test_an_average_misses_the_seed_that_lacks_a_set():
    runs = without(synthetic_runs(sets=("a", "b")), "lora", 3, "b")
    at = few_shot_summary(runs).set_index(["dataset", "method", "shots"])
    assert at.loc[(AVERAGE, "lora", 16), ["n", "expected", "complete"]].tolist() == [2, 3, False]
    assert at.loc[("a", "lora", 16), ["n", "expected", "complete"]].tolist() == [3, 3, True]
    assert at.loc[(AVERAGE, "zero_shot", 0), ["n", "expected", "complete"]].tolist() == [1, 1, True]
    whole = runs[(runs["method"] == "lora") & (runs["shots"] == 16) & (runs["seed"] < 3)]
    whole = whole.groupby("seed")["accuracy"].mean()
    assert at.loc[(AVERAGE, "lora", 16), "mean"] == pytest.approx(100 * whole.mean())


def test_gains_and_transfer_know_what_they_rest_on():
    runs = without(synthetic_runs(sets=("a", "b")), "lora", 3, "b")
    at = gains(runs).set_index(["dataset", "method"])["complete"]
    assert at["a", "lora"]
    assert not at["b", "lora"]
    assert not at[AVERAGE, "lora"]
    assert at[AVERAGE, "block_lora"]
    part = runs[runs["shots"].isin([0, 16])].assign(dataset="source")
    rows = set_differences(part, "lora", ["a", "b"]).set_index(["method", "evaluated_on"])
    assert rows.loc[("block_lora", "b"), ["n", "expected", "complete"]].tolist() == [2, 3, False]
    assert rows.loc[("block_lora", AVERAGE), ["n", "expected", "complete"]].tolist() == [
        2,
        2,
        False,
    ]
    gone = part[~((part["evaluated_on"] == "b") & (part["method"] == "lora"))]
    rows = set_differences(gone, "lora", ["a", "b"]).set_index(["method", "evaluated_on"])
    assert rows.loc[("block_lora", "b"), ["n", "expected"]].tolist() == [0, 3]
    assert rows.loc[("block_lora", AVERAGE), ["n", "expected"]].tolist() == [1, 2]


def test_a_mean_over_sets_says_how_many_pairs_it_rests_on():
    runs = synthetic_runs(sets=("a", "b"), shots=(1,), methods=("lora", "block_lora", "frozen_a"))
    whole = over_sets(difference_by_set(runs, "lora", "block_lora"))
    assert (whole.complete, whole.told()) == (True, "2 sets, 6 pairs of runs")
    runs = without(without(runs, "lora", 1, "a"), "block_lora", 2, "a")
    few = over_sets(difference_by_set(runs, "lora", "block_lora"))
    assert (few.complete, few.told()) == (False, "2 sets, 4 of 6 pairs of runs")
    none = over_sets(difference_by_set(without(runs, "lora", 3, "a"), "lora", "block_lora"))
    assert none.told() == "1 of 2 sets, 3 of 6 pairs of runs"


def test_differences_over_sets_have_a_row_a_number_of_shots():
    runs = synthetic_runs(sets=("fashion", "mnist", "flags"), shots=(1, 4))
    by_set = difference_by_set(runs, "block_lora", "frozen_a")
    by_set.loc[(by_set["shots"] == 4) & (by_set["evaluated_on"] == "mnist"), "mean"] = 0.0
    rows = over_sets_by_shots(by_set).set_index("shots")
    assert rows["n"].tolist() == [3, 3]
    assert rows["sets_above"].tolist() == [3, 2]
    assert rows["pairs"].tolist() == ["9", "9"]
    for shots, part in by_set.groupby("shots"):
        test = stats.ttest_1samp(part["mean"], 0)
        assert rows.loc[shots, "p_value"] == pytest.approx(test.pvalue)
        assert rows.loc[shots, "low"] == pytest.approx(test.confidence_interval().low)


def test_what_a_caption_says_of_seeds():
    runs = synthetic_runs(sets=("a", "b"))
    assert seeds_told(few_shot_summary(runs)) == "3 seeds"
    assert (
        seeds_told(few_shot_summary(runs[runs["shots"] == 0])) == "no seed"
    )  # nothing is trained yet
    assert seeds_told(few_shot_summary(runs[runs["seed"] < 2])) == "1 seed"
    told = seeds_told(few_shot_summary(without(runs, "lora", 3)))
    assert told.startswith("2 to 3 of 3 seeds (hollow: fewer")
    told = seeds_told(few_shot_summary(runs[runs["seed"] < 2].assign(**{PLANNED: 3})))
    assert told.startswith("1 of 3 seeds (hollow")


def test_runs_of_a_profile_say_how_many_seeds_were_planned(tmp_path):
    from synthetic_records import write_records

    from blocklora_lib.runs.profile_files import load_profile
    from blocklora_lib.runs.store import RunStore

    profile, store = load_profile("smoke"), RunStore(tmp_path / "runs")
    write_records(profile, store.folder, ["few_shot", "cross_dataset"])
    for experiment, seeds in (("few_shot", 2), ("cross_dataset", 1)):
        runs = experiment_runs(profile, store, experiment)
        found = runs.groupby("shots")[PLANNED].unique().map(list).to_dict()
        assert found == {shots: [seeds if shots else 1] for shots in set(runs["shots"])}


def test_gains_are_over_zero_shot_beside_other_methods_without_training():
    runs = synthetic_runs()
    better = runs[runs["shots"] == 0].assign(method="zero_shot_ensemble", accuracy=0.9)
    both = pd.concat([better, runs], ignore_index=True)
    pd.testing.assert_frame_equal(gains(both), gains(runs))


def test_seeds_that_agree_have_the_interval_of_half_an_image():
    runs = synthetic_runs(methods=("zero_shot", "lora"))
    runs["accuracy"] = runs["accuracy"].where(runs["shots"] == 0, 0.5)
    rows = few_shot_summary(runs)
    of_one = rows[(rows["shots"] == 4) & (rows["dataset"] == runs["dataset"].iloc[0])].iloc[0]
    assert of_one["high"] - of_one["mean"] == pytest.approx(stats.t.isf(0.025, 2) * 0.05 / 3**0.5)
    unknown = few_shot_summary(runs.drop(columns="total"))
    assert unknown.loc[unknown["shots"] == 4, "high"].isna().all()


def test_categories_stand_in_their_own_order():
    """As pandas has it: 'small' before 'large', and what is no number still comes last."""
    frame = rows(medium={1: 0.5, 2: 0.7}, large={1: 0.6, 2: 0.6}, small={1: 0.4, 2: 0.6})
    order = ["small", "medium", "large"]
    frame["method"] = pd.Categorical(frame["method"], order, ordered=True)
    assert summarise(frame, ["method"])["method"].tolist() == order
