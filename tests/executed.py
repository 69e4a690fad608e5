"""What executed notebooks show."""

from __future__ import annotations

import nbformat


def outputs(folder, name):
    """Return what an executed notebook printed and showed, as text; verdicts, which quote the
    claims, aside.
    """
    cells = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4).cells
    shown = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    texts = [out.get("text", "") + out.get("data", {}).get("text/html", "") for out in shown]
    return "\n".join(text for text in texts if "<b>Verdict.</b>" not in text)
