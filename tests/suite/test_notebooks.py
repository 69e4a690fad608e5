"""Every notebook keeps to the suite's form, and runs from its first cell to its last on the smoke
profile.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil

import nbformat
import pytest
from conftest import made_once
from executed import outputs
from figure_boxes import measuring_kernels

from blocklora_lib.claims.published import cited
from blocklora_lib.core.paths import NOTEBOOKS, PUBLISHED
from blocklora_lib.runs.execute import run_grid
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.suite.catalogue import (
    FIELDS,
    heading,
    notebook_names,
    notebook_needs,
    read_indexes,
)
from blocklora_lib.suite.execution import NotebookFailed, run_notebook
from blocklora_lib.suite.parameter_cell import known_parameters

NAMES = notebook_names()  # fails if the folder holds none
COMPARED = ("08_few_shot", "09_cross_dataset", "10_domain_generalization", "11_ablations")
LAST = [name for name in NAMES if notebook_needs(name)["last"]]

# Less of what a notebook does many times over; a parameter that is not named here has its default.
# Counts of every model stand in tests/costs, and searches of the pocket profile in its reference.
SMALLER = {
    "03_counts": dict(other_models=["PocketCLIP"]),
    "07_nonvacuous_bound": dict(
        coded_sets=["fashion"],
        steps=50,
        sweeps=1,
        supersamples=3,
        paired_shots=2,
        candidates=[["qkvo", 2, 25, 5, 1.0], ["vo", 8, 40, 5, 2.0]],
    ),
    "12_inference": dict(batches=[1], repeats=1, rounds_factor=3),
    "13_theorem": dict(steps=50, short=30, real_steps=4),
    "14_where_it_breaks": dict(octaves=[-2, 1, 4], steps=60),
}


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def run(folder):
    """Make the runs that notebooks wait for, as the engine makes them first."""
    smoke = load_profile("smoke")
    needed = {experiment for name in NAMES for experiment in notebook_needs(name)["experiments"]}
    specs = {spec.key: spec for experiment in sorted(needed) for spec in expand(smoke, experiment)}
    records = list(run_grid(list(specs.values()), RunStore(folder), Workbench("cpu")))
    assert all(record.status == "done" for record in records)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One results folder for all notebooks of this process, with the runs."""
    folder = tmp_path_factory.mktemp("smoke")
    shutil.copytree(made_once(tmp_path_factory, "smoke runs", run), folder / "runs")
    return folder


@pytest.mark.slow
def test_a_notebook_without_its_runs_says_how_they_are_made(tmp_path):
    with pytest.raises(NotebookFailed) as error:
        run_notebook("06_generalization_bound", "smoke", {}, tmp_path, verbose=False)
    assert "63 runs of few_shot missing" in str(error.value)
    assert f"`blocklora grid --profile smoke --experiment few_shot --results {tmp_path}`" in str(
        error.value
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: (name in LAST, name)))
def test_it_runs(name, results):
    with measuring_kernels() as (files, faults):
        path = run_notebook(name, "smoke", SMALLER.get(name, {}), results)
    executed = nbformat.read(path, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    index = read_indexes(results)[name]
    assert index["profile"] == "smoke"
    assert index["checks"] or index["claims"]
    for export in [*index["figures"], *index["tables"]]:
        assert export["caption"]
        assert all((results / file).stat().st_size > 0 for file in export["files"])
    for check in index["checks"]:  # arithmetic would have raised
        assert check["verdict"] != "contradicted"
    assert len(files) == 2 * len(index["figures"])  # as PDF and as PNG
    assert not faults
    if name in COMPARED:
        refuse_published_numbers(outputs(results, name), index)


EDGES = [  # values that a reader may well choose, and what notebooks say of those they cannot take
    ("01_method", dict(rank=3, n_blocks=3), ""),
    pytest.param("01_method", dict(rank=16, n_blocks=8), "", marks=pytest.mark.rare),
    pytest.param("02_equivalence", dict(rank=16, seed=0, steps=2), "", marks=pytest.mark.rare),
    ("02_equivalence", dict(steps=1), "steps=1 tells no two updates apart"),
    pytest.param(
        "06_generalization_bound",
        dict(backbones=["ViT-B-16-quickgelu", "ViT-B-32"]),
        "",
        marks=pytest.mark.rare,
    ),
    pytest.param(
        "11_ablations",
        dict(methods=["frozen_a"], shots=[2], rank=4, n_blocks=4),
        "",
        marks=pytest.mark.rare,
    ),
    pytest.param("13_theorem", dict(steps=20, short=10, real_steps=20), "", marks=pytest.mark.rare),
    pytest.param(
        "14_where_it_breaks",
        dict(octaves=[0], steps=60, trained_on="chess"),
        "",
        marks=pytest.mark.rare,
    ),
    ("18_your_data", dict(method="gda"), "method='gda' trains no adapter to keep; use one of lora"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given", "refused"), EDGES)
def test_it_takes_other_values_or_says_why_not(name, given, refused, results):
    if refused:
        with pytest.raises(NotebookFailed, match=re.escape(refused)):
            run_notebook(name, "smoke", given, results, verbose=False)
        return
    with measuring_kernels() as (files, faults):
        path = run_notebook(name, "smoke", given, results, verbose=False)
    assert files
    assert not faults
    index = read_indexes(path.parent.parent)[name]
    assert "nan" not in re.findall(r"\w+", json.dumps(index["checks"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["08_few_shot", "17_comparison"])
def test_a_notebook_that_may_compute_nothing_names_what_is_missing(name, tmp_path):
    with pytest.raises(
        NotebookFailed, match=r"runs of \w+ missing.*blocklora grid --profile smoke"
    ):
        run_notebook(name, "smoke", dict(compute_missing=False), tmp_path, verbose=False)


@pytest.mark.rare
def test_a_comparison_without_a_run_of_block_lora_says_so(tmp_path, tmp_path_factory):
    made = RunStore(made_once(tmp_path_factory, "smoke runs", run))
    store = RunStore(tmp_path / "runs")
    for spec in expand(load_profile("smoke"), "few_shot"):
        if spec.method.name != "block_lora":
            store.save(made.load(spec))
    run_notebook("17_comparison", "smoke", dict(compute_missing=False), tmp_path, verbose=False)
    assert "no run of block_lora, against which" in outputs(tmp_path, "17_comparison")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (lambda shots: False, "runs of few_shot missing"),
        pytest.param(lambda shots: shots == 0, "runs of few_shot missing", marks=pytest.mark.rare),
        (lambda shots: shots > 0, "no zero-shot run"),
        (lambda shots: shots < 2, ""),
    ],
    ids=["none", "zero-shot alone", "no zero-shot", "some"],
)
def test_the_overview_is_of_what_there_is(kept, said, tmp_path, tmp_path_factory):
    made = RunStore(made_once(tmp_path_factory, "smoke runs", run))
    store = RunStore(tmp_path / "runs")
    for spec in expand(load_profile("smoke"), "few_shot"):
        if kept(spec.shots):
            store.save(made.load(spec))
    run_notebook("00_overview", "smoke", {}, tmp_path, verbose=False)
    assert said in outputs(tmp_path, "00_overview")
    assert bool(read_indexes(tmp_path)["00_overview"]["figures"]) == (not said)


def refuse_published_numbers(shown, index):
    """Accuracies of a small backbone and published ones have no place in one table."""
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        sources = {cited(row["source"]) for row in csv.DictReader(file)}
    assert "accuracy" in shown.lower()
    foreign = sources | {"CoOp", "PromptSRC", "MaPLe", "93.65", "88.08"}
    assert not [word for word in foreign if word in shown]
    assert not [export for export in index["tables"] if "published" in export["name"]]


@pytest.mark.parametrize("name", NAMES)
def test_cells_stand_in_the_order_of_the_style(name):
    cells = read(name).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert tags(cells[1]) == ["parameters"]
    assert tags(cells[2]) == ["setup"]
    places = {
        tag: [i for i, cell in enumerate(cells) if tag in tags(cell)]
        for tag in ("claims", "export")
    }
    assert places["claims"]
    assert len(places["export"]) == 1
    assert max(places["claims"]) < places["export"][0] == len(cells) - 2
    assert cells[-1].cell_type == "markdown"
    assert re.match(r"## What was and was not shown", cells[-1].source)
    assert re.search(r"\bnot shown\b", cells[-1].source.split("\n", 1)[1], re.I)


@pytest.mark.parametrize("name", NAMES)
def test_the_title_cell_states_question_source_runtime_and_needs(name):
    found = heading(read(name))
    for field in FIELDS:
        assert found[field], f"{name} does not state {field}"
    for experiment in notebook_needs(name)["experiments"]:
        assert experiment in found["Needs"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_typed_literals_with_profile_and_results_dir(name):
    known = known_parameters(NOTEBOOKS / f"{name}.ipynb")
    assert list(known)[:2] == ["profile", "results_dir"]
    assert known["profile"] == "pocket"
    assert known["results_dir"] == ""
    tree = ast.parse(read(name).cells[1].source)
    assert all(isinstance(node, ast.AnnAssign) for node in tree.body)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_at_most_a_hundred_wide(name):
    wide = [
        line for cell in read(name).cells for line in cell.source.splitlines() if len(line) > 100
    ]
    assert not [line for line in wide if not line.startswith("| ")]  # a table's row is one line


@pytest.mark.parametrize("name", NAMES)
def test_cells_have_at_most_twenty_lines(name):
    for i, cell in enumerate(read(name).cells):
        if cell.cell_type == "code" and "setup" not in tags(
            cell
        ):  # imports are as many as they are
            assert len(cell.source.splitlines()) <= 20, f"cell {i}"


@pytest.mark.parametrize("name", NAMES)
def test_no_notebook_asks_which_profile_it_runs_on(name):
    source = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    assert not re.search(r"""profile(\.name)?\s*(==|!=|in)\s*[\["'(]""", source)
    assert ".cuda(" not in source
