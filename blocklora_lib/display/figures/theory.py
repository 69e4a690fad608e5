"""Figures of this suite's own theory: laws of rates, certified gains, information, cuts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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
        shift = 0.22 * (sizes.index(row.n_blocks) - (len(sizes) - 1) / 2)
        at = len(names) - 1 - names.index(row.optimizer) + shift
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


@in_style
def one_curve(frame: pd.DataFrame, zero: float, earliest: float) -> Figure:
    """Draw accuracy over the rate of B and over τ for each form, and over τ/τ* for each case.

    frame: part ("forms", of the first case; "another rate of A"; "cases", the others), form, case,
    rate (of B), tau, threshold (τ*), accuracy (%). zero: zero-shot accuracy. Dotted: so much of τ*
    as `earliest` says; grey: from twice as much to τ*.
    """
    figure = new_figure(TEXT_WIDTH, 2.5)
    by_rate, by_tau, by_share = figure.subplots(1, 3, sharey=True)
    forms, other = (frame[frame["part"] == part] for part in ("forms", "another rate of A"))
    cases = frame[frame["part"] != "another rate of A"]
    colours, handles = ("#0072B2", "#009E73", "#E69F00", "#D55E00"), []
    for (form, line), colour, marker in zip(
        forms.sort_values("tau").groupby("form", sort=False), colours, "os^D", strict=False
    ):
        look = dict(color=colour, marker=marker, markersize=4)
        by_rate.plot(line["rate"], line["accuracy"], **look, linewidth=0.9)
        by_tau.plot(line["tau"], line["accuracy"], **look, linestyle="")
        handles.append(Line2D([], [], **look, linewidth=0.9, label=form))
    mean = forms.groupby("tau")["accuracy"].mean()
    by_tau.plot(mean.index, mean, color="#a6a6a6", linewidth=0.9, zorder=1)
    look = dict(color="black", marker="x", linestyle=":", linewidth=0.9)
    by_tau.plot(other["tau"], other["accuracy"], **look)
    handles.append(Line2D([], [], **look, label="another rate of A"))
    for (case, line), dashes, marker in zip(
        cases.groupby("case", sort=False), ("-", "--", "-.", ":"), "vPX<", strict=False
    ):
        look = dict(color="#7A4EAB", marker=marker, linestyle=dashes, linewidth=1.0)
        means = line.groupby("tau")["accuracy"].mean()
        by_share.plot(means.index / line["threshold"].iloc[0], means, **look)
        handles.append(Line2D([], [], **look, label=case))
    for axes, at in ((by_tau, forms["threshold"].iloc[0]), (by_share, 1.0)):
        axes.axvspan(2 * at * earliest, at, color="#e4e4e4", linewidth=0, zorder=0)
        axes.axvline(at * earliest, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
    names = ("rate of B, $η_B$", "$τ = n\\,s\\,σ\\,η_B$", "$τ / τ^*$, each case its own")
    for axes, name in zip(figure.axes, names, strict=True):
        axes.axhline(zero, color="#a6a6a6", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
        axes.set(xscale="log", xlabel=name)
        axes.minorticks_off()
    by_rate.set(ylabel="accuracy (%)", ylim=(0, 1.06 * max(zero, frame["accuracy"].max())))
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def certified_gains(frame: pd.DataFrame) -> Figure:
    """Draw for each row the gain that was seen and the least that is certified, in points.

    frame: panel, row, seen, certified; rows of one name share a line. A gain is certified where the
    line begins above 0.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    tallest = frame.groupby("panel")["row"].nunique().max()
    figure = new_figure(TEXT_WIDTH, 0.9 + 0.165 * tallest)
    figure.get_layout_engine().set(w_pad=0.1)  # as in `breaks`
    colours = {True: method_style("block_lora").colour, False: GREY}
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        part = frame[frame["panel"] == name]
        rows = list(dict.fromkeys(part["row"]))
        for given in part.itertuples():
            at, colour = rows.index(given.row), colours[given.certified > 0]
            axes.plot([given.certified, given.seen], [at, at], color=colour, linewidth=1.2)
            axes.plot(given.seen, at, "o", color=colour, markerfacecolor="white", zorder=3)
            axes.plot(given.certified, at, "|", color=colour, markersize=9, markeredgewidth=2)
        axes.axvline(0, color="#a6a6a6", linewidth=0.9, zorder=1)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set(title=name, xlabel="gain over zero-shot (points)", ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
    marks = {"o": "seen", "|": "at least"}
    handles = [
        Line2D([], [], color=GREY, marker=m, linestyle="", markerfacecolor="white", label=label)
        for m, label in marks.items()
    ]
    handles += [
        Line2D([], [], color=colours[sure], label=words)
        for sure, words in ((True, "certified"), (False, "not certified"))
    ]
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def information_over_supersamples(frame: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Draw bounds on the error by what the losses tell of the sample, over supersamples counted.

    frame: method (of METHOD_STYLES), supersamples, member and left_out (errors), bound, conditional
    (bounds on the error of images that are left out). labels: of the methods.
    """
    figure = new_figure(TEXT_WIDTH, 2.6)
    axes = figure.subplots()
    looks = {"conditional": ":", "bound": "-", "left_out": "--", "member": "-."}
    words = {"conditional": "bound, given the supersample", "bound": "bound by I(ΔL; U)"}
    words |= {"left_out": "error on those left out", "member": "on those trained on"}
    for width, method in zip((3.2, 1.2, 1.2), labels, strict=False):
        line = frame[frame["method"] == method].sort_values("supersamples")
        for column, dashes in looks.items():
            look = dict(color=method_style(method).colour, linestyle=dashes, linewidth=width)
            axes.plot(line["supersamples"], line[column], marker=".", **look)
    axes.axhline(1, color=GREY, linewidth=0.9)
    top = max(1, frame[["bound", "conditional"]].max().max())
    axes.set(xlabel="supersamples", ylabel="error", ylim=(0, 1.1 * top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [
        Line2D([], [], color="black", linestyle=dashes, linewidth=1.0, label=words[column])
        for column, dashes in looks.items()
    ]
    handles += [
        Line2D([], [], color=method_style(method).colour, linewidth=width, label=label)
        for width, (method, label) in zip((3.2, 1.2, 1.2), labels.items(), strict=False)
    ]
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def when_a_cut_pays(frame: pd.DataFrame) -> Figure:
    """Draw risk over samples for each n: predicted (line) and trained (marker), a panel a task.

    frame: task, samples, n_blocks, predicted, mean, low, high. The best n of each number of samples
    is ringed, as trained, and crossed, as predicted.
    """
    tasks = list(dict.fromkeys(frame["task"]))
    figure = new_figure(TEXT_WIDTH, 2.8)
    sizes = sorted(frame["n_blocks"].unique())
    looks = dict(zip(sizes, ("#0072B2", "#009E73", "#E69F00", "#D55E00"), strict=False))
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        part = frame[frame["task"] == task]
        for n, line in part.sort_values("samples").groupby("n_blocks"):
            axes.plot(line["samples"], line["predicted"], color=looks[n], linewidth=1.1)
            axes.vlines(line["samples"], line["low"], line["high"], color=looks[n], linewidth=0.9)
            axes.plot(line["samples"], line["mean"], "o", color=looks[n], markersize=3.5)
        best = part.loc[part.groupby("samples")["mean"].idxmin()]
        axes.plot(best["samples"], best["mean"], "o", color="black", mfc="none", markersize=8)
        best = part.loc[part.groupby("samples")["predicted"].idxmin()]
        axes.plot(best["samples"], best["predicted"], "x", color="black", markersize=5, zorder=4)
        drawn = part[["low", "mean", "predicted"]]
        axes.set(title=task, xlabel="training samples $N$", xscale="log", yscale="log")
        axes.set_ylim(bottom=drawn.where(drawn > 0).min().min() / 1.4)
        axes.set_xticks(sorted(part["samples"].unique()), sorted(part["samples"].unique()))
        axes.minorticks_off()
    figure.axes[0].set_ylabel(r"error $‖ΔW-Z‖^2/‖Z‖^2$")
    handles = [Line2D([], [], color=looks[n], marker="o", label=f"n = {n}") for n in sizes]
    for marker, size, words in (("o", 8, "best n, trained"), ("x", 5, "best n, predicted")):
        look = dict(linestyle="", color="black", markerfacecolor="none", markersize=size)
        handles.append(Line2D([], [], marker=marker, label=words, **look))
    legend_outside(figure, handles, "lower center")
    return figure
