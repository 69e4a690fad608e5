"""Figures of the few-shot runs: pure functions of their summaries, see `analysis.summaries`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...analysis.summaries import AVERAGE
from ..labels import as_text, panel_title
from ..style import (
    OTHER,
    TEXT_WIDTH,
    in_style,
    legend_outside,
    method_style,
    new_figure,
    spread,
    styles_of,
)
from .panels import (
    AVERAGE_SHADE,
    draw_gains,
    draw_shots,
    interval_handles,
    line_count,
    method_handles,
    shows_chance,
)

WIDE = 44  # characters of a method's name in one line beside a panel


@in_style
def accuracy_by_shots(
    summary: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Figure:
    """Draw top-1 accuracy over shots, mean and 95% interval, a panel a set and their average.

    summary: of few_shot_summary. titles: dataset -> panel title. chance: dataset -> accuracy of
    guessing, 0 to 1, drawn where it is near.
    """
    titles, chance = dict(titles or {}), dict(chance or {})
    sets = sorted(set(summary["dataset"]) - {AVERAGE}, key=lambda n: str(titles.get(n, n)).lower())
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
    handles, styles = method_handles(summary, chance=any(near)), styles_of(summary["method"])
    width = TEXT_WIDTH * (1 if columns > 2 else 0.7)  # of one panel: the footer's
    figure = new_figure(width, 1.42 * lines + 0.44)
    grid = figure.subplots(lines, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(sets):
            axes.set_visible(False)
            continue
        name = sets[i]
        guess = chance.get(name)
        rows = summary[summary["dataset"] == name]
        draw_shots(axes, rows, styles, None if guess is None else 100 * guess)
        title = panel_title(titles.get(name, name), width / columns)
        axes.set_title(title, fontweight="bold" if name == AVERAGE else "normal")
        if name == AVERAGE:
            axes.set_facecolor(AVERAGE_SHADE)
        if i % columns == 0:
            axes.set_ylabel("accuracy (%)")
        if i + columns >= len(sets):
            axes.set_xlabel("shots per class")
    tight = dict(handlelength=2.2, columnspacing=1.4, handletextpad=0.5, borderaxespad=0.1)
    legend_outside(figure, handles, "lower center", **tight)
    return figure


@in_style
def gain_by_dataset(gains: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """Draw what training gains over zero-shot, set by set; gains: of `summaries.gains`."""
    line = 0.12 + 0.05 * line_count(styles_of(gains["method"]))
    figure = new_figure(TEXT_WIDTH * 0.8, line * gains["dataset"].nunique() + 0.9)
    draw_gains(figure.subplots(), gains, titles or {})
    legend_outside(figure, method_handles(gains, "bar"), handlelength=2)
    return figure


@in_style
def key_figure(
    summary: pd.DataFrame,
    gains: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Figure:
    """Draw the suite's figure: average accuracy over shots (left), gain set by set (right).

    summary: of few_shot_summary, gains: of `summaries.gains`; parameters: method label -> how many
    are trained, written at the end of its line.
    """
    names, titles = set(summary["dataset"]), titles or {}
    name = AVERAGE if AVERAGE in names else sorted(names)[0]
    rows = summary[summary["dataset"] == name]
    styles = styles_of(rows["method"])
    count = line_count(styles)
    line = 0.05 + 0.05 * count
    gap = 0.15 * (2 + max(as_text(name, WIDE).count("\n") for name in rows["method_label"]))
    lines = gap * count + 0.6, line * gains["dataset"].nunique() + 0.75
    figure = new_figure(TEXT_WIDTH, max(2.5, *lines))
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    draw_shots(left, rows, styles)
    own = [name for name, style in styles.items() if style is not OTHER]
    trained = {as_text(label): count for label, count in (parameters or {}).items()}
    _label_lines(left, rows[rows["method"].isin(own)], trained, gap)
    left.set(xlabel="shots per class", ylabel="accuracy (%)")
    average = f"Average of {len(names - {AVERAGE})} sets"
    left.set_title(average if name == AVERAGE else titles.get(name, name))
    draw_gains(right, gains, titles)
    right.set_title("Set by set")
    if handles := interval_handles(pd.concat([rows, gains])):
        legend_outside(figure, handles, "lower center")
    return figure


def _label_lines(axes: Axes, rows: pd.DataFrame, parameters: Mapping[str, int], gap: float) -> None:
    """Write each method's name, and its parameters under it, beside the right end of its line:
    `gap` inches apart.
    """
    ends = rows.sort_values("shots", kind="stable").groupby("method_label", sort=False).tail(1)
    ends = ends[::-1]  # of two that end at the same place, the suite's first stands above
    low, high = axes.get_ylim()
    places = spread(ends["mean"].tolist(), gap / axes.figure.get_size_inches()[1] * (high - low))
    right = axes.get_xlim()[1]
    for row, place in zip(ends.itertuples(), places, strict=True):
        trained = parameters.get(row.method_label, 0)
        axes.annotate(
            as_text(row.method_label, WIDE) + (f"\n{trained:,} parameters" if trained else ""),
            (right, place),
            xytext=(4, 0),
            color=method_style(row.method).colour,
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            linespacing=0.95,
            annotation_clip=False,
        )
