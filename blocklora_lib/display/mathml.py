"""Notebook to HTML with mathematics as MathML, which browsers draw without script or network."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element
from nbconvert import HTMLExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from .safe_html import MATHML, MATHML_ATTRIBUTES, safe_html


def mathml(latex: str, display: str = "inline") -> str:
    """Return MathML of a LaTeX formula; its source, where the converter does not know it.

    Elements and attributes are of a list, text is text: `\\text{<script>}` shows what it says.
    """
    try:
        formula = convert_to_element(latex.strip(), display=display)
        for element in formula.iter():
            if element.tag not in MATHML or not MATHML_ATTRIBUTES.issuperset(element.attrib):
                raise ValueError(f"{element.tag} has no place in a formula")
            element.text = _drawn(html.unescape(element.text or "")) or None
        return tostring(formula, encoding="unicode")
    except Exception:  # the converter raises a class of its own for each kind of malformed input
        return f'<code class="latex">{html.escape(latex)}</code>'


def _drawn(text: str) -> str:
    """What the converter left as it was written, though TeX has a sign for it."""
    return _SIGNS.get(text) or re.sub(r"\\([_%&#$])", r"\1", text)


_SIGNS = {r"\arg": "arg", r"\|": "‖", r"\Vert": "‖"}
# a letter is looked for once: to go back for each of a long text would take the square of its time
# No price is one: a formula has no blank at its ends, and no letter or digit beside it
_FORMULA = re.compile(
    r"(?<![\\\w])\$(?!\s)(?=[^$<>\n\\_^A-Za-z]*[\\_^A-Za-z])([^$<>\n]*)(?<!\s)\$(?!\w)"
)
FORMULAS = 2000  # of a text


def inline_mathml(text: str) -> str:
    """Return HTML with each $formula$ of its text converted; a lone dollar sign stays one, and so
    do those of a text that is all formulas, from the 2,001st on.
    """
    return _FORMULA.sub(lambda m: mathml(html.unescape(m[1])), text, FORMULAS)


class MathMLRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer, with formulas converted here, not in the reader's browser."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


# characters and lines of a cell, characters of a notebook: in some texts a reader of Markdown or of
# code takes a time that grows with the square of their length; the suite's have a third of that
_LONG, _LINES, _ALL = 4_000, 300, 60_000


class MathMLExporter(HTMLExporter):
    """The body of a page, without progress bars (they are for the terminal) and scripts.

    A cell that is longer than a page is shown as the plain text that it is.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            template_name="basic",
            exclude_input_prompt=True,
            exclude_output_prompt=True,
            exclude_anchor_links=True,
            **settings,
        )
        self.left = _ALL
        self.filters = {"highlight_code": self._code}  # of the cells of any notebook: Python
        self.register_filter("markdown2html", self._markdown)
        self.register_filter("clean_html", safe_html)
        # takes the square of a long text's time, for addresses of an early IPython
        self.register_filter("strip_files_prefix", lambda text: text)

    def _is_read(self, text: str) -> bool:
        """Whether a text is short enough to be more than a plain one; counts it."""
        self.left -= len(text)
        return self.left >= 0 and len(text) <= _LONG and text.count("\n") <= _LINES

    def _markdown(self, text: str) -> str:
        if not self._is_read(text):
            return f"<pre>{html.escape(text)}</pre>"
        renderer = MathMLRenderer(escape=False, exclude_anchor_links=True)
        return str(MarkdownWithMath(renderer).render(text))

    def _code(self, text: str, metadata: Any = None) -> str:
        if not self._is_read(text):
            return f'<div class="highlight"><pre>{html.escape(text)}</pre></div>'
        return str(Highlight2HTML(pygments_lexer="ipython3")(text))

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **more: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a copy of the notebook."""
        nb = nb.copy()
        nb.cells = [_for_page(cell) for cell in nb.cells]
        return super().from_notebook_node(nb, resources, **more)


# kinds of output that a page shows; scripts, widgets and drawings that may hold some are not
_SHOWN = ("text/html", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain")


def _for_page(cell: NotebookNode) -> NotebookNode:
    if cell.cell_type != "code":
        return cell
    outputs = []
    for output in cell.outputs:
        if output.get("name") == "stderr":
            continue
        if "data" in output:
            data = {kind: value for kind, value in output.data.items() if kind in _SHOWN}
            if "text/html" in data:
                data["text/html"] = inline_mathml(data["text/html"])
            output = NotebookNode({**output, "data": data})
        outputs.append(output)
    return NotebookNode({**cell, "outputs": outputs})


def highlight_css() -> str:
    """Style rules for highlighted code."""
    return HtmlFormatter(style="friendly").get_style_defs(".highlight")
