"""Tables of the paper's kind, made of frames: as tidy numbers, as text and as LaTeX."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ..analysis.summaries import AVERAGE, counted

_NUMBER = re.compile(
    r"[-+−]?\d[\d.,]*(e[-+]?\d+)?%?( ± [\d.]+)?( \(\d+ of \d+\))?( \*)?|–"
)  # as cells show one
SENTENCE = 40  # characters beyond which a cell is a sentence, whose lines are broken


# characters of the suite's texts that LaTeX's fonts lack, as it writes them
_GREEK = (
    "α alpha β beta γ gamma δ delta ε varepsilon ζ zeta η eta θ theta κ kappa λ lambda μ mu ν nu "
    "ξ xi π pi ρ rho σ sigma τ tau φ varphi χ chi ψ psi ω omega "
    "Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma Φ Phi Ψ Psi Ω Omega"
).split()
SYMBOLS = {letter: rf"$\{name}$" for letter, name in zip(*[iter(_GREEK)] * 2, strict=True)} | {
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "ᵀ": r"$^\top$",
    "²": r"$^2$",
    "‖": r"$\|$",
    "→": r"$\to$",
    "−": r"$-$",
    "√": r"$\surd$",
    "≠": r"$\ne$",
    "∈": r"$\in$",
    "ℓ": r"$\ell$",
    **{digit: f"$_{i}$" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}


@dataclass(frozen=True)
class Table:
    """tidy: the numbers (CSV); shown: cells as a reader sees them; latex: a booktabs tabular."""

    tidy: pd.DataFrame
    shown: pd.DataFrame
    latex: str

    def _repr_html_(self) -> str:
        return to_html(self.shown)


def to_html(shown: pd.DataFrame) -> str:
    """Return an HTML table: text to the left, numbers to the right; row names, if there are any.

    Sentences keep a width that can be read, however many columns stand beside them.
    """
    rows = shown if isinstance(shown.index, pd.RangeIndex) else shown.reset_index()

    def style_of(cells: list[str]) -> str:
        if all(map(_NUMBER.fullmatch, cells)):
            return ' class="number" style="text-align: right"'
        width = "; min-width: 20em" * any(len(cell) > SENTENCE for cell in cells)
        return f' class="text" style="text-align: left{width}"'

    style = [style_of([str(value) for value in rows[c]]) for c in rows.columns]

    def line(cells: Iterable[object], tag: str) -> str:
        return (
            "<tr>"
            + "".join(
                f"<{tag}{s}>{html.escape(str(c))}</{tag}>"
                for c, s in zip(cells, style, strict=True)
            )
            + "</tr>"
        )

    body = "\n".join(line(row, "td") for row in rows.itertuples(index=False))
    head = line(rows.columns, "th")
    return f'<table class="data">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def with_interval(mean: float, low: float, high: float, digits: int = 1) -> str:
    """Return 'mean ± half width'; without the interval where a single run gives none."""
    if math.isnan(mean):
        return "–"
    if math.isnan(low) or math.isnan(high):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def mean_cell(row: Any, digits: int = 1) -> str:
    """Return with_interval of a row of a summary; '64.1 (1 of 3)' where it is not complete."""
    mark = "" if row.complete or math.isnan(row.mean) else f" ({counted(row.n, row.expected)})"
    return with_interval(row.mean, row.low, row.high, digits) + mark


def difference_cell(row: Any) -> str:
    """Return a difference in points, '+1.2 [+0.1, +2.3]', marked as mean_cell marks a mean."""
    mark = "" if row.complete else f" ({counted(row.n, row.expected)})"
    if math.isnan(row.mean):
        return f"–{mark}"
    interval = "" if math.isnan(row.low) else f" [{row.low:+.1f}, {row.high:+.1f}]"
    return f"{row.mean:+.1f}{interval}{mark}"


def shots_of(k: int) -> str:
    """Write a number of shots."""
    return f"{k} shot" if k == 1 else f"{k} shots"


def escape_latex(text: object) -> str:
    """Return text in one line, its special characters and symbols as LaTeX's commands."""
    special = {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",  # other signs in LaTeX's own encoding of fonts
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
    # one line: what follows a line end, in a comment above all, would be read as LaTeX. Composed:
    # a letter with its accent behind it, as macOS has names of files, is two that LaTeX lacks
    line = unicodedata.normalize("NFC", one_line(text))
    return "".join((special | SYMBOLS).get(character, character) for character in line)


def one_line(text: object) -> str:
    """Return text in one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", " ".join(str(text).split()))


def latex_row(cells: Sequence[str]) -> str:
    """Return a row of a tabular. A bracket or a star that it begins with would be an option of the
    line before: LaTeX loses it, or never ends.
    """
    line = " & ".join(cells) + r" \\"
    return "{}" + line if line.lstrip().startswith(("[", "*")) else line


def booktabs(
    header: Sequence[str],
    groups: Sequence[Sequence[Sequence[str]]],
    align: str,
    environment: Literal["tabular", "longtable"] = "tabular",
) -> str:
    """Return a table with booktabs rules and a gap between the groups of rows. Cells are LaTeX.

    environment: 'longtable' goes on over pages.
    """
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{{environment}}}{{{align}}}",
        r"\toprule",
        latex_row(header),
        r"\midrule",
    ]
    for i, group in enumerate(groups):
        if i:
            lines.append(r"\addlinespace")
        lines += [latex_row(row) for row in group]
    return "\n".join([*lines, r"\bottomrule", rf"\end{{{environment}}}"]) + "\n"


def plain(frame: pd.DataFrame, digits: int = 3) -> Table:
    """Return a table of any frame.

    Its CSV has all digits; its text has, column by column, the decimals that give the largest
    value `digits` significant ones, and each other value at least two of them.
    """
    flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    shown = pd.DataFrame({str(name): _show(flat[name], digits) for name in flat.columns})
    align = ["r" if pd.api.types.is_numeric_dtype(flat[name]) else "l" for name in flat.columns]
    cells = [[escape_latex(cell) for cell in row] for row in shown.itertuples(index=False)]
    heads = [escape_latex(name) for name in flat.columns]
    lengths = {i: max(map(len, [str(name), *shown[name]])) for i, name in enumerate(shown)}
    if not any(align[i] == "l" and length > SENTENCE for i, length in lengths.items()):
        return Table(flat, shown, booktabs(heads, [cells], "".join(align)))
    # sentences: columns that break lines, in a table that breaks pages
    long = {i: length for i, length in lengths.items() if align[i] == "l" and length > 12}
    rest = max(
        0.4, 0.955 - 0.0075 * sum(length + 2 for i, length in lengths.items() if i not in long)
    )
    for i, length in long.items():
        share = rest * math.sqrt(length) / sum(map(math.sqrt, long.values()))
        align[i] = rf">{{\raggedright\arraybackslash}}p{{{share:.3f}\linewidth}}"
    latex = booktabs(heads, [cells], "".join(align), "longtable").rstrip()
    small = r"{\scriptsize\setlength{\tabcolsep}{2pt}"
    return Table(flat, shown, f"% \\usepackage{{array,longtable}}\n{small}\n{latex}}}\n")


def _show(column: pd.Series, digits: int) -> list[str]:
    values = [v.item() if hasattr(v, "item") else v for v in column]
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v]
    decimals = min(12, max(0, digits - 1 - math.floor(math.log10(max(sizes))))) if sizes else 0
    text = []
    for value in values:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            text.append("–")
        elif isinstance(value, bool):
            text.append("yes" if value else "no")
        elif value == 0 and decimals > 4:
            text.append("0")  # not a row of zeros
        elif isinstance(value, float):
            if value and abs(value) < 10.0**-decimals:
                text.append(f"{value:.{digits}g}")
            else:  # 1.49 beside 1,170 is not 1
                seen = value and math.isfinite(value)
                least = 1 - math.floor(math.log10(abs(value))) if seen else 0
                text.append(f"{value or 0.0:,.{max(decimals, least)}f}")
        else:
            text.append(f"{value:,}" if isinstance(value, int) else str(value))
    return text


def few_shot_table(summary: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Table:
    """Rows: method by shots. Columns: sets, then their average. Cells: mean ± 95% half width.

    In %, over seeds. Best mean of each set and shot count in bold (LaTeX) and starred (text). A
    mean over fewer seeds than are planned, or than those of its set and shots have, says so, '64.1
    (1 of 3)', and is never the best: it is another quantity. The column `seeds` gives how many
    there are.
    """
    titles = titles or {}
    sets = sorted(
        set(summary["dataset"]) - {AVERAGE}, key=lambda name: titles.get(name, name).lower()
    )
    sets += [AVERAGE] if AVERAGE in set(summary["dataset"]) else []
    heads = [titles.get(name, "Average" if name == AVERAGE else name) for name in sets]
    cells = {(r.dataset, r.method_label, r.shots): r for r in summary.itertuples()}
    best = summary[summary["complete"]].groupby(["dataset", "shots"])["mean"].max().to_dict()
    shown, groups = [], []
    for shots in sorted(summary["shots"].unique()):
        group = []
        for label in summary.loc[summary["shots"] == shots, "method_label"].unique():
            found = [cells.get((name, label, shots)) for name in sets]
            texts, latex = [], []
            for cell in found:
                if cell is None:
                    texts.append("–")
                    latex.append(escape_latex("–"))
                    continue
                bold = cell.complete and shots > 0
                bold = bold and round(cell.mean, 1) == round(best[cell.dataset, shots], 1)
                number, _, half = with_interval(cell.mean, cell.low, cell.high).partition(" ± ")
                number = rf"\textbf{{{number}}}" if bold else escape_latex(number)
                mark = "" if cell.complete else f" ({counted(cell.n, cell.expected)})"
                latex.append(number + (rf"{{\tiny$\pm${half}}}" if half else "") + mark)
                texts.append(mean_cell(cell) + (" *" if bold else ""))
            n = str(max(cell.n for cell in found if cell is not None))
            shown.append([label, shots, n, *texts])
            group.append([escape_latex(label), str(shots), n, *latex])
        groups.append(group)
    align = "@{}lrr" + "r" * len(sets) + "@{}"
    header = [
        "Method",
        "Shots",
        "$n$",
        *(rf"\rotatebox{{60}}{{{escape_latex(head)}}}" for head in heads),
    ]
    text = pd.DataFrame(shown, columns=["method", "shots", "seeds", *heads])
    # twelve columns of means and intervals fit a text width of 6.75 in at this size only
    small = r"{\noindent\scriptsize\setlength{\tabcolsep}{1.2pt}"
    whole = f"% \\usepackage{{graphicx}}\n{small}\n{booktabs(header, groups, align).rstrip()}}}\n"
    return Table(summary, text, whole)
