"""Notebook to HTML with mathematics as MathML, which browsers draw without script or network."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from .safe_html import MATHML, MATHML_ATTRIBUTES


def mathml(latex: str, display: str = "inline") -> str:
    """Return MathML of a LaTeX formula; its source, where the converter does not know it.

    Elements and attributes are of a list, text is text: `\\text{<script>}` shows what it says.
    """
    try:
        formula = convert_to_element(latex.strip(), display=display)
        for element in formula.iter():
            if element.tag not in MATHML or not MATHML_ATTRIBUTES.issuperset(element.attrib):
                raise ValueError(f"{element.tag} has no place in a formula")
            # the converter spells its own symbols as references
            element.text = html.unescape(element.text or "") or None
        return tostring(formula, encoding="unicode")
    except Exception:  # the converter raises a class of its own for each kind of malformed input
        return f'<code class="latex">{html.escape(latex)}</code>'


def inline_mathml(text: str) -> str:
    """Return HTML with each $formula$ of its text converted; a lone dollar sign stays one."""
    return re.sub(
        r"\$([^$<>\n]*[\\_^A-Za-z][^$<>\n]*)\$", lambda m: mathml(html.unescape(m[1])), text
    )


class MathMLRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer, with formulas converted here, not in the reader's browser."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def _markdown(text: str) -> str:
    return MarkdownWithMath(MathMLRenderer(escape=False, exclude_anchor_links=True)).render(text)


class MathMLExporter(HTMLExporter):
    """The body of a page, without progress bars (they are for the terminal) and scripts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            template_name="basic",
            exclude_input_prompt=True,
            exclude_output_prompt=True,
            exclude_anchor_links=True,
            **settings,
        )
        self.register_filter("markdown2html", _markdown)

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
