"""A seed that is missing is seen: hollow markers, no star, and a verdict that says over how many it
is.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
from figure_cases import collapse, number_of_blocks
from given_evidence import Given, blocks, shared, source_runs
from synthetic import synthetic_runs
from synthetic_records import write_records

from blocklora_lib.analysis.summaries import few_shot_summary, gains
from blocklora_lib.analysis.transfer import domain_summary, robustness, set_differences
from blocklora_lib.claims.claim import Claim, judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.judges import ablations, accuracy, published_numbers
from blocklora_lib.display.figures import ablation, few_shot, transfer
from blocklora_lib.display.tables import few_shot_table
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import PLANNED, MissingResults
from blocklora_lib.runs.sealed import seal


def without(runs, **which):
    """The runs but those that agree with all of `which`."""
    gone = pd.Series(True, index=runs.index)
    for name, value in which.items():
        gone &= runs[name] == value
    assert gone.any()
    return runs[~gone]


def hollow(figure):
    """(x, y) of every hollow marker."""
    return [
        (float(x), float(y))
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_markerfacecolor() == "white"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def explained(figure):
    """Whether a text of the figure says what a hollow marker is."""
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    texts += [t.get_text() for axes in figure.axes for t in axes.texts]
    return any("hollow" in text for text in texts)


def placed(runs):
    """Rows of the figure of places: a mean for each method, as if it were a place."""
    rows = few_shot_summary(runs[runs["shots"] == 1])
    return rows[rows["dataset"] != "average"].assign(
        place=rows["method"], group="projections", parameters=100
    )


def by_blocks(runs):
    columns = dict(reading="total_rank", rank=8, n_blocks=1, trainable_parameters=8000)
    two = dict(columns, n_blocks=2, trainable_parameters=6000)
    part = runs[(runs["shots"] == 16)]
    one = part[part["method"] == "lora"].assign(**columns)
    return pd.concat([one, part[part["method"] == "block_lora"].assign(**two)])


def by_rate(runs):
    part = runs[runs["shots"] == 16]
    return part.assign(
        lr=part["method"].map({"lora": 0.02, "block_lora": 0.2}), init_scale=1.0
    ).dropna(subset=["lr"])


def over_shots(runs):
    """by_set and overall of the figure of a frozen A, of what is paired here."""
    from blocklora_lib.analysis.comparisons import difference_by_set, over_sets

    by_set = difference_by_set(runs, "block_lora", "frozen_a")
    each = [(k, over_sets(part)) for k, part in by_set.groupby("shots")]
    rows = [
        dict(shots=k, mean=d.mean, low=d.low, high=d.high, complete=d.complete) for k, d in each
    ]
    return by_set.rename(columns={"mean": "difference"}), pd.DataFrame(rows)


def transferred(runs):
    part = runs[runs["shots"].isin([0, 16])].assign(dataset="a")
    return set_differences(part, "zero_shot", ["b"])


def domains(runs):
    return domain_summary(runs.assign(dataset="a"), "a")


FIGURES = {
    "accuracy_by_shots": lambda runs: few_shot.accuracy_by_shots(few_shot_summary(runs)),
    "gain_by_dataset": lambda runs: few_shot.gain_by_dataset(gains(runs)),
    "key_figure": lambda runs: few_shot.key_figure(few_shot_summary(runs), gains(runs)),
    "number_of_blocks": lambda runs: number_of_blocks(by_blocks(runs)),
    "collapse": lambda runs: collapse(by_rate(runs), {}),
    "trained_minus_frozen": lambda runs: ablation.trained_minus_frozen(*over_shots(runs)),
    "placement": lambda runs: ablation.placement(placed(runs)),
    "differences": lambda runs: transfer.differences_by_set(transferred(runs), {}, "a"),
    "domain_by_shots": lambda runs: transfer.domain_by_shots(domains(runs), {}, "a"),
    "robustness": lambda runs: transfer.robustness_plane(robustness(domains(runs), "a")),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_mean_that_lacks_a_seed_is_hollow_and_explained(draw):
    runs = synthetic_runs(sets=("a", "b"))
    whole = draw(runs)
    assert not hollow(whole)
    assert not explained(whole)
    few = draw(without(runs, method="block_lora", seed=2))
    assert hollow(few)
    assert explained(few)
    # all lack it, so that no neighbour tells, but the plan does
    planned = runs.assign(**{PLANNED: runs["shots"].map(lambda k: 3 if k else 1)})
    assert hollow(draw(planned[planned["seed"] != 2]))
    assert not hollow(draw(planned))


def test_the_hollow_marker_stands_on_the_mean_that_is_there():
    runs = synthetic_runs(sets=("a",))
    few = without(runs, method="lora", seed=2, shots=4)
    left = few[(few["method"] == "lora") & (few["shots"] == 4)]["accuracy"]
    assert len(left) == 2
    assert hollow(few_shot.accuracy_by_shots(few_shot_summary(few))) == [
        (4.0, pytest.approx(100 * left.mean()))
    ]


def test_means_over_other_seeds_are_not_starred():
    """Each method lacks another seed: as many, but not the same."""
    runs = synthetic_runs(sets=("a",), shots=(1,), methods=("zero_shot", "lora", "block_lora"))
    assert few_shot_table(few_shot_summary(runs)).shown["a"].str.endswith("*").any()
    few = without(without(runs, method="lora", seed=1), method="block_lora", seed=3)
    shown = few_shot_table(few_shot_summary(few)).shown
    assert not shown["a"].str.endswith("*").any()
    assert shown.loc[shown["shots"] == 1, "a"].str.endswith("(2 of 3)").all()


def test_a_lucky_seed_does_not_turn_the_frozen_a_verdict():
    """Where only its worst seed is left, a frozen A would lose by the unpaired means; by pairs it
    wins.
    """
    runs = synthetic_runs(methods=("zero_shot", "block_lora", "frozen_a"))
    better = (runs["method"] == "frozen_a") & (runs["shots"] > 0)
    runs = runs.assign(
        accuracy=runs["accuracy"] + 0.05 * better + 0.2 * (runs["seed"] - 2) * (runs["shots"] > 0)
    )
    whole = accuracy.without_a(Given(few_shot=runs))
    few = without(without(runs, method="frozen_a", seed=3), method="frozen_a", seed=2)
    found = accuracy.without_a(Given(few_shot=few))
    assert whole.holds is False
    assert found.holds is whole.holds
    assert "33 pairs of runs" in whole.evidence
    assert "11 of 33 pairs of runs" in found.evidence
    unpaired = few[few["shots"] == 1].groupby("method")["accuracy"].mean()
    assert unpaired["block_lora"] > unpaired["frozen_a"]  # what the means alone would say


def test_the_three_differences_of_o3_are_of_the_same_runs():
    runs = synthetic_runs(methods=("lora", "block_lora", "frozen_a")).replace("frozen_a", "lora_r1")
    few = without(without(runs, method="lora_r1", seed=1), method="lora", seed=3, dataset="chess")
    text = accuracy.width_is_what_counts(Given(few_shot=few)).evidence
    assert "21 of 33 pairs of set and seed (those that all have)" in text
    disjoint = few[~((few["method"] == "lora") & (few["seed"] > 1))]
    with pytest.raises(MissingResults, match="have no run of the same dataset and seed"):
        accuracy.width_is_what_counts(Given(few_shot=disjoint))


@pytest.mark.slow
def test_c12_and_c14_say_over_how_many_pairs_they_are():
    falling = {1: 0.0, 2: 0.0, 4: 0.02, 8: 0.1}
    frame = blocks(falling, shared).frames["blocks"]
    few = without(frame, n_blocks=8, seed=3, dataset="fashion", reading="total_rank")
    assert (
        "8 of 9 pairs of set and seed (those"
        in ablations.number_of_blocks(Given(blocks=few)).evidence
    )
    runs, variants = (
        source_runs(names) for names in (("fashion", "mnist", "flags"), ("emoji_v2", "emoji_a"))
    )
    few = Given(cross_dataset=without(runs, method="lora", seed=1), few_shot=variants)
    evidence = accuracy.competitive(few).evidence.partition("On 2 shifted")[0]
    assert "On 3 other sets, at 16 shots, 2 of 3 seeds, 6 of 9 pairs of runs" in evidence
    assert "against zero-shot" not in evidence  # it would be over other runs
    whole = accuracy.competitive(Given(cross_dataset=runs, few_shot=variants)).evidence
    assert "3 seeds, 9 pairs of runs" in whole


def test_a_setting_is_judged_by_the_seeds_it_has_and_says_how_many_lack():
    """Of the best-looking setting one lucky seed is left: one seed has no interval."""
    rows = [
        dict(lr=lr, init_scale=scale, seed=seed, accuracy=0.4 if lr < 0.1 else 0.1, shots=1)
        for lr in (0.02, 0.2)
        for scale in (1.0, 10.0)
        for seed in (1, 2, 3, 4, 5)
    ]
    grid = pd.DataFrame(rows).assign(evaluated_on="fashion", dataset="fashion")
    grid = grid.assign(method="block_lora,lr=0.02")
    grid["train_accuracy"], grid["total"] = grid["accuracy"], 500
    cell = (grid["lr"] == 0.2) & (grid["init_scale"] == 1.0)
    diverged = grid[cell & (grid["seed"] > 1)]
    for lucky in (0.9, 0.001):
        few = grid.assign(accuracy=grid["accuracy"].mask(cell, lucky)).drop(diverged.index)
        found = ablations.too_high_a_rate(Given(collapse=few))
        assert found.holds is None
        assert "3 of 4 settings have all 5 seeds" in found.evidence
    counted = ablations.too_high_a_rate(Given(diverged, collapse=grid.drop(diverged.index)))
    assert counted.holds  # those that diverged are at chance, and no longer missing
    assert "4 runs diverged" in counted.evidence
    assert "4 settings have all 5 seeds" in counted.evidence


@pytest.mark.parametrize(("seeds", "holds"), [((1, 2, 3), True), ((1,), None)])
def test_one_seed_does_not_contradict_a_published_number(seeds, holds):
    runs = synthetic_runs(sets=("eurosat", "imagenet"), methods=("block_lora",), seeds=seeds)
    runs = runs.assign(accuracy=0.9365 + 0.001 * (runs["seed"] - 2), **{PLANNED: 3})
    values = pd.DataFrame(
        {"accuracy": [72.0, 73.0, 74.0], "method": "CLIP-LoRA", "setting": "few_shot"}
    )
    values = values.assign(target_dataset="ImageNet", shots=16, backbone="ViT-B/16")
    given = Given(few_shot=runs, published=values)
    given.profile = load_profile("paper")
    found = published_numbers.imagenet_at_16(given)
    assert found.holds is holds
    assert ("3 seeds" if holds else "1 of 3 seeds") in found.evidence


@pytest.mark.slow
def test_no_judge_passes_over_a_run_that_failed(tmp_path):
    profile = load_profile("smoke")
    records = write_records(profile, tmp_path / "runs", ["few_shot", "twins"])
    blind = Claim("X", "x", "us", ("08_few_shot", "few_shot"), (), lambda e: _nothing(e))
    assert judge([blind], Evidence(profile, tmp_path))[0].finding.evidence == "fine"
    failed = {
        experiment: next(
            s for s in expand(profile, experiment) if s.method.name == "lora_plus" and s.shots == 1
        )
        for experiment in ("few_shot", "twins")
    }
    for spec in failed.values():
        record = json.loads(records[spec.key].to_json())
        record.pop("checksum", None)
        error = dict(kind="refused", message="no such rank", retry="another rank")
        path = tmp_path / "runs" / f"{spec.key}.json"
        path.write_text(
            seal(record | dict(status="failed", result=None, error=error)), encoding="utf-8"
        )
    evidence = Evidence(profile, tmp_path)
    text = judge([blind], evidence)[0].finding.evidence
    assert text == "fine In no mean, for they failed: 1 run of few_shot."
    assert (evidence.failed("few_shot"), evidence.failed("few_shot", "diverged")) == (1, 0)
    assert evidence.diverged("few_shot").empty
    control = evidence.found(accuracy.control_is_the_same).evidence
    assert "over 1 set, 1 of 2 pairs of runs (those that all have)" in control
    assert control.endswith("In no mean, for they failed: 1 run of twins.")


def _nothing(e):
    from blocklora_lib.claims.verdict import Finding

    e.runs("few_shot")
    return Finding(True, "fine")
