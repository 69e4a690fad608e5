"""Figures of the scoreboard: differences to LoRA, accuracy by number of blocks, where training collapses."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..plotting import GREY, STYLE, TEXT_WIDTH, method_style, new_figure

READINGS = {
    "total_rank": "r is the total rank",
    "block_rank": "r is the rank of each block",
    "input": "cut along the input",
}


def differences_by_shots(rows: pd.DataFrame) -> Figure:
    """Draw mean and interval of a paired difference over shots.

    rows: method, method_label, shots, mean, low, high (points).
    """
    with rc_context(dict(STYLE)):
        figure = new_figure(0.62 * TEXT_WIDTH, 2.5)
        axes = figure.subplots()
        shots, labels = sorted(rows["shots"].unique()), rows["method_label"].unique()
        for i, label in enumerate(labels):
            part = rows[rows["method_label"] == label].sort_values("shots")
            style = method_style(part["method"].iloc[0])
            at = [shots.index(k) + 0.16 * (i - (len(labels) - 1) / 2) for k in part["shots"]]
            spread = [part["mean"] - part["low"], part["high"] - part["mean"]]
            axes.errorbar(
                at,
                part["mean"],
                spread,
                fmt=style.marker,
                color=style.colour,
                capsize=2.5,
                elinewidth=1,
                label=label,
            )
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        axes.set_xlabel("shots")
        axes.set_ylabel("points above LoRA of rank r")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper center", ncols=len(labels))
    return figure


def number_of_blocks(rows: pd.DataFrame) -> Figure:
    """Draw accuracy against n, one panel a reading and one line a set.

    rows: reading, rank, n_blocks, dataset, accuracy, low, high (0 to 1).
    """
    with rc_context(dict(STYLE)):
        rows = rows.astype({"n_blocks": int, "rank": int})
        readings = [reading for reading in READINGS if reading in set(rows["reading"])]
        figure = new_figure(0.42 * TEXT_WIDTH * len(readings), 2.4)
        panels = figure.subplots(1, len(readings), squeeze=False, sharey=True)[0]
        colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
        for axes, reading in zip(panels, readings, strict=True):
            part = rows[rows["reading"] == reading]
            for i, (name, line) in enumerate(part.groupby("dataset")):
                line = line.sort_values("n_blocks")
                mean = 100 * line["accuracy"]
                spread = [mean - 100 * line["low"], 100 * line["high"] - mean]
                axes.errorbar(
                    line["n_blocks"] * 1.05**i,  # bars of two sets side by side
                    mean,
                    spread,
                    marker="osD^v"[i % 5],
                    color=colours[i % 5],
                    capsize=2.5,
                    elinewidth=0.9,
                    label=name,
                )
            axes.set_xscale("log", base=2)
            counts = sorted(part["n_blocks"].unique())
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.set_xlabel("blocks n")
            axes.set_title(f"{READINGS[reading]}: r = {part['rank'].iloc[0]}")
        panels[0].set_ylabel("top-1 accuracy (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def collapse_map(rows: pd.DataFrame) -> Figure:
    """Draw accuracy over learning rate and initial scale of A_s, one panel a set.

    rows: dataset, lr, init_scale, accuracy (0 to 1; absent where every run diverged).
    """
    with rc_context(dict(STYLE)):
        sets = list(rows["dataset"].unique())
        figure = new_figure(min(1, 0.2 + 0.42 * len(sets)) * TEXT_WIDTH, 2.3)
        panels = figure.subplots(1, len(sets), squeeze=False)[0]
        for axes, name in zip(panels, sets, strict=True):
            part = rows[rows["dataset"] == name]
            table = 100 * part.pivot(index="init_scale", columns="lr", values="accuracy").sort_index()
            image = axes.imshow(table, cmap="cividis", vmin=0, aspect="auto", origin="lower")
            middle = image.norm.vmax / 2
            for y, scale in enumerate(table.index):
                for x, lr in enumerate(table.columns):
                    value = table.loc[scale, lr]
                    if pd.notna(value):
                        axes.text(
                            x,
                            y,
                            f"{value:.1f}",
                            ha="center",
                            va="center",
                            color="w" if value < middle else "k",
                        )
            axes.set_xticks(range(len(table.columns)), [f"{lr:g}" for lr in table.columns])
            axes.set_yticks(range(len(table.index)), [f"{scale:g}" for scale in table.index])
            axes.set_xlabel("learning rate")
            axes.set_ylabel("initial scale of $A_s$")
            axes.set_title(name)
            axes.grid(visible=False)
            figure.colorbar(image, ax=axes, label="top-1 accuracy (%)")
    return figure
