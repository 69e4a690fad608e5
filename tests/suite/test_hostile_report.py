r"""A stranger's results folder, made into a page: it shows what it says, and nothing in it runs.

Payloads stand wherever a folder of results can hold a text: $\text{<script>}$ in what is shown as
mathematics, raw HTML and links in notebooks and tables, files outside in figures' paths.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from contextlib import suppress
from html.parser import HTMLParser

import nbformat
import pytest
from browser import Browser, needs_chromium
from one_run import make_record

from blocklora_lib.display.mathml import MathMLExporter, inline_mathml, mathml
from blocklora_lib.display.safe_html import safe_html
from blocklora_lib.display.tables import escape_latex, one_line
from blocklora_lib.display.venues import VENUES, prose, table_floats
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.catalogue import PNG
from blocklora_lib.suite.difference import difference
from blocklora_lib.suite.paper import write_inputs
from blocklora_lib.suite.report import SCRIPT as OWN
from blocklora_lib.suite.report import _node, notebook_html, write_report

SCRIPT = "<script>alert(1)</script>"
MATH = rf"so $x_i \text{{{SCRIPT}}}$ and $\mathrm{{<img src=x onerror=alert(2)>}}$"
ENTITIES = r"$\text{&lt;script&gt;alert(3)&lt;/script&gt;}$ $\text{&amp;lt;script>}$"
HTML = [
    SCRIPT,
    "<img src=x onerror=alert(1)>",
    "<img src='https://tracker.example/x.png'>",
    "<img src='data:image/svg+xml;base64,PHN2Zz4='>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='java\nscript:alert(1)'>x</a>",
    "<a href='&#106;avascript:alert(1)'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<a href='vbscript:x'>x</a>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<iframe src='https://x.example'></iframe><object data=x></object><embed src=x>",
    "<form action='https://x.example'><input name=password><button>go</button></form>",
    "<style>body { display: none }</style><link rel=stylesheet href='https://x.example'>",
    "<div style='position: fixed; background: url(https://x.example)' id='claims'>x</div>",
    "<meta http-equiv=refresh content='0; url=https://x.example'><base href='https://x.example'>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 "
    "onerror=alert(1)&gt;'>",
    "<math href='javascript:alert(1)'><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<math><maction actiontype='statusline#https://x.example'><mi>x</mi></maction></math>",
    "</div></details></section></main><h1 class=badge>mine</h1>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template><!-- <script>alert(1)</script> -->",
    "<p style='color: red; background-color: url(https://x.example)'>x</p>",
    "<p style='background-color: \\75rl(https://x.example); width: expression(alert(1))'>x</p>",
    "<p style='color: image-set(\"https://x.example\" 1x); color: red /* x */'>x</p>",
    "<a href='//x.example/share'>x</a><a href=' \\\\x.example\\share'>x</a>",
    "<math><mi mathbackground='url(https://x.example)'>x</mi></math>",
    "<xmp><script>alert(1)</script></xmp><plaintext><script>alert(1)</script>",
    "<td class='$\\text{x}\" onmouseover=alert(1) y=\"}$'>x</td>",
]


class Live(HTMLParser):
    """Fail for whatever a page could run, load, send or follow without being asked."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.heads = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        forbidden = "script iframe object embed form input button svg template noscript base"
        assert tag not in forbidden.split()
        self.heads += tag in ("style", "link")
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name, value)
            assert name not in ("srcset", "formaction", "xlink:href", "background", "action")
            value = "".join((value or "").split()).lower()
            if name == "src":
                assert value.startswith("data:image/png;base64,"), (tag, value)
            if name == "href":
                assert tag == "a"
                assert not value.startswith(("javascript:", "data:", "vbscript:", "//", "\\\\"))
            if name == "style":
                assert not {*"(\\/@"} & {*value.replace("rgb(", "")}
                assert "position" not in value
            if name == "mathbackground":
                assert "(" not in value


@pytest.mark.parametrize("text", HTML)
def test_html_of_strangers_is_written_anew(text):
    clean = safe_html(text)
    live = Live(clean)
    assert live.heads == 0
    assert "id=" not in clean
    assert safe_html(clean) == clean  # reading it again gives no other page


SLOW = {  # what a reader of HTML, of Markdown or of code takes the square of a length for
    "folders of elements": "<div>" * 30_000,
    "attributes": f"<p {' '.join(f'a{i}' for i in range(30_000))}>",
    "tags": "<" * 400_000,
    "formatting": "<b a=1><p>" * 1000,
    "a style": f"<p style='color: {'(' * 50_000}'>x</p>",
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_html_that_takes_long_to_read_is_not_read(text):
    start = time.process_time()
    with suppress(ValueError):
        Live(safe_html(text))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("kind", ["markdown", "code"])
@pytest.mark.parametrize("part", ["[", "![", "$$a ", "a.", "\n ", "r'", "\\("])
def test_a_cell_without_end_is_shown_as_it_is(kind, part):
    text = part * (40_000 // len(part))
    cells = [getattr(nbformat.v4, f"new_{kind}_cell")(text) for _ in range(3)]
    start = time.process_time()
    page = notebook_html(nbformat.v4.new_notebook(cells=cells))
    assert time.process_time() - start < 10  # some took minutes
    assert page.count("<pre>") == 3


def test_a_dollar_before_a_long_text_is_a_dollar():
    start = time.process_time()
    assert inline_mathml("$" + "a" * 200_000) == "$" + "a" * 200_000
    assert inline_mathml("costs 5 $, 6 $; $x_i$").count("<math") == 1
    assert inline_mathml("$a$" * 3000).count("<math") == 2000
    assert time.process_time() - start < 5


def test_what_pages_are_made_of_stays():
    page = (
        '<div class="a"><p>x &lt; <b>y</b> &amp; z <a href="https://x.example/a?b=1&amp;c">l</a></p>'
        '<table class="data"><tr><td style="text-align: right;">1</td></tr></table>'
        '<img alt="i" src="data:image/png;base64,iVBORw0KGgo="></div>'
    )
    assert safe_html(page).replace("<tbody>", "").replace("</tbody>", "") == page
    formula = mathml(r"\sum_{i=1}^n \frac{A_s B_i}{\sqrt{r}} < \text{a & b}")
    assert safe_html(formula).count("<") == formula.count("<")
    assert safe_html("<p>one<p>two<ul><li>three") == "<p>one</p><p>two</p><ul><li>three</li></ul>"


@pytest.mark.parametrize("text", [MATH, ENTITIES, *(rf"$a_i \text{{{part}}}$" for part in HTML)])
def test_a_formula_shows_its_text_and_nothing_of_it_runs(text):
    from html import escape

    Live(inline_mathml(escape(text)))
    Live(mathml(text))
    assert "<script" not in inline_mathml(escape(text)) + mathml(text)


def test_a_formula_is_text_once_it_is_read():
    assert "&lt;script&gt;" in mathml(r"\text{<script>}")
    assert "<mo>&lt;</mo>" in mathml("a < b")
    assert "∑" in mathml(r"\sum")
    assert "{{{" in mathml("{" * 3000 + "}" * 3000)  # no traceback


@pytest.fixture
def folder(tmp_path):
    """What a stranger could send: a folder of results with something in every place."""
    tmp_path = tmp_path / "results"
    (tmp_path / "notebooks").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "f.png").write_bytes(PNG + b"pixels")
    said = f"{MATH} {ENTITIES} {''.join(HTML)}"
    judged = {"id": said, "evidence": said, "verdict": f"confirmed {said}"}
    index = {
        "figures": [
            {"name": said, "caption": said, "files": ["figures/f.png", "a.csv"], "width": 3}
        ],
        "tables": [{"name": said, "caption": said, "files": ["a.tex"], "html": said}],
        "checks": [{**judged, "statement": said}],
        "claims": [{**judged, "claim": said}],
    }
    (tmp_path / "notebooks" / "01_method.json").write_text(json.dumps(index))
    row = {"id": said, "claim": said, "verdict": judged["verdict"], "but": said, "evidence": said}
    board = {"caution": said, "claims": [row | {"cell": f"{said}.ipynb#x"}]}
    (tmp_path / "claims.json").write_text(json.dumps(board))
    cells = [nbformat.v4.new_markdown_cell(f"# T\n**Question.** {said}")]
    cells += [nbformat.v4.new_markdown_cell(f"{text}\n\n[x](javascript:alert(1))") for text in HTML]
    cells += [nbformat.v4.new_raw_cell(said), nbformat.v4.new_code_cell("1")]
    kinds = ["text/html", "image/svg+xml", "application/javascript", "text/markdown", "text/latex"]
    kinds += ["text/plain", "application/vnd.jupyter.widget-view+json"]
    cells[-1].outputs = [
        nbformat.v4.new_output("display_data", {kind: f"{text} {MATH}"})
        for kind in kinds
        for text in HTML
    ]
    cells[-1].outputs.append(nbformat.v4.new_output("stream", text=said))
    error = nbformat.v4.new_output("error", ename=said, evalue=said, traceback=[said])
    cells[-1].outputs.append(error)
    book = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(book, tmp_path / "notebooks" / "01_method.ipynb")
    nbformat.write(book, tmp_path / "notebooks" / "02_x.failed.ipynb")
    return tmp_path


def page_of(folder):
    return write_report("smoke", folder)[0].read_text(encoding="utf-8")


@pytest.mark.slow
def test_nothing_of_a_strangers_folder_runs(folder):
    page = page_of(folder)
    own = f"<script>{OWN}</script>"
    assert page.count(own) == 1
    page = page.replace(own, "")
    head, _, body = page.partition("<body>")
    assert Live(head).heads == 1
    assert Live(body).heads == 0
    assert body.count("</main>") == 1
    assert "default-src 'none'" in head
    # its own script, to the letter, and no other; and that one writes no HTML
    digest = base64.b64encode(hashlib.sha256(OWN.encode()).digest()).decode()
    assert head.count("script-src") == 1
    assert f"default-src 'none'; script-src 'sha256-{digest}'; " in head
    assert "require-trusted-types-for 'script'; trusted-types 'none';" in head
    assert "</script" not in OWN
    assert "<!--" not in OWN
    assert body.index("</main>") > body.index("Provenance")


@pytest.mark.slow
@needs_chromium
def test_nothing_of_it_runs_in_a_browser_and_no_other_script_can(folder, tmp_path_factory):
    page = page_of(folder)
    other = folder / "other.html"
    more = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    other.write_text(page.replace("</main>", f"{more}</main>"), encoding="utf-8")
    window = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        window.open((folder / "report.html").as_uri())
        assert window.run("document.getElementById('without-script')") is None  # its own one ran
        assert window.errors == []
        assert window.fetched == [(folder / "report.html").as_uri()]
        window.open(other.as_uri())
        assert window.run("document.title") == "Block-LoRA suite: smoke report"
        told = [error for error in window.errors if "Content Security Policy" in error]
        assert len(told) >= 2  # of the script and of the attribute
        with pytest.raises(AssertionError, match="TrustedHTML"):
            window.run("document.body.innerHTML = '<p>x</p>'")
    finally:
        window.close()


@pytest.fixture
def plain(folder):
    """The same with nothing to say."""
    for path in (folder / "notebooks").glob("*.ipynb"):
        path.unlink()
    (folder / "claims.json").unlink()
    index = json.loads((folder / "notebooks" / "01_method.json").read_text())
    figure = index["figures"][0] | {"name": "f", "caption": "c"}
    return folder, {"figures": [figure], "tables": [], "checks": [], "claims": []}


@pytest.mark.parametrize(
    "file",
    [
        "/etc/x.png",
        "../secret.png",
        "figures/../../secret.png",
        "javascript:alert(1)//x.png",
        "https://x.example/x.png",
        "file:x.png",
        "C:x.png",
        "~/x.png",
        "a\nb.png",
    ],
)
def test_a_figures_files_are_of_the_folder(plain, file):
    folder, index = plain
    (folder.parent / "secret.png").write_bytes(PNG)
    index["figures"][0]["files"] = [file]
    (folder / "notebooks" / "01_method.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"01_method\.json is damaged .*files"):
        page_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["file", "folder", "text", "report"])
def test_links_lead_nowhere_else(plain, what):
    folder, index = plain
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "f.png").write_bytes(PNG + b"secret")
    figure = folder / "figures" / "f.png"
    (folder / "notebooks" / "01_method.json").write_text(json.dumps(index))
    assert "base64" in page_of(folder)
    says = "leads out of"
    if what == "report":
        (folder / "report.html").unlink()
        (folder / "report.html").symlink_to(outside / "f.png")
    else:
        figure.unlink()
    if what == "file":
        figure.symlink_to(outside / "f.png")
    if what == "folder":
        figure.parent.rmdir()
        figure.parent.symlink_to(outside)
    if what == "text":
        figure.write_text("root:x:0:0")
        says = r"is no PNG"
    with pytest.raises(ValueError, match=says):
        page_of(folder)
    assert (outside / "f.png").read_bytes() == PNG + b"secret"


def test_a_notebook_without_a_cell_is_damaged(plain):
    folder, index = plain
    (folder / "notebooks" / "01_method.json").write_text(json.dumps(index))
    nbformat.write(nbformat.v4.new_notebook(), folder / "notebooks" / "01_method.ipynb")
    with pytest.raises(ValueError, match=r"01_method\.ipynb is damaged"):
        page_of(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: cell.update(cell_type="|"),
        lambda cell: cell.update(execution_count="1"),
        lambda cell: cell.update(outputs=[[]]),
        lambda cell: cell.update(outputs=[{"output_type": "error", "ename": "E"}]),
        lambda cell: cell.update(metadata={"a": json.loads("[" * 900 + "]" * 900)}),
    ],
)
def test_a_cell_that_is_none_is_damaged(tmp_path, change):
    """nbformat and nbconvert each have an error of their own for it."""
    cell = {"cell_type": "code", "id": "a", "source": "", "metadata": {}, "outputs": []}
    cell["execution_count"] = None
    change(cell)
    facts = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "02_theory.failed.ipynb"
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*execute it again") as told:
        _node(path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


def test_outputs_that_are_programs_are_not_shown():
    cell = nbformat.v4.new_code_cell("1")
    data = {"application/javascript": "alert(1)", "image/svg+xml": "<svg/>", "text/plain": "said"}
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    body, _ = MathMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "alert(1)" not in body
    assert "said" in notebook_html(nbformat.v4.new_notebook(cells=[cell]))


# LaTeX


@pytest.mark.parametrize(
    "inside",
    [
        r"\input{/etc/passwd}",
        r"\catcode`\@=11",
        r"^^5cinput{x}",
        r"}\write18{id}{",
        "x % y",
        r"\csname input\endcsname",
        r"\def\a{b}",
        r"\alpha}{",
        r"\@@input x",
        "x\n\\input{y}",
    ],
)
def test_mathematics_of_a_stranger_is_of_known_commands(inside):
    told = prose(f"so ${inside}$ it is")
    assert told.startswith("so \\$")  # a text, no mathematics
    assert set(re.findall(r"\\([a-z]+)", told)) <= {"textbackslash", "textasciicircum"}
    assert len(told.splitlines()) == 1
    assert prose(r"$\frac{x_i}{\sqrt{2}}$, 5\%") == r"$\frac{x_i}{\sqrt{2}}$, 5\textbackslash{}\%"
    table = r"\begin{tabular}{ll}\n\toprule\na & b \\\n\midrule\n%s & 1 \\\n\bottomrule"
    table = table.replace(r"\n", "\n")
    assert "textbf" in table_floats(table % r"\textbf{1} 2\%", "c", "tab:c", VENUES["icml"])
    with pytest.raises(ValueError, match="as no table of the suite has"):
        table_floats(table % inside, "c", "tab:c", VENUES["icml"])


@pytest.mark.parametrize("what", ["id", "name", "link", "picture", "record", "type"])
def test_a_strangers_folder_puts_no_command_into_the_paper(tmp_path, what):
    folder = tmp_path / "theirs"
    place = folder / "figures" / "01_method"
    place.mkdir(parents=True)
    RunStore(folder / "runs").save(make_record())
    picture = PNG + b"\0\0\0\rIHDR\0\0\1\0\0\0\1\0"
    row = dict.fromkeys(("claim", "but", "evidence", "source", "cell"), "x")
    board = {
        "profile": "smoke",
        "caution": "c",
        "claims": [row | {"id": "C1", "verdict": "not run"}],
    }
    name, says = "f", "01_method/f"
    if what == "id":
        board["claims"][0]["id"], says = "C1}\\input{x}", "is no id of a claim"
    if what == "type":
        board["claims"][0]["source"], says = 5, "not all texts"
    if what == "name":
        name, says = "f}\\input{x}", "a name that no figure or table"
    if what == "picture":
        picture, says = b"GIF", "is no PNG"
    (folder / "claims.json").write_text(json.dumps(board))
    (place / f"{name}.png").write_bytes(picture)
    (place / f"{name}.pdf").write_bytes(b"%PDF")
    if what == "link":
        (place / "f.pdf").unlink()
        (place / "f.pdf").symlink_to("/dev/zero")
        says = "leads out of"
    if what == "record":
        path = folder / "runs" / f"{'0' * 16}.json"
        path.write_text(seal({"schema": 2, "status": "done", "key": "0" * 16}))
        says = r"0000\.json is damaged"
    with pytest.raises(ValueError, match=says):
        write_inputs(folder, tmp_path / "paper")
    if what == "record":
        with pytest.raises(ValueError, match=says):
            difference(folder, folder)


@pytest.mark.parametrize(
    "name", ["a\n\\input{/etc/passwd}", "a\r\\input x", "a\x0b\x85\u2028\\input x", "a\x00b\x1b[2J"]
)
def test_a_name_is_one_line_of_latex(name):
    for text in (escape_latex(name), one_line(name)):
        assert len(text.splitlines()) == 1
        assert text.isprintable()
    assert "\\input" not in escape_latex(name)


def test_a_line_break_in_a_backbones_name_stays_in_the_comment(tmp_path, monkeypatch):
    import pandas as pd

    from blocklora_lib.suite.notebook import Notebook

    nb = Notebook("01_method", "smoke", str(tmp_path))
    evil = "x\n\\input{/etc/passwd}\r\\input y"
    nb.table(pd.DataFrame({f"k {evil}": [f"v {evil}"]}), "t", "c", note=f"note {evil}")
    (tex,) = tmp_path.rglob("t.tex")
    live = [line for line in tex.read_text().splitlines() if not line.startswith("%")]
    assert not [line for line in live if r"\input" in line]
