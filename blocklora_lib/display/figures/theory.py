"""Figures of this suite's own theory: the law of ratios."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import GREY, TEXT_WIDTH, in_style, legend_outside, method_style, new_figure
from .block import ZERO, with_zero


@in_style
def ratio_law(frame: pd.DataFrame, bar: float) -> Figure:
    """Draw the ratio of Σ B_i's moves to one B's against the law, and ΔW with the law's ratio.

    frame: optimizer, lawful, n_blocks, law, low, high (ratios; the last two over steps),
    difference, control. A ratio is drawn as a power of n; where there is no law it has no place.
    """
    names, sizes = (list(dict.fromkeys(frame[key])) for key in ("optimizer", "n_blocks"))
    figure = new_figure(TEXT_WIDTH, 0.9 + 0.165 * len(names))
    figure.get_layout_engine().set(w_pad=0.1)  # as in `breaks`
    left, right = figure.subplots(1, 2, sharey=True)
    look = dict(linestyle="", color=method_style("block_lora").colour)
    shapes = dict(zip(sizes, "os^DvP", strict=False))
    for row in frame.itertuples():
        at = len(names) - 1 - names.index(row.optimizer)
        at += 0.22 * (sizes.index(row.n_blocks) - (len(sizes) - 1) / 2)
        low, high = (math.log(ratio, row.n_blocks) for ratio in (row.low, row.high))
        left.plot([low, high], [at, at], color=look["color"], linewidth=1.2)
        left.plot([low, high], [at, at], shapes[row.n_blocks], **look, markersize=3)
        if row.lawful:
            expected = math.log(row.law, row.n_blocks)
            left.plot(expected, at, "|", color="black", markersize=7, zorder=1)
        for value, colour in ((row.difference, "collapsed"), (row.control, "lora")):
            where, drawn = max(value, ZERO), method_style(colour).colour
            right.plot(where, at, shapes[row.n_blocks], color=drawn, markersize=3)
    right.axvline(bar, color=GREY, linestyle=(0, (1, 1)), linewidth=0.9)
    left.set_yticks(range(len(names)), names[::-1], fontsize=7)
    left.set(xlabel="ratio as a power of n", ylim=(-0.7, len(names) - 0.3))
    right.set(xscale="log", xlabel="relative difference in ΔW", xlim=(ZERO / 3, 30))
    with_zero(right, (-15, -12, -9, -6, -3, 0), "x")
    told = {"collapsed": "ΔW, the law's ratio", "lora": "ΔW, another ratio"}
    handles = [Line2D([], [], marker=m, label=f"n = {n}", **look) for n, m in shapes.items()]
    handles.append(Line2D([], [], color="black", marker="|", linestyle="", label="law, $1-k$"))
    handles += [
        Line2D([], [], color=method_style(form).colour, marker="o", linestyle="", label=words)
        for form, words in told.items()
    ]
    legend_outside(figure, handles, "lower center")
    return figure
