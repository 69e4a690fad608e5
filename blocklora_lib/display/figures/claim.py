"""The figure of the scoreboard: what the controls differ from LoRA by."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..style import (
    GREY,
    TEXT_WIDTH,
    hollow_handle,
    in_style,
    legend_outside,
    method_style,
    new_figure,
)
from .panels import draw_means


@in_style
def differences_by_shots(rows: pd.DataFrame) -> Figure:
    """Draw mean and interval of a paired difference over shots.

    rows: method, method_label, shots, mean, low, high (points), complete.
    """
    figure = new_figure(0.62 * TEXT_WIDTH, 2.5)
    axes = figure.subplots()
    shots, labels = sorted(rows["shots"].unique()), rows["method_label"].unique()
    step = min(0.16, 0.8 / len(labels))
    for i, label in enumerate(labels):
        part = rows[rows["method_label"] == label].sort_values("shots")
        style = method_style(part["method"].iloc[0])
        at = [shots.index(k) + step * (i - (len(labels) - 1) / 2) for k in part["shots"]]
        draw_means(axes, at, part, style, label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_xlabel("shots")
    axes.set_ylabel("points above LoRA of rank r")
    axes.grid(axis="x", visible=False)
    handles = axes.get_legend_handles_labels()[0]
    handles += [] if rows["complete"].all() else [hollow_handle()]
    legend_outside(figure, handles)
    return figure
