"""Notebooks on other datasets, methods, shots, seeds, rank or blocks: what is refused, which runs
are asked for, and where the results go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from blocklora_lib.core.paths import NOTEBOOKS
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.suite.catalogue import notebook_names, notebook_needs
from blocklora_lib.suite.execution import run_notebook
from blocklora_lib.suite.notebook import Notebook
from blocklora_lib.suite.parameter_cell import check_parameters, known_parameters
from blocklora_lib.suite.variant import NAMES, place, vary

POCKET = load_profile("pocket")
VARY = [name for name in notebook_names() if notebook_needs(name)["varies"]]


def specs(name, **given):
    needs = notebook_needs(name)
    varied = vary(POCKET, needs, given)
    return {spec.key: spec for e in needs["experiments"] for spec in expand(varied, e)}


def test_the_five_notebooks_of_runs_take_them_and_say_so():
    assert [name[3:] for name in VARY] == [
        "few_shot",
        "cross_dataset",
        "domain_generalization",
        "ablations",
        "comparison",
    ]
    for name in VARY:
        assert set(NAMES) <= set(known_parameters(NOTEBOOKS / f"{name}.ipynb"))
        cell = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"][1]["source"]
        assert all("  # " in line for line in cell[1:]), "papermill --help-notebook shows comments"


@pytest.mark.parametrize("name", VARY)
def test_nothing_given_is_the_profile(name, tmp_path):
    own = {s.key for e in notebook_needs(name)["experiments"] for s in expand(POCKET, e)}
    found = specs(name)
    if name == "10_domain_generalization":  # it reads the source's runs alone
        assert {key for key in own if found.get(key)} == set(found)
        assert {spec.dataset for spec in found.values()} == {POCKET.source}
    else:
        assert set(found) == own
    assert place(tmp_path, POCKET, notebook_needs(name), dict.fromkeys(NAMES, 0)) == tmp_path


def test_a_profile_without_what_a_notebook_shows_is_told_so_before_it_starts(tmp_path):
    """It was 'unknown experiment', of a cell."""
    path = tmp_path / "mine.yaml"
    path.write_text("{name: mine, description: d, extends: smoke, experiments: {comparison: null}}")
    with pytest.raises(ValueError, match="no experiment 'comparison', which this notebook shows"):
        run_notebook("17_comparison", str(path), {}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_variant_asks_for_what_was_given_and_for_zero_shot():
    found = specs("08_few_shot", datasets=["fashion"], shots=[2], seeds=[7], methods=["block_lora"])
    assert {(s.dataset, s.method.name, s.shots) for s in found.values()} == {
        ("fashion", "zero_shot", 0),
        ("fashion", "block_lora", 2),
    }
    assert {s.seed for s in found.values() if s.shots} == {7}


def test_variants_share_the_records_of_the_profile():
    own, some = specs("08_few_shot"), specs("08_few_shot", datasets=["mnist"], shots=[4])
    assert some.keys() < own.keys()
    source = specs("10_domain_generalization", shots=[4])
    assert source.keys() < own.keys()


def test_rank_and_blocks_reach_the_controls():
    needs = notebook_needs("08_few_shot")
    found = {m.name: m for m in vary(POCKET, needs, dict(rank=8, n_blocks=4)).methods}
    assert {name: found[name].settings["rank"] for name in ("lora", "lora_r1")} == {
        "lora": 8,
        "lora_r1": 2,  # the width r/n
    }
    assert found["lora_r1"].label == "LoRA r = 2"
    for name in ("block_lora", "lora_plus", "frozen_a"):
        config = found[name].adapter_config()
        assert (config.rank, config.n_blocks) == (8, 4)
    one = vary(POCKET, needs, dict(n_blocks=1))  # its control is then LoRA itself: one row, not two
    assert "lora_r1" not in [m.name for m in one.methods]


def test_a_variant_trains_at_the_profiles_rates():
    """Other targets may not be those that rates were chosen on, and n = 1 not what they are for."""
    for given in (dict(datasets=["mnist"]), dict(rank=4, n_blocks=2), dict(n_blocks=1)):
        varied = vary(POCKET, notebook_needs("09_cross_dataset"), given)
        rates = {m.name: m.training["lr"] for m in varied.trained}
        assert rates.items() <= {m.name: m.training["lr"] for m in POCKET.trained}.items()
    assert len({m.training["lr"] for m in POCKET.trained}) > 1


def test_a_control_that_keeps_the_scale_keeps_it():
    level = {"settings": {"rank": 1, "alpha": 0.5**0.5}}
    methods = tuple(
        m.model_copy(update=level if m.name == "lora_r1" else {}) for m in POCKET.methods
    )
    profile = POCKET.model_copy(update={"methods": methods})
    needs = notebook_needs("08_few_shot")
    for asked in (dict(rank=4), dict(rank=8, n_blocks=4)):
        found = {m.name: m for m in vary(profile, needs, asked).methods}
        scales = {found[m].adapter_config().scale for m in ("lora_r1", "lora_plus", "block_lora")}
        assert max(scales) == pytest.approx(min(scales), rel=1e-15)


def test_transfer_evaluates_on_the_targets_asked_for():
    found = specs("09_cross_dataset", datasets=["fashion"]).values()
    assert {spec.dataset for spec in found} == {POCKET.source}
    assert {tuple(spec.sets) for spec in found} == {(POCKET.source, "fashion")}
    found = specs("10_domain_generalization", datasets=["emoji_v2"]).values()
    assert {tuple(spec.sets) for spec in found} == {(POCKET.source, "emoji_v2")}


def test_an_ablation_of_one_number_of_shots_takes_the_nearest():
    found = specs("11_ablations", shots=[2, 8])
    own = POCKET.entry("block_lora").training["lr"]
    varied = {
        s.shots for s in found.values() if s.method.name == "block_lora" and s.training.lr != own
    }
    assert varied == {2}
    assert {s.shots for s in found.values() if s.shots} == {2, 8}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("08_few_shot", dict(datasets=["fashon"]), "unknown dataset.*'fashon'; did you mean 'fash"),
        ("08_few_shot", dict(methods=["blok_lora"]), "'blok_lora'; did you mean 'block_lora'"),
        ("09_cross_dataset", dict(datasets=["emoji_v2"]), "unknown target in profile pocket"),
        ("10_domain_generalization", dict(datasets=["mnist"]), "unknown variant of the source"),
        ("08_few_shot", dict(shots=[2, 2]), "shots lists 2 twice; list each once"),
        ("08_few_shot", dict(rank=3), "rank=3 cannot be cut into n_blocks=2 equal blocks; use"),
        ("08_few_shot", dict(n_blocks=4), "rank=2 cannot be cut into n_blocks=4"),
        ("09_cross_dataset", dict(shots=[1, 4]), "give one, and run the notebook once for each"),
        ("11_ablations", dict(methods=["lora", "block_lora"]), "one method's settings are varied"),
        (
            "08_few_shot",
            dict(methods=["zero_shot"]),
            "none is trained, so .* add one of lora, block",
        ),
        (
            "11_ablations",
            dict(methods=["zero_shot"]),
            "none is trained, so there is nothing to show",
        ),
    ],
)
def test_what_cannot_be_varied_so_is_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        vary(POCKET, notebook_needs(name), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": [0]}, r"shots=\[0\], entry 0 must be a whole number from 1"),
        ({"shots": [True]}, "must be int"),
        ({"shots": [2.0]}, "must be int"),
        ({"shots": 2}, r"shots=2 must be list, as in \[1\]; it is int"),
        ({"seeds": [-1]}, "must be a whole number from 0"),
        ({"seeds": ["one"]}, "must be int"),
        ({"datasets": "fashion"}, "must be list"),
        ({"methods": [1]}, "must be str"),
        ({"rank": -2}, "must be a whole number from 0"),
        ({"n_blocks": "two"}, "must be int"),
    ],
)
def test_a_wrong_type_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(NOTEBOOKS / "08_few_shot.ipynb", given, typed=True)


def test_text_is_read_as_yaml_and_an_empty_list_is_the_profile():
    path = NOTEBOOKS / "08_few_shot.ipynb"
    assert check_parameters(path, {"shots": "[1, 2]"}) == {"shots": [1, 2]}
    assert check_parameters(path, {"shots": "[]", "rank": "0"}) == {"shots": [], "rank": 0}


def test_a_place_is_named_by_what_was_given_whatever_its_order(tmp_path):
    needs = notebook_needs("08_few_shot")
    here = [
        place(tmp_path, POCKET, needs, given)
        for given in (
            dict(shots=[4, 1], methods=["block_lora", "lora"]),
            dict(methods=["lora", "block_lora"], shots=[1, 4]),
            dict(shots=[1, 4]),
            dict(shots=[1, 4], rank=4),
        )
    ]
    assert here[0] == here[1]
    assert len(set(here)) == 3
    assert here[0].parent == tmp_path / "variants"
    assert here[0].name.startswith("lora+block_lora-shots1+4-")
    assert place(tmp_path, POCKET, needs, dict(shots=[16, 4, 1])) == tmp_path  # the profile's


@pytest.mark.slow
def test_two_papermill_processes_at_a_time(tmp_path):
    """On an empty folder: each runs what it lacks, keeps its own place, and they share records."""
    results, given = (
        tmp_path / "results",
        ("{shots: [1], seeds: [7]}", "{shots: [1, 2], seeds: [7]}"),
    )
    common = "-p profile smoke --no-progress-bar"
    started = []
    for i, more in enumerate(given):
        command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / "08_few_shot.ipynb")]
        command += [str(tmp_path / f"out{i}.ipynb"), *common.split(), "-p", "results_dir"]
        command += [str(results), "-y", "{datasets: [chess], methods: [lora]}", "-y", more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment))
    told = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    places = sorted((results / "variants").iterdir())
    assert len(places) == 2
    assert not (results / "figures").exists()
    assert not (results / "notebooks").exists()
    for folder, shots in zip(places, ([1, 2], [1]), strict=True):
        assert json.loads((folder / "parameters.json").read_text())["shots"] == shots
        index = json.loads((folder / "notebooks" / "08_few_shot.json").read_text())
        assert index["figures"]
        assert all((folder / file).is_file() for f in index["figures"] for file in f["files"])
    records = {path.stem for path in (results / "runs").glob("*.json")}
    asked = vary(load_profile("smoke"), notebook_needs("08_few_shot"), dict(
        datasets=["chess"], methods=["lora"], shots=[1, 2], seeds=[7]))  # fmt: skip
    assert records == {spec.key for spec in expand(asked, "few_shot")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            "08_few_shot",
            dict(methods=["block_lora"], datasets=["chess"], shots=[1], seeds=[1]),
            ["not both among the methods", "none of these methods"],
        ),
        pytest.param(
            "09_cross_dataset",
            dict(methods=["zero_shot"], datasets=["chess"]),
            ["of the source, minus Zero-shot CLIP, in points"],
            marks=pytest.mark.rare,
        ),
    ],
)
def test_a_method_without_one_to_compare_it_with_is_said_to_have_none(name, given, said, tmp_path):
    path = run_notebook(name, "smoke", given, tmp_path, verbose=False)
    index = path.with_suffix(".json").read_text(encoding="utf-8")
    assert not [claim for claim in json.loads(index)["claims"] if claim["verdict"] == "fails"]
    assert all(sentence in index for sentence in said)
    assert "of nan" not in index


def test_missing_runs_of_a_variant_are_made_by_its_notebook(tmp_path):
    """`blocklora grid` makes those of the profile alone."""
    nb = Notebook("08_few_shot", "smoke", str(tmp_path), seeds=[9])
    with pytest.raises(MissingResults, match="with this notebook, compute_missing = True"):
        nb.runs("few_shot", partial=True)
    nb.judge("C11")
    assert "with this notebook, compute_missing = True" in str(nb._index["claims"])
    with pytest.raises(MissingResults, match="make them with `blocklora grid"):
        Notebook("08_few_shot", "smoke", str(tmp_path)).runs("few_shot")
