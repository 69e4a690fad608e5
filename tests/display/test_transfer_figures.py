"""Figures of transfer, shifted domains and ablations: what they compute and draw, from small
frames.
"""

from __future__ import annotations

import math

import pandas as pd
import pytest
from figure_cases import collapse, number_of_blocks
from scipy import stats
from synthetic import synthetic_runs

from blocklora_lib.analysis.summaries import AVERAGE
from blocklora_lib.analysis.transfer import (
    domain_summary,
    robustness,
    set_differences,
    source_and_average,
)
from blocklora_lib.display.figures import ablation, transfer
from blocklora_lib.display.style import TEXT_WIDTH, save_figure

TITLES = {"source": "Source", "one": "First", "two": "Second"}


def drawn(figure, tmp_path):
    paths = save_figure(figure, tmp_path / "figure", "a note")
    assert all(path.stat().st_size > 0 for path in paths)
    assert figure.get_size_inches()[0] >= 0.6 * TEXT_WIDTH  # the note under it has room
    return figure


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def evaluated(gains, seeds=(1, 2, 3)):
    """Runs of the source at 16 shots: zero-shot 0.5, LoRA above it by gains[set], Block-LoRA by
    half of that, and each trained method 0.01 (seed - 2) more.
    """
    rows = []
    for name, gain in gains.items():
        for method, label, share in (("lora", "LoRA", 1.0), ("block_lora", "Block-LoRA", 0.5)):
            for seed in seeds:
                accuracy = 0.5 + share * gain + 0.01 * (seed - 2)
                rows.append((name, method, label, 16, seed, accuracy))
        rows.append((name, "zero_shot", "Zero-shot", 0, 0, 0.5))
    columns = ["evaluated_on", "method", "method_label", "shots", "seed", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="source", total=1000)


@pytest.fixture
def differences():
    runs = evaluated({"source": 0.2, "one": 0.1, "two": -0.02})
    both = [set_differences(runs, against, ["one", "two"]) for against in ("zero_shot", "lora")]
    return pd.concat(both, ignore_index=True)


def test_differences_are_paired_by_seed_and_averaged_over_the_targets_alone(differences):
    at = differences.set_index(["method", "against", "evaluated_on"])
    assert at.loc[("lora", "zero_shot", "source"), "mean"] == pytest.approx(20)
    assert at.loc[("lora", "zero_shot", AVERAGE), "mean"] == pytest.approx(
        4
    )  # (10 - 2) / 2: no source
    row = at.loc[("block_lora", "lora", "one")]
    assert row["mean"] == pytest.approx(-5)
    # the seeds' shares cancel in a pair: what is left is half the tenth of a point of one image
    assert row["high"] - row["mean"] == pytest.approx(stats.t.isf(0.025, 2) * 0.05 / 3**0.5)
    assert at.loc[("lora", "zero_shot", "one"), "high"] > 10.5  # against zero-shot they do not
    assert at.loc[("block_lora", "lora", AVERAGE), "n"] == 2
    assert not (differences["method"] == differences["against"]).any()
    assert "zero_shot" not in set(differences["method"])


def test_the_source_stands_beside_the_average_of_the_others(differences):
    rows = source_and_average(differences, "source").set_index(["method", "against"])
    assert list(rows.index) == [
        *(("lora", "zero_shot"), ("block_lora", "zero_shot"), ("block_lora", "lora"))
    ]
    row = rows.loc["lora", "zero_shot"]
    assert (row["on_source"], row["on_others"]) == pytest.approx((20, 4))
    assert (row["gained"], row["sets"], row["seeds"]) == (1, 2, "3")  # of 10 and -2 points
    at = differences.set_index(["method", "against", "evaluated_on"])
    assert row["low"] == at.loc[("lora", "zero_shot", AVERAGE), "low"]
    twice = pd.concat([differences.assign(shots=k) for k in (1, 16)], ignore_index=True)
    assert source_and_average(twice, "source")["shots"].value_counts().to_dict() == {1: 3, 16: 3}
    alone = differences[differences["evaluated_on"] == "source"]  # nothing to average
    assert source_and_average(alone, "source").empty


def test_one_seed_and_one_target_have_no_interval():
    rows = set_differences(evaluated({"source": 0.2, "one": 0.1}, seeds=(1,)), "zero_shot", ["one"])
    assert rows["low"].isna().all()


@pytest.mark.slow
def test_sets_stand_between_source_and_average(differences, tmp_path):
    figure = drawn(transfer.differences_by_set(differences, TITLES, "source"), tmp_path)
    left, right = figure.axes
    assert labels(left.yaxis) == ["Average of 2 sets", "Second", "First", "Source (source)"]
    assert left.get_xlabel() == "points above zero-shot"
    assert right.get_xlabel() == "points above LoRA of rank r"
    assert legend(figure) == ["LoRA", "Block-LoRA"]


@pytest.fixture
def domains():
    source = synthetic_runs(sets=("source",), methods=("zero_shot", "lora", "block_lora"))
    shifted = [
        source.assign(evaluated_on=v, accuracy=source["accuracy"] / k)
        for v, k in (("one", 2), ("two", 4))
    ]
    other = synthetic_runs(sets=("elsewhere",), methods=("lora",))
    return domain_summary(pd.concat([source, *shifted, other]), "source")


@pytest.mark.slow
def test_the_average_of_the_variants_leaves_the_source_out(domains, tmp_path):
    assert set(domains["dataset"]) == {"source", "one", "two", AVERAGE}
    at = domains.set_index(["dataset", "method", "shots"])["mean"]
    assert at[AVERAGE, "lora", 16] == pytest.approx(at["source", "lora", 16] * (1 / 2 + 1 / 4) / 2)
    figure = drawn(transfer.domain_by_shots(domains, TITLES, "source"), tmp_path)
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown == ["Source (source)", "First", "Second", "Average of 2 variants"]
    assert labels(figure.axes[0].xaxis) == ["0", "1", "4", "16"]


@pytest.mark.slow
def test_one_variant_has_a_panel_and_no_average(tmp_path):
    source = synthetic_runs(sets=("source",), methods=("zero_shot", "lora"), seeds=(1,))
    summary = domain_summary(pd.concat([source, source.assign(evaluated_on="one")]), "source")
    figure = drawn(transfer.domain_by_shots(summary, TITLES, "source"), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["Source (source)", "First"]


def test_each_method_without_training_stands_at_its_own_place(domains):
    """The ensemble was drawn at zero-shot's."""
    rows = robustness(domains, "source")
    zero = rows[rows["shots"] == 0]
    other = zero.assign(method="zero_shot_ensemble", method_label="Ensemble", source=70.0)
    figure = transfer.robustness_plane(pd.concat([other.assign(variants=55.0), rows]))
    seen = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert seen["Ensemble"] == [[70.0, 55.0]]
    assert seen["Zero-shot"] == zero[["source", "variants"]].to_numpy().tolist()


@pytest.mark.slow
def test_robustness_is_the_share_that_is_kept(domains, tmp_path):
    rows = robustness(domains, "source")
    assert rows["kept"].tolist() == pytest.approx([0.375] * len(rows))
    assert rows.loc[rows["shots"] == 0, "source_gain"].tolist() == [0]
    figure = drawn(transfer.robustness_plane(rows), tmp_path)
    assert legend(figure) == [
        *("Zero-shot", "LoRA", "Block-LoRA", "same share kept as zero-shot"),
        *("1 shot", "4 shots", "16 shots"),
    ]
    assert not figure.axes[0].texts  # nothing that could cover something else
    lora = rows[rows["method"] == "lora"]
    for row in lora.itertuples():  # markers grow with the shots
        sizes = {
            line.get_markersize()
            for line in figure.axes[0].get_lines()
            if list(line.get_xdata()) == [row.source] and list(line.get_ydata()) == [row.variants]
        }
        assert sizes == {{1: 3.0, 4: 5.5, 16: 8.0}[row.shots]}


@pytest.mark.slow
def test_blocks_are_named_beside_their_parameters(tmp_path):
    sizes = {
        ("total_rank", 1): 8000,
        ("total_rank", 2): 6000,
        ("block_rank", 1): 2000,
        ("block_rank", 2): 3000,
    }
    rows = [
        dict(reading=r, rank=8, n_blocks=n, dataset=d, seed=seed, accuracy=0.5 + seed / 100)
        | dict(trainable_parameters=size)
        for (r, n), size in sizes.items()
        for d in ("First", "Second")
        for seed in (1, 2)
    ]
    figure = drawn(number_of_blocks(pd.DataFrame(rows)), tmp_path)
    assert len(figure.axes) == 4
    assert labels(figure.axes[2].xaxis) == ["8\nn = 1", "6\nn = 2"]
    assert figure.axes[0].get_title() == "r is the total rank: r = 8"


def test_numbers_of_blocks_of_one_count_share_its_label(tmp_path):
    """As 'w/o A' has them: two labels were written over one another."""
    rows = [
        dict(reading="total_rank", rank=8, n_blocks=n, dataset="First", seed=seed, accuracy=0.5)
        | dict(trainable_parameters=8000 if n < 4 else 6000)
        for n in (1, 2, 4)
        for seed in (1, 2)
    ]
    figure = drawn(number_of_blocks(pd.DataFrame(rows)), tmp_path)
    assert labels(figure.axes[0].xaxis) == ["8\nn = 1, 2", "6\nn = 4"]


@pytest.mark.slow
def test_collapse_has_test_and_training_images_and_zero_shot(tmp_path):
    rows = [
        dict(dataset="First", lr=lr, init_scale=scale, accuracy=0.0 if lr > 0.1 else 0.4)
        | dict(seed=1, train_accuracy=1.0)
        for lr in (0.02, 0.2)
        for scale in (0.1, 1.0)
    ]
    figure = drawn(collapse(pd.DataFrame(rows), {"First": 0.1}), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == [
        "First: test images",
        "First: training images",
    ]
    assert labels(figure.axes[0].xaxis) == ["0.02", "0.2"]
    assert legend(figure) == ["initial scale 0.1", "initial scale 1", "zero-shot"]


@pytest.mark.slow
def test_a_frozen_a_is_compared_on_each_set_and_on_average(tmp_path):
    by_set = pd.DataFrame(
        {"shots": [1, 1, 4, 4], "dataset": ["one", "two"] * 2, "difference": [1.0, 3, 4, 8]}
    )
    overall = pd.DataFrame(
        {"shots": [1, 4], "mean": [2.0, 6.0], "low": [0.0, 2.0], "high": [4.0, 10.0]}
    )
    by_set, overall = by_set.assign(complete=True), overall.assign(complete=True)
    figure = drawn(ablation.trained_minus_frozen(by_set, overall), tmp_path)
    assert labels(figure.axes[0].xaxis) == ["1", "4"]
    assert legend(figure) == ["a set", "mean, 95% interval over sets"]


@pytest.mark.slow
def test_places_stand_in_order_beside_their_parameters(tmp_path):
    places = [
        ("projections", "q", 100),
        ("projections", "q, k, v", 300),
        ("towers", "text tower only", 90),
    ]
    rows = [
        dict(
            group=group, place=place, parameters=count, dataset=d, mean=50.0, low=low, high=low + 5
        )
        | dict(complete=True)
        for group, place, count in places
        for d, low in (("First", 47.5), ("Second", math.nan))
    ]
    figure = drawn(ablation.placement(pd.DataFrame(rows)), tmp_path)
    left, right = figure.axes
    assert labels(left.yaxis) == ["q", "q, k, v", "text tower only"]
    assert left.get_yticks().tolist() == [2, 1, 0]  # the first on top
    assert [text.get_text() for text in right.texts] == ["100", "300", "90"]
    assert legend(figure) == ["First", "Second"]
