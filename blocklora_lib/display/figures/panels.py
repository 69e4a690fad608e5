"""Panels that several figures share: accuracy over shots, gains set by set, and their legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...analysis.summaries import AVERAGE
from ..style import OTHER, MethodStyle, hollow, hollow_handle, style_handle, styles_of
from ..tables import shots_of

ZERO_SHOT_AT = 0.5  # where zero-shot stands on the log2 axis of shots: one octave left of 1 shot
AVERAGE_SHADE = "#f7f5ef"
FINE = dict(linewidth=0.6, markersize=3, zorder=1.8)  # of what is grey
CHANCE = dict(color="#a6a6a6", linestyle=(0, (1, 1.2)))


def draw_shots(
    axes: Axes,
    rows: pd.DataFrame,
    styles: Mapping[str, MethodStyle],
    chance: float | None = None,
) -> None:
    """Draw mean and 95% band over shots of each method of `rows`, a part of few_shot_summary.

    styles: of the whole figure's methods (`styles_of`); what is grey has no band. A mean that is
    not complete is a hollow marker. chance (%) is drawn where `shows_chance` says so: a line far
    below would flatten what is to be seen.
    """
    shots = sorted(int(s) for s in rows["shots"].unique() if s > 0)
    for label in rows["method_label"].unique():
        part = rows[rows["method_label"] == label].sort_values("shots")
        style = styles[part["method"].iloc[0]]
        look = dict(color=style.colour, linestyle=style.line)
        if (part["shots"] == 0).all():
            level = part["mean"].iloc[0]
            axes.axhline(level, **look, linewidth=0.9, zorder=1.5)
            star = dict(color=style.colour, markersize=7, zorder=4, clip_on=False)
            axes.plot(ZERO_SHOT_AT, level, style.marker, **star)
            continue
        if style is OTHER:
            axes.plot(part["shots"], part["mean"], marker=style.marker, **look, **FINE)
            fewer = part[~part["complete"]]
            hollow(axes, fewer["shots"], fewer["mean"], style.marker, style.colour, **FINE)
            continue
        ends = part["low"].clip(0, 100), part["high"].clip(0, 100)
        axes.fill_between(
            part["shots"], *ends, color=style.colour, alpha=0.13, linewidth=0, zorder=2
        )
        edge = dict(markeredgecolor="white", markeredgewidth=0.5)
        axes.plot(part["shots"], part["mean"], marker=style.marker, **look, **edge, zorder=3)
        fewer = part[~part["complete"]]
        hollow(axes, fewer["shots"], fewer["mean"], style.marker, style.colour)
    if chance is not None and shows_chance(rows, chance):
        axes.axhline(chance, **CHANCE, linewidth=0.8, zorder=1)
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
) -> list[Artist]:
    """Return legend handles: methods in the suite's order, how intervals are drawn, and chance.

    What `styles_of` draws in grey shares a handle.
    """
    handles: list[Artist] = [*style_handles(rows, interval)]
    handles += interval_handles(rows, interval)
    if chance:
        handles.append(Line2D([], [], **CHANCE, linewidth=1, label="chance"))
    return handles


def style_handles(
    rows: pd.DataFrame, interval: Literal["band", "bar"], **more: Any
) -> list[Line2D]:
    """Return the handles of methods alone, as `styles_of` draws them: one for all grey ones."""
    labels = dict(zip(rows["method"], rows["method_label"], strict=True))
    styles = styles_of(labels)
    handles = [
        style_handle(
            style, labels[name], **{"markersize": 8 if name == "zero_shot" else 4.5} | more
        )
        for name, style in styles.items()
        if style is not OTHER
    ]
    if grey := len(styles) - len(handles):
        look = dict(marker="|", markeredgecolor=OTHER.colour, markeredgewidth=1.0, linestyle="none")
        text = f"{grey} others (named in the table)"
        handles.append(style_handle(OTHER, text, **(look if interval == "bar" else {})))
    return handles


def interval_handles(rows: pd.DataFrame, interval: Literal["band", "bar"] = "band") -> list[Artist]:
    """Return what explains intervals and hollow markers, where a row of the summary has such."""
    look = dict(color="#8c8c8c", label="95% interval over seeds")
    band = Patch(**look, alpha=0.3, linewidth=0)
    drawn = band if interval == "band" else Line2D([], [], **look, linewidth=1.1)
    handles: list[Artist] = [drawn] if (rows["n"] > 1).any() else []
    return handles + ([] if rows["complete"].all() else [hollow_handle()])


def draw_gains(axes: Axes, rows: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Draw one row a set, largest mean gain on top, the average in a row of its own below.

    Dots with 95% intervals, hollow where the mean is not complete. What `styles_of` draws in grey
    shares a line, without intervals.
    """
    sets = rows[rows["dataset"] != AVERAGE].groupby("dataset")["mean"].mean().sort_values()
    order = ([AVERAGE] if AVERAGE in set(rows["dataset"]) else []) + sets.index.tolist()
    styles = styles_of(rows["method"])
    offsets = line_offsets(styles, min(0.26, 0.8 / max(1, line_count(styles))))
    size = 4.5 if len(styles) < 4 else 3.2
    for place, name in enumerate(order):
        if name == AVERAGE or place % 2:
            shade = AVERAGE_SHADE if name == AVERAGE else "#fafafa"
            axes.axhspan(place - 0.5, place + 0.5, color=shade, zorder=0)
        for row in rows[rows["dataset"] == name].itertuples():
            draw_interval(axes, row, place + offsets[row.method], size, styles[row.method])
    axes.axvline(0, color="#333333", linewidth=0.7, zorder=1)
    names = [titles.get(n, "Average" if n == AVERAGE else n) for n in order]
    axes.set_yticks(range(len(order)), names)
    for tick, name in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if name == AVERAGE else "normal")
    axes.set_ylim(-0.5, len(order) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    shots = shots_of(int(rows["shots"].iloc[0]))
    axes.set_xlabel(f"points above zero-shot at {shots}")


def line_count(styles: Mapping[str, MethodStyle]) -> int:
    """How many lines a set's intervals take: one a method, and one for all grey ones."""
    return len({name if style is not OTHER else "" for name, style in styles.items()})


def line_offsets(styles: Mapping[str, MethodStyle], step: float) -> dict[str, float]:
    """How far from its set's middle each method's line lies: the first highest, grey ones last."""
    own = [name for name, style in styles.items() if style is not OTHER]
    top = step * (line_count(styles) - 1) / 2
    return {name: top - step * (own.index(name) if name in own else len(own)) for name in styles}


def draw_interval(axes: Axes, row: Any, y: float, size: float, style: MethodStyle) -> None:
    """Draw a summary's row at height y: a dot, hollow if not complete, and its interval."""
    if style is OTHER:
        axes.plot(row.mean, y, "|", color=style.colour, markersize=4.5, zorder=1.8)
        return
    look = dict(color=style.colour, zorder=2)
    if row.low == row.low:  # one seed gives no interval
        axes.plot([row.low, row.high], [y, y], linewidth=1.1, alpha=0.65, **look)
    look |= dict(markersize=size, markeredgecolor="white", markeredgewidth=0.3, zorder=3)
    axes.plot(row.mean, y, style.marker, **look)
    if not row.complete:
        hollow(axes, [row.mean], [y], style.marker, style.colour, markersize=size)


def draw_means(
    axes: Axes, at: Sequence[float], rows: pd.DataFrame, style: MethodStyle, label: str
) -> None:
    """Draw the means of `rows` (mean, low, high, complete) with their intervals as bars, at places
    on x. A mean that is not complete is a hollow marker.
    """
    ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    look = dict(fmt=style.marker, color=style.colour, capsize=2.5, elinewidth=1)
    axes.errorbar(at, rows["mean"], ends, label=label, **look)
    fewer = rows.assign(at=at)[~rows["complete"]]
    hollow(axes, fewer["at"], fewer["mean"], style.marker, style.colour)
