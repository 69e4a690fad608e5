"""What a notebook's cell shows of an export: the picture, the table, the caption."""

from __future__ import annotations

import html
from pathlib import Path


def show_figure(png: Path, width: float, caption: str) -> None:
    """Show a saved figure at its printed width (inches), with its caption below."""
    from IPython.display import Image, display

    display(Image(data=png.read_bytes(), width=round(96 * width), alt=caption))
    show_html(f"<div class='export'><b>Figure.</b> {words(caption)}</div>")


def show_html(text: str) -> None:
    """Show HTML in the output of the present cell."""
    from IPython.display import HTML, display

    display(HTML(text))


def words(caption: str) -> str:
    """A caption as HTML: words, entities and $formulas$, no elements. It may hold a profile's."""
    return html.escape(html.unescape(caption), quote=False)
