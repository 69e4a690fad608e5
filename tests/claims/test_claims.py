"""Verdicts follow from evidence: other results, other verdicts; missing ones, the command that
makes them.
"""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from given_evidence import Given, blocks, shared, source_runs
from synthetic import synthetic_runs

from blocklora_lib.claims.claim import (
    MARKERS,
    Claim,
    Evidence,
    Finding,
    as_json,
    as_markdown,
    cell_link,
    judge,
    scoreboard,
    verdict,
    write_into,
)
from blocklora_lib.claims.judges import ablations, accuracy, costs, counts, published_numbers
from blocklora_lib.claims.paper_claims import CLAIMS
from blocklora_lib.core.paths import NOTEBOOKS, RESULTS, ROOT
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.reference import REFERENCE, SHOWN


@pytest.mark.parametrize(
    ("holds", "scope", "small", "says"),
    [
        (None, "nothing", True, "not run"),
        (True, "measured", True, "confirmed on pocket only"),
        (True, "measured", False, "confirmed"),
        (True, "arithmetic", True, "confirmed"),  # a count is a count, whatever the backbone
        (True, "published", True, "confirmed"),
        (False, "measured", True, "contradicted"),
        (False, "arithmetic", False, "contradicted"),
    ],
)
def test_what_a_finding_amounts_to(holds, scope, small, says):
    assert verdict(Finding(holds, "", scope), small) == says


def test_every_claim_of_the_paper_has_one_row_and_a_cell_that_shows_its_evidence():
    ids = [c.id for c in CLAIMS]
    assert ids == [f"C{i}" for i in range(1, 18)] + ["O1", "O2", "O3", "O4"]
    for claim in CLAIMS:
        notebook, _, cell = cell_link(*claim.shown).partition("#cell-id=")
        cells = {
            c["id"] for c in json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
        }
        assert cell in cells
        assert (claim.kind == "structural") == (claim.expected is not None)


def test_an_empty_folder_gives_not_run_and_the_command_for_each(tmp_path):
    profile = load_profile("pocket")
    for j in judge(CLAIMS, Evidence(profile, tmp_path)):
        if j.claim.id in ("C9", "C10"):  # published numbers are there
            continue
        assert j.verdict == "not run"
        assert not j.surprising
        assert "blocklora " in j.finding.evidence or j.claim.id == "C15", j.claim.id


def test_a_missing_export_is_an_error_of_the_suite():
    with pytest.raises(ValueError, match="export of notebook 02_equivalence"):
        cell_link("02_equivalence", "nothing_of_that_name")


def test_a_structural_claim_with_another_verdict_than_its_proof_is_surprising():
    for holds, surprising in ((True, False), (False, True), (None, False)):
        claim = Claim(
            "X",
            "1 + 1 = 2",
            "us",
            "structural",
            ("02_equivalence", "errors"),
            lambda e, holds=holds: Finding(holds, "", "arithmetic"),
            "confirmed",
        )
        assert judge([claim], Given())[0].surprising == surprising


# each judge, on evidence for and against


def test_c1_compares_errors_with_their_tolerances():
    worst = pd.DataFrame(
        {
            "precision": ["float64", "float32"],
            "peft": [1e-16, 2e-7],
            "loop": [0.0, 1e-7],
            "tolerance": [1e-12, 1e-6],
        }
    )
    assert counts.one_block_is_lora(Given(worst_errors=worst)).holds
    worst.loc[1, "loop"] = 2e-6
    assert counts.one_block_is_lora(Given(worst_errors=worst)).holds is False


def test_c3_is_decided_by_counts():
    models = pd.DataFrame(
        [
            dict(
                model="m",
                form="lora",
                reading="total_rank",
                rank=2,
                n_blocks=1,
                closed_form=8,
                counted=8,
            ),
            dict(
                model="m",
                form="block_lora",
                reading="total_rank",
                rank=2,
                n_blocks=2,
                closed_form=6,
                counted=6,
            ),
        ]
    )
    finding = counts.three_quarters_fewer(Given(adapter_parameters=models))
    assert finding.holds is False
    assert "25.0% at n = 2" in finding.evidence
    models.loc[1, "counted"] = 1
    assert counts.three_quarters_fewer(Given(adapter_parameters=models)).holds


def test_c4_is_decided_by_counts():
    forming = pd.DataFrame(
        [
            dict(rank=8, n_blocks=4, d=16, order=order, closed_form=value, counted=value)
            for order, value in (("loop", 2048), ("sum_first", 512))
        ]
    )
    assert counts.complexity_over_n(Given(forming=forming)).holds
    forming.loc[1, ["counted", "closed_form"]] = 1024
    assert counts.complexity_over_n(Given(forming=forming)).holds is False


def steps(own, low, high):
    rows = [
        dict(
            model="m",
            baseline="low_rank",
            form="sum_first",
            ratio=own,
            ratio_low=low,
            ratio_high=high,
        ),
        dict(
            model="m",
            baseline="dense",
            form="sum_first",
            ratio=0.7,
            ratio_low=0.69,
            ratio_high=0.72,
        ),
        dict(
            model="m", baseline="dense", form="low_rank", ratio=0.72, ratio_low=0.7, ratio_high=0.73
        ),
    ]
    return Given(training_step=pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("own", "low", "high", "holds"),
    [
        (0.98, 0.96, 1.01, False),  # whatever it saves, it is not 31%
        (0.69, 0.66, 0.71, True),
        (0.9, 0.6, 1.2, None),  # too noisy to say
        (0.9, math.nan, math.nan, None),  # too few rounds for an interval
    ],
)
def test_c5_asks_for_a_saving_that_the_noise_does_not_explain(own, low, high, holds):
    assert costs.a_third_less_time(steps(own, low, high)).holds is holds


def test_c6_needs_a_loop_that_is_no_faster_and_a_sum_that_is():
    rows = [
        dict(
            n_blocks=2,
            reading="total_rank",
            form=form,
            ratio=r,
            ratio_low=r - 0.05,
            ratio_high=r + 0.05,
        )
        for form, r in (("loop", 1.6), ("sum_first", 0.8))
    ]
    path = pd.DataFrame(rows)
    assert costs.sum_first(Given(adapter_path=path)).holds
    assert costs.sum_first(Given(adapter_path=path.assign(ratio_high=1.1))).holds is False
    assert costs.sum_first(Given(adapter_path=path.assign(ratio_low=math.nan))).holds is None


def c7(low, high, weights=100, peak=1000):
    latency = pd.DataFrame(
        [dict(form="merged", batch=8, ratio=1.0, ratio_low=low, ratio_high=high)]
    )
    rows = [dict(batch=b, form="base", weights_bytes=100, peak_bytes=1000 * b) for b in (1, 8)]
    rows += [
        dict(batch=b, form="merged", weights_bytes=weights, peak_bytes=p)
        for b, p in ((1, 1000), (8, 8 * peak))
    ]
    memory = pd.DataFrame(rows)
    return Given(latency=latency, memory=memory)


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        (c7(0.98, 1.02), True),
        (c7(0.9, 1.2), None),  # neither shown equal nor shown slower
        (c7(1.1, 1.2), False),
        (c7(0.98, 1.02, weights=120), False),
        (c7(0.98, 1.02, peak=1200), None),
    ],
)
def test_c7_calls_equal_what_was_shown_to_be_near(given, holds):
    assert costs.merged_is_free(given).holds is holds


def test_c13_adds_up_the_components():
    variants = [
        "as executed, Block-LoRA",
        "as executed, LoRA",
        *(f"CLIP-LoRA's code, float{b}" for b in (16, 32)),
    ]
    rows = [
        dict(model="m", variant=v, component=c, images=32, classes=1000, gib=8.0)
        for v in variants
        for c in ("weights", "prompts")
    ]
    memory = pd.DataFrame(rows)
    checked = pd.DataFrame({"predicted": [1.02], "measured": [1.0]})
    fits = costs.fits_24_gb(Given(memory=memory, memory_validation=checked))
    assert fits.holds
    assert "16.0 GiB as executed here" in fits.evidence
    assert "within 2.0% of 1" in fits.evidence
    assert (
        costs.fits_24_gb(Given(memory=memory.assign(gib=20.0), memory_validation=checked)).holds
        is False
    )


def c16(at_many, floor, few_blocks, many_blocks):
    common = dict(form="block_lora", directions=8)
    rows = [dict(common, task="fails", n_blocks=1, samples=0, seed=0, error=1e-9, floor=0.0)]
    rows += [dict(common, task="fails", n_blocks=8, samples=0, seed=0, error=at_many, floor=floor)]
    for seed in (0, 1, 2):
        for n, error in ((1, few_blocks), (8, many_blocks)):
            for form in ("block_lora", "lora"):
                more = dict(
                    task="helps",
                    n_blocks=n,
                    samples=24,
                    seed=seed,
                    floor=0.0,
                    error=error + 0.01 * n * seed,
                )
                rows.append(common | more | {"form": form})
    return Given(shared_task=pd.DataFrame(rows))


def test_c16_needs_both_a_floor_that_binds_and_a_gain_in_low_data():
    assert ablations.sharing(c16(0.875, 0.875, 3.0, 0.3)).holds
    assert ablations.sharing(c16(0.002, 0.0, 3.0, 0.3)).holds is False  # sharing lost nothing
    assert ablations.sharing(c16(0.875, 0.875, 0.3, 0.3)).holds is False  # and won nothing


def test_o1_needs_both_the_trajectory_and_equal_blocks():
    found = pd.DataFrame(
        {
            "optimizer": ["SGD"],
            "steps": [300],
            "max_relative_difference": [1e-15],
            "spread_of_blocks": [0.0],
        }
    )
    assert counts.theorem(Given(trajectories=found)).holds
    assert (
        counts.theorem(Given(trajectories=found.assign(max_relative_difference=1e-9))).holds
        is False
    )
    assert counts.theorem(Given(trajectories=found.assign(spread_of_blocks=1e-9))).holds is False


def test_o4_needs_a_bound_below_guessing_and_below_zero_shots():
    rows = [
        dict(dataset="fashion", prior="fixed beforehand", bits=0, bound=0.92),
        dict(dataset="fashion", prior="fixed beforehand", bits=100, bound=0.8),
        dict(dataset="fashion", prior="from the data", bits=0, bound=0.6),
    ]
    common = dict(samples=400, delta=0.05, chance=0.9, zero_shot_bound=0.92, test_error=0.5)
    found = pd.DataFrame([row | common for row in rows])
    assert counts.bound_that_bites(Given(pac_bayes=found)).holds
    assert counts.bound_that_bites(Given(pac_bayes=found.assign(chance=0.75))).holds is False
    assert (
        counts.bound_that_bites(Given(pac_bayes=found.assign(zero_shot_bound=0.7))).holds is False
    )


def published(values, method="CLIP-LoRA", dataset="ImageNet", shots=16):
    return pd.DataFrame(
        {
            "method": method,
            "setting": "few_shot",
            "target_dataset": dataset,
            "shots": shots,
            "backbone": "ViT-B/16",
            "accuracy": values,
        }
    )


def test_c9_asks_whether_one_more_published_value_could_be_that_high():
    near = published([71.1, 72.0, 73.2, 73.6, 74.3, 75.2])
    assert published_numbers.imagenet_at_16(Given(published=near)).holds is False
    assert published_numbers.imagenet_at_16(
        Given(published=near.assign(accuracy=near["accuracy"] + 20))
    ).holds


def test_c10_tells_relative_percentages_from_points():
    rows = [
        published([84.9], "CLIP-LoRA", "EuroSAT", 4),
        published([68.13], "PromptSRC", "ImageNet", 1),
    ]
    finding = published_numbers.leads(Given(published=pd.concat(rows)))
    assert finding.holds is None
    assert finding.evidence.count("counts relative") == 2
    other = [
        published([84.38], "CLIP-LoRA", "EuroSAT", 4),
        published([67.03], "PromptSRC", "ImageNet", 1),
    ]
    assert (
        published_numbers.leads(Given(published=pd.concat(other))).evidence.count("counts points")
        == 2
    )


def shifted(runs, method, shots, by):
    """The same runs with the accuracy of a method moved at a number of shots."""
    runs = runs.copy()
    at = (runs["method"] == method) & (runs["shots"] == shots)
    runs.loc[at, "accuracy"] += by
    return runs


def test_c11_needs_a_gap_at_one_shot_that_narrows():
    runs = synthetic_runs(methods=("zero_shot", "block_lora", "frozen_a"))
    wide_then_narrow = shifted(shifted(runs, "frozen_a", 1, -0.1), "frozen_a", 16, 0.0)
    assert accuracy.without_a(Given(few_shot=wide_then_narrow)).holds
    widening = shifted(wide_then_narrow, "frozen_a", 16, -0.2)
    assert accuracy.without_a(Given(few_shot=widening)).holds is False
    no_gap = shifted(runs, "frozen_a", 1, 0.1)
    assert accuracy.without_a(Given(few_shot=no_gap)).holds is False


def test_c12_needs_a_loss_at_many_blocks_and_fewer_parameters():
    falling = {1: 0.0, 2: 0.0, 4: 0.02, 8: 0.1}
    assert ablations.number_of_blocks(blocks(falling, shared)).holds
    rising = {n: -loss for n, loss in falling.items()}
    assert ablations.number_of_blocks(blocks(rising, shared)).holds is False
    assert ablations.number_of_blocks(blocks(falling, lambda reading, n: 256 * n)).holds is False
    noisy = blocks(falling, shared).frames["blocks"]
    noisy = noisy.assign(
        accuracy=noisy["accuracy"] + 0.2 * (noisy["seed"] - 2) * (noisy["n_blocks"] == 8)
    )
    found = ablations.number_of_blocks(Given(blocks=noisy))
    assert (found.holds, verdict(found, small_backbone=True)) == (None, "not resolved")


def test_one_run_of_each_decides_nothing():
    alone = blocks({1: 0.0, 2: 0.0, 4: 0.02, 8: 0.1}, shared).frames["blocks"]
    alone = alone[(alone["seed"] == 1) & (alone["dataset"] == "fashion")]
    assert ablations.number_of_blocks(Given(blocks=alone)).holds is None
    by_block = alone[alone["reading"] == "block_rank"]
    assert ablations.number_of_blocks(Given(blocks=by_block)).holds is None
    runs = synthetic_runs(sets=("fashion",), methods=("lora", "block_lora", "frozen_a"))
    assert accuracy.without_a(Given(few_shot=runs)).holds is None
    half = runs[runs["method"] == "lora"].assign(method="lora_r1")
    assert accuracy.width_is_what_counts(Given(few_shot=pd.concat([runs, half]))).holds is None


def test_a_method_that_the_profile_lacks_is_named():
    runs = synthetic_runs(methods=("lora", "block_lora"))
    for judge_of in (
        accuracy.without_a,
        accuracy.control_is_the_same,
        accuracy.width_is_what_counts,
    ):
        with pytest.raises(
            MissingResults, match=r"no run of (frozen_a|lora_plus|lora_r1) to compare with; list it"
        ):
            judge_of(Given(few_shot=runs))


@pytest.mark.parametrize(
    ("transfer", "domain", "holds"),
    [
        (0.0, 0.0, True),
        (0.005, 0.005, True),  # within a point
        (0.05, 0.0, False),  # either half contradicts
        (0.0, 0.05, False),
        (None, 0.0, None),  # one half is missing
        (0.0, None, None),
        (None, 0.05, False),  # but the other is enough to contradict
    ],
)
def test_c14_needs_both_transfer_and_domains(transfer, domain, holds):
    frames = {}
    if transfer is not None:
        frames["cross_dataset"] = source_runs(("fashion", "mnist", "flags"), transfer)
    if domain is not None:
        frames["few_shot"] = source_runs(("emoji_v2", "emoji_a"), domain)
    finding = accuracy.competitive(Given(**frames))
    assert finding.holds is holds
    assert "at most 1 point below" in finding.evidence
    assert ("On 3 other sets, at 16 shots" in finding.evidence) == (transfer is not None)
    assert ("On 2 shifted variants" in finding.evidence) == (domain is not None)
    assert ("Not run on" in finding.evidence) == (transfer is None or domain is None)


def test_c14_decides_nothing_without_other_sets_or_from_one():
    alone = synthetic_runs(sets=("emoji_source",), methods=("lora", "block_lora"))
    with pytest.raises(MissingResults, match="cross_dataset"):
        accuracy.competitive(Given(few_shot=alone))
    one = source_runs(("fashion",))
    both = Given(cross_dataset=one, few_shot=source_runs(("emoji_v2", "emoji_a")))
    assert accuracy.competitive(both).holds is None


def test_c17_needs_a_corner_below_zero_shot_and_one_above():
    rows = [
        dict(
            lr=lr,
            init_scale=scale,
            accuracy=0.05 if lr > 0.1 else 0.4,
            seed=seed,
            dataset="fashion",
            shots=1,
        )
        for lr in (0.02, 0.2)
        for scale in (1.0, 10.0)
        for seed in (1, 2)
    ]
    zero = synthetic_runs(sets=("fashion",), methods=("zero_shot",))
    grid = pd.DataFrame(rows).assign(evaluated_on="fashion")
    assert ablations.collapse(Given(collapse=grid, few_shot=zero)).holds
    assert (
        ablations.collapse(Given(collapse=grid.assign(accuracy=0.4), few_shot=zero)).holds is False
    )
    diverged = grid[grid["lr"] < 0.1]  # a run that diverged has no accuracy, and is a collapse
    assert ablations.collapse(Given(collapse=diverged, few_shot=zero, diverged=4)).holds


def test_the_control_must_agree_answer_by_answer():
    runs = synthetic_runs(methods=("lora", "block_lora"))
    twin = runs[runs["method"] == "block_lora"].assign(method="lora_plus")
    same = pd.concat([runs, twin])
    assert accuracy.control_is_the_same(Given(few_shot=same)).holds
    apart = pd.concat([runs, twin.assign(correct=twin["correct"] - 30)])
    assert accuracy.control_is_the_same(Given(few_shot=apart)).holds is False


def test_the_scoreboard_as_json_and_in_the_readme(tmp_path):
    judged = judge(CLAIMS, Given())
    board = json.loads(as_json(judged, load_profile("pocket")))
    assert [row["id"] for row in board["claims"]] == list(scoreboard(judged)["id"])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for _ in range(2):  # writing twice is writing once
        write_into(readme, judged)
    text = readme.read_text()
    assert text == f"before\n{MARKERS[0]}\n{as_markdown(judged)}{MARKERS[1]}\nafter\n"
    assert "21 claims: 21 not run." in text
    with pytest.raises(ValueError, match="lacks the lines"):
        write_into(
            tmp_path / "results.md" if (tmp_path / "results.md").write_text("x") else readme, judged
        )


def test_the_readme_shows_what_the_reference_run_says():
    judged = judge(CLAIMS, Evidence(load_profile(SHOWN), REFERENCE / SHOWN))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{MARKERS[0]}\n{as_markdown(judged)}{MARKERS[1]}" in text, (
        "say `make reference` again, with this PROFILE"
    )
    assert not [j.claim.id for j in judged if j.surprising]


@pytest.mark.slow
def test_changing_one_record_of_the_reference_run_changes_the_verdict(tmp_path):
    profile, reference = load_profile("pocket"), RESULTS / "reference" / "pocket"
    runs = tmp_path / "runs"
    RunStore(runs).unpack(reference / "runs.parquet")
    before = accuracy.control_is_the_same(Evidence(profile, tmp_path))
    assert before.holds
    changed = next(
        s for s in expand(profile, dataset="fashion", method="lora_plus") if s.shots == 16
    )
    path = runs / f"{changed.key}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["result"]["accuracy"]["fashion"] = {"correct": 0, "total": 600}
    del record["checksum"]
    path.write_text(seal(record), encoding="utf-8")
    after = accuracy.control_is_the_same(Evidence(profile, tmp_path))
    assert "134 of 135 accuracies are the same" in after.evidence
    path.unlink()  # and without it there is no verdict, but the command that makes it
    judged = judge([c for c in CLAIMS if c.id == "O2"], Evidence(profile, tmp_path))
    assert judged[0].verdict == "not run"
    assert "1 run of few_shot missing" in judged[0].finding.evidence
