"""Figures of one source on other sets: cross-dataset transfer, and domain-shifted variants."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ...analysis.summaries import AVERAGE, zero_shot
from ..labels import panel_title
from ..style import (
    GREY,
    OTHER,
    TEXT_WIDTH,
    hollow,
    hollow_handle,
    in_style,
    legend_outside,
    new_figure,
    style_handle,
    styles_of,
)
from ..tables import shots_of
from .panels import (
    AVERAGE_SHADE,
    FINE,
    draw_interval,
    draw_shots,
    line_count,
    line_offsets,
    method_handles,
    style_handles,
)


@in_style
def differences_by_set(rows: pd.DataFrame, titles: Mapping[str, str], source: str) -> Figure:
    """Draw transfer.set_differences, a panel for each `against`: source, other sets, average.

    A mean that is not complete is a hollow marker.
    """
    others = sorted(
        set(rows["evaluated_on"]) - {AVERAGE, source}, key=lambda n: titles.get(n, n).lower()
    )
    average = [AVERAGE] if AVERAGE in set(rows["evaluated_on"]) else []
    order = [*average, *others[::-1], *([source] if source in set(rows["evaluated_on"]) else [])]
    names = rows.drop_duplicates("method")[["method", "method_label"]]
    references = list(rows["against"].unique())
    styles = styles_of(names["method"])
    count = line_count(styles)
    offsets = line_offsets(styles, min(0.2, 0.8 / count))
    height = (0.1 + 0.055 * count) * len(order) + 0.95
    figure = new_figure(TEXT_WIDTH, max(2.2, height))
    panels = figure.subplots(1, len(references), sharey=True, squeeze=False)[0]
    for axes, against in zip(panels, references, strict=True):
        part = rows[rows["against"] == against]
        for place, name in enumerate(order):
            if name in (AVERAGE, source):
                shade = AVERAGE_SHADE if name == AVERAGE else "#eef3f7"
                axes.axhspan(place - 0.5, place + 0.5, color=shade, zorder=0)
            for row in part[part["evaluated_on"] == name].itertuples():
                draw_interval(axes, row, place + offsets[row.method], 3.6, styles[row.method])
        axes.axvline(0, color="#333333", linewidth=0.7, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"points above {_name(against)}")
        axes.set_ylim(-0.5, len(order) - 0.5)
    shown = {
        source: f"{titles.get(source, source)} (source)",
        AVERAGE: f"Average of {len(others)} sets",
    }
    panels[0].set_yticks(range(len(order)), [shown.get(n, titles.get(n, n)) for n in order])
    handles = style_handles(names, "bar", linestyle="-")
    if not rows["complete"].all():
        handles.append(hollow_handle("hollow: fewer seeds or sets"))
    legend_outside(figure, handles)
    return figure


def _name(method: str) -> str:
    return {"zero_shot": "zero-shot", "lora": "LoRA of rank r"}.get(method, method)


@in_style
def domain_by_shots(summary: pd.DataFrame, titles: Mapping[str, str], source: str) -> Figure:
    """Draw accuracy over shots (0: zero-shot) on the source, each variant, and their average."""
    variants = [name for name in summary["dataset"].unique() if name not in (source, AVERAGE)]
    names = [source, *variants, *([AVERAGE] if AVERAGE in set(summary["dataset"]) else [])]
    shown = {
        source: f"{titles.get(source, source)} (source)",
        AVERAGE: f"Average of {len(variants)} variants",
    }
    styles, columns = styles_of(summary["method"]), min(3, len(names))
    lines = math.ceil(len(names) / columns)
    width = TEXT_WIDTH * (0.4 + 0.2 * columns)
    figure = new_figure(width, 1.75 * lines + 0.55)
    grid = figure.subplots(lines, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(names):
            axes.set_visible(False)
            continue
        draw_shots(axes, summary[summary["dataset"] == names[i]], styles)
        title = shown.get(names[i], titles.get(names[i], names[i]))
        axes.set_title(panel_title(title, width / columns))
        if i % columns == 0:
            axes.set_ylabel("accuracy (%)")
        if i + columns >= len(names):
            axes.set_xlabel("shots per class")
        if names[i] == AVERAGE:
            axes.set_facecolor(AVERAGE_SHADE)
    handles = method_handles(summary)
    legend_outside(figure, handles, "lower center", handlelength=2.2)
    return figure


@in_style
def robustness_plane(rows: pd.DataFrame) -> Figure:
    """Draw mean accuracy on the variants against accuracy on the source.

    A path over shots for each method. rows: method, method_label, shots, source, variants (%),
    complete, of transfer.robustness. Markers grow with the shots: methods end close together, where
    numbers beside the points would cover each other.
    """
    counts = sorted(int(k) for k in rows["shots"].unique() if k > 0)
    sizes = {k: 3.0 + 5.0 * i / max(1, len(counts) - 1) for i, k in enumerate(counts)}
    figure = new_figure(0.8 * TEXT_WIDTH, 3.2)
    axes = figure.subplots()
    handles = []
    labels = dict(zip(rows["method"], rows["method_label"], strict=True))
    styles = styles_of(labels)
    for method, style in styles.items():
        part, label = rows[rows["method"] == method].sort_values("shots"), labels[method]
        if style is OTHER:
            axes.plot(part["source"], part["variants"], style.line, color=style.colour, **FINE)
            last = part.iloc[-1]
            axes.plot(last.source, last.variants, "o", color=style.colour, markersize=3, zorder=1.8)
            continue
        look = dict(color=style.colour, marker=style.marker, label=label)
        if (part["shots"] == 0).all():
            at = part["source"], part["variants"]
            handles += axes.plot(*at, linestyle="none", markersize=8, zorder=4, **look)
            continue
        # its points may lie on Block-LoRA's, which must stay in sight; hollow means something
        # else
        face = to_rgba(style.colour, 0.35) if method == "lora_plus" else style.colour
        axes.plot(
            part["source"], part["variants"], style.line, color=style.colour, linewidth=1, zorder=3
        )
        for row in part.itertuples():
            size = dict(markersize=sizes[row.shots], markerfacecolor=face)
            axes.plot(row.source, row.variants, zorder=3, **look, **size)
            if not row.complete:
                hollow(
                    axes,
                    [row.source],
                    [row.variants],
                    style.marker,
                    style.colour,
                    markersize=sizes[row.shots],
                )
        handles.append(
            Line2D([], [], linestyle=style.line, markersize=4.5, markerfacecolor=face, **look)
        )
    if grey := sum(style is OTHER for style in styles.values()):
        text = f"{grey} others (dot: most shots)"
        handles.append(style_handle(OTHER, text, marker="o", markersize=3))
    axes.margins(0.08)
    if len(zero := zero_shot(rows)):
        start = zero["source"].iloc[0], zero["variants"].iloc[0]
        dashes, text = (0, (3, 2)), "same share kept as zero-shot"
        look = dict(color=GREY, linewidth=0.8, linestyle=dashes, label=text)
        handles.append(axes.axline(start, slope=start[1] / start[0], **look))
    dot = dict(color="#8c8c8c", marker="o", linestyle="none")
    handles += [Line2D([], [], markersize=sizes[k], label=shots_of(k), **dot) for k in counts]
    handles += [] if rows["complete"].all() else [hollow_handle()]
    axes.set_xlabel("accuracy on the source (%)")
    axes.set_ylabel("mean accuracy on its variants (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    legend_outside(figure, handles, "right upper", handlelength=2)
    return figure
