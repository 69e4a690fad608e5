"""Judges of what is measured as time and memory.

Times are paired ratios: the median over rounds, with a 95% interval of that median (ratio_low,
ratio_high). What the interval does not decide is not decided here either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..claim import Evidence, Finding

if TYPE_CHECKING:
    from pandas import Series

EQUAL_WITHIN = 0.05  # two times whose ratio is that near to 1 are called equal
GPU_GIB = 24.0


def ratio(row: Series) -> str:
    """Write a paired ratio with the interval of its median."""
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


def a_third_less_time(e: Evidence) -> Finding:
    steps = e.table("04_time", "training_step").set_index(["baseline", "form"])
    own, against_dense = steps.loc[("low_rank", "sum_first")], steps.loc[("dense", "sum_first")]
    lora = steps.loc[("dense", "low_rank")]
    claimed = 1 - 0.31
    holds = None
    if own["ratio_low"] > claimed:
        holds = False
    elif own["ratio_high"] < 1:
        holds = True
    return Finding(
        holds,
        f"A step of Block-LoRA takes {ratio(own)} of one of LoRA with its products in the right "
        f"order, and {ratio(against_dense)} of one that forms B A as CLIP-LoRA's code does; "
        f"against that, LoRA in the right order takes {ratio(lora)} as well.",
    )


def sum_first(e: Evidence) -> Finding:
    path = e.table("04_time", "adapter_path")
    cut = path[(path["n_blocks"] > 1) & (path["reading"] == "total_rank")]
    loop, first = (cut[cut["form"] == form] for form in ("loop", "sum_first"))
    no_gain, gain = loop["ratio_low"] > 1, first["ratio_high"] < 1
    decided = cut["ratio_low"].notna().all()
    return Finding(
        bool(not (loop["ratio_high"] < 1).any() and gain.any()) if decided else None,
        f"Against LoRA's path of the same r, the loop takes {loop['ratio'].min():.2f} to "
        f"{loop['ratio'].max():.2f} times as long (longer in {no_gain.sum()} of {len(loop)} "
        f"cases), summing first {first['ratio'].min():.2f} to {first['ratio'].max():.2f} (shorter "
        f"in {gain.sum()} of {len(first)}).",
    )


def merged_is_free(e: Evidence) -> Finding:
    latency, memory = (e.table("12_inference", name) for name in ("latency", "memory"))
    merged = latency[latency["form"] == "merged"]
    peak = memory.groupby(["batch", "form"])["peak_bytes"].median().unstack()
    weights = memory.groupby("form")["weights_bytes"].first()
    extra, above = weights["merged"] - weights["base"], peak["merged"] / peak["base"] - 1
    more_peak = above.max()
    told = ", ".join(f"{100 * more:+.1f}% at batch {batch}" for batch, more in above.items())
    highest = 1 + EQUAL_WITHIN
    holds: bool | None = bool(
        (merged["ratio_high"] <= highest).all() and extra == 0 and more_peak <= EQUAL_WITHIN
    )
    if not holds and (merged["ratio_low"] <= highest).all() and extra == 0:
        holds = None  # nothing was shown to be slower, but not everything was shown to be as fast
    return Finding(
        holds,
        "Merged over base: "
        f"{', '.join(f'{ratio(row)} at batch {row.batch}' for _, row in merged.iterrows())}; "
        f"{extra:,.0f} bytes more of weights; peak memory {told}. Equal: within "
        f"{100 * EQUAL_WITHIN:.0f}%.",
    )


def fits_24_gb(e: Evidence) -> Finding:
    memory, checked = (e.table("05_memory", name) for name in ("memory", "memory_validation"))
    total = memory.groupby("variant")["gib"].sum()
    block, lora = total["as executed, Block-LoRA"], total["as executed, LoRA"]
    theirs = {name: total[f"CLIP-LoRA's code, {name}"] for name in ("float32", "float16")}
    off = (checked["predicted"] / checked["measured"] - 1).abs().max()
    case = memory.iloc[0]
    return Finding(
        bool(block <= GPU_GIB),
        f"Memory model for {case['model']}, {case['images']} images and {case['classes']} prompts, "
        f"within {100 * off:.1f}% of {len(checked)} measured cases: {block:.1f} GiB as executed "
        f"here, and {lora:.1f} with LoRA, so not by virtue of blocks; CLIP-LoRA's code "
        f"{theirs['float16']:.1f} in float16, {theirs['float32']:.1f} in float32. No GPU was "
        "measured.",
        "modelled",
    )
