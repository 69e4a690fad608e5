"""Figures and tables as a paper takes them in: floats of a venue's widths, ready for \\input.

A figure keeps its type: it goes into one column where that leaves its text readable, else across
all. A table of any length becomes floats that fit a page of two columns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .style import STYLE
from .tables import SYMBOLS, escape_latex, latex_row

# commands of mathematics in the suite's sentences, and of its tables: a stranger's folder gives
# both, and what LaTeX reads or writes a file by is in neither
_MATHS = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma "
    "tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega sum prod int "
    "partial nabla sqrt frac tfrac dfrac times cdot cdots ldots dots pm mp le leq ge geq ne neq "
    "approx equiv sim ll gg in notin subset cup cap to leftarrow rightarrow mapsto infty top bot "
    "perp ell log ln exp min max arg cos sin tr det dim rank hat bar tilde vec mathrm mathbf "
    "mathbb mathcal mathit text texttt operatorname left right big Big quad qquad textstyle surd "
    "square forall exists odot otimes oplus circ lVert rVert lvert rvert mid".split()
)
_OF_TABLES = _MATHS | set(
    "addlinespace midrule textbf rotatebox tiny raggedright arraybackslash linewidth textbackslash "
    "textasciicircum textasciitilde textless textgreater textbar".split()
)
READABLE = 6.5  # pt, what a figure's text is not scaled below to get into one column
LINES = 50  # of a table's text on a page, its caption aside
FITTED = r"% fitted in Times, as the venues' styles set it: \usepackage[T1]{fontenc}, {mathptmx}"
# a box, whatever the font: no wider than its room, and no higher than a page leaves to it
_IN_ITS_ROOM = r"""\ifdim\wd0>\linewidth\setbox0\hbox{\resizebox{\linewidth}{!}{\box0}}\fi
\ifdim\dimexpr\ht0+\dp0\relax>0.86\textheight\resizebox*{!}{0.86\textheight}{\box0}\else\box0\fi"""


@dataclass(frozen=True)
class Venue:
    """column, text: widths in inches (equal where there is one column); font: its captions'."""

    column: float
    text: float
    font: str

    @property
    def columns(self) -> int:
        """How many columns its pages have."""
        return 1 if self.column == self.text else 2


# of the venues' own style files; the sizes of their captions are LaTeX's names at 10 pt
VENUES = {
    "icml": Venue(3.25, 6.75, r"\small"),
    "neurips": Venue(5.5, 5.5, r"\normalsize"),
    "cvpr": Venue(3.25, 6.875, r"\small"),
}


@dataclass(frozen=True)
class Placed:
    """How a figure stands: across all columns or not, its width in inches, its text's size (pt)."""

    across: bool
    width: float
    points: float


def placed(width: float, venue: Venue) -> Placed:
    """Return where a figure that was drawn `width` inches wide goes."""
    size: float = STYLE["font.size"]
    for across, room in ((False, venue.column), (True, venue.text)):
        taken = min(width, room)
        points = size * taken / width
        if points >= READABLE or across or venue.columns == 1:
            break
    return Placed(across and venue.columns > 1, taken, points)


def in_mathematics(text: str) -> str:
    """Return escaped text with symbols as A\\_s and minus signs in mathematics, `code` as code."""

    def symbol(found: re.Match[str]) -> str:
        index = found[2] if len(found[2]) == 1 else rf"\mathrm{{{found[2]}}}"
        return f"${found[1]}_{{{index}}}$"

    text = re.sub(r"\b([A-Za-z])\\_(in|out|[a-z])\b", symbol, text)
    # of two hyphens LaTeX makes one dash, which no command has
    text = re.sub(r"`([^`]+)`", lambda m: rf"\texttt{{{m[1].replace('--', '-{}-')}}}", text)
    return re.sub(r"(?<![\w.$-])-(?=\d)", "$-$", text)


def _beyond(latex: str, known: Collection[str]) -> str:
    """What a line of LaTeX has that it is not trusted with; empty where there is nothing."""
    rest = re.sub(r"\\[^A-Za-z@]", "", latex)
    depths = [0, *accumulate((c == "{") - (c == "}") for c in rest)]
    if min(depths) < 0 or depths[-1]:
        return "braces without their other half"
    for name in re.findall(r"\\([A-Za-z@]+)", rest):
        if name not in known:
            return f"\\{name}"
    found = re.search(r"[%#~\x00-\x1f\x7f]|\^\^", rest)  # a comment, an argument, a hidden letter
    return repr(found[0]) if found else ""


# not of prices: it has no blank at its ends, and no letter or digit beside it
_FORMULA = re.compile(r"(?<![\\$\w])\$(?=[^\s$])([^$]*?[^\s$\\])\$(?![\w$])")
_NO_FORMULA = re.compile(r"&|[_^]\s*([_^}]|$)")  # what LaTeX ends at, though each sign is known


def prose(text: object) -> str:
    """Return a sentence of the suite as LaTeX; what stands between dollars is mathematics, of
    commands that are known.
    """
    parts = _FORMULA.split(str(text))
    inner = parts[1::2]
    if "$" in "".join(parts) or any(_NO_FORMULA.search(p) or _beyond(p, _MATHS) for p in inner):
        # a dollar that is left over is one
        return in_mathematics(escape_latex(text))
    # escaping makes one line of a text and strips it: of a part, the blanks at its ends count
    found = []
    for i, part in enumerate(parts):
        ends = [" " if part.strip() != side else "" for side in (part.lstrip(), part.rstrip())]
        plain = in_mathematics(escape_latex(part))
        found.append(f"${part}$" if i % 2 else f"{ends[1]}{plain}{ends[0]}")
    return "".join(found)


def figure_float(file: str, place: Placed, caption: str, label: str, venue: Venue) -> str:
    """Return the float of a figure's PDF, `file` as \\includegraphics finds it."""
    kind = "figure*" if place.across else "figure"
    return (
        f"% text of {place.points:.1f} pt\n"
        rf"\begin{{{kind}}}[t]\centering" + "\n"
        rf"\includegraphics[width={place.width:.3f}in,height=0.8\textheight,keepaspectratio]"
        rf"{{{file}}}" + "\n"
        rf"\caption{{{venue.font} {caption}}}\label{{{label}}}" + "\n"
        rf"\end{{{kind}}}" + "\n"
    )


def table_floats(latex: str, caption: str, label: str, venue: Venue) -> str:
    """Return the floats of an exported table: one, or as many as its lines need pages.

    latex: of Table.latex. A table wider or higher than its room is scaled to it, in whatever font;
    words of narrow columns are fitted in Times. Needs booktabs, array and graphicx.
    """
    for character, command in SYMBOLS.items():
        latex = latex.replace(character, command)
    head, rows, across = _parts(latex)
    size = r"\footnotesize"
    if "p{" in head:  # sentences, of which long words may break
        size = r"\scriptsize"
        head = head.replace(
            r"\arraybackslash", r"\arraybackslash\hspace{0pt}"
        )  # the first word, too
        # a word breaks before its number, as MobileCLIP|2-B, and after what joins two
        rows = [re.sub(r"(?<=[a-zA-Z])(?=\d)", r"\\hspace{0pt}", row) for row in rows]
        rows = [re.sub(r"(\\_|[/,.(=-])(?=[^\s&\\,])", r"\1\\hspace{0pt}", row) for row in rows]
    kind = "table*" if across and venue.columns > 1 else "table"
    pages = list(_pages(rows))
    found = []
    for i, page in enumerate(pages):
        told = caption if i == 0 else f"{caption} (continued)"
        mark = rf"\label{{{label}}}" if i == 0 else ""
        place = "t" if len(pages) == 1 else "p"
        found.append(
            f"{FITTED}\n"
            + rf"\begin{{{kind}}}[{place}]\centering{size}\setlength{{\tabcolsep}}{{3pt}}"
            + "\n"
            + rf"\caption{{{venue.font} {told}}}{mark}"
            + "\n\\setbox0\\hbox{%\n"
            + head
            + "\n".join(page)
            + "\n\\bottomrule\n\\end{tabular}}%\n"
            + _IN_ITS_ROOM
            + f"\n\\end{{{kind}}}\n"
        )
    return "\\clearpage\n".join(found)


def _parts(latex: str) -> tuple[str, list[str], bool]:
    """Return a tabular up to its \\midrule, its rows, and whether it wants all columns."""
    found = re.search(
        r"\\begin\{(tabular|longtable)\}(\{.*\})\n\\toprule\n(.*?)\\midrule\n(.*)\\bottomrule",
        latex,
        re.DOTALL,
    )
    if not found:
        raise ValueError("it is no table of the suite; make it again by its notebook")
    environment, align, heads, body = found.groups()
    rows = [line for line in body.splitlines() if line]
    for line in (align, *heads.splitlines(), *rows):
        if strange := _beyond(line, _OF_TABLES):
            raise ValueError(
                f"it has {strange}, as no table of the suite has; make it again by its notebook"
            )
    widest = max((_width(line) for line in (heads, *rows)), default=0)
    head = rf"\begin{{tabular}}{align}" + f"\n\\toprule\n{heads}\\midrule\n"
    return head, rows, environment == "longtable" or widest > 62


def _width(row: str) -> int:
    """Characters of a row, about: commands count for what they show."""
    shown = re.sub(r"\\(rotatebox\{\d+\}\{[^}]*\}|[a-zA-Z]+)|[{}$\\]", "", row)
    return len(shown)


def _pages(rows: list[str]) -> Iterator[list[str]]:
    """Cut rows into pages; a row of long sentences takes several lines."""
    page: list[str] = []
    used = 0.0
    for row in rows:
        # a sentence's column has at least a third of the row's characters
        lines = max(1.0, *(len(cell) / 48 for cell in row.split(" & ")))
        if used + lines > LINES and page:
            yield page
            page, used = [], 0.0
        page.append(row)
        used += lines
    yield page


def booktabs_rows(head: list[str], rows: list[list[Any]], align: str) -> str:
    """Return a plain booktabs tabular of texts, which are escaped."""
    lines = [latex_row([prose(cell) for cell in row]) for row in (head, *rows)]
    body = "\n".join(lines[1:])
    return (
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
