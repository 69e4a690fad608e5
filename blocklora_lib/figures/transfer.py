"""Figures of one source on other sets: cross-dataset transfer, and domain-shifted variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..plotting import GREY, STYLE, TEXT_WIDTH, method_style, new_figure
from ..statistics import mean_interval, paired_difference
from ..tables import AVERAGE, few_shot_summary, in_method_order, on_fewer_seeds, shots_of
from .few_shot import draw_shots, method_handles


def set_differences(runs: pd.DataFrame, against: str, sets: Sequence[str]) -> pd.DataFrame:
    """Return each method minus `against`, in points, on each evaluated set and on average over `sets`.

    runs: one trained shot count, and zero-shot.  On a set: mean and 95% interval over seeds, of which both
    methods saw the same images.  Average: the sets' means, paired, with interval and p-value over the sets.
    Columns: evaluated_on, method, method_label, against, mean, low, high, n, p.
    """
    labels = dict(zip(runs["method"], runs["method_label"], strict=True))
    cell = runs.pivot_table(index=["evaluated_on", "seed"], columns="method", values="accuracy") * 100
    # zero-shot is one run, with which every seed is compared
    base = runs[runs["method"] == against].groupby("evaluated_on")["accuracy"].mean() * 100
    rows = []
    for method in (m for m in labels if m not in (against, "zero_shot")):
        values = cell[method].dropna()
        known = (
            values.index.get_level_values("evaluated_on").map(base)
            if against == "zero_shot"
            else cell[against]
        )
        delta = (values - known).dropna()
        means = delta.groupby("evaluated_on").mean()
        for name, part in delta.groupby("evaluated_on"):
            i = mean_interval(part.tolist())
            rows.append((name, method, labels[method], against, i.mean, i.low, i.high, i.n, math.nan))
        chosen = means.reindex(sets).dropna()
        if len(chosen):
            d = paired_difference(chosen.tolist(), [0.0] * len(chosen))
            rows.append((AVERAGE, method, labels[method], against, d.mean, d.low, d.high, d.n, d.p_value))
    columns = ["evaluated_on", "method", "method_label", "against", "mean", "low", "high", "n", "p"]
    frame = in_method_order(pd.DataFrame(rows, columns=columns).assign(shots=0))
    return frame.drop(columns="shots").reset_index(drop=True)


def differences_by_set(rows: pd.DataFrame, titles: Mapping[str, str], source: str) -> Figure:
    """Draw set_differences, a panel for each `against`: the source, the other sets, the average of those."""
    others = sorted(set(rows["evaluated_on"]) - {AVERAGE, source}, key=lambda n: titles.get(n, n).lower())
    average = [AVERAGE] if AVERAGE in set(rows["evaluated_on"]) else []
    order = [*average, *others[::-1], *([source] if source in set(rows["evaluated_on"]) else [])]
    names = rows.drop_duplicates("method")[["method", "method_label"]]
    references = list(rows["against"].unique())
    with rc_context(dict(STYLE)):
        height = (0.1 + 0.055 * len(names)) * len(order) + 0.95
        figure = new_figure(TEXT_WIDTH, max(2.2, height))
        panels = figure.subplots(1, len(references), sharey=True, squeeze=False)[0]
        for axes, against in zip(panels, references, strict=True):
            part = rows[rows["against"] == against]
            for place, name in enumerate(order):
                if name in (AVERAGE, source):
                    shade = "#f7f5ef" if name == AVERAGE else "#eef3f7"
                    axes.axhspan(place - 0.5, place + 0.5, color=shade, zorder=0)
                _draw_set(axes, part[part["evaluated_on"] == name], place, list(names["method"]))
            axes.axvline(0, color="#333333", linewidth=0.7, zorder=1)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            axes.grid(False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.set_xlabel(f"points above {_name(against)}")
            axes.set_ylim(-0.5, len(order) - 0.5)
        shown = {source: f"{titles.get(source, source)} (source)", AVERAGE: f"Average of {len(others)} sets"}
        panels[0].set_yticks(range(len(order)), [shown.get(n, titles.get(n, n)) for n in order])
        figure.legend(
            handles=[_handle(method, label) for method, label in names.itertuples(index=False)],
            loc="outside upper center",
            ncols=len(names),
        )
    return figure


def _name(method: str) -> str:
    return {"zero_shot": "zero-shot", "lora": "LoRA of rank r"}.get(method, method)


def _handle(method: str, label: str) -> Line2D:
    style = method_style(method)
    return Line2D([], [], color=style.colour, marker=style.marker, linewidth=1.1, label=label)


def _draw_set(axes: Axes, part: pd.DataFrame, place: int, methods: Sequence[str]) -> None:
    """Draw a dot with its interval for each method of a set, one under the other."""
    step = min(0.2, 0.8 / len(methods))
    for row in part.itertuples():
        style = method_style(row.method)
        y = place + step * ((len(methods) - 1) / 2 - methods.index(row.method))
        if not math.isnan(row.low):
            axes.plot([row.low, row.high], [y, y], color=style.colour, linewidth=1.1, alpha=0.65, zorder=2)
        axes.plot(
            row.mean,
            y,
            style.marker,
            color=style.colour,
            markersize=3.6,
            markeredgecolor="white",
            markeredgewidth=0.3,
            zorder=3,
        )


def domain_summary(runs: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return mean, low, high (95% over seeds, in %) on the source, each variant, and the variants on average.

    runs: those of the source set, with a row for each evaluated set.  `dataset` is the set evaluated on.
    """
    part = runs[runs["dataset"] == source]
    shifted = part[part["evaluated_on"] != source]
    frames = [few_shot_summary(part)] if (part["evaluated_on"] == source).any() else []
    frames += [few_shot_summary(shifted.assign(dataset=shifted["evaluated_on"]))] if len(shifted) else []
    return pd.concat(frames, ignore_index=True)


def domain_by_shots(summary: pd.DataFrame, titles: Mapping[str, str], source: str) -> Figure:
    """Draw accuracy over shots (0: zero-shot) on the source, each variant, and the variants on average."""
    variants = [name for name in summary["dataset"].unique() if name not in (source, AVERAGE)]
    names = [source, *variants, *([AVERAGE] if AVERAGE in set(summary["dataset"]) else [])]
    shown = {
        source: f"{titles.get(source, source)} (source)",
        AVERAGE: f"Average of {len(variants)} variants",
    }
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    with rc_context(dict(STYLE)):
        figure = new_figure(TEXT_WIDTH * (0.4 + 0.2 * columns), 1.75 * lines + 0.55)
        grid = figure.subplots(lines, columns, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= len(names):
                axes.set_visible(False)
                continue
            draw_shots(axes, summary[summary["dataset"] == names[i]])
            axes.set_title(shown.get(names[i], titles.get(names[i], names[i])))
            if i % columns == 0:
                axes.set_ylabel("Accuracy (%)")
            if i + columns >= len(names):
                axes.set_xlabel("Shots per class")
            if names[i] == AVERAGE:
                axes.set_facecolor("#f7f5ef")
        handles = method_handles(summary)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handlelength=2.2
        )
    return figure


def robustness(summary: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return source and mean variant accuracy (%) for each method and shots, and both minus zero-shot's.

    summary: of domain_summary.  A method that lacks a variant, or seeds of one, has no row at that number of
    shots.  `kept`: variant accuracy as a share of source accuracy.
    """
    variants = summary[~summary["dataset"].isin([source, AVERAGE])]
    cell = ["method", "method_label", "shots"]
    # a mean over fewer variants, or seeds, than another method's would be another quantity
    variants = variants[~on_fewer_seeds(variants)]
    whole = variants.groupby(cell)["mean"].agg(["mean", "count"])
    mean = whole.loc[whole["count"] == variants["dataset"].nunique(), "mean"].rename("variants")
    own = summary[summary["dataset"] == source].set_index(cell)["mean"].rename("source")
    frame = pd.concat([own, mean], axis=1).dropna().reset_index()
    zero = frame[frame["shots"] == 0]
    frame["kept"] = frame["variants"] / frame["source"]
    for name in ("source", "variants"):
        start = zero[name].iloc[0] if len(zero) else math.nan
        frame[f"{name}_gain"] = frame[name] - start
    return in_method_order(frame).reset_index(drop=True)


def robustness_plane(rows: pd.DataFrame) -> Figure:
    """Draw mean accuracy on the variants against accuracy on the source, a path over shots for each method.

    rows: method, method_label, shots, source, variants (%), of `robustness`.  Markers grow with the shots:
    methods end close together, where numbers beside the points would cover each other.
    """
    counts = sorted(int(k) for k in rows["shots"].unique() if k > 0)
    sizes = {k: 3.0 + 5.0 * i / max(1, len(counts) - 1) for i, k in enumerate(counts)}
    with rc_context(dict(STYLE)):
        figure = new_figure(0.8 * TEXT_WIDTH, 3.2)
        axes = figure.subplots()
        zero = rows[rows["shots"] == 0]
        start = (zero["source"].iloc[0], zero["variants"].iloc[0]) if len(zero) else None
        handles = []
        for method, label in rows[["method", "method_label"]].drop_duplicates().itertuples(index=False):
            part, style = rows[rows["method"] == method].sort_values("shots"), method_style(method)
            look = dict(color=style.colour, marker=style.marker, label=label)
            if (part["shots"] == 0).all():
                handles += axes.plot(*start, linestyle="none", markersize=8, zorder=4, **look)
                continue
            # its points may lie on Block-LoRA's, which must stay in sight
            face = "none" if method == "lora_plus" else style.colour
            axes.plot(part["source"], part["variants"], style.line, color=style.colour, linewidth=1, zorder=3)
            for row in part.itertuples():
                size = dict(markersize=sizes[row.shots], markerfacecolor=face)
                axes.plot(row.source, row.variants, zorder=3, **look, **size)
            handles.append(Line2D([], [], linestyle=style.line, markersize=4.5, markerfacecolor=face, **look))
        axes.margins(0.08)
        if start:
            dashes, text = (0, (3, 2)), "same share kept as zero-shot"
            look = dict(color=GREY, linewidth=0.8, linestyle=dashes, label=text)
            handles.append(axes.axline(start, slope=start[1] / start[0], **look))
        dot = dict(color="#8c8c8c", marker="o", linestyle="none")
        handles += [Line2D([], [], markersize=sizes[k], label=shots_of(k), **dot) for k in counts]
        axes.set_xlabel("accuracy on the source (%)")
        axes.set_ylabel("mean accuracy on its variants (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        figure.legend(handles=handles, loc="outside right upper", handlelength=2)
    return figure
