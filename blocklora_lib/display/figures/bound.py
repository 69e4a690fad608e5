"""Figures of generalization bounds: ratios, where they are vacuous, against gaps, that bite."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from ..style import (
    GREY,
    METHOD_STYLES,
    TEXT_WIDTH,
    in_style,
    legend_outside,
    method_handle,
    method_style,
    new_figure,
)
from ..tables import shots_of

FORM_LABELS = {
    "lora": "LoRA",
    "block_lora": "Block-LoRA",
    "frozen_a": "w/o A",
    "collapsed": "collapsed",
}
VACUOUS = "#f3dcd0"  # a light vermilion: above 1 a bound on an error says nothing


@in_style
def bound_ratios(frame: pd.DataFrame) -> Figure:
    """Draw the bound of each form over n, as a ratio to two LoRAs.

    frame: form, n_blocks, ratio_to_lora, ratio_to_same_class; one row for each form and n.
    """
    titles = {
        "ratio_to_lora": "over LoRA of the total rank",
        "ratio_to_same_class": "over LoRA of the same function class",
    }
    figure = new_figure(TEXT_WIDTH, 2.5)
    panels = figure.subplots(1, 2)
    for panel, (column, title) in zip(panels, titles.items(), strict=True):
        for form in (f for f in FORM_LABELS if f in set(frame["form"]) and f != "lora"):
            rows, style = (frame[frame["form"] == form].sort_values("n_blocks"), method_style(form))
            panel.plot(
                rows["n_blocks"], rows[column], style.line, marker=style.marker, color=style.colour,
                markeredgecolor="white", markeredgewidth=0.5, zorder=3,
            )  # fmt: skip
        panel.axhline(1, color=method_style("lora").colour, linewidth=1.0, zorder=2)
        panel.set(title=title, xlabel="blocks $n$", xscale="log", yscale="log")
        panel.set_xticks(sorted(frame["n_blocks"].unique()), sorted(frame["n_blocks"].unique()))
        drawn = frame[frame["form"] != "lora"][column]
        low, high = min(1.0, drawn.min()), max(1.0, drawn.max())
        ticks = [t for t in (0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 3) if low / 1.1 <= t <= high * 1.1]
        panel.set_yticks(ticks, [f"{t:g}" for t in ticks])
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("ratio of bounds")
    forms = [f for f in FORM_LABELS if f in set(frame["form"])]
    legend_outside(figure, [method_handle(f, FORM_LABELS[f]) for f in forms])
    return figure


@in_style
def bound_over_samples(frame: pd.DataFrame) -> Figure:
    """Draw each form's bound over the number of samples, a panel a setting; vacuous is shaded.

    frame: setting, dataset, shots, samples, form, bound, samples_needed. Ticks under the curves are
    the data sets at their largest number of shots; a mark on the line at 1 says where a form starts
    to say something.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    figure = new_figure(TEXT_WIDTH, 2.9)
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    right, top = frame["samples_needed"].max() * 4, frame["bound"].max() * 3
    for panel, setting in zip(panels, settings, strict=True):
        part = frame[frame["setting"] == setting]
        left = part["samples"].min()
        panel.axhspan(1, top, color=VACUOUS, zorder=0, linewidth=0)
        for form in (f for f in FORM_LABELS if f in set(part["form"])):
            style, needed = (
                method_style(form),
                part[part["form"] == form]["samples_needed"].iloc[0],
            )
            at = np.geomspace(left, right, 50)
            panel.plot(at, np.sqrt(needed / at), style.line, color=style.colour, zorder=3)
            panel.plot(
                needed, 1, style.marker, color=style.colour, zorder=4, markeredgecolor="white",
                markeredgewidth=0.5, markersize=6,
            )  # fmt: skip
        last = part[part["shots"] == part["shots"].max()].drop_duplicates("dataset")
        panel.plot(
            last["samples"], [0.115] * len(last), "|", color="#333333", markersize=8, zorder=4
        )
        panel.annotate(
            f"data sets at {shots_of(last['shots'].iloc[0])}",
            (last["samples"].max(), 0.115), (6, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
        panel.text(
            0.97, 0.95, "vacuous: a gap is at most 1 anyway", transform=panel.transAxes, ha="right",
            va="top", fontsize=8, color="#8a3c00",
        )  # fmt: skip
        panel.set(
            title=setting, xlabel="training samples $N$", xscale="log", yscale="log",
            ylim=(0.08, top), xlim=(left / 1.3, right),
        )  # fmt: skip
    panels[0].set_ylabel("bound on the gap")
    panels[0].set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    for panel in panels:
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
    panels[0].set_ylim(0.08, top)
    forms = [f for f in FORM_LABELS if f in set(frame["form"])]
    legend_outside(figure, [method_handle(f, FORM_LABELS[f]) for f in forms])
    return figure


@in_style
def bound_map(frame: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Draw the bound of one form for each data set (rows) and number of shots (columns).

    The set with the most samples stands on top. frame: setting, dataset, title, shots,
    samples, bound, one row for each cell. Vacuous cells, bound >= 1, are hatched; all cells
    show their number.
    """
    settings = list(titles)
    tables = {s: _by_shots(frame[frame["setting"] == s]) for s in settings}
    rows = max(len(t) for t in tables.values())
    figure = new_figure(TEXT_WIDTH, 0.95 + 0.19 * rows)
    panels = figure.subplots(
        1, len(settings), squeeze=False, width_ratios=[len(t.columns) + 1 for t in tables.values()]
    )[0]
    top = np.log10(frame["bound"].max())
    for panel, (setting, table) in zip(panels, tables.items(), strict=True):
        values = np.log10(table.to_numpy(dtype=float))
        panel.imshow(values, cmap="Oranges", vmin=-0.5, vmax=1.25 * top, aspect="auto")
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            vacuous = value >= 1
            if vacuous:
                panel.add_patch(_hatched(j, i))
            panel.text(
                j, i, f"{value:.2g}" if value < 10 else f"{value:.0f}", ha="center", va="center",
                fontsize=7.5,
                bbox=dict(facecolor="white", alpha=0.75, linewidth=0, pad=0.6), zorder=4,
            )  # fmt: skip
        panel.set_xticks(range(len(table.columns)), table.columns)
        panel.set_yticks(range(len(table)), table.index)
        panel.set(title=titles[setting], xlabel="shots")
        panel.grid(False)
        panel.tick_params(length=0)
    look = dict(facecolor="#fdd9b4", edgecolor="#8a3c00", hatch="////", linewidth=0.4)
    words = "vacuous: the bound is at least 1" + (
        ", as in every cell here" if (frame["bound"] >= 1).all() else ""
    )
    legend_outside(figure, [Patch(**look, label=words)])
    return figure


def _hatched(column: int, row: int) -> Patch:
    return Rectangle(
        (column - 0.5, row - 0.5),
        1,
        1,
        fill=False,
        hatch="////",
        edgecolor="#c98a5a",
        linewidth=0,
        zorder=3,
    )


def _by_shots(frame: pd.DataFrame) -> pd.DataFrame:
    order = (
        frame.groupby("title")["samples"].max().sort_values(ascending=False, kind="stable").index
    )
    return frame.pivot(index="title", columns="shots", values="bound").loc[order]


@in_style
def gap_against_bound(frame: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Draw the measured gap over the bound, a panel a number of shots; a point is a data set.

    frame: method, method_label, dataset, shots, bound, gap (in [-1, 1]). means: the same over data
    sets, of `ranks.over_data_sets`, which are outlined.
    """
    shots = sorted(frame["shots"].unique())
    figure = new_figure(TEXT_WIDTH, 2.5)
    panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    methods = list(frame[["method", "method_label"]].drop_duplicates().itertuples(index=False))
    known = list(METHOD_STYLES)
    methods.sort(key=lambda m: known.index(m[0]) if m[0] in known else len(known))
    for panel, k in zip(panels, shots, strict=True):
        part = frame[frame["shots"] == k]
        for method, label in methods:
            rows, style = part[part["method_label"] == label], method_style(method)
            panel.plot(
                rows["bound"], rows["gap"], style.marker, color=style.colour, markeredgewidth=0,
                markersize=4, alpha=0.45, zorder=3,
            )  # fmt: skip
            mean = means[(means["shots"] == k) & (means["method_label"] == label)]
            panel.plot(
                mean["bound"], mean["gap"], style.marker, color=style.colour,
                markeredgecolor="black", markeredgewidth=0.9, markersize=7.5, zorder=4,
            )  # fmt: skip
        panel.axhline(0, color="#a6a6a6", linewidth=0.8)
        panel.set(title=shots_of(k), xscale="log", xlabel="bound on the gap")
        low, high = part["bound"].min() / 1.4, part["bound"].max() * 1.4
        ticks = [
            t
            for t in (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
            if low <= t <= high
        ]
        panel.set(xlim=(low, high))
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("measured gap, train $-$ test accuracy")
    legend_outside(figure, [method_handle(m, label) for m, label in methods])
    return figure


@in_style
def bounds_that_bite(frame: pd.DataFrame) -> Figure:
    """Draw error on the sample, test error and bound of each row, a panel for each data set.

    frame: dataset, setting, prior ("fixed beforehand" or "from the data"), bits, empirical_error,
    test_error, bound, chance, zero_shot_bound. The dashed line is zero-shot's bound without any
    bits, the dotted one the error of guessing.
    """
    datasets = list(dict.fromkeys(frame["dataset"]))
    tallest = max((frame["dataset"] == name).sum() for name in datasets)
    lines, columns = math.ceil(len(datasets) / 2), min(2, len(datasets))
    figure = new_figure(TEXT_WIDTH, 0.3 + (0.7 + 0.23 * tallest) * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(datasets) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, datasets, strict=False):
        rows = frame[frame["dataset"] == name].reset_index(drop=True)
        _draw_rows(panel, rows)
        panel.set(title=name, xlabel="error", xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
        panel.xaxis.set_major_formatter(ScalarFormatter())
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=GREY,
            markerfacecolor="white",
            label="on the sample",
        ),
        Line2D([], [], marker="x", linestyle="", color="#333333", label="test"),
        Line2D(
            [],
            [],
            marker="|",
            linestyle="",
            color="#333333",
            markersize=9,
            markeredgewidth=2,
            label="bound",
        ),
        Line2D(
            [], [], color=GREY, linestyle="--", linewidth=0.9, label="zero-shot's bound, 0 bits"
        ),
        Line2D([], [], color="#a6a6a6", linestyle=":", linewidth=1.2, label="guessing"),
    ]
    legend_outside(figure, handles, columnspacing=1.2)
    return figure


def _draw_rows(panel: Axes, rows: pd.DataFrame) -> None:
    colours = {
        "fixed beforehand": method_style("frozen_a").colour,
        "from the data": method_style("block_lora").colour,
    }
    for i, row in rows.iterrows():
        colour = GREY if row["setting"] == "zero-shot" else colours[row["prior"]]
        look = dict(color=colour, clip_on=False)  # an error may be 0 or 1
        panel.plot([row["empirical_error"], row["bound"]], [i, i], **look, linewidth=1.2, zorder=2)
        panel.plot(row["empirical_error"], i, "o", **look, markerfacecolor="white", zorder=3)
        panel.plot(
            row["test_error"], i, "x", **look | dict(color="#333333"), markersize=4.5, zorder=4
        )
        panel.plot(row["bound"], i, "|", **look, markersize=9, markeredgewidth=2, zorder=3)
    panel.axvline(rows["chance"].iloc[0], color="#a6a6a6", linestyle=":", linewidth=1.2, zorder=1)
    panel.axvline(
        rows["zero_shot_bound"].iloc[0], color=GREY, linestyle="--", linewidth=0.9, zorder=1
    )
    panel.set_yticks(range(len(rows)), rows["setting"])
    panel.grid(axis="y", visible=False)
