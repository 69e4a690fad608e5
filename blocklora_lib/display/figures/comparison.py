"""Figures of many methods at once: accuracy, ranks, fronts, the price of a leak.

Each is a pure function of a frame of `analysis.rankings`. A colour is a class of cost; two methods
stand out, the rest is named where it stands. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...analysis.rankings import Ranks, pareto_front
from ..labels import as_text
from ..style import (
    GREY,
    TEXT_WIDTH,
    hollow,
    in_style,
    legend_outside,
    method_style,
    new_figure,
)
from ..tables import shots_of

CLASSES: Mapping[str, tuple[str, str]] = {  # what a method's gradients pass -> colour, marker
    "cached features": ("#009E73", "o"),
    "text tower": ("#E69F00", "^"),
    "both towers": ("#0072B2", "s"),
}
AXES: Mapping[str, tuple[str, float]] = {  # a cost -> what its axis says, in units of
    "trainable_parameters": ("trained parameters", 1.0),
    "seconds_train": ("seconds of fitting", 1.0),
    "fit_bytes": ("memory of fitting (MiB)", 2.0**20),
}
LIGHT = "#9a9a9a"
WIDE = 26  # characters of a method's name in one line, where names take the room of what is drawn


def _handles(classes: Sequence[str]) -> list[Line2D]:
    seen = [name for name in CLASSES if name in set(classes)]
    return [
        Line2D([], [], color=CLASSES[n][0], marker=CLASSES[n][1], linestyle="none", label=n)
        for n in seen
    ]


@in_style
def accuracy_of_methods(rows: pd.DataFrame, told: Sequence[str]) -> Figure:
    """Draw the mean accuracy of each method, a line a method and a panel a number of shots.

    rows: method, method_label, shots, mean, low, high (points), complete, cost; methods stand from
    the best down by their mean at the most shots that they have. told: methods whose names are
    bold. Where zero-shot stands, a line goes through all. A mean that is not complete is hollow.
    Of no rows, as where no seed has all sets, a panel is empty.
    """
    shots = sorted(set(rows["shots"]) - {0}) or [0]  # no trained mean yet
    zero = rows[rows["shots"] == 0]
    at = rows["shots"].where(rows["shots"] > 0, shots[-1])  # what trains nothing stands at each
    last = rows.assign(at=at).sort_values(["at", "mean"], ascending=False)
    order = {name: i for i, name in enumerate(dict.fromkeys(last["method"]))}
    figure = new_figure(TEXT_WIDTH, 0.8 + 0.165 * len(order))
    panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    for panel, k in zip(panels, shots, strict=True):
        part = pd.concat([zero, rows[rows["shots"] == k]])
        for row in part[part["method"].isin(order)].itertuples():
            colour, marker = CLASSES[row.cost]
            y = order[row.method]
            panel.plot([row.low, row.high], [y, y], color=colour, linewidth=1.0)
            panel.plot(row.mean, y, marker, color=colour, markersize=4.5, zorder=3)
            if not row.complete:
                hollow(panel, [row.mean], [y], marker, colour, markersize=4.5)
        for value in zero["mean"]:
            panel.axvline(value, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
        panel.set(title=shots_of(k), xlabel="accuracy (%)")
    names = last.drop_duplicates("method")
    ticks = panels[0].set_yticks(range(len(order)), names["method_label"].tolist())
    for tick, name in zip(ticks, names["method"], strict=True):
        tick.label1.set_fontweight("bold" if name in told else "normal")
    panels[0].set_ylim(len(order) - 0.4, -0.6)
    if order:
        legend_outside(figure, _handles(rows["cost"].tolist()), "lower center")
    return figure


@in_style
def critical_difference(
    ranks: Mapping[int, Ranks], labels: Mapping[str, str], told: Sequence[str]
) -> Figure:
    """Draw mean ranks, a panel a number of shots: the best on top, a bar joins what is alike.

    ranks: by shots. labels, told: of methods, and those whose names are bold. Bars are as Demšar
    (2006) draws them: methods that differ by less than the critical difference share one. Without
    ranks, as where no set has all methods, a panel is empty.
    """
    most = max((len(found.mean) for found in ranks.values()), default=0)
    names = {name: as_text(label, WIDE) for name, label in labels.items()}
    figure = new_figure(TEXT_WIDTH, 0.75 + 0.075 * most * (1 + _lines(names.values())))
    figure.get_layout_engine().set(w_pad=0.06)
    panels = figure.subplots(1, max(len(ranks), 1), squeeze=False)[0]
    for panel, (k, found) in zip(panels, ranks.items(), strict=bool(ranks)):
        order = found.mean.sort_values(kind="stable")
        place = {name: i for i, name in enumerate(order.index)}
        bars, step = found.alike, max(0.5, (order.max() - order.min()) / 50)
        for i, (first, last) in enumerate(bars):
            x = order.max() + (i + 1) * step
            panel.plot([x, x], [place[first], place[last]], color="#333333", linewidth=1.6)
        for name, rank in order.items():
            style, known = method_style(str(name)), name in told
            panel.plot(
                rank, place[name], style.marker if known else "o", markersize=5,
                color=style.colour if known else LIGHT, zorder=3,
            )  # fmt: skip
        panel.set_yticks(
            range(len(order)), [names[str(name)] for name in order.index], linespacing=0.9
        )
        for tick, name in zip(panel.get_yticklabels(), order.index, strict=True):
            tick.set_fontweight("bold" if name in told else "normal")
        panel.tick_params(axis="y", labelsize=7)
        panel.set_ylim(len(order) - 0.4, -2.2)
        panel.set_xlim(order.min() - 0.6, order.max() + step * (len(bars) + 1))
        if found.critical < order.max() - order.min():
            ends = [order.min(), order.min() + found.critical]
            panel.plot(ends, [-1, -1], "|-", color=GREY, markersize=5, linewidth=1.1)
            panel.text(sum(ends) / 2, -1.2, "CD", ha="center", fontsize=7, color=GREY)
        title = f"{shots_of(k)}, {found.n} set{'s' * (found.n != 1)}"
        panel.set(title=title, xlabel="mean rank")
    return figure


@in_style
def fronts(rows: pd.DataFrame, told: Sequence[str]) -> Figure:
    """Draw accuracy against each cost, and the front of methods that no other one beats.

    rows: method, method_label, cost (class), accuracy, complete, image_passes, the columns AXES,
    at one number of shots. Named are methods on the front and those told; the others are grey. What
    is not complete is hollow, and on no front. At the left edge of trained parameters stands what
    trains none, of the other costs what looks at no image and fits nothing. A cost that a row lacks
    has no panel, since the front of some is not that of all.
    """
    axes = {column: axis for column, axis in AXES.items() if rows[column].notna().all()}
    figure = new_figure(TEXT_WIDTH, 3.1)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, (column, (label, unit)) in zip(panels, axes.items(), strict=True):
        part = rows.assign(x=(rows[column] / unit).where(rows["image_passes"] > 0, 0))
        part["front"] = pareto_front(part["x"], part["accuracy"], part["complete"])
        least = part.loc[part["x"] > 0, "x"].min()
        none, wide = (part["x"] == 0).any(), part["x"].max() > 10 * least
        if wide:
            part["x"] = part["x"].clip(lower=least / 4)  # a log scale has no 0
        _front(panel, part.sort_values(["x", "accuracy"]), told)
        panel.set_xscale("log" if wide else "linear")
        panel.margins(x=0.18 if wide else 0.3)
        panel.set_xlabel(f"{label}\n(left edge: none)" if none else label)
    panels[0].set_ylabel("accuracy (%)")
    legend_outside(figure, _handles(rows["cost"].tolist()), "lower center")
    return figure


def _front(panel: Axes, part: pd.DataFrame, told: Sequence[str]) -> None:
    on = part[part["front"]]
    panel.step(on["x"], on["accuracy"], where="post", color="#333333", linewidth=0.9, zorder=2)
    shown = part["front"] | part["method"].isin(told)
    for row, named in zip(part.itertuples(), shown, strict=True):
        colour, marker = CLASSES[row.cost]
        colour = colour if named else "#cfcfcf"
        look = dict(markersize=5, zorder=4) if named else dict(markersize=3.5, zorder=3)
        panel.plot(row.x, row.accuracy, marker, color=colour, **look)
        if not row.complete:
            hollow(panel, [row.x], [row.accuracy], marker, colour, **look)
    low, high = part["x"].min(), part["x"].max()
    middle = (low * high) ** 0.5 if low else high / 2
    reach = part["accuracy"].max() - part["accuracy"].min()
    gap = 0.06 * (reach or float(np.ptp(panel.get_ylim())))  # of equal ones, what the axis shows
    names = part[shown].sort_values("accuracy", ascending=False)
    names["left"] = names["x"] > middle  # a name stands towards the middle
    names["method_label"] = [  # half of a panel is room for twenty characters
        as_text(label, 20 if len(label) > 24 else 0) for label in names["method_label"]
    ]
    gap *= _lines(names["method_label"])
    # to the right of its mark runs the step
    wanted = names["accuracy"] + gap / 2 * ~names["left"]
    heights = _apart(wanted.tolist(), gap, part["accuracy"].min())
    for row, height in zip(names.itertuples(), heights, strict=True):
        left = row.left
        panel.annotate(
            row.method_label, (row.x, row.accuracy), (-9 if left else 9, height),
            textcoords=("offset points", "data"), ha="right" if left else "left",
            va="center", fontsize=7, linespacing=0.9,
            fontweight="bold" if row.method in told else "normal",
            arrowprops=dict(
                arrowstyle="-", linewidth=0.4, color=LIGHT, shrinkA=0, shrinkB=0,
                relpos=(float(left), 0.5),
            ),
            bbox=dict(facecolor="white", alpha=0.6, linewidth=0, pad=0.4), zorder=5,
        )  # fmt: skip


def _lines(names: Iterable[str]) -> int:
    """Of how many lines the longest of some names is."""
    return max((name.count("\n") + 1 for name in names), default=1)


def _apart(heights: Sequence[float], gap: float, least: float) -> list[float]:
    """Heights, the highest first, moved down until none is within a gap of the next, then up from
    the least.
    """
    found, free = [], math.inf
    for height in heights:
        found.append(free := min(height, free - gap))
    free = least
    for i in reversed(range(len(found))):
        found[i] = max(found[i], free)
        free = found[i] + gap
    return found


@in_style
def price_of_a_leak(rows: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw what choosing on test images seems to gain, a dot a set, in points of accuracy.

    rows: dataset, shots, chosen (what was chosen on test), gain.
    """
    shots, kinds = sorted(rows["shots"].unique()), list(dict.fromkeys(rows["chosen"]))
    figure = new_figure(TEXT_WIDTH, 0.9 + 0.19 * rows["dataset"].nunique())
    panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    looks = [dict(color="#b0b0b0", marker="o"), dict(color="#CC3311", marker="D")]
    wide = rows.groupby("dataset")["gain"].max().sort_values()
    place = {name: i for i, name in enumerate(wide.index)}
    for panel, k in zip(panels, shots, strict=True):
        for kind, look in zip(kinds, looks, strict=True):
            part = rows[(rows["shots"] == k) & (rows["chosen"] == kind)]
            panel.plot(part["gain"], part["dataset"].map(place), **look, linestyle="none")
            panel.axvline(part["gain"].mean(), color=look["color"], linewidth=0.9)
        panel.axvline(0, color="#333333", linewidth=0.8)
        panel.set(title=shots_of(k), xlabel="points gained")
    panels[0].set_yticks(range(len(place)), [titles.get(name, name) for name in place])
    handles = [
        Line2D([], [], linestyle="none", label=f"{kind} on test", **look)
        for kind, look in zip(kinds, looks, strict=True)
    ]
    legend_outside(figure, handles, "lower center")
    return figure
