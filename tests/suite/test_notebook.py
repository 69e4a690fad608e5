"""What notebooks export and claim, and how one is executed: with small notebooks made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import matplotlib.figure
import nbformat
import pandas as pd
import pytest
import yaml

from blocklora_lib.core.paths import NOTEBOOKS
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.suite import execution
from blocklora_lib.suite.catalogue import choose_notebooks, heading, notebook_needs, read_indexes
from blocklora_lib.suite.execution import NotebookFailed, run_notebook
from blocklora_lib.suite.notebook import ClaimFailed, Notebook, profile_note

FRAME = pd.DataFrame({"shots": [1, 2], "accuracy": [0.5, 0.6]})


@pytest.fixture
def nb(tmp_path):
    return Notebook("08_few_shot", "smoke", str(tmp_path))


def figure():
    made = matplotlib.figure.Figure(figsize=(2, 1))
    made.subplots().plot([1, 2], [0.5, 0.6])
    return made


def test_a_figure_is_saved_as_pdf_png_and_the_csv_that_it_plots(nb, tmp_path):
    nb.figure(figure(), "curve", FRAME, "A curve.")
    nb.finish()
    folder = tmp_path / "figures" / "08_few_shot"
    assert sorted(p.name for p in folder.iterdir()) == ["curve.csv", "curve.pdf", "curve.png"]
    assert pd.read_csv(folder / "curve.csv").equals(FRAME)
    (entry,) = read_indexes(tmp_path)["08_few_shot"]["figures"]
    assert entry["caption"] == "A curve."
    assert all((tmp_path / file).is_file() for file in entry["files"])


def test_rates_are_shown_by_the_records_beside_the_choice(nb, tmp_path):
    runs, chosen = nb.rates(), {m.name: m.training["lr"] for m in load_profile("smoke").trained}
    tried = runs.groupby("method")["lr"].agg(list).map(sorted).to_dict()
    assert tried == {name: list(nb.profile.rates.grid) for name in chosen}
    assert dict(runs.loc[runs["chosen"], ["method", "lr"]].itertuples(index=False)) == chosen
    assert "LoRA r = 1" in set(runs["method_label"])
    assert set(runs["total"]) == {24}  # of chess, the validation images
    # of other methods than the profile's the choice is still the profile's own
    varied = Notebook("08_few_shot", "smoke", str(tmp_path), rank=4, n_blocks=2)
    assert varied.rates().equals(runs)
    assert Notebook("08_few_shot", "paper-smoke", str(tmp_path)).rates() is None


def test_a_table_is_saved_as_csv_and_latex_that_say_what_they_are_not(nb, tmp_path):
    nb.table(FRAME, "numbers", "Some numbers.")
    latex = (tmp_path / "tables" / "08_few_shot" / "numbers.tex").read_text()
    assert latex.startswith(f"% {nb.note}\n")
    assert r"\toprule" in latex
    assert pd.read_csv(tmp_path / "tables" / "08_few_shot" / "numbers.csv").equals(FRAME)


@pytest.mark.parametrize(
    ("kind", "holds", "verdict"),
    [
        ("structural", True, "holds"),
        ("structural", None, "not run"),
        ("empirical", True, "reproduced"),
        ("empirical", False, "not reproduced"),
        ("empirical", None, "not run"),
        ("published", True, "not run"),  # a small profile cannot confirm a published number
        ("published", False, "not run"),  # nor contradict it
    ],
)
def test_verdicts(nb, tmp_path, kind, holds, verdict):
    nb.claim("X1", "something", holds, "evidence", kind=kind)
    nb.finish()
    assert read_indexes(tmp_path)["08_few_shot"]["claims"][0]["verdict"] == verdict


def test_a_profile_with_a_published_checkpoint_may_confirm_and_carries_no_note(tmp_path):
    nb = Notebook("08_few_shot", "paper", str(tmp_path))
    assert nb.note is None
    nb.claim("X1", "a published number", True, "71.9", kind="published")
    nb.finish()
    assert read_indexes(tmp_path)["08_few_shot"]["claims"][0]["verdict"] == "reproduced"


def test_a_failed_structural_claim_raises_after_everything_is_saved(nb, tmp_path):
    nb.figure(figure(), "curve", FRAME, "A curve.")
    nb.claim("X1", "2 = 3", False, "2 is 2")
    nb.claim("X2", "2 = 2", True, "2 is 2")
    with pytest.raises(ClaimFailed, match=r"X1 fails: 2 = 3 \(2 is 2\)"):
        nb.finish()
    index = read_indexes(tmp_path)["08_few_shot"]
    assert [claim["verdict"] for claim in index["claims"]] == ["fails", "holds"]
    assert len(index["figures"]) == 1


def test_names_are_used_once(nb):
    nb.claim("X1", "a", True, "e")
    with pytest.raises(ValueError, match="X1 is made twice"):
        nb.claim("X1", "b", True, "e")
    nb.table(FRAME, "numbers", "")
    with pytest.raises(ValueError, match="two tables named 'numbers'"):
        nb.table(FRAME, "numbers", "")


def test_unknown_kind_of_claim(nb):
    with pytest.raises(ValueError, match=r"kind='guess'.*structural, empirical, published"):
        nb.claim("X1", "a", True, "e", kind="guess")


def test_only_profiles_with_a_small_backbone_carry_a_note():
    notes = {name: profile_note(load_profile(name)) for name in ("pocket", "smoke", "paper")}
    assert notes["paper"] is None
    assert "pocket profile" in notes["pocket"]
    assert "not the paper's numbers" in notes["pocket"]


def test_a_results_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match=r"results folder .* cannot be written"):
        Notebook("08_few_shot", "smoke", str(blocked))


def test_choose_notebooks():
    assert choose_notebooks("08_few_shot, 00_overview") == (
        "00_overview",
        "08_few_shot",
    )  # in their own order
    assert set(choose_notebooks("")) == {p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb")}
    with pytest.raises(ValueError, match="'08_fewshot'; did you mean '08_few_shot'"):
        choose_notebooks("08_fewshot")


def test_a_folder_without_notebooks_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook"):
        choose_notebooks("", tmp_path)


def test_heading_reads_the_title_cell_however_the_names_are_punctuated():
    cell = (
        "# A title\n\n**Question.** Why\nnot?\n\n- **Reproduces**: a table\n- **Runtime:** 3 s\n\n"
    )
    cell += "**Needs.** `runs`"
    found = heading({"cells": [{"source": cell}]})
    assert found == {
        "Title": "A title",
        "Question": "Why not?",
        "Reproduces": "a table",
        "Runtime": "3 s",
        "Needs": "runs",
    }


def test_needs_are_read_from_the_metadata_and_typos_refused(example):
    assert notebook_needs("08_few_shot") == {
        "experiments": ["few_shot"],
        "notebooks": [],
        "last": False,
        "alone": False,
        "varies": True,
        "datasets": "trained",
        "baselines": ["zero_shot"],
    }
    path = example("x = 1", metadata={"blocklora": {"notebooks": ["03_countss"]}})
    with pytest.raises(ValueError, match="no notebook '03_countss' to wait for"):
        notebook_needs(path.stem, path.parent)
    path = example("x = 1", metadata={"blocklora": {"experiment": ["few_shot"]}})
    with pytest.raises(ValueError, match=r"blocklora.experiment; did you mean 'experiments'"):
        notebook_needs(path.stem, path.parent)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Make notebooks/08_example.ipynb of given cells in a folder of its own; the library looks
    there.
    """
    folder = tmp_path / "notebooks_here"
    folder.mkdir()

    def make(*cells, metadata=None):
        book = nbformat.v4.new_notebook(metadata=metadata or {})
        book.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        parameters = 'profile: str = "smoke"\nresults_dir: str = ""\nshots: int = 1'
        book.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(book, folder / "08_example.ipynb")
        return folder / "08_example.ipynb"

    monkeypatch.setattr(execution, "NOTEBOOKS", folder)
    monkeypatch.setattr(choose_notebooks, "__defaults__", ("", folder))
    return make


@pytest.mark.slow
def test_execution_injects_parameters_and_keeps_the_executed_copy(example, tmp_path, capfd):
    example("import os; print(shots + 1, os.environ['OMP_NUM_THREADS'])")
    path = run_notebook("08_example", "smoke", {"shots": "41"}, tmp_path / "results")
    assert path == tmp_path / "results" / "notebooks" / "08_example.ipynb"
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "42 1\n"
    assert [p.name for p in path.parent.iterdir()] == ["08_example.ipynb"]
    assert "notebook 08_example done in" in capfd.readouterr().err


@pytest.mark.parametrize("copy", ["08_example.ipynb", "08_example.failed.ipynb"])
def test_a_folder_where_the_copy_belongs_is_refused_before_anything_runs(example, tmp_path, copy):
    example(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "notebooks" / copy).mkdir(parents=True)
    with pytest.raises(OSError, match=rf"{copy} is no regular file"):
        run_notebook("08_example", "smoke", {}, tmp_path, verbose=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_failing_cell_is_one_sentence_and_leaves_its_copy(example, tmp_path):
    example(
        "print('before')",
        "raise ValueError('rank=3 cannot be cut into 2;\\n use 2 or 4')",
        "print('after')",
    )
    with pytest.raises(
        NotebookFailed,
        match=r"08_example, cell 4: ValueError: rank=3 cannot be cut into 2; use 2 or 4",
    ):
        run_notebook("08_example", "smoke", {}, tmp_path, verbose=False)
    assert not (tmp_path / "notebooks" / "08_example.ipynb").exists()
    failed = nbformat.read(tmp_path / "notebooks" / "08_example.failed.ipynb", as_version=4)
    assert "before\n" in [o.get("text") for cell in failed.cells for o in cell.get("outputs", [])]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shot": 1}, "no parameter 'shot'; did you mean 'shots'"),
        ({"shots": "many"}, "shots='many' must be int"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(example, tmp_path, parameters, message):
    example("raise SystemExit")
    with pytest.raises(ValueError, match=message):
        run_notebook("08_example", "smoke", parameters, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_plain_papermill_refuses_unknown_parameters_too(tmp_path):
    """papermill itself only warns; the notebook's own set-up cell refuses."""
    given = {"profile": "smoke", "results_dir": str(tmp_path), "shotss": "3"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOKS / "00_overview.ipynb"),
        str(tmp_path / "out.ipynb"),
    ]
    command += [word for name, value in given.items() for word in ("-p", name, value)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode != 0
    assert "no parameter 'shotss'" in done.stderr
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"]


@pytest.mark.slow
def test_a_profile_may_be_a_yaml_file(tmp_path):
    facts = yaml.safe_load((load_profile.__globals__["PROFILES"] / "smoke.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(facts | {"name": "mine"}))
    assert Notebook("08_few_shot", str(path), str(tmp_path / "out")).profile.name == "mine"
