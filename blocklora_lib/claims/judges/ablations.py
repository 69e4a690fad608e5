"""Judges of what was varied: the number of blocks, what they share, rate and scale at the start."""

from __future__ import annotations

import math

from ...analysis.comparisons import matched
from ...analysis.intervals import paired_difference
from ...analysis.summaries import counted, own_images, summarise
from ...display.tables import shots_of
from ...runs.results import MissingResults
from ..claim import Evidence, Finding
from .accuracy import points


def number_of_blocks(e: Evidence) -> Finding:
    runs, told, saves, hurts = own_images(e.runs("blocks")), [], True, {}
    runs = runs.assign(n_blocks=runs["n_blocks"].astype(int), accuracy=100 * runs["accuracy"])
    for reading, part in runs.groupby("reading"):
        found = matched(part, ["dataset", "seed"], column="n_blocks")
        table = found.values
        size = part.groupby("n_blocks")["trainable_parameters"].first()
        one, most = table.columns.min(), table.columns.max()
        cut = (
            size[one] * size.index if reading == "block_rank" else size[one] + 0 * size.index
        )  # of the LoRA cut
        saves &= bool((size[1:] < cut[1:]).all())
        hurts[reading] = paired_difference(table[one], table[most])
        means = ", ".join(f"{value:.1f}% (n = {n})" for n, value in table.mean().items())
        told.append(
            f"{reading}, r = {part['rank'].iloc[0]:.0f}: {means}; n = {one} minus n = {most} "
            f"{points(hurts[reading])} over {found.told('pairs of set and seed')}"
        )
    sets = " and ".join(sorted(runs["dataset"].unique()))
    total = hurts.get("total_rank")
    seen = total is not None and not math.isnan(total.low)
    undecided = seen and saves and total.low <= 0 < total.high
    return Finding(
        saves and total.low > 0 if seen and not undecided else None,
        f"{'. '.join(told)}. {sets}, {shots_of(runs['shots'].iloc[0])}.",
        undecided=undecided,
    )


def sharing(e: Evidence) -> Finding:
    task = e.table("15_shared_subspace", "shared_task")
    block = task[task["form"] == "block_lora"]
    fails, helps = (block[block["task"] == name] for name in ("fails", "helps"))
    by_blocks = fails.groupby("n_blocks")[["error", "floor"]].mean()
    one, many = by_blocks.index.min(), by_blocks.index.max()
    few = helps["samples"].min()
    shared = matched(helps[helps["samples"] == few], ["seed"], column="n_blocks", value="error")
    seeds = shared.values
    gain = paired_difference(seeds[one], seeds[many])
    lora = task[(task["task"] == "helps") & (task["form"] == "lora") & (task["samples"] == few)]
    lora = lora.groupby("n_blocks")["error"].mean()
    at_floor = (by_blocks["error"] - by_blocks["floor"]).abs().max() < 0.01
    return Finding(
        bool(
            at_floor
            and by_blocks.loc[one, "error"] < 0.01 < by_blocks.loc[many, "floor"]
            and gain.low > 0
        ),
        f"{task['directions'].max()} orthogonal directions wanted: error "
        f"{by_blocks.loc[one, 'error']:.3f} at n = {one}, {by_blocks.loc[many, 'error']:.3f} at n "
        f"= {many}, the floor of rank r/n. One direction, {few} noisy samples: "
        f"{seeds[one].mean():.2f} at n = {one}, {seeds[many].mean():.2f} at n = {many}, over "
        f"{shared.told('seeds')}; plain LoRA of rank r/n reaches {lora[many]:.2f}, so the width "
        "regularises, not the sharing.",
        "constructed",
    )


def collapse(e: Evidence) -> Finding:
    """A mean over the seeds that did not diverge is neither best nor worst: those that did are
    counted.
    """
    runs, zero = own_images(e.runs("collapse")), e.runs()
    sets = sorted(runs["dataset"].unique())
    zero = own_images(zero[(zero["shots"] == 0) & zero["dataset"].isin(sets)])
    if lacking := set(sets) - set(zero["dataset"]):
        raise MissingResults(
            f"no zero-shot run of {', '.join(sorted(lacking))} to compare with; make it with "
            "`blocklora grid`"
        )
    zero = 100 * zero["accuracy"].mean()
    runs = runs.assign(accuracy=100 * runs["accuracy"])
    cells = summarise(runs, ["lr", "init_scale"], over=["dataset", "seed"])
    whole, diverged = cells[cells["complete"]], e.failed("collapse", "diverged")
    lost = f"{diverged} runs diverged; {counted(int(cells['complete'].sum()), len(cells))} settings have all "
    lost += f"{cells['expected'].max()} runs."
    if whole.empty:
        return Finding(None, f"Zero-shot {zero:.1f}%. {lost}", undecided=True)
    best, worst = whole.loc[whole["mean"].idxmax()], whole.loc[whole["mean"].idxmin()]
    by_scale = ", ".join(
        f"{cell.mean:.1f}% ({cell.init_scale:g}"
        + ("" if cell.complete else f"; {counted(cell.n, cell.expected)} runs")
        + ")"
        for cell in cells[cells["lr"] == best["lr"]].itertuples()
    )
    highest = whole[whole["lr"] == cells["lr"].max()]["mean"].max()
    at_highest = (
        "no setting at the highest rate has all its runs"
        if math.isnan(highest)
        else (f"at the highest rate at most {highest:.1f}%")
    )
    return Finding(
        bool((worst["mean"] < zero or diverged) and best["mean"] > zero),
        f"Zero-shot {zero:.1f}%. Best at lr = {best['lr']:g}, by initial scale: {by_scale}. Worst "
        f"{worst['mean']:.1f}% at lr = {worst['lr']:g}, scale {worst['init_scale']:g}; "
        f"{at_highest}. {lost}",
    )
