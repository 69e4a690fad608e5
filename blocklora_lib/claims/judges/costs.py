"""Judges of what is measured as time and memory.

Times are paired ratios: the median over fresh processes, each of which gives the median of its
rounds, with a 95% interval of that median. What the interval does not decide is not decided here
either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...analysis.intervals import Interval, ends, every, widened
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding

if TYPE_CHECKING:
    from pandas import DataFrame, Series

RATIO = ["ratio", "processes"]  # what has to be a number; few processes have no interval
EQUAL_WITHIN = 0.05  # two times whose ratio is that near to 1 are called equal
CLAIMED = 1 - 0.31  # the ratio that the paper's summary names
GPU_BYTES = 24 * 10**9  # what is sold as 24 GB: a card of 24 GiB has more
TOO_NEAR = 0.1  # a GPU's workspaces and fragmentation come on top of what is measured


def interval(row: Series, looks: int = 1) -> Interval:
    """Return a paired ratio with its interval, wide enough to be one of so many looks."""
    found = Interval(row["ratio"], row["ratio_low"], row["ratio_high"], int(row["processes"]))
    return widened(found, looks)


def ratio(row: Series) -> str:
    """Write a paired ratio with the interval of its median."""
    return f"{row['ratio']:.2f} {ends(row['ratio_low'], row['ratio_high'], '.2f')}"


def processes(rows: DataFrame) -> str:
    """Say what these intervals are over."""
    low, high = (f"{rows['processes'].agg(end):.0f}" for end in ("min", "max"))
    several = low if low == high else f"{low} to {high}"
    return f"Medians over {several} process{'es' if several != '1' else ''}."


def smallest(rows: DataFrame) -> str:
    """Write the smallest change that the least certain of these ratios could show, as a part of the
    baseline's time.
    """
    width = ((rows["ratio_high"] - rows["ratio_low"]) / 2).max(skipna=False)
    return (
        "none, for so few processes give no interval"
        if width != width
        else f"{100 * width:.0f}% of the time"
    )


def a_third_less_time(e: Evidence) -> Finding:
    """C5: what sharing itself saves, all else being the same, against the saving that is named.

    Twice: in the library's own code, and in plain code that fuses nothing.
    """
    steps = e.table("04_time", "training_step", RATIO).set_index(["baseline", "form"])
    pairs = [("low_rank", "sum_first"), ("low_rank_plain", "sum_first_plain")]
    orders = [("dense", form) for form in ("sum_first_plain", "low_rank_plain")]
    if lacking := [pair for pair in (*pairs, *orders) if pair not in steps.index]:
        told = ", ".join(f"{form} against {baseline}" for baseline, form in lacking)
        raise MissingResults(
            f"table training_step of notebook 04_time has no {told}; make it again with "
            f"`blocklora notebook 04_time --profile {e.profile.argument}`"
        )
    rows, bound = steps.loc[pairs], CLAIMED + EQUAL_WITHIN
    reached = any(interval(row, len(pairs)).below(bound) for _, row in rows.iterrows())
    missed = all(interval(row).above(bound) for _, row in rows.iterrows())
    shared, order = (steps.loc[key] for key in orders)
    saves, sharing = interval(order).below(1), interval(rows.iloc[1])
    whose = f"the order saves, and whether sharing adds {100 * EQUAL_WITHIN:.0f}% is not resolved."
    if sharing.below(1):
        whose = "the order saves, and sharing too."
    elif sharing.above(1 - EQUAL_WITHIN):
        whose = "that saving is the order's."
    if not saves:
        whose = "what the order saves is not resolved." if saves is None else "it saves nothing."
    return Finding(
        True if reached else False if missed else None,
        "Baseline: LoRA with nothing changed but the sharing. A step then takes "
        f"{ratio(rows.iloc[0])} of its time in this library and {ratio(rows.iloc[1])} in plain "
        f"code; 31% less, within {100 * EQUAL_WITHIN:.0f} points, is at most {bound:.2f}. Against "
        f"code that forms B A, as CLIP-LoRA's does, plain Block-LoRA takes {ratio(shared)}, and "
        f"LoRA that changes the order of its products alone {ratio(order)}: "
        f"{whose} {processes(rows)}",
        smallest=smallest(rows),
    )


def sum_first(e: Evidence) -> Finding:
    """C6: at every size, no gain in a loop and a gain by summing first; a gain is over 5%."""
    path = e.table("04_time", "adapter_path", RATIO)
    cut = path[(path["n_blocks"] > 1) & (path["reading"] == "total_rank")]
    loop, first = (cut[cut["form"] == form] for form in ("loop", "sum_first"))
    if loop.empty or first.empty:
        raise MissingResults(
            "table adapter_path of notebook 04_time lacks total_rank, n > 1, in a loop or summed; "
            f"make it again with `blocklora notebook 04_time --profile {e.profile.argument}`"
        )
    bound, looks = 1 - EQUAL_WITHIN, len(loop) + len(first)
    wrong = [interval(row, looks).below(bound) for _, row in loop.iterrows()]
    wrong += [interval(row, looks).above(bound) for _, row in first.iterrows()]
    no_gain = [interval(row).above(bound) for _, row in loop.iterrows()]
    gain = [interval(row).below(bound) for _, row in first.iterrows()]
    return Finding(
        False if any(wrong) else every(*(answer or None for answer in (*no_gain, *gain))),
        f"Against LoRA's path of the same r, the loop takes {loop['ratio'].min():.2f} to "
        f"{loop['ratio'].max():.2f} times as long (no gain of {100 * EQUAL_WITHIN:.0f}% shown at "
        f"{no_gain.count(True)} of {len(loop)} sizes), summing first {first['ratio'].min():.2f} to "
        f"{first['ratio'].max():.2f} (a gain of that size at {gain.count(True)} of {len(first)}). "
        f"{processes(cut)}",
        smallest=f"in a loop {smallest(loop)}, summed first {smallest(first)}",
    )


def merged_is_free(e: Evidence) -> Finding:
    """C7: not slower than the base beyond the margin at any batch size, and no more memory."""
    latency = e.table("12_inference", "latency", RATIO)
    memory = e.table("12_inference", "memory", ["peak_bytes", "weights_bytes"])
    merged = latency[latency["form"] == "merged"]
    peak = memory.groupby(["batch", "form"])["peak_bytes"].median().unstack()
    weights = memory.groupby("form")["weights_bytes"].first()
    extra, above = weights["merged"] - weights["base"], peak["merged"] / peak["base"] - 1
    told = ", ".join(f"{100 * more:+.1f}% at batch {batch}" for batch, more in above.items())
    times = [f"{ratio(row)} at batch {row['batch']}" for _, row in merged.iterrows()]
    highest = 1 + EQUAL_WITHIN
    slower = any(interval(row, len(merged)).above(highest) for _, row in merged.iterrows())
    free = all(interval(row).below(highest) for _, row in merged.iterrows())
    return Finding(
        False if slower or extra > 0 else True if free and above.max() <= EQUAL_WITHIN else None,
        "Merged over base: "
        f"{', '.join(times)}; "
        f"{extra:,.0f} bytes more of weights; peak memory {told}. None: "
        f"{'no byte of weights, and ' * bool(extra > 0)}within {100 * EQUAL_WITHIN:.0f}%. "
        f"{processes(merged)}",
        smallest=smallest(merged),
    )


def fits_24_gb(e: Evidence) -> Finding:
    """C13: a step of the paper's size, measured on a CPU and on the GPUs that were at hand.

    On a GPU what is reserved counts, fragmentation included.
    """
    measured = e.table("05_memory", "measured_step", ["peak_bytes", "images", "classes"])
    measured = measured.set_index("form")
    memory = e.table("05_memory", "memory", ["images", "gib"])
    if (modelled := memory["images"].iloc[0]) != (size := measured["images"].iloc[0]):
        raise MissingResults(
            f"05_memory ran with images={modelled:.0f}, and the step that was measured has "
            f"{size:.0f}; run it with images={size:.0f}"
        )
    theirs = memory[memory["variant"].str.startswith("CLIP-LoRA's code")]
    theirs = theirs.groupby("variant", sort=False)["gib"].sum()
    gpus = e.table("05_memory", "measured_on_gpus", ["reserved_gib"])
    ours, code = (gpus[gpus["case"].str.startswith(name)] for name in ("ours", "CLIP-LoRA"))
    case, gib = measured.iloc[0], measured["peak_bytes"] / 2**30
    most = max(gib["sum_first"], ours["reserved_gib"].max()) / (GPU_BYTES / 2**30)
    told = ", ".join(f"{name.rpartition(' ')[2]} {size:.1f}" for name, size in theirs.items())
    saved = 1 - gib["sum_first"] / gib["low_rank"]
    blocks = f"blocks save {round(saved, 2) + 0:.0%}"
    if most < 1 and saved < EQUAL_WITHIN:
        blocks = "so not by virtue of blocks"  # that it fits
    fewer = measured.loc["clip_lora"]
    return Finding(
        None if abs(most - 1) <= TOO_NEAR else bool(most < 1),
        f"A step of {case['images']:.0f} images and {case['classes']:.0f} prompts on "
        f"{case['model']}, float32 on a CPU: {gib['sum_first']:.1f} GiB at its peak, "
        f"{gib['low_rank']:.1f} with LoRA, {blocks}. On {' and '.join(gpus['device'].unique())} "
        f"it reserves {spread(ours)} GiB, CLIP-LoRA's computation {spread(code)}; "
        f"{GPU_BYTES / 1e9:g} GB are {GPU_BYTES / 2**30:.1f}. CLIP-LoRA's code took "
        f"{gib['clip_lora']:.1f} GiB with {fewer['classes']:.0f} prompts and "
        f"{fewer['images']:.0f} images on a CPU; a model gives it {told} with all.",
        "modelled",
    )


def spread(gpus: DataFrame) -> str:
    """Write what was reserved, from the least to the most of the cases."""
    low, high = (f"{gpus['reserved_gib'].agg(end):.1f}" for end in ("min", "max"))
    return low if low == high else f"{low} to {high}"
