"""Judges of what arithmetic and counting decide: equalities, parameters, products, bounds."""

from __future__ import annotations

import math

from ...adapters.config import AdapterConfig
from ...clip.architectures import NoClosedForm, clip_architecture
from ...core.schema import UnknownName
from ...costs.adapter import parameter_saving, parameters
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding


def one_block_is_lora(e: Evidence) -> Finding:
    """C1: the largest error of every comparison against its tolerance."""
    worst = e.table("02_equivalence", "worst_errors").set_index("precision")
    errors, tolerance = worst.drop(columns="tolerance"), worst["tolerance"]
    text = "; ".join(
        f"{name} {errors.loc[name].max():.1e} (at most {tolerance[name]:.1e})"
        for name in worst.index
    )
    return Finding(
        bool(errors.le(tolerance, axis=0).all(axis=None)),
        f"Largest relative error against {', '.join(errors.columns)}, training and merge included: "
        f"{text}.",
        "arithmetic",
    )


def parameter_formula(e: Evidence) -> Finding:
    """C2: the closed form against what was counted in runs and in adapters."""
    runs, experiment = e.runs(), e.profile.experiment("few_shot")
    try:
        architecture = clip_architecture((experiment.backbone or e.profile.backbone).name)
    except (NoClosedForm, UnknownName) as unknown:
        raise MissingResults(f"{unknown}") from None
    counted = runs.groupby("method")["trainable_parameters"].unique()
    told: list[str] = []
    apart: list[str] = []
    for entry in e.profile.methods_of(experiment):
        config = entry.adapter_config()
        if config is None:
            continue
        if entry.name not in counted:
            raise MissingResults(
                f"no run of {entry.name} was counted, for all failed; `blocklora grid "
                "--retry-failed` makes them again"
            )
        closed = sum(
            parameters(config, d_in, d_out) for *_, d_in, d_out in architecture.sites(config)
        )
        if list(counted[entry.name]) != [closed]:
            apart.append(f"runs of {entry.name}, {', '.join(map(str, counted[entry.name]))}")
        told.append(f"{entry.name} {closed:,}")
    models = e.table("03_counts", "adapter_parameters")
    if wrong := int((models["closed_form"] != models["counted"]).sum()):
        apart.append(f"{wrong} of the adapters")
    equal = f"not equal in {'; '.join(apart)}" if apart else "equal"
    big = models[
        (models["model"] == "ViT-B-16")
        & (models["reading"] == "total_rank")
        & (models["rank"] == 2)
    ]
    big = big.set_index(["form", "n_blocks"])["counted"]
    return Finding(
        not apart,
        f"Counted in every run and in {len(models)} adapters on {models['model'].nunique()} "
        f"models: {equal}. ViT-B/16, r = 2: {big['block_lora', 2]:,} at n = 2 against "
        f"{big['lora', 1]:,}; here {', '.join(told)}.",
        "arithmetic",
    )


def three_quarters_fewer(e: Evidence) -> Finding:
    """C3: the largest saving that was counted, and the limit of the closed form."""
    models = e.table("03_counts", "adapter_parameters")
    models = models[
        (models["reading"] == "total_rank") & models["form"].isin(["lora", "block_lora"])
    ]
    wide = models.pivot_table(
        index=["model", "rank"], columns=["form", "n_blocks"], values="counted"
    )
    savings = {
        n: (1 - wide["block_lora", n] / wide["lora", 1]).max() for n in wide["block_lora"].columns
    }
    counted = {
        n: saving for n, saving in savings.items() if saving == saving
    }  # LoRA of that rank was counted
    most = max(*counted.values(), parameter_saving(10**6))
    told = ", ".join(f"{100 * saving:.1f}% at n = {n}" for n, saving in counted.items())
    wide, last = AdapterConfig(rank=16, n_blocks=16), AdapterConfig(kind="lora", rank=16)
    elsewhere = 1 - parameters(wide, 4, 1) / parameters(last, 4, 1)
    return Finding(
        bool(most >= 0.75),
        f"Counted on q, k, v: {told} fewer than LoRA. Where d_in = d_out, as there, the saving "
        "(1 - 1/n)/2 stays below 50% for every n; 75% is what remains at n = 2. A projection 4d -> "
        f"d, as in an MLP, saves {100 * elsewhere:.0f}% at n = 16.",
        "arithmetic",
        but="where d_in = d_out",
    )


def complexity_over_n(e: Evidence) -> Finding:
    """C4: products that form the update, counted with the B_i summed first and in a loop."""
    forming = e.table("03_counts", "forming")
    equal = bool((forming["closed_form"] == forming["counted"]).all())
    wide = forming.pivot_table(
        index=["rank", "n_blocks", "d"], columns="order", values="counted"
    ).reset_index()
    over_n = wide["sum_first"] * wide["n_blocks"] == wide["loop"]
    of = f"in all {len(wide)}" if over_n.all() else f"in {over_n.sum()} of {len(wide)}"
    closed = "" if equal else " The closed form is not what was counted."
    return Finding(
        equal and bool(over_n.all()),
        f"Forming ΔW: A_s ΣB_i takes exactly 1/n of the products of Σ A_i B_i {of} counted cases."
        f"{closed} A step that never forms ΔW does neither; its frozen products and "
        "activations do not change.",
        "arithmetic",
        but="for forming the update",
    )


def tighter_bound(e: Evidence) -> Finding:
    """C8: the ratio of both bounds, and how many bounds say anything."""
    ratios, bounds = (e.table("06_generalization_bound", name) for name in ("ratios", "bounds"))
    block = ratios[(ratios["form"] == "block_lora") & (ratios["n_blocks"] > 1)]
    to_lora, to_same = (
        block["ratio_to_lora"],
        block.loc[block["reading"] != "input", "ratio_to_same_class"],
    )
    looser = "looser" if to_same.min() > 1 else "not looser" if to_same.max() <= 1 else "either"
    vacuous = bounds["vacuous"].astype(bool)
    mostly = "every bound" if vacuous.all() else f"{vacuous.sum():,} of {len(bounds):,} bounds"
    return Finding(
        bool((to_lora < 1).all()),
        f"{to_lora.min():.3f} to {to_lora.max():.3f} of the bound of the LoRA that is cut; against "
        f"LoRA of its own width, which has the same functions, {to_same.min():.3f} to "
        f"{to_same.max():.3f}: {looser}. {vacuous.sum():,} of {len(bounds):,} bounds, over sets, "
        "shots and backbones, are vacuous.",
        "arithmetic",
        but=f"{mostly} vacuous" if vacuous.any() else "",
    )


def up(bound: float) -> str:
    """An upper bound in three decimals that it does not exceed."""
    return f"{math.ceil(round(1000 * bound, 6)) / 1000:.3f}"


def down(bound: float) -> str:
    """A lower bound in three decimals that do not exceed it."""
    return f"{math.floor(round(1000 * bound, 6)) / 1000:.3f}"


def bound_that_bites(e: Evidence) -> Finding:
    """O4: an upper bound of the adapter below a lower bound of zero-shot, both at once.

    delta is split over all sets that were looked at, and over the two ends; the best of several
    codes may be taken, since the code pays for the choice. Zero-shot is let off the bits of the
    look at the weights, and the search has the ranges of its settings for nothing; the verdict says
    on how many sets the claim holds without the one, and without the other.
    """
    bounds = e.table("07_nonvacuous_bound", "occam", ["bound", "zero_shot_at_least"])
    zero = bounds[bounds["setting"] == "zero-shot"].groupby("dataset").first()
    weights = zero["bits"].max()
    coded = bounds[(bounds["bits"] > 0) & (bounds["prior"] == "fixed beforehand")]
    coded = coded[coded["setting"] != "zero-shot"]
    best = coded.loc[coded.groupby("dataset", sort=False)["bound"].idxmin()]
    if (fails := 2 * best["delta"].sum()) > 0.05 + 1e-9:  # two ends on each set
        raise MissingResults(
            f"the bounds of 07_nonvacuous_bound fail together with probability {fails:.2g}, and a "
            "verdict has at most 0.05; run it with delta=0.05"
        )
    below, if_paid, if_universal = (
        best[bound] < best[["chance", end]].min(axis=1)
        for bound, end in (
            ("bound", "zero_shot_at_least"),
            ("bound", "zero_shot_at_least_paid"),
            ("universal", "zero_shot_at_least"),
        )
    )
    told = [
        f"{r['dataset']}: error at most {up(r['bound'])} by {r['bits']:.0f} bits and "
        f"{r['samples']:.0f} images ({up(r['universal'])} with a universal code of the search, "
        f"test {r['test_error']:.3f}), zero-shot's at least {down(r['zero_shot_at_least'])} "
        f"({down(r['zero_shot_at_least_paid'])} if it pays {weights:.0f} bits for the weights, as "
        f"the adapter does), guessing {r['chance']:.2f}"
        for r in best.to_dict("records")
    ]
    # what both bounds give away: so far apart the errors on the images have to be
    slack = best["bound"] - best["empirical_error"]
    slack += best["dataset"].map(zero["empirical_error"]) - best["zero_shot_at_least"]
    holds = below.any()
    bites = f"on {int(below.sum())} of {len(best)} sets"
    paid = f"on {int(if_universal.sum())} with a universal code of the search, "
    paid += f"on {int(if_paid.sum())} if zero-shot pays {weights:.0f} bits too"
    lost = " and ".join(best.loc[below & ~if_paid, "dataset"])
    return Finding(
        True if holds else None,  # two bounds that overlap show nothing
        f"Occam's bound, delta {best['delta'].iloc[0]:.2g} for each end on each set looked at. "
        f"{'; '.join(told)}. It bites {bites}, {paid}{lost and f': no longer on {lost}'}.",
        "bundled",
        smallest=f"{slack.max():.3f} of the error, which the two bounds give away",
        but=f"{bites}, {paid}" if holds else "",
    )


def theorem(e: Evidence) -> Finding:
    """O1: trajectories in float64 that coincide, from blocks that stay the same bits."""
    apart = ["max_relative_difference", "spread_of_blocks"]
    found = e.table("13_theorem", "trajectories", apart)
    return Finding(
        bool((found[apart[0]] <= 1e-12).all() and (found[apart[1]] == 0).all()),
        "Largest relative difference of ΔW in float64 "
        f"{found['max_relative_difference'].max():.1e}, of {len(found)} trainings of "
        f"{found['steps'].min()} to {found['steps'].max()} steps by "
        f"{', '.join(found['optimizer'].unique())}; spread among the B_i "
        f"{found['spread_of_blocks'].max():g}.",
        "arithmetic",
    )
