"""Figures of what adapters cost by count: growth with n, parts of a step, memory. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...costs.ways import WAYS
from ..style import GREY, TEXT_WIDTH, in_style, legend_outside, method_style, new_figure

# a reading of the cut is a kind of line; the colour stays the method's
CUT_LINES: Mapping[str, str] = {"along the rank": "-", "along the input": ":"}
LABELS: Mapping[str, str] = {
    "lora": "LoRA",
    "dense": "LoRA, $BA$ formed",
    "block_lora": "Block-LoRA",
    "frozen_a": "w/o $A$",
    "collapsed": "collapsed",
}
PARTS: Mapping[str, tuple[str, str]] = {  # part of a step -> colour, label
    "frozen forward": ("#d9d9d9", "frozen weights, forward"),
    "frozen backward": ("#a6a6a6", "frozen weights, backward"),
    "adapters forward": ("#E69F00", "adapters, forward"),
    "adapters backward": ("#8C6D1F", "adapters, backward"),
}
FORM_COLOURS: Mapping[str, str] = {  # a way to compute has its method's colour
    form: method_style(way.kind).colour for form, way in WAYS.items()
}
COMPONENTS: Mapping[str, tuple[str, str]] = {  # component of memory -> colour, label
    "weights": ("#7f7f7f", "frozen weights"),
    "images": ("#88CCEE", "activations of images"),
    "prompts": ("#AA3377", "activations of prompts"),
    "temporary": ("#DDCC77", "buffers of backward"),
    "trained": ("#117733", "adapters, gradients, optimizer, logits"),
}


@in_style
def growth_with_blocks(frame: pd.DataFrame) -> Figure:
    """Draw ratio to LoRA against n, one panel a quantity.

    frame: quantity, form, cut, n_blocks, ratio.
    """
    quantities = list(dict.fromkeys(frame["quantity"]))
    figure = new_figure(TEXT_WIDTH, 2.75)
    panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    for panel, quantity in zip(panels, quantities, strict=True):
        _draw_growth(panel, frame[frame["quantity"] == quantity])
        panel.set(title=quantity, xlabel="blocks $n$")
    panels[0].set_ylabel("ratio to the LoRA that is cut")
    panels[0].set_ylim(0, 1.08 * max(1.0, float(frame["ratio"].max())))
    seen = frame[["form", "cut"]].drop_duplicates().itertuples(index=False)
    legend_outside(figure, [_handle(form, cut) for form, cut in seen], "lower center")
    return figure


def _draw_growth(panel: Axes, frame: pd.DataFrame) -> None:
    """Draw one quantity; lines that coincide stay readable by markers of falling size."""
    panel.axhline(1, color=method_style("lora").colour, linewidth=0.9, zorder=1)
    blocks = sorted(frame["n_blocks"].unique())
    for i, ((form, cut), part) in enumerate(frame.groupby(["form", "cut"], sort=False)):
        style = method_style("lora" if form == "dense" else form)
        panel.plot(
            part["n_blocks"], part["ratio"], color=style.colour, marker=style.marker,
            linestyle="--" if form == "dense" else CUT_LINES[cut], markersize=6.5 - i,
            markerfacecolor="white" if _is_hollow(form, cut) else style.colour,
            zorder=3 + i, clip_on=False,
        )  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xticks(blocks, [str(n) for n in blocks])
    panel.minorticks_off()


def _is_hollow(form: str, cut: str) -> bool:
    return form == "dense" or cut == "along the input"


def _handle(form: str, cut: str) -> Line2D:
    style = method_style("lora" if form == "dense" else form)
    label = LABELS[form] + (f", cut {cut}" if form == "block_lora" else "")
    return Line2D(
        [], [], color=style.colour, marker=style.marker, label=label, markersize=4.5,
        linestyle="--" if form == "dense" else CUT_LINES[cut],
        markerfacecolor="white" if _is_hollow(form, cut) else style.colour,
    )  # fmt: skip


@in_style
def parts_of_a_step(frame: pd.DataFrame) -> Figure:
    """Draw the multiply-adds of a step, a bar a form; a step without adapters is 1.

    frame: model, label, part, ratio. The share of the adapters stands at the bar's end.
    """
    models = list(dict.fromkeys(frame["model"]))
    forms = list(dict.fromkeys(frame["label"]))
    lines = (len(models) + 1) // 2
    figure = new_figure(TEXT_WIDTH, 0.85 + 0.31 * len(forms) * lines)
    panels = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, model in zip(panels, models, strict=False):
        wide = frame[frame["model"] == model].pivot(index="label", columns="part", values="ratio")
        wide = wide.loc[forms, list(PARTS)]
        _stack(panel, wide, PARTS)
        adapters = wide["adapters forward"] + wide["adapters backward"]
        for y, share in enumerate(adapters / wide.sum(axis=1)):
            panel.text(wide.iloc[y].sum() + 0.02, y, f"{share:.1%}", va="center", fontsize=8)
        panel.set_title(model, loc="left")
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, 1.18 * frame.groupby(["model", "label"])["ratio"].sum().max())
    for panel in panels[len(models) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(models) - 2) : len(models)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("multiply-adds of a step; step without adapters = 1")
    handles = [Patch(color=colour, label=label) for colour, label in PARTS.values()]
    legend_outside(figure, handles, "lower center")
    return figure


@in_style
def memory_by_variant(frame: pd.DataFrame, limit: float, limit_label: str) -> Figure:
    """Draw the memory of a step, a bar a variant. frame: variant, component, gib; limit in GiB."""
    drawn = frame["component"].where(frame["component"].isin(COMPONENTS), "trained")
    wide = frame.assign(component=drawn)
    wide = wide.groupby(["variant", "component"], sort=False)["gib"].sum().unstack(fill_value=0.0)
    wide = wide.loc[list(dict.fromkeys(frame["variant"])), list(COMPONENTS)]
    figure = new_figure(TEXT_WIDTH, 0.95 + 0.235 * len(wide))
    panel = figure.subplots()
    _stack(panel, wide, COMPONENTS)
    totals = wide.sum(axis=1)
    panel.axvline(limit, color="#222222", linestyle="--", linewidth=1)
    above = dict(transform=panel.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    panel.text(limit, 1.01, limit_label, **above)
    box = dict(facecolor="white", edgecolor="none", pad=0.8)  # the limit's line may pass below
    for y, total in enumerate(totals):
        panel.text(total + 0.25, y, f"{total:.1f}", va="center", fontsize=8, bbox=box)
    panel.invert_yaxis()
    panel.set(
        xlabel="GiB at the largest moment of a step", xlim=(0, 1.09 * max(limit, totals.max()))
    )
    handles = [Patch(color=colour, label=label) for colour, label in COMPONENTS.values()]
    legend_outside(figure, handles, "lower center")
    return figure


def _stack(panel: Axes, wide: pd.DataFrame, colours: Mapping[str, tuple[str, str]]) -> None:
    """Draw the rows of `wide` as horizontal bars, its columns one after another."""
    left = pd.Series(0.0, index=wide.index)
    for column in wide:
        panel.barh(range(len(wide)), wide[column], left=left, color=colours[column][0], height=0.66)
        left = left + wide[column]
    panel.set_yticks(range(len(wide)), wide.index)
    panel.grid(axis="y", visible=False)


@in_style
def predicted_and_measured(frame: pd.DataFrame) -> Figure:
    """Draw predicted against measured memory on equal scales, and the error in per cent beside it.

    frame: model, images, prompts, predicted, measured, the last two in MiB.
    """
    figure = new_figure(TEXT_WIDTH, 2.3)
    left, right = figure.subplots(1, 2)
    ends = [0.6 * frame["measured"].min(), 1.7 * frame["measured"].max()]
    left.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
    error = 100 * (frame["predicted"] / frame["measured"] - 1)
    places = range(len(frame))
    for (model, part), marker in zip(frame.groupby("model", sort=False), "oD^s", strict=False):
        left.plot(
            part["measured"], part["predicted"], marker, color="#AA3377", label=model, markersize=5
        )
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    left.set(xlabel="measured, MiB", ylabel="predicted, MiB")
    left.legend(loc="upper left")
    right.barh(places, error, color="#AA3377", height=0.6)
    right.axvline(0, color=GREY, linewidth=0.8)
    rows = frame[["model", "images", "prompts"]].itertuples(index=False)
    right.set_yticks(places, [f"{model}, {images} + {prompts}" for model, images, prompts in rows])
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    widest = 1.3 * max(1.0, float(error.abs().max()))
    right.set(xlabel="error of the prediction, %", xlim=(-widest, widest))
    right.set_title("model, images + prompts", loc="left")
    return figure


@in_style
def paired_ratios(frame: pd.DataFrame, labels: Mapping[str, str], against: str) -> Figure:
    """Draw ratios of paired times, one panel a setting.

    frame: setting, form, columns of `timing.ratios`. Thick: quartiles over the rounds. Thin: the
    95% interval of the median. Hollow: it holds 1.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    forms = [form for form in labels if form in set(frame["form"])]
    figure = new_figure(TEXT_WIDTH, 0.75 + 0.24 * len(forms))
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for panel, setting in zip(panels, settings, strict=True):
        part = frame[frame["setting"] == setting].set_index("form")
        panel.axvline(1, color=GREY, linewidth=0.8, zorder=1)
        for y, form in enumerate(forms):
            if form in part.index:
                _draw_ratio(panel, part.loc[form], y, FORM_COLOURS.get(form, GREY))
        panel.set_xscale("log")
        low, high = (
            part[["ratio_q1", "ratio_low"]].min().min(),
            part[["ratio_q3", "ratio_high"]].max().max(),
        )
        ends = min(0.9 * low, 0.8), max(1.1 * high, 1.25)
        panel.set_xlim(*ends)
        ticks = _ratio_ticks(*ends)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_title(setting, loc="left")
        panel.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(forms)), [labels[form] for form in forms])
    panels[0].invert_yaxis()
    figure.supxlabel(f"time, ratio to {against}")
    return figure


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Return powers of two around 1, every other one over a wide range; more in a narrow one."""
    step = 1 if high / low < 40 else 2
    ticks = [2.0**k for k in range(-12, 13, step)]
    if high / low < 4:
        ticks += [0.75, 1.5]
    return sorted(tick for tick in ticks if low <= tick <= high)


def _draw_ratio(panel: Axes, row: pd.Series, y: int, colour: str) -> None:
    if row["ratio_low"] == row["ratio_low"]:  # no interval from fewer than 6 rounds
        panel.plot([row["ratio_low"], row["ratio_high"]], [y, y], "|-", color=colour, linewidth=0.9)
    panel.plot(
        [row["ratio_q1"], row["ratio_q3"]],
        [y, y],
        color=colour,
        linewidth=4,
        alpha=0.4,
        solid_capstyle="butt",
    )
    baseline = row["ratio_q1"] == row["ratio_q3"] == 1
    face = colour if row["resolved"] or baseline else "white"
    panel.plot(row["ratio"], y, "o", color=colour, markerfacecolor=face, markersize=4.5, zorder=3)
