"""Judges of accuracies: of runs, and of published numbers.  Vague words get their meaning here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..claims import Evidence, Finding
from ..statistics import PairedDifference, mean_interval, paired_difference

if TYPE_CHECKING:
    from pandas import DataFrame


def differences(runs: DataFrame, a: str, b: str, shots: int) -> PairedDifference:
    """Paired difference a - b in points of accuracy over the sets (each a mean over its seeds) at `shots`."""
    part = runs[(runs["shots"] == shots) & (runs["evaluated_on"] == runs["dataset"])]
    means = part.pivot_table(index="dataset", columns="method", values="accuracy", aggfunc="mean")
    means = 100 * means[[a, b]].dropna()
    return paired_difference(means[a], means[b])


def points(d: PairedDifference) -> str:
    """Write a difference with its interval."""
    return f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"


def trained_shots(runs: DataFrame) -> list[int]:
    """Shot counts of the trained runs, in order."""
    return sorted(int(k) for k in runs["shots"].unique() if k > 0)


def imagenet_at_16(e: Evidence) -> Finding:
    claimed = 93.65
    known = e.published.query(
        "setting == 'few_shot' and target_dataset == 'ImageNet' and shots == 16 and backbone == 'ViT-B/16'"
    )["accuracy"]
    width = mean_interval(list(known), 0.999)
    new = width.half_width * math.sqrt(len(known) + 1)  # interval of one more value, not of the mean
    low, high = width.mean - new, width.mean + new
    text = (
        f"{len(known)} published 16-shot values on ViT-B/16 lie in {known.min():.1f} to {known.max():.1f}; the 99.9% "
        f"interval for one more is {low:.1f} to {high:.1f}. No such run here."
    )
    return Finding(low <= claimed <= high, text, "published")


def leads(e: Evidence) -> Finding:
    told = []
    cases = (("EuroSAT", 4, 88.08, 3.7, "CLIP-LoRA"), ("ImageNet", 1, 70.43, 3.4, "PromptSRC"))
    for dataset, shots, claimed, gain, rival in cases:
        known = e.published.query(
            "setting == 'few_shot' and target_dataset == @dataset and shots == @shots and method == @rival"
        )["accuracy"].iloc[0]
        relative, absolute = 100 * (claimed / known - 1), claimed - known
        kind = "relative" if abs(relative - gain) < abs(absolute - gain) else "points"
        told.append(
            f"{dataset}: {rival} {known:.2f}, so +{relative:.1f}% relative, +{absolute:.1f} points: {kind}"
        )
    return Finding(None, f"Not run (needs profile paper). The percentages: {'; '.join(told)}.", "published")


def without_a(e: Evidence) -> Finding:
    runs = e.runs()
    few, *_, many = trained_shots(runs)
    first, last = (differences(runs, "block_lora", "frozen_a", k) for k in (few, many))
    return Finding(
        bool(first.low > 0 and last.mean < first.mean),
        f"Trained minus frozen: {points(first)} at {few} shots, {points(last)} at {many}, over {first.n} sets; "
        "one learning rate for both.",
    )


def number_of_blocks(e: Evidence) -> Finding:
    runs, told, saves, hurts = e.runs("blocks"), [], True, {}
    for reading, part in runs.groupby("reading"):
        table = 100 * part.pivot_table(index=["dataset", "seed"], columns="n_blocks", values="accuracy")
        size = part.groupby("n_blocks")["trainable_parameters"].first()
        fewest, most = table.columns.min(), table.columns.max()
        lora = size[fewest] * (
            size.index if reading == "block_rank" else size.index**0
        )  # of the LoRA that is cut
        saves &= bool((size[1:] < lora[1:]).all())
        hurts[reading] = paired_difference(table[fewest], table[most])
        means = ", ".join(f"{value:.1f}% (n = {n})" for n, value in table.mean().items())
        told.append(
            f"{reading}, r = {part['rank'].iloc[0]}: {means}, {fewest} minus {most} {points(hurts[reading])}"
        )
    sets = " and ".join(sorted(runs["dataset"].unique()))
    return Finding(
        saves and hurts["total_rank"].low > 0,
        f"{'; '.join(told)}. {sets}, {runs['seed'].nunique()} seeds, {runs['shots'].iloc[0]} shots.",
    )


def competitive(e: Evidence) -> Finding:
    margin, runs = 1.0, e.runs()
    shifted = runs[(runs["evaluated_on"] != runs["dataset"]) & (runs["shots"] == runs["shots"].max())]
    means = 100 * shifted.pivot_table(index="evaluated_on", columns="method", values="accuracy")
    d = paired_difference(means["block_lora"], means["lora"])
    return Finding(
        bool(d.mean >= -margin),
        f"On {d.n} shifted variants of the source, at {shifted['shots'].max()} shots: Block-LoRA minus LoRA {points(d)} "
        f"('competitive': no more than {margin:.0f} point below). Transfer to other sets: not run.",
    )


def beyond_clip(e: Evidence) -> Finding:
    return Finding(None, "No model but CLIP and no task but few-shot classification was run here.", "nothing")


def sharing(e: Evidence) -> Finding:
    task = e.table("11_what_blocks_do", "shared_task")
    block = task[task["form"] == "block_lora"]
    fails, helps = (block[block["task"] == name] for name in ("fails", "helps"))
    by_blocks = fails.groupby("n_blocks")[["error", "floor"]].mean()
    one, many = by_blocks.index.min(), by_blocks.index.max()
    few = helps["samples"].min()
    seeds = helps[helps["samples"] == few].pivot(index="seed", columns="n_blocks", values="error")
    gain = paired_difference(seeds[one], seeds[many])
    lora = task[(task["task"] == "helps") & (task["form"] == "lora") & (task["samples"] == few)]
    lora = lora.groupby("n_blocks")["error"].mean()
    reached = (by_blocks["error"] - by_blocks["floor"]).abs().max() < 0.01
    return Finding(
        bool(reached and by_blocks.loc[one, "error"] < 0.01 < by_blocks.loc[many, "floor"] and gain.low > 0),
        f"{task['directions'].max()} orthogonal directions wanted: error {by_blocks.loc[one, 'error']:.3f} at n = {one}, "
        f"{by_blocks.loc[many, 'error']:.3f} at n = {many}, the floor of rank r/n. One direction, {few} noisy samples: "
        f"{seeds[one].mean():.2f} at n = {one}, {seeds[many].mean():.2f} at n = {many}; plain LoRA of rank r/n reaches "
        f"{lora[many]:.2f}, so the width regularises, not the sharing.",
        "constructed",
    )


def collapse(e: Evidence) -> Finding:
    runs, zero = e.runs("collapse"), e.runs()
    table = 100 * runs.pivot_table(index="lr", columns="init_scale", values="accuracy", dropna=False)
    zero = 100 * zero[(zero["shots"] == 0) & zero["evaluated_on"].isin(runs["dataset"])]["accuracy"].mean()
    wanted = len(runs["seed"].unique())
    best, worst = table.stack().idxmax(), table.stack().idxmin()
    high = table.loc[table.index.max()].max()
    return Finding(
        bool(table.min(axis=None) < zero < table.max(axis=None)),
        f"Zero-shot {zero:.1f}%. Best {table.loc[best]:.1f}% at lr = {best[0]:g}, scale {best[1]:g}; worst "
        f"{table.loc[worst]:.1f}% at lr = {worst[0]:g}, scale {worst[1]:g}; at the highest rate at most {high:.1f}%. "
        f"{wanted} seeds.",
    )


def control_is_the_same(e: Evidence) -> Finding:
    runs = e.runs()
    wide = runs.pivot_table(index=["evaluated_on", "shots", "seed"], columns="method", values="correct")
    pair = wide[["block_lora", "lora_plus"]].dropna()
    apart = (pair["block_lora"] - pair["lora_plus"]).abs()
    answers = runs[runs["method"] == "block_lora"]["total"].sum()
    d = differences(runs, "block_lora", "lora_plus", trained_shots(runs)[-1])
    return Finding(
        bool(apart.sum() <= 0.01 * answers),
        f"{int((apart == 0).sum())} of {len(pair)} accuracies are the same to the last answer; {int(apart.sum())} of "
        f"{answers:,} answers apart (float32 rounding); {points(d)} at {trained_shots(runs)[-1]} shots.",
    )


def width_is_what_counts(e: Evidence) -> Finding:
    runs = e.runs()
    k = trained_shots(runs)[-1]
    block, half, between = (
        differences(runs, a, b, k)
        for a, b in (("block_lora", "lora"), ("lora_r1", "lora"), ("block_lora", "lora_r1"))
    )
    return Finding(
        bool(block.mean < 0 and half.mean < 0 and between.low <= 0 <= between.high),
        f"At {k} shots against LoRA of rank r: Block-LoRA {points(block)}, LoRA of rank r/n {points(half)}; "
        f"Block-LoRA minus LoRA of rank r/n {points(between)}.",
    )
