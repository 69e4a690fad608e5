"""Figures of paired timings and of memory: medians, quartiles and intervals. No torch."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import (
    GREY,
    TEXT_WIDTH,
    MethodStyle,
    in_style,
    legend_outside,
    method_style,
    new_figure,
    plain_log_ticks,
)

# base and merged are weights alone; beside them stands the method's own colour
FORM_STYLES = {
    "base": MethodStyle(GREY, "o"),
    "base_again": MethodStyle("#A6A6A6", "o"),
    "unmerged": method_style("block_lora"),
    "merged": MethodStyle("#1A1A1A", "D"),
    "merged_kept": MethodStyle("#E69F00", "P"),
}
LABELS = {"base_again": "base, a second copy", "merged_kept": "merged, W kept"}


@in_style
def latency(frame: pd.DataFrame, margin: float) -> Figure:
    """Draw milliseconds an image, and the ratio to the base, over the batch size.

    frame: columns batch, form and those of `timing.ratios`. Thick: quartiles over the rounds. Thin:
    the 95% interval of the median. A hollow marker: it holds 1. The band is what counts as
    equal, 1 ± margin.
    """
    figure = new_figure(TEXT_WIDTH, 2.75)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    for form in dict.fromkeys(frame["form"]):
        _milliseconds(left, frame[frame["form"] == form], FORM_STYLES[form])
    shown = [form for form in dict.fromkeys(frame["form"]) if form != "base"]
    right.axhspan(1 - margin, 1 + margin, color="#e6e6e6", zorder=0, linewidth=0)
    right.axhline(1, color=GREY, linewidth=0.8, zorder=1)
    for i, form in enumerate(shown):
        offset = 0.22 * (i - (len(shown) - 1) / 2)
        _ratios(right, frame[frame["form"] == form], FORM_STYLES[form], offset)
    batches = sorted(frame["batch"].unique())
    left.set(xlabel="images at once", ylabel="ms an image", xscale="log", yscale="log")
    left.set_xticks(batches, [str(b) for b in batches])
    left.xaxis.minorticks_off()
    plain_log_ticks(left.yaxis)
    right.set(xlabel="images at once", ylabel="time / time of the base")
    right.set_xticks(range(len(batches)), [str(b) for b in batches])
    right.set_xlim(-0.5, len(batches) - 0.5)
    right.grid(axis="x", visible=False)
    handles = [_handle(form) for form in dict.fromkeys(frame["form"])]
    legend_outside(figure, handles)
    return figure


def _milliseconds(panel: Axes, rows: pd.DataFrame, style: MethodStyle) -> None:
    scale = 1e3 / rows["batch"]
    median, q1, q3 = (rows[f"seconds_{c}"] * scale for c in ("median", "q1", "q3"))
    panel.errorbar(
        rows["batch"], median, yerr=[median - q1, q3 - median], color=style.colour,
        marker=style.marker, elinewidth=1.2, markersize=4, linewidth=1.0,
    )  # fmt: skip


def _ratios(panel: Axes, rows: pd.DataFrame, style: MethodStyle, offset: float) -> None:
    rows = rows.sort_values("batch")
    for i, row in enumerate(rows.to_dict("records")):
        x = i + offset
        if row["ratio_low"] == row["ratio_low"]:  # no interval from fewer than 6 rounds
            panel.plot(
                [x, x], [row["ratio_low"], row["ratio_high"]], color=style.colour, linewidth=0.9
            )
            for end in ("ratio_low", "ratio_high"):
                panel.plot(x, row[end], marker="_", color=style.colour, markersize=6)
        panel.plot(
            [x, x], [row["ratio_q1"], row["ratio_q3"]], color=style.colour, linewidth=3.2,
            alpha=0.45, solid_capstyle="butt",
        )  # fmt: skip
        panel.plot(
            x, row["ratio"], marker=style.marker, color=style.colour, markersize=5,
            markerfacecolor=style.colour if row["resolved"] else "white", zorder=3,
        )  # fmt: skip


def _handle(form: str) -> Line2D:
    style = FORM_STYLES[form]
    return Line2D(
        [], [], color=style.colour, marker=style.marker, linestyle="none", markersize=5,
        label=LABELS.get(form, form),
    )  # fmt: skip


@in_style
def memory(frame: pd.DataFrame) -> Figure:
    """Draw peak and counted weights above the base's, by form; a panel for each batch size.

    frame: of `memory.above_base`, a row for each repeat, each of which is a marker of its own.
    """
    forms, batches = list(dict.fromkeys(frame["form"])), sorted(frame["batch"].unique())
    figure = new_figure(TEXT_WIDTH, 0.33 * len(forms) + 1.05)
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        _memory_at(panel, frame[frame["batch"] == batch], forms)
        panel.set_title("1 image at once" if batch == 1 else f"{batch} images at once")
    panels[0].set_yticks(range(len(forms)), [LABELS.get(form, form) for form in forms])
    panels[0].invert_yaxis()
    handles = [
        Line2D([], [], color="#d9d9d9", linewidth=6, label="weights, counted"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="none", linestyle="none",
               label="peak of a process, measured"),
    ]  # fmt: skip
    legend_outside(figure, handles)
    return figure


def _memory_at(panel: Axes, frame: pd.DataFrame, forms: list[str]) -> None:
    for y, form in enumerate(forms):
        rows, style = frame[frame["form"] == form], FORM_STYLES[form]
        panel.barh(y, rows["weights_above"].iloc[0], height=0.55, color="#d9d9d9", zorder=1)
        panel.plot(
            rows["peak_above"], [y] * len(rows), linestyle="none", color=style.colour,
            marker=style.marker, zorder=3, markerfacecolor="none", markersize=6,
        )  # fmt: skip
    panel.axvline(0, color=GREY, linewidth=0.8)
    panel.use_sticky_edges = False  # a peak of 0 lies on the edge of its bar
    panel.margins(x=0.1)
    panel.grid(axis="y", visible=False)
    panel.set_xlabel(f"MiB above the base's {frame['base_peak'].iloc[0]:.1f}")
