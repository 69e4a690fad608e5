"""Judges of accuracies: of runs, and of published numbers.  Vague words get their meaning here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..claims import Evidence, Finding
from ..results import MissingResults
from ..statistics import Interval, PairedDifference, mean_interval, paired_difference
from ..tables import shots_of

if TYPE_CHECKING:
    from pandas import DataFrame


def by_method(runs: DataFrame, index: list[str], methods: list[str], value: str = "accuracy") -> DataFrame:
    """Return the mean of `value`, a column a method, where all have one; refuse a missing method."""
    missing = [m for m in methods if m not in set(runs["method"])]
    if missing:
        raise MissingResults(
            f"no run of {' or '.join(missing)} to compare with; list it under methods in the profile, then "
            "make the runs with `blocklora grid`"
        )
    return runs.pivot_table(index=index, columns="method", values=value, aggfunc="mean")[methods].dropna()


def differences(runs: DataFrame, a: str, b: str, shots: int) -> PairedDifference:
    """Paired difference a - b in points of accuracy over the sets at `shots`.

    On a set: the mean over the seeds that both methods have, for a failed seed of one would be compared with
    nothing.
    """
    part = runs[(runs["shots"] == shots) & (runs["evaluated_on"] == runs["dataset"])]
    means = 100 * by_method(part, ["dataset", "seed"], [a, b]).groupby("dataset").mean()
    return paired_difference(means[a], means[b])


def points(d: PairedDifference) -> str:
    """Write a difference with its interval."""
    return f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"


def trained_shots(runs: DataFrame) -> list[int]:
    """Shot counts of the trained runs, in order."""
    return sorted(int(k) for k in runs["shots"].unique() if k > 0)


def published(e: Evidence, dataset: str, shots: int, method: str | None = None) -> list[float]:
    """Return the published few-shot accuracies (%) on ViT-B/16, of all methods or of one."""
    known = e.published
    known = known[(known["setting"] == "few_shot") & (known["backbone"] == "ViT-B/16")]
    known = known[(known["target_dataset"] == dataset) & (known["shots"] == shots)]
    return known.loc[known["method"].isin([method] if method else known["method"]), "accuracy"].tolist()


def reached(e: Evidence, dataset: str, shots: int) -> Interval | None:
    """Return Block-LoRA's accuracy (%) over seeds, of a published profile; None without such runs."""
    if e.small_backbone or dataset not in e.profile.datasets:
        return None
    runs = e.runs()
    part = runs[
        (runs["method"] == "block_lora") & (runs["evaluated_on"] == dataset) & (runs["shots"] == shots)
    ]
    return mean_interval((100 * part["accuracy"]).tolist()) if len(part) else None


def imagenet_at_16(e: Evidence) -> Finding:
    claimed, values = 93.65, published(e, "ImageNet", 16)
    about = mean_interval(values, 0.999)
    half = about.half_width * math.sqrt(len(values) + 1)  # for one more value, not for the mean
    low, high = about.mean - half, about.mean + half
    text = (
        f"{len(values)} published 16-shot values on ViT-B/16 lie in {min(values):.1f} to {max(values):.1f}; "
        "one more is "
        f"expected in {low:.1f} to {high:.1f} (99.9%)."
    )
    own = reached(e, "imagenet", 16)
    if own is None:
        return Finding(low <= claimed <= high, f"{text} No such run here.", "published")
    return Finding(own.low <= claimed <= own.high, f"{text} Own runs: {own.mean:.2f}, {own.n} seeds.")


def leads(e: Evidence) -> Finding:
    told, holds = [], []
    cases = (("EuroSAT", 4, 88.08, 3.7, "CLIP-LoRA"), ("ImageNet", 1, 70.43, 3.4, "PromptSRC"))
    for dataset, at, claimed, gain, rival in cases:
        known = published(e, dataset, at, rival)[0]
        relative, absolute = 100 * (claimed / known - 1), claimed - known
        kind = "relative" if abs(relative - gain) < abs(absolute - gain) else "points"
        own = reached(e, dataset.lower(), at)
        holds += [] if own is None else [own.low <= claimed <= own.high]
        told.append(
            f"{dataset}: {rival} published {known:.2f}, so +{relative:.1f}% relative, +{absolute:.1f} "
            "points: the claim "
            f"counts {kind}" + ("" if own is None else f"; own runs {own.mean:.2f}")
        )
    if len(holds) < len(cases):
        return Finding(None, f"Needs runs of profile paper. {'; '.join(told)}.", "published")
    return Finding(all(holds), f"{'; '.join(told)}.")


def without_a(e: Evidence) -> Finding:
    runs = e.runs()
    few, many = trained_shots(runs)[0], trained_shots(runs)[-1]
    first, last = (differences(runs, "block_lora", "frozen_a", k) for k in (few, many))
    return Finding(
        None if math.isnan(first.low) or few == many else bool(first.low > 0 and last.mean < first.mean),
        f"Trained minus frozen: {points(first)} at {shots_of(few)}, {points(last)} at {many}, over {first.n} "
        "sets; one learning rate for both.",
    )


def number_of_blocks(e: Evidence) -> Finding:
    runs, told, saves, hurts = e.runs("blocks"), [], True, {}
    runs = runs[runs["evaluated_on"] == runs["dataset"]]  # a source's runs are evaluated on its variants too
    runs = runs.assign(n_blocks=runs["n_blocks"].astype(int))
    for reading, part in runs.groupby("reading"):
        table = 100 * part.pivot_table(index=["dataset", "seed"], columns="n_blocks", values="accuracy")
        table = table.dropna()  # seeds that every n has
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
            f"{points(hurts[reading])}"
        )
    sets = " and ".join(sorted(runs["dataset"].unique()))
    total = hurts.get("total_rank")
    seen = total is not None and not math.isnan(total.low)
    undecided = seen and saves and total.low <= 0 < total.high
    return Finding(
        saves and total.low > 0 if seen and not undecided else None,
        f"{'. '.join(told)}. {sets}, {runs['seed'].nunique()} seeds, {shots_of(runs['shots'].iloc[0])}.",
        undecided=undecided,
    )


def competitive(e: Evidence) -> Finding:
    """Judge both halves: transfer over the targets, domain generalization over the variants of the source."""
    margin, halves, told, missing = 1.0, [], [], []
    for experiment, where in (
        ("cross_dataset", "other sets"),
        ("few_shot", "shifted variants of the source"),
    ):
        try:
            runs = e.runs(experiment)
            other = runs[runs["evaluated_on"] != runs["dataset"]]
            if other.empty:
                raise MissingResults(f"The profile's {experiment} runs are evaluated on no {where}")
            most = trained_shots(other)[-1]
            at_most = other[other["shots"] == most]
            both = by_method(at_most, ["evaluated_on", "seed"], ["block_lora", "lora"])
            means = 100 * both.groupby("evaluated_on").mean()
        except MissingResults as lacking:
            missing.append(lacking)
            told.append(f"Not run on {where}: {str(lacking).rstrip('.')}.")
            continue
        zero = 100 * other[other["shots"] == 0].groupby("evaluated_on")["accuracy"].mean()
        d = paired_difference(means["block_lora"], means["lora"])
        above = [(means[m] - zero).mean() for m in ("block_lora", "lora")]
        gains = "" if math.isnan(above[0]) else f"; against zero-shot {above[0]:+.1f} and {above[1]:+.1f}"
        halves.append(None if math.isnan(d.low) else d.mean >= -margin)
        told.append(f"On {d.n} {where}, at {shots_of(most)}: Block-LoRA minus LoRA {points(d)}{gains}.")
    if len(missing) == 2:
        raise missing[0]
    fails, undecided = False in halves, len(halves) < 2 or None in halves
    return Finding(
        False if fails else None if undecided else True,
        f"'Competitive': on average at most {margin:.0f} point below LoRA, in both. {' '.join(told)}",
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
    at_floor = (by_blocks["error"] - by_blocks["floor"]).abs().max() < 0.01
    return Finding(
        bool(at_floor and by_blocks.loc[one, "error"] < 0.01 < by_blocks.loc[many, "floor"] and gain.low > 0),
        f"{task['directions'].max()} orthogonal directions wanted: error {by_blocks.loc[one, 'error']:.3f} "
        f"at n = {one}, "
        f"{by_blocks.loc[many, 'error']:.3f} at n = {many}, the floor of rank r/n. One direction, {few} "
        "noisy samples: "
        f"{seeds[one].mean():.2f} at n = {one}, {seeds[many].mean():.2f} at n = {many}; plain LoRA of rank "
        "r/n reaches "
        f"{lora[many]:.2f}, so the width regularises, not the sharing.",
        "constructed",
    )


def collapse(e: Evidence) -> Finding:
    runs, zero = e.runs("collapse"), e.runs()
    runs = runs[runs["evaluated_on"] == runs["dataset"]]
    table = 100 * runs.pivot_table(index="lr", columns="init_scale", values="accuracy")
    zero = 100 * zero[(zero["shots"] == 0) & zero["evaluated_on"].isin(runs["dataset"])]["accuracy"].mean()
    (rate, _), (worst_rate, worst_scale) = table.stack().idxmax(), table.stack().idxmin()
    diverged = e.failed("collapse")
    by_scale = ", ".join(f"{value:.1f}% ({s:g})" for s, value in table.loc[rate].items())
    return Finding(
        bool((table.min(axis=None) < zero or diverged) and table.max(axis=None) > zero),
        f"Zero-shot {zero:.1f}%. Best at lr = {rate:g}, by initial scale: {by_scale}. Worst "
        f"{table.loc[worst_rate, worst_scale]:.1f}% at lr = {worst_rate:g}, scale {worst_scale:g}; at the "
        "highest "
        f"rate at most {table.loc[table.index.max()].max():.1f}%. {diverged} runs diverged; "
        f"{runs['seed'].nunique()} seeds.",
    )


def control_is_the_same(e: Evidence) -> Finding:
    runs = e.runs()
    pair = by_method(runs, ["evaluated_on", "shots", "seed"], ["block_lora", "lora_plus"], "correct")
    apart = (pair["block_lora"] - pair["lora_plus"]).abs()
    answers = runs[runs["method"] == "block_lora"]["total"].sum()
    d = differences(runs, "block_lora", "lora_plus", trained_shots(runs)[-1])
    return Finding(
        bool(apart.sum() <= 0.01 * answers),
        f"{int((apart == 0).sum())} of {len(pair)} accuracies are the same to the last answer; "
        f"{int(apart.sum())} of "
        f"{answers:,} answers apart (float32 rounding); {points(d)} at {shots_of(trained_shots(runs)[-1])}.",
    )


def width_is_what_counts(e: Evidence) -> Finding:
    runs = e.runs()
    k = trained_shots(runs)[-1]
    block, half, between = (
        differences(runs, a, b, k)
        for a, b in (("block_lora", "lora"), ("lora_r1", "lora"), ("block_lora", "lora_r1"))
    )
    return Finding(
        None
        if math.isnan(between.low)
        else bool(block.mean < 0 and half.mean < 0 and between.low <= 0 <= between.high),
        f"At {shots_of(k)} against LoRA of rank r: Block-LoRA {points(block)}, "
        f"LoRA of rank r/n {points(half)}; Block-LoRA minus LoRA of rank r/n {points(between)}.",
    )
