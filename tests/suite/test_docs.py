"""The site: it builds without a warning, every link leads somewhere, and no network is needed."""

from __future__ import annotations

import ast
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import made_once

from blocklora_lib.core.paths import DOCS, ROOT
from blocklora_lib.suite.catalogue import notebook_names

sys.path.insert(0, str(DOCS / "hooks"))
import notebook_page
from mathematics import Mathematics

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-component-update --disable-background-networking --disable-sync
--virtual-time-budget=20000 --dump-dom""".split()
# of a page in a browser: what it fetched, how large its formulas are, what a search of it finds
PROBE = """<script>addEventListener("load", () => {
  const field = document.querySelector(".md-search__input"), said = {}
  field.focus(); field.value = "AdapterConfig"
  field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
  const look = () => {
    said.fetched = performance.getEntriesByType("resource").map(entry => entry.name)
    const boxes = [...document.querySelectorAll("article math")].map(m => m.getBoundingClientRect())
    said.math = boxes.map(box => [box.width, box.height])
    said.found = document.querySelectorAll(".md-search-result__item").length
    document.documentElement.dataset.probe = JSON.stringify(said)
  }
  for (const after of [500, 3000, 9000, 15000]) setTimeout(look, after)
})</script>"""


RARE = pytest.mark.rare  # a start of the browser each


class Page(HTMLParser):
    """What a page has (ids), where it leads (links) and what it fetches by itself (parts)."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.parts, self.math = {""}, set(), set(), 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.math += tag == "math"
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if given.get("src"):
            self.parts.add(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.parts.add(given["href"])


def build(place):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("^WARNING", done.stderr, re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return made_once(tmp_path_factory, "the site", build)


@pytest.fixture(scope="module")
def pages(site):
    """All pages but the probes that another process may have put beside them."""
    found = [path for path in sorted(site.rglob("*.html")) if "files" not in path.parts]
    return {path: Page(path) for path in found if not path.name.startswith("probe-")}


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_to_a_place_in_it(site, pages):
    assert len(pages) > 40
    broken, followed = [], 0
    for path, page in pages.items():
        if path.name == "404.html":  # of a server: its links begin at its root
            continue
        for link in page.links | page.parts:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = pages[to].ids if to in pages else {parts.fragment} if to.is_file() else ()
            followed += 1
            if unquote(parts.fragment) not in there:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken
    assert followed > 1000


@pytest.mark.slow
def test_no_page_fetches_anything_from_a_network(site, pages):
    for path, page in pages.items():
        assert not [part for part in page.parts if re.match(r"(https?:)?//", part)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_every_public_name_of_every_room_is_in_the_api(site, pages):
    missing, names = [], 0
    for path in sorted((ROOT / "blocklora_lib").glob("*/**/*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts):
            continue
        page = pages[site / "api" / f"{parts[1]}.html"]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if getattr(node, "name", "_").startswith("_"):
                continue
            names += 1
            if f"{'.'.join(parts)}.{node.name}" not in page.ids:
                missing.append(f"{'.'.join(parts)}.{node.name}")
    assert not missing
    assert names > 500


@pytest.mark.slow
def test_mathematics_is_drawn_and_none_is_left_as_its_source(site, pages):
    for name in ("api/adapters", "api/theory", "notebooks/01_method", "notebooks/13_theorem"):
        assert pages[site / f"{name}.html"].math > 10, name
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert '<code class="latex"' not in text, path
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", text, flags=re.S)
        assert not re.search(r"\$[^$<>]*\\[a-z]+[^$<>]*\$", prose), path


def test_a_formula_of_a_list_is_a_line_of_its_item():
    """The theorem's third hypothesis swallowed the fourth."""
    import markdown
    import nbformat

    source = "1. one\n2. by\n   $$ x \\leftarrow $$\n   so;\n3. three, where $a\n   + b$\n\n$$ c $$"
    cell = nbformat.v4.new_markdown_cell(source)
    text = notebook_page.markdown_of(nbformat.v4.new_notebook(cells=[cell]))
    page = markdown.markdown(text, extensions=["sane_lists", Mathematics()])
    assert page.count("<li>") == 3
    assert page.count("<math") == 3
    assert "$" not in page


def test_outputs_of_a_notebook_run_nothing_on_the_site():
    """Formulas, tables and links to cells stay."""
    import nbformat

    good = (
        '<div class="export"><b>Table.</b> $x_i$ <table class="data"><tr>'
        '<td style="text-align: left;">a</td></tr></table>'
        '<a href="07_x.ipynb#cell-id=07-3">there</a></div>'
    )
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>x</a>"
    output = nbformat.v4.new_output("display_data", {"text/html": good + bad})
    picture = nbformat.v4.new_output(
        "display_data", {"image/png": "aGk="}, metadata={"image/png": {"width": '1" onload="x'}}
    )
    cell = nbformat.v4.new_code_cell("x", outputs=[output, picture])
    shown = notebook_page.outputs_html(cell)
    for live in ("<script", "onerror", "javascript", ' onload="'):
        assert live not in shown
    assert "<math" in shown
    assert '<a href="07_x.html#cell-07-3">there</a>' in shown
    assert '<td style="text-align: left;">a</td>' in shown


@pytest.mark.slow
def test_notebooks_show_what_their_cells_gave(site, pages):
    for name in notebook_names():
        text = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "data:image/png;base64," in text
        assert 'class="output"' in text
        assert not re.search(r'<div class="output" id="[^"]*"></div>', text), "a place left empty"


@pytest.mark.slow
def test_every_command_is_on_its_page(site):
    text = (site / "command-line.html").read_text(encoding="utf-8")
    said = subprocess.run(
        [sys.executable, "-m", "blocklora_lib.cli", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    commands = re.findall(r"^[│ ]+([a-z]+)  ", said, re.M)
    assert len(commands) >= 8
    assert all(f">blocklora {name}" in text for name in commands)


@pytest.mark.slow
def test_code_formulas_and_a_notebook_are_three_clicks_away(site, pages):
    """What Block-LoRA computes, an executed notebook, how to attach it to a model of one's own."""
    home = pages[site / "index.html"]
    assert "attach.html" in home.links
    assert "notebooks/01_method.html" in home.links
    assert "api/adapters.html#blocklora_lib.adapters.updates" in home.links


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(
    "name",
    ["index", "notebooks/01_method"]
    + [pytest.param(name, marks=RARE) for name in ("api/adapters", "claims", "command-line")],
)
def test_a_browser_shows_it_from_a_file_and_finds_what_is_searched(site, pages, tmp_path, name):
    page = site / f"{name}.html"
    probe = page.with_name(f"probe-{page.name}")
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"))
    try:
        words = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'new'}", probe.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    finally:
        probe.unlink()
    said = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', done.stdout)[1]))
    # of file:// a browser lists nothing; what comes from a network it does
    assert all(url.startswith(("file://", "data:")) for url in said["fetched"])
    assert said["found"] > 0, "the search found nothing"
    assert len(said["math"]) == pages[page].math
    assert all(width > 3 and height > 3 for width, height in said["math"] if width or height)
    if name in ("api/adapters", "notebooks/01_method"):
        assert len([box for box in said["math"] if min(box) > 3]) > 10


# README and the sources of pages


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/attach.md"])
def test_the_python_shown_runs_as_it_is(name, tmp_path):
    code = "\n".join(python_blocks(ROOT / name))
    assert "attach(" in code
    assert len(python_blocks(ROOT / name)[0].splitlines()) <= 10
    words = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter.safetensors").is_file()


def test_the_readme_is_what_a_newcomer_reads():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = re.sub(r"<!-- (claims|timings): .*?<!-- end of \1 -->", "", text, flags=re.S)
    assert len(made.split()) <= 1000


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_links_of_a_page_lead_to_files_of_the_repository(path):
    """A page is read on the web as it stands, too."""
    for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), link


def test_the_sweep_page_is_of_parameters_that_the_notebooks_have():
    from blocklora_lib.core.paths import NOTEBOOKS
    from blocklora_lib.suite.parameter_cell import check_parameters

    text = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    given = re.findall(r"papermill (notebooks/\S+\.ipynb).*?\n", text)
    assert given
    for line in text.splitlines():
        if m := re.search(r"papermill notebooks/(\S+\.ipynb) (.*)", line):
            words = {
                k: "4" if "$" in v or "{" in v else v.strip('"')
                for k, v in re.findall(r"-p (\w+) (\S+)", m[2])
            }
            check_parameters(NOTEBOOKS / m[1], words)
    asked = ast.parse("\n".join(python_blocks(DOCS / "sweeps.md")[:1]))
    (call,) = [
        n
        for n in ast.walk(asked)
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "dict"
    ]
    values = {
        k.arg: 2 if isinstance(k.value, ast.Name) else ast.literal_eval(k.value)
        for k in call.keywords
    }
    check_parameters(NOTEBOOKS / "08_few_shot.ipynb", values)
