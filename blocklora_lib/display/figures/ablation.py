"""Figures of ablations: blocks and their cost, collapse, a frozen A_s, where the adapter sits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ..style import (
    GREY,
    TEXT_WIDTH,
    apart,
    hollow,
    hollow_handle,
    in_style,
    legend_outside,
    method_style,
    new_figure,
)
from .panels import draw_means

READINGS = {
    "total_rank": "r is the total rank",
    "block_rank": "r is the rank of each block",
    "input": "cut along the input",
}
# of sets or scales: none is a method's here
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "osD^v"


@in_style
def blocks_and_parameters(means: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw accuracy against trained parameters, a panel for each reading and set; n below.

    means, runs: reading, rank, n_blocks, dataset, trainable_parameters, all counts whole, and mean
    and complete, or accuracy (all 0 to 1). Dots are runs, the line joins their means, of which
    those that are not complete are hollow.
    """
    readings = [reading for reading in READINGS if reading in set(runs["reading"])]
    sets = list(runs["dataset"].unique())
    figure = new_figure(min(1, max(0.62, 0.5 * len(readings))) * TEXT_WIDTH, 0.5 + 1.6 * len(sets))
    grid = figure.subplots(len(sets), len(readings), squeeze=False, sharex="col", sharey="row")
    for y, name in enumerate(sets):
        for x, reading in enumerate(readings):
            part = runs[(runs["dataset"] == name) & (runs["reading"] == reading)]
            _draw_blocks(
                grid[y][x], part, means[(means["dataset"] == name) & (means["reading"] == reading)]
            )
            if y == 0:
                grid[y][x].set_title(f"{READINGS[reading]}: r = {part['rank'].iloc[0]}")
        grid[y][0].set_ylabel(f"{name}\naccuracy (%)")
    for axes in grid[-1]:
        axes.set_xlabel("trained parameters (thousands)")
    if not means["complete"].all():
        legend_outside(figure, [hollow_handle()], "lower center")
    return figure


def _draw_blocks(axes: Axes, part: pd.DataFrame, means: pd.DataFrame) -> None:
    style = method_style("block_lora")
    thousands, percent = part["trainable_parameters"] / 1000, 100 * part["accuracy"]
    axes.plot(thousands, percent, "o", color=style.colour, markersize=2.5, alpha=0.45, zorder=2)
    means = means.set_index("n_blocks").sort_index()
    at, height = means["trainable_parameters"] / 1000, 100 * means["mean"]
    axes.plot(at, height, style.line, marker=style.marker, color=style.colour, zorder=3)
    few = ~means["complete"]
    hollow(axes, at[few], height[few], style.marker, style.colour)
    axes.set_xscale("log", base=2)
    named: dict[float, list[str]] = {}  # more blocks need not change the count
    for n, count in at.items():
        named.setdefault(count, []).append(str(n))
    places = pd.Series([*named])
    steps = np.log2(places / places.iloc[0]).abs()  # counts grow ever less, or more, with n
    inches = 0.85 * axes.figure.get_size_inches()[0] / axes.get_gridspec().ncols / 1.24
    letter = 0.054  # inches, of 8 points
    labels = [f"n = {', '.join(names)}" for names in named.values()]
    free = apart(steps.tolist(), letter * max(map(len, labels)) / inches * steps.max())
    counts = [f"{v:.3g}" if v < 1000 else f"{v:,.0f}" for v in places]
    shown = [f"{count}\n{label}" for count, label in zip(counts, labels, strict=True)]
    axes.set_xticks(places.tolist(), np.where(free, shown, ""))
    axes.margins(x=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


@in_style
def collapse_by_rate(means: pd.DataFrame, runs: pd.DataFrame, zero: Mapping[str, float]) -> Figure:
    """Draw accuracy over the learning rate for each initial scale of A_s: test, training images.

    means, runs: dataset, lr, init_scale, and mean, complete and quantity ("accuracy" or
    "train_accuracy", of `summarise_each`), or these two themselves (all 0 to 1). zero: zero-shot's,
    by set, dotted. Dots are runs, lines join their means. A run that diverged has no row; the mean
    of those that are left of its cell is hollow.
    """
    sets, scales = list(runs["dataset"].unique()), sorted(runs["init_scale"].unique())
    rates = sorted(runs["lr"].unique())
    parts = (("accuracy", "test images"), ("train_accuracy", "training images"))
    figure = new_figure(0.85 * TEXT_WIDTH, 0.6 + 1.75 * len(sets))
    grid = figure.subplots(len(sets), 2, squeeze=False, sharex=True)
    for line, name in zip(grid, sets, strict=True):
        for axes, (column, what) in zip(line, parts, strict=True):
            for i, scale in enumerate(scales):
                part = runs[(runs["dataset"] == name) & (runs["init_scale"] == scale)]
                colour, marker = COLOURS[i % 5], MARKERS[i % 5]
                at = [rates.index(lr) + 0.08 * (i - (len(scales) - 1) / 2) for lr in part["lr"]]
                dots = dict(
                    markersize=2.5, alpha=0.45, clip_on=False
                )  # an accuracy of 0 is on the axis
                axes.plot(at, 100 * part[column], marker, color=colour, **dots)
                mean = means[means["quantity"] == column]
                mean = mean[(mean["dataset"] == name) & (mean["init_scale"] == scale)]
                at = mean["lr"].map(rates.index) + 0.08 * (i - (len(scales) - 1) / 2)
                look = dict(label=f"{scale:g}", clip_on=False)
                axes.plot(at, 100 * mean["mean"], marker=marker, color=colour, **look)
                few = ~mean["complete"]
                hollow(axes, at[few], 100 * mean["mean"][few], marker, colour, clip_on=False)
            if column == "accuracy" and name in zero:
                axes.axhline(
                    100 * zero[name], color=GREY, linewidth=0.9, linestyle=":", label="zero-shot"
                )
            axes.set_title(f"{name}: {what}")
            axes.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
            axes.set_xlim(-0.4, len(rates) - 0.6)
            axes.set_ylim(0, None if column == "accuracy" else 104)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        line[0].set_ylabel("accuracy (%)")
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    handles, labels = grid[0][0].get_legend_handles_labels()
    for handle, text in zip(handles, labels, strict=True):
        handle.set_label(text if text == "zero-shot" else f"initial scale {text}")
    handles += [] if means["complete"].all() else [hollow_handle()]
    legend_outside(figure, handles)
    return figure


@in_style
def trained_minus_frozen(by_set: pd.DataFrame, overall: pd.DataFrame) -> Figure:
    """Draw what training A_s gains over freezing it: a dot for each set, then mean and interval.

    by_set: shots, dataset, difference, complete. overall: shots, mean, low, high, complete. All in
    points. What is not complete is hollow.
    """
    shots = sorted(int(k) for k in overall["shots"])
    style = method_style("frozen_a")
    figure = new_figure(0.62 * TEXT_WIDTH, 2.5)
    axes = figure.subplots()
    axes.axhline(0, color="#333333", linewidth=0.7)
    for i, k in enumerate(shots):
        part = by_set[by_set["shots"] == k]
        values, few = (
            part.loc[whole, "difference"] for whole in (part["complete"], ~part["complete"])
        )
        look = dict(color=GREY, markersize=3, alpha=0.5, label="a set" if i == 0 else None)
        axes.plot([i - 0.12] * len(values), values, "o", **look)
        hollow(axes, [i - 0.12] * len(few), few, "o", GREY, markersize=3)
    overall = overall.sort_values("shots")
    at = [i + 0.08 for i in range(len(shots))]
    draw_means(axes, at, overall, style, "mean, 95% interval over sets")
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_xlim(-0.5, len(shots) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(False, axis="x")
    axes.set_xlabel("shots")
    axes.set_ylabel("trained minus frozen $A_s$ (points)")
    handles, _ = axes.get_legend_handles_labels()
    if not (by_set["complete"].all() and overall["complete"].all()):
        handles.append(hollow_handle())
    legend_outside(figure, handles)
    return figure


@in_style
def placement(rows: pd.DataFrame) -> Figure:
    """Draw accuracy (left, a marker a set) beside trained parameters (right), a line a place.

    rows: place, group, dataset, mean, low, high (%), complete, parameters; places stand in the
    order of the rows, a rule between groups. A mean that is not complete is hollow.
    """
    places = rows[["place", "group", "parameters"]].drop_duplicates("place").reset_index(drop=True)
    sets = list(rows["dataset"].unique())
    height = {name: len(places) - 1 - i for i, name in enumerate(places["place"])}
    figure = new_figure(0.9 * TEXT_WIDTH, 0.8 + 0.23 * len(places))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.7, 1])
    for i, name in enumerate(sets):
        part = rows[rows["dataset"] == name]
        at = [height[p] + 0.22 * ((len(sets) - 1) / 2 - i) for p in part["place"]]
        error = [(part["mean"] - part["low"]).fillna(0), (part["high"] - part["mean"]).fillna(0)]
        left.errorbar(
            part["mean"],
            at,
            xerr=error,
            fmt=MARKERS[i % 5],
            color=COLOURS[i % 5],
            elinewidth=1,
            label=name,
        )
        few = (~part["complete"]).to_numpy()
        height_of = [y for y, flag in zip(at, few, strict=True) if flag]
        hollow(left, part["mean"][few], height_of, MARKERS[i % 5], COLOURS[i % 5])
    right.barh(
        [height[p] for p in places["place"]], places["parameters"], height=0.55, color="#b9b9b9"
    )
    for row in places.itertuples():
        right.annotate(
            f"{int(row.parameters):,}",
            (row.parameters, height[row.place]),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    right.set_xlim(0, 1.3 * places["parameters"].max())
    for axes in (left, right):
        for before, after in zip(places["group"], places["group"][1:], strict=False):
            if before != after:
                last = places.loc[places["group"] == before, "place"].iloc[-1]
                axes.axhline(height[last] - 0.5, color="#a6a6a6", linewidth=0.6)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    left.set_yticks(list(height.values()), list(height))
    left.set_ylim(-0.6, len(places) - 0.4)
    left.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    right.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.set_xlabel("top-1 accuracy (%)")
    right.set_xlabel("trained parameters")
    handles, _ = left.get_legend_handles_labels()
    handles += [] if rows["complete"].all() else [hollow_handle()]
    legend_outside(figure, handles)
    return figure
