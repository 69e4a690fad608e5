"""Figures of the method itself: matrices, gradients by depth, errors against tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..style import GREY, TEXT_WIDTH, in_style, legend_outside, new_figure

DIVERGING = "PuOr"  # ColorBrewer's purple to orange: safe for colour-blind readers, white at zero
SYMBOL = 0.225  # inches that a symbol takes between matrices
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@in_style
def matrix_equations(
    entries: pd.DataFrame, equations: Mapping[str, Sequence[str]], cell: float = 0.25
) -> Figure:
    """Draw one equation a row, such as ["A_s", "·", "(", "B_1", "+", "B_2", ")", "=", "ΔW"].

    entries: columns equation, matrix, row, column, value. A token that names a matrix of the row's
    equation is drawn as a heat map, its numbers in it where they are legible, any other is set as
    text. All share one colour scale, symmetric about zero, and one cell size (at most `cell`
    inches).
    """
    parts = {name: entries[entries["equation"] == name] for name in equations}
    for name, tokens in equations.items():
        columns = parts[name].groupby("matrix")["column"].max() + 1
        symbols = SYMBOL * sum(token not in columns for token in tokens)
        wide = sum(columns.get(token, 0) for token in tokens)
        cell = min(cell, (0.9 * TEXT_WIDTH - symbols) / wide)  # the colour bar takes the rest
    heights = [part["row"].max() + 1 + 0.375 / cell for part in parts.values()]
    figure = new_figure(TEXT_WIDTH, cell * float(sum(heights)) + 0.1)
    panels = figure.subplots(len(equations), 1, height_ratios=heights, squeeze=False)[:, 0]
    norm = Normalize(-entries["value"].abs().max(), entries["value"].abs().max())
    for panel, (name, tokens) in zip(panels, equations.items(), strict=True):
        _draw_equation(panel, parts[name], tokens, norm, cell)
        panel.set_title(name, loc="left")
    widest = max(panel.get_xlim()[1] for panel in panels)
    for panel in panels:
        panel.set_xlim(-0.3, widest)
    bar = figure.colorbar(
        ScalarMappable(norm, DIVERGING), ax=list(panels), fraction=0.02, pad=0.01, aspect=25
    )
    bar.outline.set_visible(False)
    return figure


def _draw_equation(
    panel: Axes, entries: pd.DataFrame, tokens: Sequence[str], norm: Normalize, cell: float
) -> None:
    """Draw matrices and symbols from left to right, centred on one line, in cells of unit size."""
    fontsize = 28 * cell  # of the numbers: 7 points in a quarter of an inch
    colours, x = colormaps[DIVERGING], 0.0
    matrices = {
        name: part.pivot(index="row", columns="column", values="value").to_numpy()
        for name, part in entries.groupby("matrix")
    }
    tallest = max(len(matrix) for matrix in matrices.values())
    for token in tokens:
        if token not in matrices:
            x += SYMBOL / 2 / cell
            points = 18 if token == "·" else 12
            panel.text(x, 0, token, ha="center", va="center", fontsize=points)
            x += SYMBOL / 2 / cell
            continue
        matrix = matrices[token]
        rows, columns = matrix.shape
        panel.imshow(
            matrix,
            cmap=DIVERGING,
            norm=norm,
            extent=(x, x + columns, -rows / 2, rows / 2),
            aspect="equal",
            zorder=2,
        )
        for (i, j), value in np.ndenumerate(matrix) if fontsize >= 5 else ():
            shade = colours(norm(value))
            dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
            panel.text(
                x + j + 0.5, rows / 2 - i - 0.5,
                f"{value:.1f}".replace("-", "−").replace("−0.0", "0.0"),
                ha="center", va="center", fontsize=fontsize, zorder=3,
                color="white" if dark else "black",
            )  # fmt: skip
        frame = np.array([-1, -1, 1, 1, -1]) * rows / 2
        panel.plot(
            [x, x + columns, x + columns, x, x], frame, color="#333333", linewidth=0.6, zorder=4
        )
        room = columns * cell > 0.2 + 0.055 * len(token)  # inches that both take
        size = f"   {rows}×{columns}" if room else ""
        panel.text(
            x + columns / 2,
            -rows / 2 - 0.0625 / cell,
            f"${token}${size}",
            ha="center",
            va="top",
            fontsize=8,
        )
        x += columns
    panel.set(
        xlim=(-0.3, x + 0.3),
        ylim=(-tallest / 2 - 0.25 / cell, tallest / 2 + 0.0375 / cell),
        aspect="equal",
        anchor="W",
    )
    panel.axis("off")


@in_style
def by_depth(frame: pd.DataFrame, label: str) -> Figure:
    """Draw value by depth, one panel a tower, one line a projection.

    frame: tower, layer, target, value.
    """
    towers = list(dict.fromkeys(frame["tower"]))
    figure = new_figure(TEXT_WIDTH, 2.1)
    panels = figure.subplots(1, len(towers), sharey=True, squeeze=False)[0]
    for panel, tower in zip(panels, towers, strict=True):
        part = frame[frame["tower"] == tower]
        for target, colour, marker in zip(
            dict.fromkeys(part["target"]), OKABE_ITO, "os^D", strict=False
        ):
            line = part[part["target"] == target].sort_values("layer")
            panel.plot(
                line["layer"], line["value"], marker=marker, color=colour, label=f"${target}$",
                markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
        panel.set(title=f"{tower} tower", xlabel="layer", yscale="log")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    panels[0].set_ylabel(label)
    panels[-1].legend(ncols=3, loc="best")
    return figure


@in_style
def errors_against_tolerance(frame: pd.DataFrame) -> Figure:
    """Draw each comparison's error in the panel of its precision; 0 means the same bits.

    frame: precision, implementation, quantity, error, tolerance.
    """
    precisions = list(dict.fromkeys(frame["precision"]))
    quantities = list(dict.fromkeys(frame["quantity"]))[::-1]
    others = list(dict.fromkeys(frame["implementation"]))
    figure = new_figure(TEXT_WIDTH, 0.95 + 0.26 * len(quantities))
    panels = figure.subplots(1, len(precisions), sharey=True, squeeze=False)[0]
    for panel, precision in zip(panels, precisions, strict=True):
        part = frame[frame["precision"] == precision]
        smallest = part["error"][part["error"] > 0].min() / 10
        floor = 10.0 ** np.floor(
            np.log10(smallest if smallest == smallest else part["tolerance"].min() / 100)
        )
        for k, name in enumerate(others):
            rows = part[part["implementation"] == name]
            at = [
                quantities.index(q) + 0.22 * (k - (len(others) - 1) / 2) for q in rows["quantity"]
            ]
            errors = rows["error"].where(rows["error"] > 0, floor)
            panel.plot(
                errors, at, "osD^v"[k], color=OKABE_ITO[k], zorder=3, markersize=4.5,
                markeredgecolor="white", markeredgewidth=0.4,
            )  # fmt: skip
        for tolerance in sorted(part["tolerance"].unique()):
            panel.axvline(tolerance, color=GREY, linestyle="--", linewidth=0.9)
        panel.set(
            xscale="log", title=precision, xlabel="relative error", xlim=(floor / 3, tolerance * 5)
        )
        powers = np.arange(np.log10(floor), np.floor(np.log10(tolerance)) + 0.1)
        powers = powers[:: math.ceil(len(powers) / 4)]
        panel.set_xticks(
            10.0**powers, ["0" if p == powers[0] else f"$10^{{{p:.0f}}}$" for p in powers]
        )
        panel.minorticks_off()
    panels[0].set_yticks(range(len(quantities)), quantities)
    panels[0].set_ylim(-0.6, len(quantities) - 0.4)
    handles = [
        Line2D([], [], marker="osD^v"[k], color=OKABE_ITO[k], linestyle="", label=n)
        for k, n in enumerate(others)
    ]
    handles += [Line2D([], [], color=GREY, linestyle="--", linewidth=0.9, label="tolerance")]
    legend_outside(figure, handles, "lower center")
    return figure
