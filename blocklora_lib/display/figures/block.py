"""Figures of what the blocks do: trajectories, distances, spectra, breaks, a shared subspace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import GREY, TEXT_WIDTH, in_style, legend_outside, method_style, new_figure

ZERO = 1e-18  # where a difference of exactly zero is drawn; the tick there says 0
TINTS = ("#D55E00", "#8C3D00", "#F2A36B")  # of Block-LoRA's colour
SPARE = ("#AA3377", "#117733", "#88CCEE", "#999933", "#332288")  # not the colour of any method


@in_style
def differences_over_steps(frame: pd.DataFrame, bar: float) -> Figure:
    """Draw the difference in ΔW over steps, a panel an optimizer, and the bar it must not pass.

    frame: optimizer, run, control (drawn without colour), step, difference.
    """
    optimizers = list(dict.fromkeys(frame["optimizer"]))
    runs = list(dict.fromkeys(frame["run"][~frame["control"]]))
    controls = list(dict.fromkeys(frame["run"][frame["control"]]))
    figure = new_figure(TEXT_WIDTH, 3.0)
    panels = figure.subplots(1, len(optimizers), sharex=True, sharey=True, squeeze=False)[0]
    looks = {name: dict(color=TINTS[k % len(TINTS)], linewidth=1.0) for k, name in enumerate(runs)}
    lines, dotted = ("-", "--", ":"), dict(color=GREY, linestyle=(0, (1, 1)), linewidth=0.9)
    looks |= {
        name: dict(color="black", linestyle=lines[k], linewidth=1.0)
        for k, name in enumerate(controls)
    }
    for panel, optimizer in zip(panels, optimizers, strict=True):
        for run, line in frame[frame["optimizer"] == optimizer].groupby("run", sort=False):
            panel.plot(line["step"], line["difference"].clip(lower=ZERO), **looks[run])
        panel.axhline(bar, **dotted)
        panel.set(yscale="log", title=optimizer, xlabel="step", ylim=(ZERO / 3, 10))
        with_zero(panel, (-15, -12, -9, -6, -3, 0))
    panels[0].set_ylabel("relative difference in ΔW")
    looks["bar"] = dotted
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    legend_outside(figure, handles, "lower center")
    return figure


def with_zero(panel: Axes, powers: Sequence[int], axis: str = "y") -> None:
    """Label the place of zero on a logarithmic axis, and the given powers of ten."""
    values, labels = [ZERO, *(10.0**p for p in powers)], ["0", *(f"$10^{{{p}}}$" for p in powers)]
    (panel.set_yticks if axis == "y" else panel.set_xticks)(values, labels)
    panel.minorticks_off()


@in_style
def distances_of_blocks(frame: pd.DataFrame) -> Figure:
    """Draw max |B_i - B_j| over steps against what decay alone leaves, and the difference in ΔW.

    frame: run, step, distance, predicted (nan where no law is known), difference.
    """
    figure = new_figure(TEXT_WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    handles = []
    for k, (run, line) in enumerate(frame.groupby("run", sort=False)):
        colour = SPARE[k % len(SPARE)]
        start = line["distance"].iloc[0]
        left.plot(line["step"], line["distance"] / start, color=colour, linewidth=2.2, alpha=0.55)
        left.plot(
            line["step"], line["predicted"] / start, color="black", linewidth=0.8, linestyle="--"
        )
        right.plot(line["step"], line["difference"].clip(lower=ZERO), color=colour)
        handles.append(Line2D([], [], color=colour, label=run, linewidth=2))
    handles.append(
        Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="decay alone")
    )
    left.set(xlabel="step", ylabel=r"distance of the $B_i$, start = 1", ylim=(0, None))
    right.set(
        xlabel="step",
        ylabel="relative difference in ΔW\nto one $B$",
        yscale="log",
        ylim=(ZERO / 3, 10),
    )
    with_zero(right, (-15, -12, -9, -6, -3, 0))
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def spectra(frame: pd.DataFrame) -> Figure:
    """Draw singular values of ΔW, largest = 1, one panel a form, one line a site.

    frame: form, method (of METHOD_STYLES), site, index (from 1), value, expected_rank.
    """
    forms = list(dict.fromkeys(frame["form"]))
    figure = new_figure(TEXT_WIDTH, 2.3)
    panels = figure.subplots(1, len(forms), sharex=True, sharey=True, squeeze=False)[0]
    for panel, form in zip(panels, forms, strict=True):
        part = frame[frame["form"] == form]
        colour = method_style(part["method"].iloc[0]).colour
        for _, line in part.groupby("site"):
            panel.plot(
                line["index"], line["value"].clip(lower=ZERO), color=colour, marker="o",
                markersize=2.2, linewidth=0.6, alpha=0.6,
            )  # fmt: skip
        rank = part["expected_rank"].iloc[0]
        panel.axvline(rank + 0.5, color=GREY, linestyle="--", linewidth=0.9)
        panel.set(yscale="log", title=form, xlabel="singular value", ylim=(ZERO / 3, 5))
        panel.set_xticks(range(2, int(frame["index"].max()) + 1, 2))
        panel.text(rank + 0.7, 0.2, f"rank {rank}", fontsize=8, color=GREY, va="bottom")
        with_zero(panel, (-15, -12, -9, -6, -3, 0))
    panels[0].set_ylabel("relative to the largest")
    return figure


@in_style
def breaks(frame: pd.DataFrame, bar: float) -> Figure:
    """Draw for each change how far ΔW ends up from its collapsed form, and how far apart the B_i.

    frame: what, against, optimizer, expected ("coincides" or "leaves"),
    difference, spread_of_blocks.
    """
    figure = new_figure(TEXT_WIDTH, 0.8 + 0.165 * len(frame))
    figure.get_layout_engine().set(
        w_pad=0.1
    )  # small type is wider in print than the layout takes it
    panel = figure.subplots()
    for at, (_, row) in enumerate(frame.iloc[::-1].iterrows()):
        kept = row["expected"] == "coincides"
        colour = method_style("collapsed").colour if kept else method_style("block_lora").colour
        panel.plot(max(row["difference"], ZERO), at, "D" if kept else "s", color=colour, zorder=3)
        panel.plot(
            max(row["spread_of_blocks"], ZERO),
            at,
            "|",
            color="black",
            markersize=8,
            markeredgewidth=1.1,
        )
    panel.axvline(bar, color=GREY, linestyle=(0, (1, 1)), linewidth=0.9)
    names = [f"{r.what} [{r.optimizer}] vs {r.against}" for r in frame.iloc[::-1].itertuples()]
    panel.set_yticks(range(len(frame)), names, fontsize=7)
    panel.set(
        xscale="log",
        xlabel="relative difference",
        xlim=(ZERO / 3, max(30, 3 * frame[["difference", "spread_of_blocks"]].max().max())),
        ylim=(-0.7, len(frame) - 0.3),
    )
    with_zero(panel, (-15, -12, -9, -6, -3, 0), "x")
    shown = dict(linestyle="")
    handles = [
        Line2D(
            [],
            [],
            color=method_style("collapsed").colour,
            marker="D",
            label="ΔW, theory: coincides",
            **shown,
        ),
        Line2D(
            [],
            [],
            color=method_style("block_lora").colour,
            marker="s",
            label="ΔW, theory: leaves",
            **shown,
        ),
        Line2D(
            [], [], color="black", marker="|", markersize=8, label="spread among the $B_i$", **shown
        ),
    ]
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def sharing(frame: pd.DataFrame) -> Figure:
    """Draw the update's error against n: where sharing must fail, and where a small rank helps.

    frame: task ("fails", "helps"), form ("block_lora", "lora"), samples, n_blocks, floor, mean,
    low, high.
    """
    figure = new_figure(TEXT_WIDTH, 2.7)
    left, right = figure.subplots(1, 2)
    fails, helps = (
        frame[frame["task"] == task].sort_values("n_blocks") for task in ("fails", "helps")
    )
    ours = method_style("block_lora")
    part = fails[fails["form"] == "block_lora"]
    left.plot(
        part["n_blocks"], part["floor"], color="black", linestyle="--", linewidth=0.9, label="floor"
    )
    left.plot(
        part["n_blocks"], part["mean"], ours.marker, color=ours.colour, label="Block-LoRA, trained"
    )
    directions = int(fails["directions"].iloc[0])
    left.set(
        title=f"{directions} equal directions wanted",
        ylabel=r"error $‖ΔW-Z‖^2/‖Z‖^2$",
        ylim=(-0.04, 1),
    )
    left.legend(loc="best")
    styles = ("-", "--", ":")
    sizes = sorted(helps["samples"].unique())
    for form in ("block_lora", "lora"):
        look = method_style(form)
        for samples, line in zip(sizes, styles, strict=False):
            part = helps[(helps["form"] == form) & (helps["samples"] == samples)]
            shift = 0.97 if form == "block_lora" else 1.03
            spread = np.abs(part[["low", "high"]].to_numpy().T - part["mean"].to_numpy())
            right.errorbar(
                part["n_blocks"] * shift, part["mean"], spread, color=look.colour,
                marker=look.marker, linestyle=line, linewidth=1.0,
            )  # fmt: skip
    right.set(title="one direction wanted, few noisy samples", yscale="log")
    # with few seeds an interval may reach below zero, which is nowhere on this axis
    lowest = helps[["mean", "low"]].where(helps[["mean", "low"]] > 0).min().min()
    right.set_ylim(bottom=min(helps["mean"].min() / 2, lowest / 1.3))
    handles = [
        Line2D(
            [],
            [],
            color=method_style(f).colour,
            marker=method_style(f).marker,
            label=label,
            linestyle="",
        )
        for f, label in (("block_lora", "Block-LoRA"), ("lora", "LoRA of rank $r/n$"))
    ]
    handles += [
        Line2D([], [], color="black", linestyle=line, linewidth=1.0, label=f"{samples} samples")
        for samples, line in zip(sizes, styles, strict=False)
    ]
    legend_outside(figure, handles, "lower center")
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(frame["n_blocks"].unique()), sorted(frame["n_blocks"].unique()))
        panel.set_xlabel("blocks n")
        panel.minorticks_off()
    return figure


@in_style
def readings(frame: pd.DataFrame) -> Figure:
    """Draw what each form leaves of each target, trained (marker) and at best (line).

    frame: target, form, method (of METHOD_STYLES, or a spare one), n_blocks, error, floor.
    """
    targets = list(dict.fromkeys(frame["target"]))
    figure = new_figure(TEXT_WIDTH, 2.6)
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    forms = dict(zip(frame["form"], frame["method"], strict=True))
    lines, sizes = (
        iter(("-", "-", "--", ":")),
        iter((3.5, 4.5, 6.5, 8.5)),
    )  # later ones lie below, larger
    looks = {
        form: dict(
            color=method_style(m).colour, marker=method_style(m).marker, linestyle=next(lines),
            markersize=next(sizes),
            markerfacecolor="none" if m == "lora" else method_style(m).colour,
        )
        for form, m in forms.items()
    }  # fmt: skip
    for panel, target in zip(panels, targets, strict=True):
        for form in reversed(forms):
            part = frame[(frame["target"] == target) & (frame["form"] == form)].sort_values(
                "n_blocks"
            )
            look = looks[form]
            panel.plot(part["n_blocks"], part["floor"], **look | {"marker": ""}, linewidth=1.0)
            panel.plot(part["n_blocks"], part["error"], **look | {"linestyle": ""})
        panel.set_xscale("log", base=2)
        ticks = sorted(frame["n_blocks"].unique())
        panel.set_xticks(ticks, ticks)
        panel.minorticks_off()
        panel.set(title=target, xlabel="blocks n", ylim=(-0.04, 1.04))
    panels[0].set_ylabel(r"error $‖ΔW-Z‖^2/‖Z‖^2$")
    handles = [Line2D([], [], linewidth=1.0, label=form, **look) for form, look in looks.items()]
    legend_outside(figure, handles, "lower center")
    return figure
