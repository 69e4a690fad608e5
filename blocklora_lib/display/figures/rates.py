"""The figure of how learning rates were chosen: a pure function of `analysis.rates.rate_curves`."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..labels import as_text
from ..style import TEXT_WIDTH, in_style, legend_outside, method_style, new_figure

WIDE = 20  # characters of a title in one line
CHOSEN = dict(marker="o", markersize=9, markerfacecolor="none", linestyle="none", zorder=4)


@in_style
def accuracy_by_rate(curves: pd.DataFrame) -> Figure:
    """Draw mean accuracy on validation images over the learning rate, a panel a method.

    The chosen rate has a ring; bars are the 95% intervals of `rate_curves`.
    """
    methods = curves[["method", "method_label"]].drop_duplicates().values.tolist()
    rates = sorted(curves["lr"].unique())
    columns = min(5, len(methods))
    lines = math.ceil(len(methods) / columns)
    figure = new_figure(TEXT_WIDTH * max(0.6, 0.3 + 0.14 * columns), 1.5 * lines + 0.35)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for i, axes in enumerate(grid.flat):
        if i >= len(methods):
            axes.set_visible(False)
            continue
        method, label = methods[i]
        rows = curves[curves["method_label"] == label].sort_values("lr")
        style = method_style(method)
        look = dict(color=style.colour, marker=style.marker, linestyle=style.line)
        reach = [rows["mean"] - rows["low"].clip(0), rows["high"].clip(upper=100) - rows["mean"]]
        axes.errorbar(rows["lr"], rows["mean"], reach, **look, elinewidth=0.9)
        best = rows[rows["chosen"]]
        axes.plot(best["lr"], best["mean"], markeredgecolor="#333333", **CHOSEN)
        axes.set_xscale("log")
        axes.margins(0.12, 0.14)
        axes.set_xticks(sorted({rates[0], rates[(len(rates) - 1) // 2], rates[-1]}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(as_text(label, WIDE))
        if i % columns == 0:
            axes.set_ylabel("accuracy (%)")
        if i + columns >= len(methods):
            axes.set_xlabel("learning rate")
            axes.tick_params(labelbottom=True)
    interval = "difference from the chosen rate, 95% interval over sets"
    handles = [Line2D([], [], markeredgecolor="#333333", label="chosen", **CHOSEN)]
    if curves["low"].notna().any():
        handles.append(Line2D([], [], color="#8c8c8c", linewidth=0.9, label=interval))
    legend_outside(figure, handles, "lower center")
    return figure
