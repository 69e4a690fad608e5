"""Figures of the records of benchmarks: a step beside other code, and how it grows.  No torch."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plotting import GREY, STYLE, TEXT_WIDTH, method_style, new_figure

OTHER_STEPS = {"clip_lora": ("#1A1A1A", "^", "CLIP-LoRA's code"), "peft": (GREY, "X", "peft in a plain loop")}
ONE = {"classes": "a class", "images": "an image", "rank": "a unit of rank", "blocks": "a block"}


def steps_by_classes(frame: pd.DataFrame) -> Figure:
    """Draw seconds of a training step, and its peak of memory where it was measured, over the classes.

    frame: classes, name, seconds_median, seconds_q1, seconds_q3 and, perhaps, peak_bytes, as
    benchmarks/step.py writes them; several baselines give the same rows.
    """
    frame = frame.drop_duplicates(["classes", "name"]).sort_values("classes")
    has_memory = "peak_bytes" in frame and frame["peak_bytes"].notna().any()
    with rc_context(dict(STYLE)):
        figure = new_figure(TEXT_WIDTH, 2.9)
        panels = figure.subplots(1, 1 + has_memory, squeeze=False)[0]
        for form, part in frame.groupby("name", sort=False):
            colour, marker, label = _step_style(form)
            look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.0}
            off = [part["seconds_median"] - part["seconds_q1"], part["seconds_q3"] - part["seconds_median"]]
            panels[0].errorbar(
                part["classes"], part["seconds_median"], yerr=off, label=label, elinewidth=1.2, **look
            )
            if has_memory:
                panels[1].plot(part["classes"], part["peak_bytes"] / 2**30, **look)
        classes = sorted(frame["classes"].unique())
        for panel, quantity in zip(panels, ("s a step", "peak, GiB"), strict=False):
            panel.set(xlabel="classes", ylabel=quantity, xscale="log", yscale="log")
            panel.set_xticks(classes, [str(c) for c in classes])
            low, high = panel.get_ylim()
            ticks = [t * 10**e for e in range(-4, 5) for t in (1, 2, 5)]
            ticks = [t for t in ticks if low <= t <= high]
            panel.set_yticks(ticks, [f"{t:g}" for t in ticks])
            panel.minorticks_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def steps_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what `steps_by_classes` draws as a table, with the ratios of time and peak to each baseline."""
    keys = ["classes", "name"]
    shown = frame.drop_duplicates(keys)[[*keys, "seconds_median"]].reset_index(drop=True)
    for baseline, part in frame.groupby("baseline", sort=False):
        columns = {c: f"{c} to {baseline}" for c in ("ratio", "ratio_low", "ratio_high", "peak_ratio")}
        kept = [*keys, *(c for c in columns if c in part)]
        shown = shown.merge(part[kept].rename(columns=columns), on=keys, how="left")
    return shown


def _step_style(form: str) -> tuple[str, str, str]:
    """Colour, marker and label of a form of benchmarks/step.py; ours have the method's colour."""
    variant, _, kind = form.partition(" ")
    if variant in OTHER_STEPS:
        return OTHER_STEPS[variant]
    markers = dict(zip(("independent", "shared_prefix", "checkpointing", "bf16"), "oDsv", strict=True))
    method = kind or "block_lora"
    name = {"block_lora": "Block-LoRA", "lora": "LoRA"}.get(method, method)
    colour = method_style(method).colour
    return colour, markers.get(variant, "P"), f"{name}, {variant.replace('_', ' ')}"


def growth_lines(rows: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Draw seconds of a step over what grows, a panel each, with the fitted line and its slope.

    rows: axis, value, seconds_median, seconds_q1, seconds_q3; lines: axis, quantity, slope (seconds a unit),
    intercept; both of one variant, as benchmarks/scaling.py writes them. Threads get no line.
    """
    axes, fitted = list(dict.fromkeys(rows["axis"])), lines[lines["quantity"] == "seconds"].set_index("axis")
    with rc_context(dict(STYLE)):
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
                panel.set_title(f"{1e3 * line['slope']:+.2g} ms {ONE[axis]}")
        panels[0].set(ylabel="s a step", ylim=(0, None))
    return figure


def growth_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the slopes of `lines` in ms and MiB, with their 95% intervals.

    Columns: variant, growth, slope, low, high and 'off the line', the largest distance from it as a share of
    the largest value.
    """
    shown = []
    for row in lines.to_dict("records"):
        unit, scale = ("ms", 1e3) if row["quantity"] == "seconds" else ("MiB", 2**-20)
        low, high = scale * row["slope_low"], scale * row["slope_high"]
        shown.append({"variant": row["variant"], "growth": f"{unit} {ONE[row['axis']]}",
                      "slope": scale * row["slope"], "low": low, "high": high,
                      "off the line": row["residual"]})  # fmt: skip
    return pd.DataFrame(shown)


def _growth(panel: Axes, rows: pd.DataFrame) -> None:
    median = rows["seconds_median"]
    off = [median - rows["seconds_q1"], rows["seconds_q3"] - median]
    style = method_style("block_lora")
    panel.errorbar(
        rows["value"], median, yerr=off, color=style.colour, marker=style.marker, linestyle="none",
        elinewidth=1.2, markersize=4, zorder=3,
    )  # fmt: skip
    panel.set_xticks(rows["value"])
