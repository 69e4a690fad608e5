"""Runs beside published numbers: pairs, differences and their intervals against numbers worked out
here.
"""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pandas as pd
import pytest
from executed import outputs
from scipy.stats import t
from synthetic_records import write_records

from blocklora_lib.analysis.summaries import AVERAGE
from blocklora_lib.claims import published
from blocklora_lib.claims.published import (
    cited,
    counterparts,
    other_methods,
    read_as,
    read_published,
    same_method,
)
from blocklora_lib.claims.published_tables import others_table, same_table
from blocklora_lib.core.paths import PUBLISHED
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.suite.execution import run_notebook
from blocklora_lib.suite.published import beside_published

PAPER = load_profile("paper")
HEAD = (
    "method,setting,source_dataset,target_dataset,shots,backbone,accuracy,metric_note,source,"
    "how_read"
)
LINES = (  # one set of the paper's, and what may be mistaken for it
    "CLIP-LoRA,few_shot,EuroSAT,EuroSAT,4,ViT-B/16,80.1,est. error +-0.2 "
    "(more),a/Plot@1,digitised: y axis",
    "CLIP-LoRA,few_shot,EuroSAT,EuroSAT,4,ViT-B/16,81.25,,https://github.com/a/b/issues/7,read "
    "issue thread",
    "CLIP-LoRA,few_shot,EuroSAT,EuroSAT,4,RN50,70.0,,a/Other@2,read log",
    "CLIP-LoRA,few_shot,AVERAGE_11,AVERAGE_11,4,ViT-B/16,77.0,mean,a/Plot@1,computed from "
    "digitised values",
    "CoOp,few_shot,EuroSAT,EuroSAT,4,ViT-B/16,70.5,,a/Sheet@3,read spreadsheet cell",
    "TPT,few_shot,EuroSAT,EuroSAT,,ViT-B/16,44.25,,a/Sheet@3,read spreadsheet cell",
    "CLIP zero-shot,few_shot,EuroSAT,EuroSAT,0,ViT-B/16,48.0,,a/Log@4,read log",
)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("\n".join([HEAD, *LINES]) + "\n", encoding="utf-8")
    return file


def summary(*rows):
    """Cells of ours: dataset, method, label, shots, mean, half width, n."""
    columns = ["dataset", "method", "method_label", "shots", "mean", "half", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["low"], frame["high"] = frame["mean"] - frame["half"], frame["mean"] + frame["half"]
    return frame.drop(columns="half")


OURS = summary(
    ("eurosat", "zero_shot", "Zero-shot", 0, 47.5, math.nan, 1),
    ("eurosat", "lora", "LoRA", 4, 80.0, 1.5, 3),
    ("eurosat", "block_lora", "Block-LoRA", 4, 79.0, 1.0, 3),
    ("dtd", "lora", "LoRA", 4, 60.0, 1.0, 3),
    (AVERAGE, "lora", "LoRA", 4, 70.0, 0.5, 3),
)


def test_an_error_of_reading_is_the_stated_one_or_half_the_last_decimal_of_the_source(path):
    rows = read_published(path)
    assert rows["error"].tolist() == pytest.approx([0.2, 0.005, 0.05, 0.2, 0.005, 0.005, 0.05])
    assert rows["accuracy"].tolist()[:2] == [80.1, 81.25]


def test_sources_that_contradict_each_other_are_rows_of_their_own(path):
    rows = same_method(OURS, "few_shot", PAPER, path)
    at = rows[(rows["method"] == "lora") & (rows["dataset"] == "eurosat")].set_index("published")
    assert at.index.tolist() == [80.1, 81.25]  # and not RN50's
    assert at["difference"].tolist() == pytest.approx([-0.1, -1.25])
    assert at["difference_low"].tolist() == pytest.approx([-0.1 - 1.5 - 0.2, -1.25 - 1.5 - 0.005])
    assert at["difference_high"].tolist() == pytest.approx([-0.1 + 1.5 + 0.2, -1.25 + 1.5 + 0.005])
    assert at["interval_covers"].iloc[0] == "our seeds, their reading ±0.2"
    zero = rows[rows["method"] == "zero_shot"].iloc[0]  # nothing is drawn: only their rounding
    assert (zero["difference_low"], zero["difference_high"]) == pytest.approx((-0.55, -0.45))


def test_a_cell_without_a_published_value_says_so(path):
    rows = same_method(OURS, "few_shot", PAPER, path)
    lacking = rows[rows["published"].isna()]
    assert set(zip(lacking["method"], lacking["dataset"], strict=True)) == {
        ("block_lora", "eurosat"),
        ("lora", "dtd"),
    }
    assert set(lacking["source"]) == {"none published"}
    shown = same_table(rows, {"eurosat": "EuroSAT", "dtd": "DTD"}).shown.set_index(
        ["method", "set"]
    )
    assert shown.loc[("Block-LoRA", "EuroSAT"), "published"] == "none"
    assert shown.loc[("LoRA", "DTD"), "published"] == "none"


def test_an_average_over_other_sets_is_not_compared(path):
    assert AVERAGE not in set(same_method(OURS, "few_shot", PAPER, path)["dataset"])


def test_one_seed_has_a_difference_and_no_interval(path):
    rows = same_method(
        summary(("eurosat", "lora", "LoRA", 4, 80.0, math.nan, 1)), "few_shot", PAPER, path
    )
    assert rows["difference"].tolist() == pytest.approx([-0.1, -1.25])
    assert rows["difference_low"].isna().all()
    assert rows["interval_covers"].iloc[0].startswith("no interval")
    assert same_table(rows, {}).shown["difference"].tolist() == ["-0.10", "-1.25"]


def test_others_stand_in_the_layout_of_a_paper(path):
    rows = other_methods(OURS, "few_shot", PAPER, path=path)
    table = others_table(rows, {"eurosat": "EuroSAT"})
    shown = table.shown[["shots", "method", "read from", "EuroSAT"]].values.tolist()
    assert shown[0] == ["4", "Block-LoRA (ours)", "", "79.0 ± 1.0"]
    assert ["4", "CoOp", "spreadsheet cell", "70.50"] in shown
    assert ["4", "Block-LoRA minus CoOp", "", "+8.5 ± 1.0"] in shown
    assert ["4", "CLIP-LoRA", "digitised, ±0.2", "80.1"] in shown
    assert shown[-1] == [
        "not stated",
        "TPT",
        "spreadsheet cell",
        "44.25",
    ]  # no difference of unlike things
    assert not any("zero-shot" in row[1] for row in shown)
    assert table.latex.count("{") == table.latex.count("}")


def test_clip_lora_is_lora_of_rank_2_under_any_name():
    found = counterparts(PAPER)
    assert found["zero_shot"] == published.ZERO_SHOT
    assert "zero_shot_ensemble" not in found  # published zero-shot is of one template
    assert found["lora"] == published.CLIP_LORA
    one_block = {name for name, pattern in found.items() if pattern == published.CLIP_LORA} - {
        "lora"
    }
    assert one_block
    assert all("rank=2" in name and "n_blocks=1" in name for name in one_block)
    assert not {"block_lora", "lora_r1", "lora_plus", "frozen_a"} & set(found)


def test_a_comparator_is_published_under_its_label_and_variants_are_not():
    found, known = counterparts(PAPER), set(read_published()["method"])

    def named(entry):
        return {name for name in known if re.match(found[entry], name)}

    assert named("tip_adapter") == {"Tip-Adapter"}
    assert named("tip_adapter_f") == {"Tip-Adapter-F"}
    assert named("linear_probe") == {"Linear probe CLIP", "Linear probing"}
    assert named("lp_plus") == {"LP++"}
    assert named("gda") == {"GDA"}
    assert {"CoOp", "CoOp (re-run by DePT authors)"} <= named("coop")
    assert not any(name.startswith("CoCoOp") for name in named("coop"))
    assert not any("M=4" in name for name in named("coop"))  # which is of 16 tokens
    assert {"MaPLe", "MaPLe (re-run by DePT authors)"} <= named("maple")
    assert not {"coop_4", "maple_5", "lp_plus_last", "promptsrc_45", "task_res_1"} & set(found)


def test_a_digitised_comparator_carries_its_error():
    rows = read_published()
    ours = rows[rows["source"].str.startswith("Koorye/SkipTuning@8c4636e:examples/few_shot.png")]
    assert len(ours) == 170
    stated = ours["how_read"].str.extract(r"\+/-([\d.]+)")[0].astype(float)
    assert stated.between(0.05, 0.35).all()
    assert ours["error"].tolist() == stated.tolist()
    assert (ours["backbone"] == "ViT-B/16").all()


@pytest.mark.parametrize("name", ["pocket", "smoke", "pocket-full", "paper-smoke"])
def test_other_profiles_read_and_show_nothing(name, tmp_path):
    profile, missing = load_profile(name), tmp_path / "none.csv"
    assert same_method(OURS, "few_shot", profile, missing).empty
    assert other_methods(OURS, "few_shot", profile, path=missing).empty

    class Refusing:  # a notebook that may not be asked to show anything
        pass

    Refusing.profile = profile
    beside_published(Refusing(), OURS, "few_shot")


def test_a_missing_or_damaged_file_is_named(path, tmp_path):
    with pytest.raises(MissingResults, match=r"none\.csv; restore the file from git"):
        read_published(tmp_path / "none.csv")
    path.write_text("method,accuracy\nx,1.0\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"results\.csv has no column setting, target_dataset, shots"
    ):
        read_published(path)


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("MaxZanella/CLIP-LoRA@358f0d7:few_shot.png (README Figure 2)", "CLIP-LoRA@358f0d7"),
        ("https://github.com/MaxZanella/CLIP-LoRA/issues/1", "CLIP-LoRA issue 1"),
        ("a book", "a book"),
    ],
)
def test_a_source_is_cited_in_short(source, short):
    assert cited(source) == short


def test_how_a_value_was_read_carries_its_error_where_reading_added_one():
    assert read_as("digitised: y axis calibrated per panel", 0.2) == "digitised, ±0.2"
    assert read_as("read log", 0.05) == "log"


# the notebooks, on made-up records of the whole paper profile


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A results folder with a record of every run of the paper profile, and the records by key."""
    folder = tmp_path_factory.mktemp("paper")
    return folder, write_records(PAPER, folder / "runs", {*PAPER.experiments} - {"comparison"})


def seeds(records, method, shots, evaluated, dataset, **settings):
    """Accuracies (%) by seed, from the records themselves."""
    found = {
        r.spec.seed: 100 * r.result.accuracy[evaluated].correct / r.result.accuracy[evaluated].total
        for r in records.values()
        if (r.spec.method.name, r.spec.shots, r.spec.dataset) == (method, shots, dataset)
        and all(dict(r.spec.method.settings)[key] == value for key, value in settings.items())
        and set(r.spec.evaluate_on)
        <= {dataset, *PAPER.variants}  # not the runs of cross-dataset transfer
    }
    return [found[seed] for seed in sorted(found)]


def known(method, dataset, shots, source, setting="few_shot"):
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        (value,) = [
            float(row["accuracy"])
            for row in csv.DictReader(file)
            if (row["method"], row["target_dataset"], row["setting"]) == (method, dataset, setting)
            and float(row["shots"] or -1) == shots
            and row["source"].startswith(source)
        ]
    return value


def executed(notebook, folder):
    """Execute the notebook and return what it showed."""
    run_notebook(notebook, "paper", {}, folder, verbose=False)
    return outputs(folder, notebook)


def table(folder, notebook, name="published"):
    return pd.read_csv(folder / "tables" / notebook / f"{name}.csv")


@pytest.mark.slow
def test_lora_stands_beside_clip_lora_and_block_lora_beside_others(paper):
    folder, records = paper
    shown = executed("08_few_shot", folder)
    values = seeds(records, "lora", 4, "eurosat", "eurosat", rank=2)
    mean, half = np.mean(values), t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    theirs = known("CLIP-LoRA", "EuroSAT", 4, "MaxZanella/CLIP-LoRA@")
    rows = table(folder, "08_few_shot").query(
        "method == 'lora' and dataset == 'eurosat' and shots == 4"
    )
    (row,) = rows.to_dict("records")
    assert row["mean"] == pytest.approx(mean)
    assert (row["low"], row["high"]) == pytest.approx((mean - half, mean + half))
    assert (row["published"], row["difference"]) == pytest.approx((theirs, mean - theirs))
    assert row["difference_high"] - row["difference"] == pytest.approx(half + 0.2)  # digitised
    assert f'<td class="number" style="text-align: right">{mean:.2f} ± {half:.2f}</td>' in shown
    assert f"{mean - theirs:+.2f} ± {half + 0.2:.2f}</td>" in shown
    assert "CLIP-LoRA@358f0d7</td>" in shown
    latex = (folder / "tables" / "08_few_shot" / "published.tex").read_text(encoding="utf-8")
    assert rf"{mean:.2f} $\pm$ {half:.2f}" in latex

    # the average of eleven sets
    by_set = np.array(
        [
            seeds(records, "block_lora", 16, s, s, rank=2, n_blocks=2, reading="total_rank")
            for s in PAPER.datasets
        ]
    )
    rows = table(folder, "08_few_shot", "published_others")
    same = rows.query("dataset == 'average' and shots == 16 and published_method == 'PromptSRC'")
    (row,) = same[same["source"].str.startswith("MCG")].to_dict("records")
    assert row["mean"] == pytest.approx(by_set.mean(axis=0).mean())
    assert row["difference"] == pytest.approx(
        row["mean"] - known("PromptSRC", "AVERAGE_11", 16, "MCG")
    )
    assert len(same) == 2  # the other source has a row of its own


@pytest.mark.slow
def test_contradicting_zero_shot_values_stand_one_under_the_other(paper):
    folder, _ = paper
    shown = executed("10_domain_generalization", folder)
    domains = table(folder, "10_domain_generalization")
    zero = domains[(domains["method"] == "zero_shot") & (domains["dataset"] == "imagenet_a")]
    assert len(zero) == 2
    assert zero["published"].nunique() == 2
    assert all(f">{value:.2f}</td>" in shown for value in zero["published"])


@pytest.mark.slow
def test_transfer_stands_beside_that_of_others(paper):
    folder, _ = paper
    shown = executed("09_cross_dataset", folder)
    transfer = table(folder, "09_cross_dataset", "published_others")
    (row,) = transfer.query(
        "dataset == 'dtd' and published_method == 'MaPLe' and source.str.startswith('Vill')"
    ).to_dict("records")
    assert row["published"] == known("MaPLe", "DTD", 16, "Vill", "cross_dataset")
    assert row["difference"] == pytest.approx(row["mean"] - row["published"])
    assert f">{row['difference']:+.1f} ± " in shown


@pytest.mark.slow
def test_an_ablation_is_of_a_set_and_not_of_its_variants_and_one_block_is_clip_lora(paper):
    folder, records = paper
    executed("11_ablations", folder)
    values = seeds(
        records, "block_lora", 16, "imagenet", "imagenet", rank=2, n_blocks=1, reading="block_rank"
    )
    assert len(values) == 3
    blocks = table(folder, "11_ablations", "blocks")
    blocks = blocks[(blocks["reading"] == "block_rank") & (blocks["dataset"] == "ImageNet")]
    assert blocks.loc[blocks["n_blocks"] == 1, "accuracy (%)"].tolist() == pytest.approx(
        [np.mean(values)]
    )
    rows = table(folder, "11_ablations").query("dataset == 'imagenet' and published == published")
    assert known("CLIP-LoRA", "ImageNet", 16, "MaxZanella/CLIP-LoRA@") in rows["published"].tolist()
    assert rows["mean"].tolist()[0] == pytest.approx(np.mean(values))
