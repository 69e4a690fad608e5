"""What the repository keeps of reference runs: notebooks that can be read on the web, and times."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from synthetic_records import write_records
from typer.testing import CliRunner

from blocklora_lib.claims.claim import judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.paper_claims import CLAIMS
from blocklora_lib.claims.scoreboard import MARKERS, as_json, scoreboard
from blocklora_lib.claims.scoreboard import as_markdown as summary
from blocklora_lib.cli.app import app
from blocklora_lib.core.paths import NOTEBOOKS, RESULTS, ROOT
from blocklora_lib.display.tables import plain
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite import reference
from blocklora_lib.suite.catalogue import notebook_names, notebook_needs

COPIES = sorted(reference.COPIES.glob("*"))


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def executed(seconds=12.34):
    code = new_code_cell("plot()", metadata={"tags": ["x"], "papermill": {"duration": 1}})
    code.outputs = [
        new_output("stream", name="stderr", text="10%|#  |"),
        new_output("stream", name="stdout", text="done"),
        new_output("display_data", {"image/png": png(np.zeros((40, 40, 3), np.uint8))}),
    ]
    told = {"papermill": {"duration": seconds, "input_path": "/some/place"}}
    return new_notebook(cells=[new_markdown_cell("# Title"), code], metadata=told)


# the copies in the repository


def test_every_notebook_has_its_executed_copy_and_nothing_else_stands_there():
    assert [path.name for path in COPIES] == [f"{name}.ipynb" for name in notebook_names()]


def test_the_copies_together_are_no_burden_for_a_clone():
    assert sum(path.stat().st_size for path in COPIES) <= reference.LIMIT


@pytest.mark.parametrize("name", notebook_names())
def test_a_copy_has_the_cells_of_its_notebook_and_what_they_gave(name):
    copy = nbformat.read(reference.COPIES / f"{name}.ipynb", 4)
    nbformat.validate(copy)
    cells = [c for c in copy.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    source = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    assert [c.source for c in cells] == [c.source for c in source.cells], "say `make reference`"
    (injected,) = [c for c in copy.cells if c not in cells]
    assert f'profile = "{reference.SHOWN}"' in injected.source
    outputs = [output for cell in copy.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {
        "display_data",
        "execute_result",
        "stream",
    }
    assert all(output.get("name") != "stderr" for output in outputs)
    assert "papermill" not in copy.metadata
    text = nbformat.writes(copy)
    assert str(ROOT) not in text
    assert not re.search(r"/(home|tmp|root)/", text)


def test_the_readme_shows_the_times_that_were_kept():
    rows = reference.read_timings()
    assert {row["notebook"] for row in rows} == set(notebook_names())
    told = f"{reference.MARKERS[0]}\n{reference.as_markdown(rows)}{reference.MARKERS[1]}"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8"), "say `make reference`"


# how they are made


def test_a_readable_copy_keeps_what_was_seen_and_leaves_the_machine_out():
    given = new_code_cell('results_dir = "/some/place/results"')
    (notebook := executed()).cells.append(given)
    copy = reference.readable(notebook, Path("/some/place/results"))
    assert [c.source for c in copy.cells[:-1]] == [c.source for c in notebook.cells[:-1]]
    assert copy.cells[-1].source == 'results_dir = ""'
    text = nbformat.writes(copy)
    assert "10%" not in text
    assert "/some/place" not in text
    assert "papermill" not in text
    assert "done" in text
    assert copy.cells[1].metadata.tags == ["x"]
    assert "10%" in nbformat.writes(notebook), "the given one is left as it is"


def test_a_smaller_figure_looks_the_same():
    waves = np.sin(np.arange(200)[:, None] / 17) * np.cos(np.arange(300) / 11)
    ramp = np.uint8(127 + 127 * waves)
    picture = np.stack([ramp, ramp, 255 - ramp], -1)
    small = reference._smaller(png(picture))
    assert len(small) <= len(png(picture))
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB"), int)
    assert seen.shape == picture.shape
    assert np.abs(seen - picture).max() <= 8


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A repository of one's own to keep things in, and the results of a smoke run, made up."""
    paths = dict(REFERENCE="reference", TIMINGS="reference/timings.csv", COPIES="docs/notebooks")
    for name, place in (paths | dict(DOCS="docs", ROOT=".")).items():
        monkeypatch.setattr(reference, name, tmp_path / place)
    monkeypatch.setattr(reference, "SHOWN", "smoke")
    results = tmp_path / "results"
    for part in ("figures/00_overview", "tables", "notebooks"):
        (results / part).mkdir(parents=True)
    (results / "figures/00_overview/key_figure.png").write_bytes(b"png")
    for name in notebook_names():
        nbformat.write(executed(), results / "notebooks" / f"{name}.ipynb")
        index = dict(notebook=name, profile="smoke", note=None, checks=[], claims=[])
        exports = dict(figures=[], tables=[dict(name="t", caption="A table.", html="<table>")])
        (results / "notebooks" / f"{name}.json").write_text(json.dumps(index | exports))
    store = RunStore(results / "runs")
    write_records(load_profile("smoke"), store.folder, ["few_shot"])
    marks = reference.MARKERS
    claims = "<!-- claims: written by `blocklora claims --into` -->\n<!-- end of claims -->"
    (tmp_path / "README.md").write_text(f"a\n{marks[0]}\n{marks[1]}\nb\n{claims}\n")
    return SimpleNamespace(place=tmp_path, results=results, store=store)


def keep(kept):
    done = CliRunner().invoke(app, ["reference", "--profile=smoke", f"--results={kept.results}"])
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_run_is_kept_whole_and_shown(kept):
    own = next(r for r in kept.store.records() if r.spec.evaluate_on == (r.spec.dataset,))
    spec = own.spec.model_copy(update={"dataset": "my_pets", "evaluate_on": ("my_pets",)})
    facts = json.loads(kept.store.text(own.key).replace(f'"{own.spec.dataset}"', '"my_pets"'))
    del facts["checksum"]
    (kept.store.folder / f"{spec.key}.json").write_text(seal(facts | {"key": spec.key}))
    assert keep(kept) == (0, f"{kept.place / 'reference' / 'smoke'}\n")
    there = {p.relative_to(kept.place).as_posix() for p in kept.place.rglob("*") if p.is_file()}
    new = {p for p in there if not p.startswith("results/")}
    copies = {f"docs/notebooks/{name}.ipynb" for name in notebook_names()}
    assert new == copies | {
        "README.md", "docs/few_shot.png", "reference/timings.csv", "reference/smoke/runs.parquet",
        "reference/smoke/claims.json",
        *(f"reference/smoke/notebooks/{name}.json" for name in notebook_names()),
        "reference/smoke/figures/00_overview/key_figure.png",
    }  # fmt: skip
    named = [r for r in kept.store.records() if r.spec.dataset != "my_pets"]
    assert len(named) == len(kept.store.records()) - 1  # one's own images stay one's own
    assert RunStore(kept.place / "reference/smoke/runs").records() == named
    text = (kept.place / "README.md").read_text()
    assert reference.as_markdown(reference.read_timings()) in text
    assert "24 claims" in text
    first = reference.TIMINGS.read_text()
    assert keep(kept)[0] == 0
    assert reference.TIMINGS.read_text() == first, "the same machine is no second one"


@pytest.mark.slow
def test_times_are_those_of_notebook_and_runs(kept):
    keep(kept)
    rows = {row["notebook"]: row for row in reference.read_timings()}
    runs = [r for r in kept.store.records("done") if r.cost]
    for name, row in rows.items():
        assert float(row["seconds"]) == 12.3
        # the comparison's own are not there; those of few_shot are among its runs
        waits = {"few_shot", "comparison"} & {*notebook_needs(name)["experiments"]}
        assert int(row["runs"]) == (len(runs) if waits else 0)
        total = sum(sum(r.cost.seconds.values()) for r in runs) if waits else 0
        assert float(row["seconds_runs"]) == pytest.approx(total, abs=0.06)


def test_several_machines_stand_side_by_side():
    rows = [
        dict(machine=m, cores=2, threads=1, profile="pocket", notebook=n, seconds=s, seconds_runs=r)
        for m, n, s, r in [("A", "01_x", 3.2, 0), ("A", "05_y", 10, 500), ("B", "01_x", 100, 0)]
    ]
    assert reference.as_markdown(rows) == (
        "| | pocket: A, 2 cores, 1 thread | pocket: B, 2 cores, 1 thread |\n|---|---|---|\n"
        "| 01_x | 3 s | 1:40 min |\n| 05_y | 8:20 min + 10 s | – |\n"
    )


@pytest.mark.parametrize("part", ["tables", "notebooks/01_method.ipynb"])
def test_what_is_not_whole_is_not_kept(kept, part):
    path = kept.results / part
    path.rename(path.with_name("away"))
    code, said = keep(kept)
    assert code == 2
    assert f"{path} is missing; say `make reproduce PROFILE=smoke` first" in said
    assert not (kept.place / "reference").exists()


@pytest.mark.slow
def test_notebooks_that_are_too_large_are_refused_by_their_size(kept, monkeypatch):
    monkeypatch.setattr(reference, "LIMIT", 1000)
    code, said = keep(kept)
    assert code == 2
    assert "bytes of 1,000; make figures smaller" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket", "pocket-full"])
def test_the_committed_scoreboard_is_what_the_committed_records_say(name):
    """To the last character: README, JSON, CSV and LaTeX say what judges find in the records."""
    profile, place = load_profile(name), RESULTS / "reference" / name
    judged = judge(CLAIMS, Evidence(profile, place))
    again = f"say `make reference` again, with PROFILE={name}"
    assert (place / "claims.json").read_text(encoding="utf-8") == as_json(judged, profile), again
    table = pd.read_csv(place / "tables" / "16_claims" / "scoreboard.csv", keep_default_na=False)
    shown = scoreboard(judged).drop(columns=["kind", "cell"])
    assert table.to_dict("records") == shown.to_dict("records"), again
    latex = (place / "tables" / "16_claims" / "scoreboard.tex").read_text(encoding="utf-8")
    assert latex.endswith(plain(shown).latex), again
    if name == reference.SHOWN:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"{MARKERS[0]}\n{summary(judged)}{MARKERS[1]}" in text, again
    assert not [j.claim.id for j in judged if j.surprising]


@pytest.mark.parametrize("name", ["pocket", "pocket-full"])
def test_every_notebook_says_of_a_claim_what_the_scoreboard_says(name):
    def read(path):
        return json.loads(path.read_text(encoding="utf-8"))["claims"]

    place, said = RESULTS / "reference" / name, ("verdict", "but", "evidence")
    board = {row["id"]: row for row in read(place / "claims.json")}
    rows = [row for path in sorted((place / "notebooks").glob("*.json")) for row in read(path)]
    assert {row["id"] for row in rows} >= {"C5", "C14", "C18"}
    assert [{k: row[k] for k in said} for row in rows] == [
        {k: board[row["id"]][k] for k in said} for row in rows
    ]


@pytest.mark.parametrize("profile", ["pocket", "pocket-full"])
def test_a_claim_has_one_verdict_in_a_reference_run(profile):
    """Notebook 04 kept a sentence of C5 that the rule no longer said, beside 16's."""
    place = reference.REFERENCE / profile
    board = json.loads((place / "claims.json").read_text())["claims"]
    known = {row["id"]: (row["verdict"], row["evidence"]) for row in board}
    found = []
    for path in sorted((place / "notebooks").glob("*.json")):
        for row in json.loads(path.read_text())["claims"]:
            if row["id"] in known:
                found.append(row["id"])
                assert (row["verdict"], row["evidence"]) == known[row["id"]], (path.name, row["id"])
    assert {"C5", "C7", "C12"} <= {*found}
