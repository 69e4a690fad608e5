"""An executed notebook as a page: text as the page's own, cells highlighted, outputs below them."""

from __future__ import annotations

import base64
import html
import re

from nbformat import NotebookNode

from blocklora_lib.display.mathml import inline_mathml
from blocklora_lib.display.safe_html import safe_html

CELL = re.compile(r"(?<=href=\")(\w+)\.ipynb#cell-id=([\w-]+)")
PLACE = '<div class="output" id="output-{}"></div>'


def markdown_of(notebook: NotebookNode) -> str:
    """Return the page's text, with a place for each cell's outputs (see `outputs_of`)."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"(^ +)?\$\$(.+?)\$\$", _display, cell.source, flags=re.S | re.M))
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(f'<a id="cell-{cell.id}"></a>')
            parts.append(f"```python\n{cell.source}\n```")
            if outputs_html(cell):
                parts.append(PLACE.format(cell.id))
    return "\n\n".join(parts) + "\n"


def outputs_of(notebook: NotebookNode, page: str) -> str:
    """Return the page's HTML with outputs in their places."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            place = PLACE.format(cell.id)
            page = page.replace(place, place.replace("></div>", f">{outputs_html(cell)}</div>"))
    return page


def outputs_html(cell: NotebookNode) -> str:
    """Return what a cell showed."""
    return "".join(_shown(output) for output in cell.outputs)


def _shown(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return f"<pre>{html.escape(output.text)}</pre>"
    data = output.get("data", {})
    if "image/png" in data:
        about = output.metadata.get("image/png", {})
        alt, width = html.escape(about.get("alt", "figure")), about.get("width")
        png = base64.b64encode(base64.b64decode(data["image/png"])).decode()
        size = f' width="{html.escape(str(width))}"' if width else ""
        return f'<img src="data:image/png;base64,{png}" alt="{alt}"{size}>'
    if "text/html" in data:
        # JupyterLab's way to a cell, and the site's
        return CELL.sub(r"\1.html#cell-\2", safe_html(inline_mathml(data["text/html"])))
    return f"<pre>{html.escape(data.get('text/plain', ''))}</pre>"


def _display(m: re.Match) -> str:
    """A displayed formula is a block of its own, on one line; in a list, which a block would end, a
    line of the item.
    """
    formula = " ".join(m[2].split())
    return f"{m[1]}<br>${formula}$<br>" if m[1] else f"\n\n$${formula}$$\n\n"
