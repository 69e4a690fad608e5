"""What notebooks export, check and judge, and how one is executed: with small ones made here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import matplotlib.figure
import nbformat
import pandas as pd
import pytest
import yaml

from blocklora_lib.claims.claim import judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.paper_claims import BY_ID
from blocklora_lib.claims.verdict import BASES, Finding
from blocklora_lib.core.paths import NOTEBOOKS
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.suite import execution, notebook
from blocklora_lib.suite import shown as shown_module
from blocklora_lib.suite.catalogue import (
    choose_notebooks,
    heading,
    notebook_names,
    notebook_needs,
    read_indexes,
)
from blocklora_lib.suite.execution import NotebookFailed, run_notebook
from blocklora_lib.suite.judged_cells import check_ids, ids_in
from blocklora_lib.suite.notebook import CheckFailed, Notebook, footer, profile_note

FRAME = pd.DataFrame({"shots": [1, 2], "accuracy": [0.5, 0.6]})


@pytest.fixture
def nb(tmp_path):
    return Notebook("08_few_shot", "smoke", str(tmp_path))


def figure():
    made = matplotlib.figure.Figure(figsize=(2, 1))
    made.subplots().plot([1, 2], [0.5, 0.6])
    return made


@pytest.mark.slow
def test_a_figure_is_saved_as_pdf_png_and_the_csv_that_it_plots(nb, tmp_path):
    nb.figure(figure(), "curve", FRAME, "A curve.")
    nb.finish()
    folder = tmp_path / "figures" / "08_few_shot"
    assert sorted(p.name for p in folder.iterdir()) == ["curve.csv", "curve.pdf", "curve.png"]
    assert pd.read_csv(folder / "curve.csv").equals(FRAME)
    (entry,) = read_indexes(tmp_path)["08_few_shot"]["figures"]
    assert entry["caption"] == "A curve."
    assert all((tmp_path / file).is_file() for file in entry["files"])


@pytest.mark.slow
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
    ("caption", "shown"),
    [
        (
            "A label <img src=x onerror=alert(1)> & more",
            "A label &lt;img src=x onerror=alert(1)&gt",
        ),
        ("&lt;script&gt;alert(1)&lt;/script&gt;", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        (r"d in $a < b_i \cdot 'c'$, 3 &times; 4", r"d in $a &lt; b_i \cdot 'c'$, 3 × 4"),
        ('LoRA\'s "n = 2": 32 x 197, 8 → 6', 'LoRA\'s "n = 2": 32 x 197, 8 → 6'),
    ],
)
def test_a_caption_is_words_and_no_html(nb, monkeypatch, caption, shown):
    """A profile's labels and descriptions stand in captions, and a profile may be a stranger's."""
    said = []
    for module in (notebook, shown_module):
        monkeypatch.setattr(module, "show_html", said.append)
    nb.figure(figure(), "x", FRAME, caption)
    nb.table(FRAME, "x", caption)
    assert [f"</b> {shown}" in text for text in said] == [True, True]
    assert not [text for text in said if "<img" in text or "<script" in text]


@pytest.mark.parametrize(
    "link",
    [
        "figures/08_few_shot/x.pdf",
        "figures/08_few_shot/x.png",
        "figures/08_few_shot/x.csv",
        "figures",
        "tables/08_few_shot/x.csv",
        "tables/08_few_shot/x.tex",
        "tables/08_few_shot",
        "notebooks",
        "notebooks/08_few_shot.json",
        "claims.json",
    ],
)
def test_links_of_a_strangers_folder_are_not_written_through(tmp_path, link):
    folder, outside = tmp_path / "theirs", tmp_path / "mine"
    outside.mkdir()
    (outside / "notes").write_text('{"profile": "smoke"}')
    planted = folder / link
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside / "notes" if planted.suffix else outside)

    def export():
        nb = Notebook("08_few_shot", "smoke", str(folder))
        nb.figure(figure(), "x", FRAME, "A figure.")
        nb.table(FRAME, "x", "A table.")
        nb.finish()

    with pytest.raises(ValueError, match=r"leads out of .*; take the link away"):
        export()
    if planted.name == "notebooks":
        with pytest.raises(ValueError, match=r"leads out of .*; take the link away"):
            run_notebook("08_few_shot", "smoke", results=folder)
    assert [path.name for path in outside.iterdir()] == ["notes"]
    assert (outside / "notes").read_text() == '{"profile": "smoke"}'


def test_packed_records_may_be_linked(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    Notebook("01_method", "smoke", str(tmp_path / "results"))


def test_a_variant_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "variants").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="leads out of"):
        Notebook("08_few_shot", "smoke", str(tmp_path / "theirs"), shots=[1])
    with pytest.raises(ValueError, match="leads out of"):
        run_notebook("08_few_shot", "smoke", {"shots": [1]}, tmp_path / "theirs")
    assert not [*(tmp_path / "mine").iterdir()]


@pytest.mark.parametrize(
    ("rests_on", "holds", "verdict"),
    [
        ("arithmetic", True, "confirmed"),
        ("arithmetic", None, "not resolved"),
        ("nothing", None, "not run"),
        ("measured", True, "confirmed on pocket only"),
        ("measured", False, "contradicted on pocket only"),
        ("measured", None, "not resolved"),
        ("constructed", True, "confirmed on a constructed task"),
    ],
)
def test_verdicts(nb, tmp_path, rests_on, holds, verdict):
    nb.check("08.X1", "something", holds, "evidence", rests_on)
    nb.finish()
    assert read_indexes(tmp_path)["08_few_shot"]["checks"][0]["verdict"] == verdict


def test_a_profile_with_a_published_checkpoint_may_confirm_and_carries_no_note(tmp_path):
    nb = Notebook("08_few_shot", "paper", str(tmp_path))
    assert nb.note is None
    nb.check("08.X1", "a published number", True, "71.9", "measured")
    nb.finish()
    assert read_indexes(tmp_path)["08_few_shot"]["checks"][0]["verdict"] == "confirmed"


@pytest.mark.slow
def test_a_failed_check_of_arithmetic_raises_after_everything_is_saved(nb, tmp_path):
    nb.figure(figure(), "curve", FRAME, "A curve.")
    nb.check("08.X1", "2 = 3", False, "2 is 2")
    nb.check("08.X2", "2 = 2", True, "2 is 2")
    nb.check("08.X3", "seen", False, "in these runs", "measured")  # says something, raises nothing
    with pytest.raises(CheckFailed, match=r"^08.X1: 2 = 3 \(2 is 2\)$"):
        nb.finish()
    index = read_indexes(tmp_path)["08_few_shot"]
    assert [check["verdict"].partition(" ")[0] for check in index["checks"]] == [
        "contradicted",
        "confirmed",
        "contradicted",
    ]
    assert len(index["figures"]) == 1


def test_names_are_used_once(nb):
    nb.check("08.X1", "a", True, "e")
    with pytest.raises(ValueError, match=r"08.X1 is made twice"):
        nb.check("08.X1", "b", True, "e")
    nb.table(FRAME, "numbers", "")
    with pytest.raises(ValueError, match="two tables named 'numbers'"):
        nb.table(FRAME, "numbers", "")


def test_a_check_belongs_to_its_notebook(nb):
    with pytest.raises(ValueError, match=r"'X1' of 08_few_shot; begin its id with 08\., as in 08"):
        nb.check("X1", "a", True, "e")
    with pytest.raises(ValueError, match=r"begin its id with 08\."):
        nb.check("09.X1", "a", True, "e")


def test_unknown_basis_of_a_check(nb):
    with pytest.raises(UnknownName, match=r"unknown basis of a finding 'guess'"):
        nb.check("08.X1", "a", True, "e", "guess")


def test_a_notebook_shows_the_one_judges_verdict(nb, tmp_path):
    assert nb.judge("C9") is None  # the last line of a cell shows nothing beside the table
    nb.finish()
    (row,) = read_indexes(tmp_path)["08_few_shot"]["claims"]
    (judged,) = judge([BY_ID["C9"]], Evidence(nb.profile, tmp_path))
    assert row == judged.row
    assert row["verdict"] == "contradicted by a model"
    with pytest.raises(UnknownName, match="unknown claim 'C99'; did you mean"):
        nb.judge("C99")


def test_a_claim_that_a_proof_decides_raises_where_it_is_found_otherwise(nb, tmp_path, monkeypatch):
    wrong = dataclasses.replace(BY_ID["C1"], judge=lambda e: Finding(False, "off", "arithmetic"))
    monkeypatch.setitem(BY_ID, "C1", wrong)
    nb.judge("C1")
    with pytest.raises(CheckFailed, match=r"C1 is not what its proof says \(off\)"):
        nb.finish()
    assert read_indexes(tmp_path)["08_few_shot"]["claims"][0]["verdict"] == "contradicted"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (
            ['nb.check("08.E1", "", True, "")', 'nb.check("08.E1", "", 1, "")'],
            "check 08.E1 is made in",
        ),
        (['nb.check("E1", "", True, "")'], r"08_example.ipynb: check 'E1'; begin its id with 08\."),
        (['nb.check(name, "", True, "")'], "the id of nb.check has to be written out"),
        (["nb.judge(name)"], "the id of nb.judge has to be written out"),
        (['nb.judge("C99")'], "unknown claim 'C99'.*08_example.ipynb judges it"),
        (['nb.judge("C9", "C9")'], "08_example.ipynb judges C9 twice"),
    ],
)
def test_ids_are_held_before_anything_runs(example, cells, says):
    path = example(*cells)
    with pytest.raises(ValueError, match=says):
        check_ids(path.parent)


def test_a_check_in_a_loop_is_known_by_what_its_id_begins_with(example):
    path = example('for x in "ab":\n    nb.check(f"08.E1 {x}", "", True, "")', 'nb.judge("C9")')
    assert ids_in(path) == (["08.E1 "], ["C9"])
    check_ids(path.parent)


def test_two_notebooks_share_no_check(example, tmp_path):
    path = example('nb.check("08.E1", "", True, "")')
    (path.parent / "08_other.ipynb").write_text(path.read_text())
    with pytest.raises(ValueError, match=r"08\.E1 is made in 08_example and again in 08_other"):
        check_ids(path.parent)


def test_the_ids_of_the_suite_are_held_when_a_notebook_is_loaded(tmp_path, monkeypatch):
    def refuse(folder):
        raise ValueError(f"a claim id used twice in {folder.name}")

    monkeypatch.setattr(notebook, "check_ids", refuse)
    with pytest.raises(ValueError, match="a claim id used twice in notebooks"):
        Notebook("08_few_shot", "smoke", str(tmp_path))


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


def test_what_lies_below_a_figure_is_what_it_rests_on(nb, tmp_path):
    pocket, paper = load_profile("pocket"), load_profile("paper")
    assert footer("arithmetic", pocket) == footer("arithmetic", paper)
    assert footer("arithmetic", pocket) == "rests on arithmetic and counts"
    assert "a small CLIP" in footer("measured", pocket)
    assert footer("measured", paper) is None
    with pytest.raises(ValueError, match=r"unknown basis of a figure 'arithmetics'"):
        footer("arithmetics", pocket)
    frame = pd.DataFrame({"x": [1]})
    nb.table(frame, "counted", "c", rests_on="arithmetic")
    nb.table(frame, "recorded", "c", note="recorded: elsewhere")
    nb.table(frame, "run", "c")
    tex = {p.stem: p.read_text().splitlines()[0] for p in tmp_path.rglob("*.tex")}
    assert tex["counted"] == "% rests on arithmetic and counts"
    assert tex["recorded"] == "% recorded: elsewhere"
    assert tex["run"] == f"% {nb.note}"


def test_a_check_with_random_weights_decides_nothing(tmp_path):
    nb = Notebook("08_few_shot", "paper-smoke", str(tmp_path))
    nb.check("08.E1", "it rises", True, "1 -> 2", "measured")
    nb.check("08.E2", "1 + 1 = 2", True, "2")
    nb.finish()
    measured, counted = read_indexes(tmp_path)["08_few_shot"]["checks"]
    assert (measured["verdict"], counted["verdict"]) == ("not run", "confirmed")
    assert "paper-smoke are random" in measured["evidence"]
    assert measured["rests_on"] == BASES["nothing"][1]


@pytest.mark.slow
def test_the_tables_of_another_profile_in_the_same_folder_are_never_judged(tmp_path):
    """pocket's notebook made them; paper's writes over some, and stops before its end."""
    ratios = pd.DataFrame(
        [dict(form="merged", batch=8, ratio=1.0, ratio_low=0.99, ratio_high=1.01, processes=9)]
    )
    memory = pd.DataFrame(
        [dict(batch=8, form=f, weights_bytes=1, peak_bytes=1) for f in ("base", "merged")]
    )
    first = Notebook("12_inference", "pocket", str(tmp_path))
    first.table(ratios, "latency", "c")
    first.table(memory, "memory", "c")

    def verdict(nb):
        nb.judge("C7")
        (row,) = nb._index["claims"]  # the latest, once
        return row["verdict"]

    assert verdict(first) == "confirmed on pocket only"
    first.finish()
    second = Notebook("12_inference", "paper", str(tmp_path))
    assert verdict(second) == "not run"
    second.table(ratios.assign(ratio_high=1.2), "latency", "c")
    assert verdict(second) == "not run"  # the other one is still pocket's
    for name in ("pocket", "paper"):
        (found,) = judge([BY_ID["C7"]], Evidence(load_profile(name), tmp_path))
        assert found.verdict == "not run"
        assert "have no index that names theirs" in found.finding.evidence


@pytest.mark.parametrize(("shots", "all_of_it"), [([], True), ([1], False)])
def test_a_claim_is_judged_by_the_whole_profile_unless_the_notebook_was_varied(
    tmp_path, monkeypatch, shots, all_of_it
):
    """17 knew of its own experiments alone, and said that the profile lacked the others."""
    asked = []

    def evidence(profile, *how, **named):
        asked.append(profile)
        return Evidence(profile, *how, **named)

    monkeypatch.setattr(notebook, "Evidence", evidence)
    Notebook("17_comparison", "pocket", str(tmp_path), shots=shots).judge("C18")
    (seen,) = asked
    assert (seen == load_profile("pocket")) == all_of_it == ("cross_dataset" in seen.experiments)


def test_no_notebook_says_a_small_clip_of_what_is_counted():
    """Pure algebra carried 'a small CLIP ..., not the paper's numbers'."""
    stated = {name: notebook_needs(name)["rests_on"] for name in notebook_names()}
    assert {name[:2] for name in stated if stated[name] == "arithmetic"} == {"01", "02", "03", "06"}
    assert {name[:2] for name in stated if stated[name] == "constructed"} == {"13", "14", "15"}
    assert {name[:2] for name in stated if stated[name] == "bundled"} == {"07"}
    assert set(stated.values()) <= set(BASES)


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
        "rests_on": "measured",
        "computes": False,
    }
    assert notebook_needs("04_time")["computes"]
    path = example("x = 1", metadata={"blocklora": {"notebooks": ["03_countss"]}})
    with pytest.raises(ValueError, match="no notebook '03_countss' to wait for"):
        notebook_needs(path.stem, path.parent)
    path = example("x = 1", metadata={"blocklora": {"experiment": ["few_shot"]}})
    with pytest.raises(ValueError, match=r"blocklora.experiment; did you mean 'experiments'"):
        notebook_needs(path.stem, path.parent)
    path = example("x = 1", metadata={"blocklora": {"rests_on": "arithmetics"}})
    with pytest.raises(ValueError, match=r"unknown basis 'arithmetics'; did you mean 'arithmetic'"):
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


@pytest.mark.slow
def test_settings_that_do_not_fit_are_one_sentence(example, tmp_path):
    """pydantic's own text has five lines and an address."""
    example(
        "from blocklora_lib.suite.cell_errors import explain_errors\n"
        "from blocklora_lib.adapters.config import AdapterConfig\n"
        "explain_errors()",
        "AdapterConfig(rank=4, n_blocks=3)",
    )
    told = r"cell 4: ValueError: rank=4 cannot be cut into n_blocks=3 .*"
    with pytest.raises(NotebookFailed, match=told) as error:
        run_notebook("08_example", "smoke", {}, tmp_path, verbose=False)
    assert "pydantic" not in str(error.value)
    copy = (tmp_path / "notebooks" / "08_example.failed.ipynb").read_text()
    assert "validation error for" not in copy


@pytest.mark.slow
def test_a_notebook_that_leaves_early_is_no_finished_one(example, tmp_path):
    """papermill's test_sys_exit0: it takes an exit with 0 for the end, and says nothing."""
    example("import sys\nprint('before')\nsys.exit(0)", "print('after')")
    with pytest.raises(NotebookFailed, match=r"08_example was left by sys\.exit before its last"):
        run_notebook("08_example", "smoke", {}, tmp_path, verbose=False)
    assert [p.name for p in (tmp_path / "notebooks").iterdir()] == ["08_example.failed.ipynb"]


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
