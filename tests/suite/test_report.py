"""The report: one file with everything in it, nothing loaded from elsewhere, made without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest
from matplotlib.figure import Figure
from synthetic import synthetic_runs

from blocklora_lib.analysis.summaries import few_shot_summary, gains
from blocklora_lib.core.paths import NOTEBOOKS
from blocklora_lib.display.figures.few_shot import key_figure
from blocklora_lib.display.mathml import MathMLExporter, inline_mathml, mathml
from blocklora_lib.display.tables import few_shot_table
from blocklora_lib.suite.catalogue import notebook_names, read_indexes
from blocklora_lib.suite.notebook import Notebook
from blocklora_lib.suite.report import SCRIPT, _scoreboard, notebook_html, write_report


class Links(HTMLParser):
    """Collect what a page would load or link to, and its ids."""

    def __init__(self, text):
        super().__init__()
        text = text.replace(f"<script>{SCRIPT}</script>", "", 1)
        self.loads, self.links, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found["src"]] if "src" in found else []
        self.loads += [found["href"]] if tag == "link" else []
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        assert tag != "script", "the report runs no script but its own"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exports of two notebooks, as they would leave them."""
    folder = tmp_path_factory.mktemp("results")
    runs = synthetic_runs(sets=("chess", "fashion"))
    nb = Notebook("00_overview", "smoke", str(folder))
    summary = few_shot_summary(runs)
    nb.figure(key_figure(summary, gains(runs)), "key_figure", summary, "The key <figure>.")
    nb.finish()
    nb = Notebook("08_few_shot", "smoke", str(folder))
    plain = Figure(figsize=(2, 1))
    plain.subplots()
    nb.figure(plain, "empty", runs, "With $B_i$ in it.")
    nb.table(few_shot_table(summary), "few_shot", "A table.")
    nb.check("08.E1", "x ≤ y & more", True, "1 < 2")
    nb.check("08.E2", "rises", False, "no", "measured")
    nb.check("08.E3", "93.65%", None, "not here", "nothing")
    nb.finish()
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return write_report("smoke", folder)[0].read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(page):
    assert all(source.startswith("data:") for source in Links(page).loads)
    assert "url(" not in page
    assert "@import" not in page


def test_links_lead_somewhere(page, folder):
    found = Links(page)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.ids
        elif not link.startswith("https://"):
            assert (folder / link).exists(), link
    assert len(found.ids) == len(set(found.ids))


def test_a_link_to_a_notebook_leads_to_its_section():
    links = {
        "[a](08_few_shot.ipynb)": '<a href="#08_few_shot">a</a>',
        "[a](08_few_shot.ipynb#cell-id=b)": '<a href="#08_few_shot">a</a>',
        "[a](17_comparison.ipynb)": "<a>a</a>",  # has no section in this page
        "[a](figures/all.png)": "<a>a</a>",  # the page may be sent without it
        "[a](https://arxiv.org/08_few_shot.ipynb)": '<a href="https://arxiv.org/08_few_shot.ipynb"',
        '`<a href="17_comparison.ipynb">`': '&lt;a href="17_comparison.ipynb"&gt;',
    }
    cells = [nbformat.v4.new_markdown_cell(link) for link in links]
    html = notebook_html(nbformat.v4.new_notebook(cells=cells), {"08_few_shot"})
    found = [part.split("</p>")[0] for part in html.split("<p>")[1:]]
    for text, shown in zip(found, links.values(), strict=True):
        assert shown in text


def test_it_shows_figures_tables_claims_and_notebooks(page):
    assert page.count("data:image/png;base64") == 2
    assert "The key &lt;figure&gt;." in page
    assert "smoke profile: a small CLIP" in page
    assert "16.0 ± " in page or re.search(r"\d\d\.\d ± \d", page)
    for verdict, badge in (
        ("confirmed", "good"),
        ("contradicted on pocket only", "bad"),
        ("not run", "none"),
    ):
        assert f'<span class="badge {badge}">{verdict}</span>' in page
    assert "x ≤ y &amp; more" in page
    assert "What was and was not shown" in page  # the notebooks themselves
    assert "<math" in page


@pytest.mark.slow
def test_the_scoreboard_stands_above_the_checks(folder):
    row = {
        "id": "C3",
        "claim": "75% < 50%",
        "verdict": "contradicted",
        "but": "where d_in = d_out",
        "evidence": "counted",
        "cell": "{}.ipynb#cell-id=a",
    }
    rows = [row | {"cell": row["cell"].format(name)} for name in ("00_overview", "03_counts")]
    path = folder / "claims.json"
    path.write_text(
        json.dumps({"profile": "smoke", "caution": "Mind.", "claims": rows}), encoding="utf-8"
    )
    page = write_report("smoke", folder)[0].read_text(encoding="utf-8")
    path.unlink()
    assert page.count('<span class="badge bad">contradicted</span> where d_in = d_out') == 2
    assert "a verdict says on what it rests. Mind.</p>" in page
    assert "75% &lt; 50%" in page
    assert (
        page.count('href="#03_counts"') == 0
    )  # it has not been run, so there is nothing to lead to
    assert "<b>0 of 2</b><span>judged claims hold</span>" in page
    assert page.index("75% &lt; 50%") < page.index("checks that the notebooks made")


def test_it_says_where_the_numbers_come_from(page):
    for fact in ("Git revision", "SHA-256", "PocketCLIP", "steps_per_shot", "python 3.", "Licence"):
        assert fact in page


@pytest.mark.slow
def test_a_failed_notebook_is_named_with_its_error(folder):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    book.cells[0].outputs = [
        nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero")
    ]
    path = folder / "notebooks" / "01_method.failed.ipynb"
    nbformat.write(book, path)
    page = write_report("smoke", folder)[0].read_text(encoding="utf-8")
    path.unlink()
    assert "<b>01_method failed.</b> ZeroDivisionError: division by zero" in page


def test_a_report_of_nothing_says_so(tmp_path):
    assert "No notebook has been run yet" in write_report("smoke", tmp_path)[0].read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_it_needs_no_torch():
    code = "import sys, blocklora_lib.suite.report, blocklora_lib.display.figures.few_shot"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", notebook_names())
def test_every_formula_of_every_notebook_becomes_mathml(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    body, _ = MathMLExporter().from_notebook_node(notebook)
    formulas = [c for c in notebook.cells if c.cell_type == "markdown" and "$" in c.source]
    assert 'class="latex"' not in body, "a formula that the converter does not know"
    assert ("<math" in body) == bool(formulas)
    said = re.findall(r"<(?:mi|mo|mtext)[^>]*>([^<]*)</", body)
    assert not [text for text in said if "\\" in text], "a command that is shown as it is written"


def test_a_formula_that_is_not_known_stays_readable():
    assert mathml(r"\frac{1}{") == r'<code class="latex">\frac{1}{</code>'


def test_dollar_signs_that_are_no_formula_stay():
    assert inline_mathml("costs $3 or so") == "costs $3 or so"
    for name in ("LoRA from $5 to $6_a", "a$b_$", "$b_$5"):
        assert inline_mathml(name) == name
    assert inline_mathml("the $B_i$ here").startswith("the <math")


def test_progress_bars_stay_out_of_the_page():
    cell = nbformat.v4.new_code_cell("train()")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="runs: 10%|#  |"),
        nbformat.v4.new_output("stream", name="stdout", text="done"),
    ]
    body, _ = MathMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "runs: 10%" not in body
    assert "done" in body


FIGURE = {"name": "f", "caption": "c", "files": ["f.png"], "width": 3.0}
CHECK = {"id": "1", "statement": "s", "verdict": "confirmed", "evidence": "e"}
CLAIM = {"id": "C1", "claim": "s", "verdict": "confirmed on pocket only", "evidence": "e"}
WHOLE = {"figures": [FIGURE], "tables": [], "checks": [CHECK], "claims": [CLAIM]}


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {"figures": [FIGURE], "tables": []},
        {key: value for key, value in WHOLE.items() if key != "checks"},
        WHOLE | {"figures": [{k: v for k, v in FIGURE.items() if k != "width"}]},
        WHOLE | {"figures": [FIGURE | {"width": "wide"}]},
        WHOLE | {"figures": [FIGURE | {"width": -1}]},
        WHOLE | {"figures": [FIGURE | {"files": ["f.pdf"]}]},
        WHOLE | {"figures": [FIGURE | {"files": [3]}]},
        WHOLE | {"tables": [{"name": "t", "caption": "c", "files": []}]},
        WHOLE | {"checks": [CHECK | {"verdict": "maybe"}]},
        WHOLE | {"checks": [CHECK | {"verdict": []}]},
        WHOLE | {"checks": ["1"]},
        WHOLE | {"claims": [CLAIM | {"verdict": "reproduced"}]},
        WHOLE | {"claims": [CHECK]},
    ],
    ids=str,
)
def test_an_index_that_the_page_cannot_show_is_damaged(tmp_path, damage):
    path = tmp_path / "notebooks" / "01_method.json"
    path.parent.mkdir()
    path.write_text(json.dumps(WHOLE))
    assert read_indexes(tmp_path) == {"01_method": WHOLE}
    path.write_text(json.dumps(damage))
    with pytest.raises(
        ValueError, match=r"01_method\.json is damaged \(.*execute notebook 01_method again"
    ):
        read_indexes(tmp_path)


ROW = {
    "id": "C1",
    "claim": "c",
    "verdict": "confirmed",
    "but": "",
    "evidence": "e",
    "cell": "01_method.ipynb#f",
}


@pytest.mark.parametrize(
    "rows",
    [
        *([{k: v for k, v in ROW.items() if k != name}] for name in ROW),
        [ROW | {"verdict": "x"}],
        ["x"],
        3,
    ],
)
def test_a_damaged_scoreboard_is_a_sentence(tmp_path, rows):
    path = tmp_path / "claims.json"
    path.write_text(json.dumps({"caution": "c", "claims": [ROW]}))
    assert _scoreboard(tmp_path)[0][0]["notebook"] == "01_method"
    path.write_text(json.dumps({"caution": "c", "claims": rows}))
    with pytest.raises(ValueError, match=r"claims\.json is damaged \([^(]*\); delete it") as error:
        _scoreboard(tmp_path)
    assert "Error(" not in str(error.value)
