"""Figures of the few-shot runs: pure functions of a frame of runs. plotting.py has their common
looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...analysis.summaries import AVERAGE, few_shot_summary, gains
from ..style import (
    GREY,
    HOLLOW,
    STYLE,
    TEXT_WIDTH,
    hollow,
    hollow_handle,
    method_style,
    new_figure,
    spread,
)
from ..tables import shots_of

ZERO_SHOT_AT = 0.5  # where zero-shot stands on the log2 axis of shots: one octave left of 1 shot


def draw_shots(axes: Axes, rows: pd.DataFrame, chance: float | None = None) -> None:
    """Draw mean and 95% band over shots for each method of `rows`, a part of few_shot_summary, in a
    panel.

    A mean that is not complete is a hollow marker.

    chance (%) is drawn where `shows_chance` says so: a line far below would flatten what is to be
    seen.
    """
    shots = sorted(int(s) for s in rows["shots"].unique() if s > 0)
    for label in rows["method_label"].unique():
        part = rows[rows["method_label"] == label].sort_values("shots")
        style = method_style(part["method"].iloc[0])
        if (part["shots"] == 0).all():
            axes.axhline(
                part["mean"].iloc[0],
                color=style.colour,
                linestyle=style.line,
                linewidth=0.9,
                zorder=1.5,
            )
            axes.plot(
                ZERO_SHOT_AT,
                part["mean"].iloc[0],
                style.marker,
                color=style.colour,
                markersize=7,
                zorder=4,
                clip_on=False,
            )
            continue
        axes.fill_between(
            part["shots"],
            part["low"].clip(0, 100),
            part["high"].clip(0, 100),
            color=style.colour,
            alpha=0.13,
            linewidth=0,
            zorder=2,
        )
        axes.plot(
            part["shots"],
            part["mean"],
            style.line,
            marker=style.marker,
            color=style.colour,
            zorder=3,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
        fewer = part[~part["complete"]]
        if len(fewer):
            hollow(axes, fewer["shots"], fewer["mean"], style.marker, style.colour)
    if chance is not None and shows_chance(rows, chance):
        axes.axhline(chance, color="#a6a6a6", linewidth=0.8, linestyle=(0, (1, 1.2)), zorder=1)
    axes.set_xscale("log", base=2)
    zero = (rows["shots"] == 0).any()
    ticks = ([ZERO_SHOT_AT] if zero else []) + [float(s) for s in shots]
    axes.set_xticks(ticks, (["0"] if zero else []) + [str(s) for s in shots])
    axes.set_xlim(min(ticks, default=1) / 1.25, max(ticks, default=1) * 1.2)
    axes.yaxis.get_major_locator().set_params(nbins=5, steps=[1, 2, 5, 10], integer=True)


def shows_chance(rows: pd.DataFrame, chance: float) -> bool:
    """Whether chance (%) lies no further below the means of `rows` than these lie apart."""
    return rows["mean"].min() - chance <= rows["mean"].max() - rows["mean"].min()


def method_handles(
    rows: pd.DataFrame, interval: Literal["band", "bar"] = "band", chance: bool = False
) -> list[Any]:
    """Return legend handles: each method label of rows in the suite's order, how intervals are
    drawn, and chance.
    """
    handles: list[Any] = []
    for method, label in rows[["method", "method_label"]].drop_duplicates().itertuples(index=False):
        style = method_style(method)
        size = 8 if method == "zero_shot" else 4.5
        handles.append(
            Line2D(
                [],
                [],
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                label=label,
                markersize=size,
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
        )
    if (rows["n"] > 1).any():
        text = "95% interval over seeds"
        handles.append(
            Patch(facecolor="#8c8c8c", alpha=0.3, linewidth=0, label=text)
            if interval == "band"
            else Line2D([], [], color="#8c8c8c", linewidth=1.1, label=text)
        )
    if not rows["complete"].all():
        handles.append(hollow_handle())
    if chance:
        handles.append(
            Line2D([], [], color="#a6a6a6", linestyle=(0, (1, 1.2)), linewidth=1, label="chance")
        )
    return handles


def accuracy_by_shots(
    runs: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Figure:
    """The grid: one panel a set and their average; top-1 accuracy over shots, mean and 95% interval
    over seeds.

    titles: dataset -> panel title. chance: dataset -> accuracy of guessing, 0 to 1, drawn where it
    is near.
    """
    summary = few_shot_summary(runs)
    titles, chance = dict(titles or {}), dict(chance or {})
    sets = sorted(
        set(summary["dataset"]) - {AVERAGE}, key=lambda name: titles.get(name, name).lower()
    )
    if AVERAGE in set(summary["dataset"]):
        titles.setdefault(AVERAGE, f"Average of {len(sets)} sets")
        sets = [AVERAGE, *sets]
        if chance and len(chance) >= len(sets) - 1:
            chance[AVERAGE] = sum(chance[s] for s in sets[1:]) / len(sets[1:])
    columns = min(4, len(sets))
    lines = math.ceil(len(sets) / columns)
    near = [
        shows_chance(part, 100 * chance[s]) for s, part in summary.groupby("dataset") if s in chance
    ]
    handles = method_handles(summary, chance=any(near))
    legend_columns = math.ceil(len(handles) / math.ceil(len(handles) / min(6, 2 * columns)))
    height = 1.42 * lines + 0.25 + 0.19 * math.ceil(len(handles) / legend_columns)
    with rc_context(dict(STYLE)):
        figure = new_figure(TEXT_WIDTH * (1 if columns > 2 else 0.3 + 0.2 * columns), height)
        grid = figure.subplots(lines, columns, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= len(sets):
                axes.set_visible(False)
                continue
            name = sets[i]
            guess = chance.get(name)
            draw_shots(
                axes, summary[summary["dataset"] == name], None if guess is None else 100 * guess
            )
            axes.set_title(
                titles.get(name, name), fontweight="bold" if name == AVERAGE else "normal"
            )
            if name == AVERAGE:
                axes.set_facecolor("#f7f5ef")
            if i % columns == 0:
                axes.set_ylabel("Accuracy (%)")
            if i + columns >= len(sets):
                axes.set_xlabel("Shots per class")
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=legend_columns,
            handlelength=2.2,
            columnspacing=1.4,
            handletextpad=0.5,
            borderaxespad=0.1,
        )
    return figure


def draw_gains(axes: Axes, rows: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Draw one row a set, largest mean gain on top, the average in a row of its own below; dots
    with 95% intervals, hollow where the mean is not complete.
    """
    order = (
        rows[rows["dataset"] != AVERAGE]
        .groupby("dataset")["mean"]
        .mean()
        .sort_values()
        .index.tolist()
    )
    order = ([AVERAGE] if AVERAGE in set(rows["dataset"]) else []) + order
    labels = rows["method_label"].unique().tolist()
    step = min(0.26, 0.8 / max(len(labels), 1))
    size = 4.5 if len(labels) < 4 else 3.2
    for place, name in enumerate(order):
        if name == AVERAGE:
            axes.axhspan(place - 0.5, place + 0.5, color="#f7f5ef", zorder=0)
        elif place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#fafafa", zorder=0)
        for i, label in enumerate(labels):
            part = rows[(rows["dataset"] == name) & (rows["method_label"] == label)]
            for row in part.itertuples():
                style = method_style(row.method)
                y = place + step * ((len(labels) - 1) / 2 - i)
                if row.n > 1:
                    axes.plot(
                        [row.low, row.high],
                        [y, y],
                        color=style.colour,
                        linewidth=1.1,
                        alpha=0.65,
                        solid_capstyle="butt",
                        zorder=2,
                    )
                axes.plot(
                    row.mean,
                    y,
                    style.marker,
                    color=style.colour,
                    markersize=size,
                    markeredgecolor="white",
                    markeredgewidth=0.3,
                    zorder=3,
                )
                if not row.complete:
                    hollow(axes, [row.mean], [y], style.marker, style.colour, markersize=size)
    axes.axvline(0, color="#333333", linewidth=0.7, zorder=1)
    names = [titles.get(n, "Average" if n == AVERAGE else n) for n in order]
    axes.set_yticks(range(len(order)), names)
    for tick, name in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if name == AVERAGE else "normal")
    axes.set_ylim(-0.5, len(order) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"Gain over zero-shot at {shots_of(int(rows['shots'].iloc[0]))} (points)")


def gain_by_dataset(
    runs: pd.DataFrame, titles: Mapping[str, str] | None = None, shots: int | None = None
) -> Figure:
    """What training on `shots` images a class (default: the most in the frame) gains over
    zero-shot, set by set.
    """
    rows = gains(runs, shots)
    with rc_context(dict(STYLE)):
        line = 0.12 + 0.05 * rows["method_label"].nunique()
        figure = new_figure(TEXT_WIDTH * 0.8, line * rows["dataset"].nunique() + 0.9)
        draw_gains(figure.subplots(), rows, titles or {})
        figure.legend(
            handles=method_handles(rows, "bar"), loc="outside upper center", ncols=4, handlelength=2
        )
    return figure


def key_figure(runs: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """The suite's figure: average accuracy over shots, with parameters (left), gain set by set
    (right).
    """
    summary = few_shot_summary(runs)
    names = set(summary["dataset"])
    titles = titles or {}
    rows = summary[summary["dataset"] == (AVERAGE if AVERAGE in names else sorted(names)[0])]
    gain = gains(runs)
    with rc_context(dict(STYLE)):
        line = 0.05 + 0.05 * gain["method_label"].nunique()
        figure = new_figure(TEXT_WIDTH, max(2.5, line * gain["dataset"].nunique() + 0.75))
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        draw_shots(left, rows)
        _label_lines(left, rows, _trained_parameters(runs))
        left.set(xlabel="Shots per class", ylabel="Accuracy (%)")
        left.set_title(
            f"Average of {len(names - {AVERAGE})} sets"
            if AVERAGE in names
            else titles.get(*names, *names)
        )
        said = ["bands, bars: 95% intervals over seeds"] if (rows["n"] > 1).any() else []
        said += [HOLLOW] if not (rows["complete"].all() and gain["complete"].all()) else []
        if said:
            left.text(
                0.03,
                0.97,
                "\n".join(said),
                transform=left.transAxes,
                va="top",
                fontsize=7.5,
                color=GREY,
            )
        draw_gains(right, gain, titles)
        right.set_title("Set by set")
    return figure


def _trained_parameters(runs: pd.DataFrame) -> dict[str, str]:
    """Return label -> ' · 12,345' trainable parameters, where the runs of a label agree on one
    number.
    """
    if "trainable_parameters" not in runs.columns:
        return {}
    counts = (
        runs.dropna(subset=["trainable_parameters"])
        .groupby("method_label")["trainable_parameters"]
        .unique()
    )
    return {
        label: f"{int(c[0]):,} parameters"
        for label, c in counts.items()
        if len(c) == 1 and c[0] > 0
    }


def _label_lines(axes: Axes, rows: pd.DataFrame, notes: Mapping[str, str]) -> None:
    """Write each method's name, and a note under it, beside the right end of its line."""
    ends = rows.sort_values("shots", kind="stable").groupby("method_label", sort=False).tail(1)
    ends = ends[
        ::-1
    ]  # of two that end at the same place, the first in the suite's order stands above
    low, high = axes.get_ylim()
    places = spread(ends["mean"].tolist(), 0.3 / axes.figure.get_size_inches()[1] * (high - low))
    right = axes.get_xlim()[1]
    for row, place in zip(ends.itertuples(), places, strict=True):
        colour, note = method_style(row.method).colour, notes.get(row.method_label)
        axes.annotate(
            row.method_label + (f"\n{note}" if note else ""),
            (right, place),
            xytext=(4, 0),
            color=colour,
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            linespacing=0.95,
            annotation_clip=False,
        )
