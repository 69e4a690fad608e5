"""Judges of what was varied: the number of blocks, what they share, rate and scale at the start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...adapters.config import AdapterConfig
from ...analysis.comparisons import several
from ...analysis.excess import above_chance, planned_seeds, sharing_beyond_width
from ...analysis.intervals import (
    Interval,
    ends,
    every,
    mean_interval,
    paired_difference,
    together,
)
from ...analysis.summaries import counted, own_images
from ...data.manifest_files import load_manifest
from ...display.tables import shots_of
from ...learning.spec import TrainingSpec
from ...runs.grid import expand
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding
from .accuracy import side_by_side
from .words import points, smallest

if TYPE_CHECKING:
    from pandas import DataFrame

DECIDES = "total_rank"  # r is cut: the rows of all B_i stay as many (their sum is n times as fast)
COLLAPSED = 10.0  # points: training that gets no further above chance has collapsed
USUAL, LARGE = 1.0, 10.0  # initial scales of A_s: the method's own, and a bad start


def number_of_blocks(e: Evidence) -> Finding:
    """C12: n = 1 against the most blocks where r is cut, so that no row is added; units: sets."""
    runs, told, saves, hurts = _of_block_lora(e, "blocks"), [], True, {}
    runs = runs.assign(n_blocks=runs["n_blocks"].astype(int), accuracy=100 * runs["accuracy"])
    specs = [spec.method.settings for spec in expand(e.profile, "blocks")]
    planned = [settings for settings in specs if "n_blocks" in settings]
    for reading in sorted({settings["reading"] for settings in planned}):
        part = runs[runs["reading"] == reading]
        counts = sorted({s["n_blocks"] for s in planned if s["reading"] == reading})
        try:
            _check_alike(part, but=("n_blocks", "alpha"))
            found = side_by_side(part, ["dataset", "seed"], counts, column="n_blocks")
        except MissingResults as lacking:
            if reading == DECIDES:
                raise
            told.append(f"{reading}: {lacking}".rstrip("."))
            continue
        table = found.values.groupby("dataset").mean()
        size = part.groupby("n_blocks")["trainable_parameters"].first()
        one, most = table.columns.min(), table.columns.max()
        cut = (
            size[one] * size.index if reading == "block_rank" else size[one] + 0 * size.index
        )  # of the LoRA cut
        saves &= bool((size[1:] < cut[1:]).all())
        hurts[reading] = paired_difference(table[one], table[most])
        means = ", ".join(f"{value:.1f}% (n = {n})" for n, value in table.mean().items())
        rate = f", where ΣB_i learns {most} times as fast" if reading != "input" else ""
        told.append(
            f"{reading}, r = {part['rank'].iloc[0]:.0f}: {means}; n = {one} minus n = {most} "
            f"{points(hurts[reading])} over "
            f"{several(len(table), runs['dataset'].nunique(), 'sets')}, "
            f"{found.told('pairs of set and seed')}{rate}"
        )
    sets = " and ".join(sorted(runs["dataset"].unique()))
    total = hurts.get(DECIDES)
    costs = total.above() if total is not None else None
    seen = smallest(total) if total is not None else "none, for r was not cut"
    return Finding(
        costs if saves else False,
        f"{'. '.join(told)}. {sets}, {shots_of(runs['shots'].iloc[0])}; {DECIDES} decides.",
        smallest=seen,
    )


def sharing_fails(e: Evidence) -> Finding:
    """C16a: more orthogonal directions than r/n, against the floor that no update of r/n passes."""
    task = e.table("15_shared_subspace", "shared_task", ["error"])
    block = task[(task["form"] == "block_lora") & (task["task"] == "fails")]
    by_blocks = block.groupby("n_blocks")[["error", "floor"]].mean()
    one, many = by_blocks.index.min(), by_blocks.index.max()
    at_floor = (block["error"] - block["floor"]).abs().max(skipna=False) < 0.01
    binds = by_blocks.loc[one, "error"] < 0.01 < by_blocks.loc[many, "floor"]
    lost_nothing = by_blocks.loc[many, "error"] < 0.01
    return Finding(
        # trainings that did not get as far as their floor show neither
        True if at_floor and binds else False if lost_nothing else None,
        f"{task['directions'].max()} orthogonal directions of equal strength wanted: error "
        f"{by_blocks.loc[one, 'error']:.3f} at n = {one}, {by_blocks.loc[many, 'error']:.3f} at n "
        f"= {many}; the floor of rank r/n is {by_blocks.loc[many, 'floor']:.3f}.",
        "constructed",
    )


def sharing_regularises(e: Evidence) -> Finding:
    """C16b: on the fewest samples, Block-LoRA against LoRA of its width; units: seeds."""
    task = e.table("15_shared_subspace", "shared_task", ["error"])
    beyond = sharing_beyond_width(task)
    few = beyond[beyond["samples"] == beyond["samples"].min()]
    each = {n: mean_interval(part["excess"]) for n, part in few.groupby("n_blocks")}
    whole = mean_interval(few.groupby("seed")["excess"].mean())
    width = whole.half_width
    told = ", ".join(
        f"{d.mean:+.3f} {ends(d.low, d.high, '.3f')} at n = {n}" for n, d in each.items()
    )
    return Finding(
        whole.below(),
        f"One direction, {few['samples'].min()} noisy samples: error of Block-LoRA minus that of "
        f"LoRA of its width r/n {told}; {whole.mean:+.3f} {ends(whole.low, whole.high, '.3f')} "
        f"over all n, over {several(whole.n, whole.n, 'seeds')}. Below 0, sharing would regularise "
        "beyond the width.",
        "constructed",
        smallest=f"an error of {width:.3f}" if width == width else smallest(whole),
        but="beyond what its width does",
    )


def too_high_a_rate(e: Evidence) -> Finding:
    """C17a: at the usual start, collapsed at the highest rate, and not at the profile's own."""
    cells, told = _above_chance(e)
    rates = sorted(rate for rate, scale in cells if scale == USUAL)
    if not rates:
        return Finding(None, f"No setting at scale {USUAL:g} has a seed with all its sets.")
    own = e.profile.training_of(e.profile.entry("block_lora")).lr
    usual = min(rates, key=lambda rate: abs(math.log(rate / own)))
    top, normal = cells[rates[-1], USUAL], cells[usual, USUAL]
    trains = _collapsed(normal) is False
    holds = every(_collapsed(top), trains or None) if usual < rates[-1] else None
    return Finding(
        holds,
        f"At the usual start of A_s, {_excess(top)} at the highest rate, lr = {rates[-1]:g}; "
        f"{_excess(normal)} at lr = {usual:g}. {told}",
        smallest=smallest(*_both(top)),
    )


def bad_start(e: Evidence) -> Finding:
    """C17b: a start ten times as large against the usual one, at each rate by itself."""
    cells, told = _above_chance(e)
    both_scales = sorted(rate for rate, scale in cells if scale == USUAL and (rate, LARGE) in cells)
    pairs = {rate: (cells[rate, USUAL], cells[rate, LARGE]) for rate in both_scales}
    pairs = {rate: (a, b) for rate, (a, b) in pairs.items() if {*a.index} & {*b.index}}
    if not pairs:
        told = f"No rate has a seed with all its sets at both scales, {USUAL:g} and {LARGE:g}."
        return Finding(None, told)
    caused, level, rows = [], [], []
    for rate, (usual, large) in pairs.items():
        each = 1 - 0.05 / len(pairs)  # it is enough to find one such rate
        caused.append(_collapsed(large, each) and _collapsed(usual, each) is False)
        if (trains := _collapsed(usual, 0.975)) is not True:  # else there is nothing to lose
            level.append(every(trains is False or None, _collapsed(large, 0.975) is False or None))
        both = usual.join(large, rsuffix="_large").dropna()
        d = paired_difference(both["test_large"], both["test"], unit=both["test_unit"].iloc[0])
        rows.append(f"lr = {rate:g}: {_excess(large)}; {points(d)} on test images")
    return Finding(
        True if any(caused) else False if level and all(level) else None,
        f"Scale {LARGE:g}, and its difference to scale {USUAL:g}: {'. '.join(rows)}. {told}",
        smallest=smallest(*(d for _, large in pairs.values() for d in _both(large))),
    )


def _above_chance(e: Evidence) -> tuple[dict[tuple[float, float], DataFrame], str]:
    """Return the points above chance of each (rate, scale), by seed, and what they rest on."""
    runs, diverged = _of_block_lora(e, "collapse"), e.diverged("collapse")
    if (least := runs["shots"].min()) != 1:
        raise MissingResults(f"The claim is about 1 shot, and the runs are at {shots_of(least)}")
    runs, diverged = (rows[rows["shots"] == 1] if len(rows) else rows for rows in (runs, diverged))
    _check_alike(runs, but=("lr", "init_scale"))
    names = sorted({*runs["dataset"], *diverged.get("dataset", ())})
    classes = {name: load_manifest(name).num_classes for name in names}
    excess = above_chance(runs, diverged, classes).set_index("seed")
    cells = dict(list(excess.groupby(["lr", "init_scale"])))
    lost, seeds = len(diverged), planned_seeds(runs)
    whole = sum(len(cell) == seeds for cell in cells.values())
    return cells, (
        f"Collapsed: at most {COLLAPSED:.0f} points above chance, on test and on training images. "
        f"{' and '.join(names)}; {several(lost, lost, 'runs')} diverged, which "
        f"count{'s' * (lost == 1)} as at chance; "
        f"{counted(whole, len(cells))} settings have all {several(seeds, seeds, 'seeds')}."
    )


def _of_block_lora(e: Evidence, experiment: str) -> DataFrame:
    """Return an experiment's runs; MissingResults where another method's settings are varied."""
    runs = own_images(e.runs(experiment))
    method = runs["method"].str.partition(",")[0]  # without what is varied
    if "block_lora" not in set(method):
        others = ", ".join(sorted(set(method)))
        raise MissingResults(f"The claim is about block_lora, and {experiment} varies {others}")
    return runs[method == "block_lora"]


def _check_alike(runs: DataFrame, but: tuple[str, ...]) -> None:
    """Refuse runs that differ in more settings than these: MissingResults says in what."""
    for name in ("shots", *TrainingSpec.model_fields, *AdapterConfig.model_fields):
        if name in runs.columns and name not in but:
            told = {f"{v:g}" if isinstance(v, int | float) else f"{v}" for v in runs[name].tolist()}
            if len(told) > 1:
                raise MissingResults(
                    f"Its runs have {name} = {' and '.join(sorted(told))}, which no mean may mix; "
                    "give the experiment one"
                )


def _both(cell: DataFrame, confidence: float = 0.95) -> list[Interval]:
    return [
        mean_interval(cell[images], confidence, cell[f"{images}_unit"].iloc[0])
        for images in ("test", "train")
    ]


def _collapsed(cell: DataFrame, confidence: float = 0.95) -> bool | None:
    """Whether a setting is at chance on both kinds of images; False where it is above on either."""
    return together(*((d, lambda d: d.below(COLLAPSED)) for d in _both(cell, confidence)))


def _excess(cell: DataFrame) -> str:
    test, train = (f"{d.mean:+.1f} {ends(d.low, d.high, '+.1f')}" for d in _both(cell))
    return f"{test} points above chance on test and {train} on training images"
