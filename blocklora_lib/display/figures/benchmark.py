"""Figures of the records of benchmarks: a step beside other code, and how it grows. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..style import (
    GREY,
    TEXT_WIDTH,
    apart,
    in_style,
    legend_outside,
    method_style,
    new_figure,
    plain_log_ticks,
)

OTHER_STEPS = {
    "clip_lora": ("#1A1A1A", "^", "CLIP-LoRA's code"),
    "peft": (GREY, "X", "peft in a plain loop"),
}
ONE = {"classes": "a class", "images": "an image", "rank": "a unit of rank", "blocks": "a block"}
ROOFLINE = {
    "classes": "classes",
    "variant": "variant",
    "products": "products",
    "gflop": "GFLOP",
    "step_rate": "GFLOP/s in a step",
    "alone_rate": "alone",
    "share": "share",
    "share_low": "at least",
    "share_high": "at most",
}


@in_style
def steps_by_classes(frame: pd.DataFrame) -> Figure:
    """Draw seconds of a training step over the classes, and its peak of memory if measured.

    frame: classes, name, seconds_median, seconds_q1, seconds_q3 and, perhaps, peak_bytes, as
    benchmarks/step.py writes them; several baselines give the same rows.
    """
    frame = frame.drop_duplicates(["classes", "name"]).sort_values("classes")
    has_memory = "peak_bytes" in frame and frame["peak_bytes"].notna().any()
    figure = new_figure(TEXT_WIDTH, 2.9)
    panels = figure.subplots(1, 1 + has_memory, squeeze=False)[0]
    for form, part in frame.groupby("name", sort=False):
        colour, marker, label = _step_style(form)
        look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.0}
        off = [
            part["seconds_median"] - part["seconds_q1"],
            part["seconds_q3"] - part["seconds_median"],
        ]
        panels[0].errorbar(
            part["classes"], part["seconds_median"], yerr=off, label=label, elinewidth=1.2, **look
        )
        if has_memory:
            panels[1].plot(part["classes"], part["peak_bytes"] / 2**30, **look)
    classes = sorted(frame["classes"].unique())
    for panel, quantity in zip(panels, ("s a step", "peak, GiB"), strict=False):
        panel.set(xlabel="classes", ylabel=quantity, xscale="log", yscale="log")
        panel.set_xticks(classes, [str(c) for c in classes])
        panel.xaxis.minorticks_off()
        plain_log_ticks(panel.yaxis)
    legend_outside(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def _ratio(row: dict[str, Any]) -> str:
    interval = f" [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]"
    return f"{row['ratio']:.3g}" + (interval if row["ratio_low"] == row["ratio_low"] else "")


def steps_table(
    frame: pd.DataFrame, ratio: Callable[[dict[str, Any]], str] = _ratio
) -> pd.DataFrame:
    """Return what `steps_by_classes` draws as a table, with the ratios to each baseline.

    ratio: how to write a row's ratio of times; by default with the 95% interval of its median. '-'
    where nothing was measured.
    """
    keys = ["classes", "name"]
    first = frame.drop_duplicates(keys, ignore_index=True)
    shown = first[keys].copy()
    shown["s a step"] = [f"{s:.3g}" for s in first["seconds_median"]]
    if "peak_bytes" in frame:
        shown["peak GiB"] = [f"{b / 2**30:.2f}" if b == b else "-" for b in first["peak_bytes"]]
    for baseline, part in frame.groupby("baseline", sort=False):
        rows = part[part["name"] != baseline]
        told = rows[keys].assign(
            **{f"time / {baseline}": [ratio(row) for row in rows.to_dict("records")]}
        )
        if "peak_ratio" in rows:
            told[f"peak / {baseline}"] = [f"{r:.3g}" if r == r else "-" for r in rows["peak_ratio"]]
        shown = shown.merge(told, on=keys, how="left")
    return shown.fillna("-").sort_values("classes", kind="stable", ignore_index=True)


def _step_style(form: str) -> tuple[str, str, str]:
    """Colour, marker and label of a form of benchmarks/step.py; ours have the method's colour."""
    variant, _, kind = form.partition(" ")
    if variant in OTHER_STEPS:
        return OTHER_STEPS[variant]
    markers = dict(
        zip(("independent", "shared_prefix", "checkpointing", "bf16"), "oDsv", strict=True)
    )
    method = kind or "block_lora"
    name = {"block_lora": "Block-LoRA", "lora": "LoRA"}.get(method, method)
    colour = method_style(method).colour
    return colour, markers.get(variant, "P"), f"{name}, {variant.replace('_', ' ')}"


@in_style
def growth_lines(rows: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Draw seconds of a step over what grows, a panel each, with the fitted line and its slope.

    rows: axis, value, seconds_median, seconds_q1, seconds_q3; lines: axis, quantity, slope (seconds
    a unit), slope_low, slope_high, intercept; both of one variant, as benchmarks/scaling.py writes
    them. A slope whose interval holds 0 is open; threads get no line.
    """
    axes, fitted = (
        list(dict.fromkeys(rows["axis"])),
        lines[lines["quantity"] == "seconds"].set_index("axis"),
    )
    figure = new_figure(TEXT_WIDTH, 2.0)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _growth(panel, rows[rows["axis"] == axis].sort_values("value"))
        panel.set_xlabel(axis)
        if axis in fitted.index:
            line = fitted.loc[axis]
            low, high = panel.get_xlim()
            ends = pd.Series([max(low, 0), high])
            panel.plot(
                ends, line["intercept"] + line["slope"] * ends, color=GREY, linewidth=0.8, zorder=1
            )
            panel.set_xlim(low, high)
            panel.set_title(_slope(line, axis))
    panels[0].set(ylabel="s a step", ylim=(0, None))
    return figure


def _growth(panel: Axes, rows: pd.DataFrame) -> None:
    median = rows["seconds_median"]
    off = [median - rows["seconds_q1"], rows["seconds_q3"] - median]
    style = method_style("block_lora")
    panel.errorbar(
        rows["value"], median, yerr=off, color=style.colour, marker=style.marker, linestyle="none",
        elinewidth=1.2, markersize=4, zorder=3,
    )  # fmt: skip
    values = rows["value"].tolist()
    # a label of four digits, of the width of one of so many panels
    gap = 0.05 * len(panel.figure.axes) * (values[-1] - values[0])
    shown = zip(values, apart(values, gap), strict=True)
    panel.set_xticks(values, [f"{value:g}" if free else "" for value, free in shown])


def _slope(line: pd.Series, axis: str) -> str:
    if line["slope_low"] > 0 or line["slope_high"] < 0:
        return f"{float(f'{1e3 * line.slope:.2g}'):g} ms {ONE[axis]}"
    return "slope open"


def growth_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the slopes of `lines` in words, in ms and MiB, with their 95% intervals.

    Columns: variant, growth, slope, 95% interval and 'off the line', the largest distance from it
    as a share of the largest value.
    """
    shown = []
    for row in lines.to_dict("records"):
        unit, scale = ("ms", 1e3) if row["quantity"] == "seconds" else ("MiB", 2**-20)
        slope, low, high = (f"{scale * row[f'slope{end}']:.3g}" for end in ("", "_low", "_high"))
        told = {"variant": row["variant"], "growth": f"{unit} {ONE[row['axis']]}", "slope": slope}
        shown.append(
            told | {"95% interval": f"[{low}, {high}]", "off the line": f"{row['residual']:.1%}"}
        )
    return pd.DataFrame(shown)


def roofline_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of benchmarks/roofline.py with columns in words; shares are of 1."""
    return frame[[*ROOFLINE]].rename(columns=ROOFLINE)
