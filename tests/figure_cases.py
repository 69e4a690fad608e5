"""A small frame and a large one for every figure of the library, and what they draw.

Large: the sets, methods and shots of the paper, and more; small: one of each. CASES is complete
when each public function of `display.figures` that returns a figure is in it, which a test asks.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from synthetic import synthetic_runs

from blocklora_lib.analysis.comparisons import difference_by_set, over_sets
from blocklora_lib.analysis.memory import above_base
from blocklora_lib.analysis.rankings import average_ranks
from blocklora_lib.analysis.ranks import over_data_sets
from blocklora_lib.analysis.rates import rate_curves
from blocklora_lib.analysis.summaries import (
    few_shot_summary,
    gains,
    summarise,
    summarise_each,
    trained_parameters,
)
from blocklora_lib.analysis.transfer import domain_summary, robustness, set_differences
from blocklora_lib.display.figures import (
    ablation,
    benchmark,
    block,
    bound,
    claim,
    comparison,
    cost,
    few_shot,
    method,
    theory,
    timing,
    transfer,
)
from blocklora_lib.display.figures import rates as chosen_rates

METHODS = {
    "zero_shot": "Zero-shot",
    "tip_adapter": "Tip-Adapter-F",
    "coop": "CoOp (16 tokens)",
    "maple": "MaPLe",
    "promptsrc": "PromptSRC",
    "lora": "LoRA r = 16",
    "block_lora": "Block-LoRA r = 16, n = 16",
    "lora_plus": "LoRA+ r = 1",
    "lora_r1": "LoRA r = 1",
    "frozen_a": "w/o A r = 16, n = 16",
    "clip_adapter": "CLIP-Adapter",
    "linear_probe": "Linear probe",
    "tip_x": "Another method",
    "prograd": "One more method",
}
TITLES = {
    name.lower().replace(" ", "_"): name
    for name in (
        "ImageNet", "Caltech101", "Oxford Pets", "Stanford Cars", "Oxford Flowers", "Food-101",
        "FGVC Aircraft", "SUN397", "Describable Textures", "EuroSAT", "UCF101",
    )
}  # fmt: skip
VARIANTS = {"v2": "ImageNet-V2", "s": "ImageNet-Sketch", "a": "ImageNet-A", "r": "ImageNet-R"}
RATES = (2e-4, 6e-4, 0.002, 0.006, 0.02, 0.06)
READINGS = ("total_rank", "block_rank", "input")


def number_of_blocks(runs):
    """The figure of runs of several n; counts may have come as floats."""
    runs = runs.astype({"n_blocks": int, "rank": int})
    cell = ["reading", "rank", "n_blocks", "dataset", "trainable_parameters"]
    return ablation.blocks_and_parameters(summarise(runs, cell, within=["dataset"]), runs)


def collapse(runs, zero):
    cell = ["dataset", "lr", "init_scale"]
    means = summarise_each(runs, cell, ["accuracy", "train_accuracy"], ["dataset"])
    return ablation.collapse_by_rate(means, runs, zero)


def one_set(seeds=(1,)):
    """Runs of a single set, of two methods."""
    return synthetic_runs(("imagenet",), (1,), seeds, ("zero_shot", "lora"))


def paper(methods=METHODS, sets=TITLES, seeds=(1, 2, 3)):
    """Runs of many methods on many sets at 1 to 16 shots, of which a seed is missing."""
    noise, rows = np.random.default_rng(0), []
    for (i, name), (j, m) in itertools.product(enumerate(sets), enumerate(methods)):
        for k, seed in itertools.product((0,) if m == "zero_shot" else (1, 2, 4, 8, 16), seeds):
            if (k == 0 and seed != seeds[0]) or (m, k, seed) == ("maple", 16, 3):
                continue
            rise = 0.0 if k == 0 else (0.05 + 0.012 * j) * math.log2(2 * k) + noise.normal(0, 0.02)
            rows.append(
                (name, m, methods[m], k, seed if k else 0, min(0.3 + 0.02 * i + rise, 0.98))
            )
    columns = ["dataset", "method", "method_label", "shots", "seed", "accuracy"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["evaluated_on"] = frame["dataset"]
    return frame.assign(trainable_parameters=123_456_789)


def on_variants(variants, methods, shots_max=16):
    """Runs of ImageNet, seen on it and on its variants."""
    sets = ["imagenet", *variants]
    runs = paper(methods, sets)
    return runs[runs["shots"] <= shots_max].assign(dataset="imagenet")


def transferred(variants, methods):
    runs = on_variants(variants, methods)
    runs = runs[runs["shots"].isin([0, 16])]
    both = [set_differences(runs, against, list(variants)) for against in ("zero_shot", "lora")]
    return pd.concat(both, ignore_index=True)


def few(frame_of_runs):
    return few_shot_summary(frame_of_runs)


def frozen(runs):
    by_set = difference_by_set(runs, "block_lora", "frozen_a")
    rows = [
        dict(shots=k, mean=d.mean, low=d.low, high=d.high, complete=d.complete)
        for k, d in ((k, over_sets(part)) for k, part in by_set.groupby("shots"))
    ]
    return by_set.rename(columns={"mean": "difference"}), pd.DataFrame(rows)


def blocks(sets, readings, ns, seeds):
    rows = [
        dict(reading=reading, rank=16, n_blocks=n, dataset=name, seed=seed)
        | dict(accuracy=0.4 + 0.01 * seed + 0.1 / n)
        | dict(
            trainable_parameters=(16 // n + 16 if reading != "block_rank" else 16 + 16 * n) * 9216
        )
        for reading, n, name, seed in itertools.product(readings, ns, sets, seeds)
    ]
    return pd.DataFrame(rows)


def rates(sets, lrs, scales, seeds, lost=True):
    rows = [
        dict(dataset=name, lr=lr, init_scale=scale, seed=seed)
        | dict(accuracy=max(0.0, 0.5 - abs(i - 1) * 0.2 + 0.01 * seed), train_accuracy=1 - 0.2 * i)
        for name, (i, lr), scale, seed in itertools.product(sets, enumerate(lrs), scales, seeds)
        if not (lost and i == 2 and seed == 2)
    ]
    return pd.DataFrame(rows)


def tried(methods, grid, sets=("imagenet", "dtd"), shots=(1, 16)):
    """Runs by which rates were chosen, each method's at another place of the grid."""
    rows = [
        (
            d,
            k,
            1,
            m,
            methods[m],
            lr,
            0.8 - 0.02 * (i % len(grid) - j) ** 2 + 0.01 * k,
            i % len(grid) == j,
        )
        for (i, m), (j, lr), d, k in itertools.product(
            enumerate(methods), enumerate(grid), sets, shots
        )
    ]
    columns = ["dataset", "shots", "seed", "method", "method_label", "lr", "accuracy", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def places(names, sets, complete=True):
    rows = [
        dict(place=place, group=group, dataset=name, mean=50.0 + i, low=45.0 + i, high=55.0 + i)
        | dict(complete=complete or i > 0, parameters=count)
        for i, name in enumerate(sets)
        for place, group, count in names
    ]
    return pd.DataFrame(rows)


MANY_PLACES = [
    *((p, "projections", 40_000 * (1 + i)) for i, p in enumerate(("q", "k", "q, k, v (default)"))),
    *((f"{p} tower only", "towers", 4_000_000) for p in ("vision", "text")),
    *((f"{p} 6 layers", "layers", 12_345_678) for p in ("first", "last")),
]


def equations(names, rows, columns):
    frame = pd.DataFrame(
        dict(equation=name, matrix=matrix, row=i, column=j, value=0.3 * i - 0.5 * j)
        for name, tokens in names.items()
        for matrix in dict.fromkeys(tokens)
        if len(matrix) > 1
        for i, j in itertools.product(range(rows), range(columns))
    )
    return method.matrix_equations(frame, names)


def depths(towers, layers):
    rows = [
        dict(tower=tower, layer=layer, target=t, value=10.0 ** (i - 4) * (1 + layer))
        for tower in towers
        for layer in range(layers)
        for i, t in enumerate("qkv")
    ]
    return method.by_depth(pd.DataFrame(rows), "gradient norm of the $B_i$")


def errors(precisions, quantities):
    rows = [
        dict(precision=p, implementation=other, quantity=q, error=k * 1e-3 * t, tolerance=t)
        for p, t in precisions.items()
        for q in quantities
        for k, other in enumerate(("plain algebra", "peft", "loop"))
    ]
    rows[0]["tolerance"] *= 3  # one quantity may have a tolerance of its own
    return method.errors_against_tolerance(pd.DataFrame(rows))


def growth(quantities, ns):
    forms = [("block_lora", "along the rank"), ("block_lora", "along the input")]
    forms += [(f, "along the rank") for f in ("frozen_a", "collapsed", "dense")]
    rows = [
        dict(quantity=q, form=form, cut=cut, n_blocks=n, ratio=(1 + i) / n)
        for q in quantities
        for i, (form, cut) in enumerate(forms)
        for n in ns
    ]
    return cost.growth_with_blocks(pd.DataFrame(rows))


def parts(models, labels):
    rows = [
        dict(model=model, label=label, part=part, ratio=0.3 + 0.1 * i)
        for model in models
        for label in labels
        for i, part in enumerate(cost.PARTS)
    ]
    return cost.parts_of_a_step(pd.DataFrame(rows))


def step_memory(variants, limit):
    rows = [
        dict(variant=v, component=part, gib=0.1 + i * 1.7)
        for i, v in enumerate(variants)
        for part in cost.COMPONENTS
    ]
    return cost.memory_by_variant(pd.DataFrame(rows), limit, f"{limit:g} GB")


def predicted(settings):
    rows = [
        dict(model=m, images=i, prompts=p, predicted=float(i * p), measured=i * p * (1 + 0.01 * k))
        for k, (m, i, p) in enumerate(settings)
    ]
    return cost.predicted_and_measured(pd.DataFrame(rows))


def timed(forms, span, resolved=True):
    """Rows of `timing.ratios`, the widest ratio of which is `span`."""
    each = span ** (1 / max(1, len(forms) - 1))
    rows = []
    for i, form in enumerate(forms):
        ratio = each**i
        rows.append(
            dict(form=form, ratio=ratio, ratio_q1=0.95 * ratio, ratio_q3=1.06 * ratio)
            | dict(ratio_low=0.97 * ratio if resolved else math.nan)
            | dict(ratio_high=1.03 * ratio if resolved else math.nan, resolved=resolved)
            | dict(seconds_median=ratio, seconds_q1=0.9 * ratio, seconds_q3=1.2 * ratio)
        )
    return pd.DataFrame(rows)


def paired(settings, labels, spans):
    frames = [
        timed(labels, s).assign(setting=name) for name, s in zip(settings, spans, strict=True)
    ]
    return cost.paired_ratios(pd.concat(frames), labels, "LoRA in the order $(xA)B$")


def latencies(batches, forms, resolved=True):
    frames = [timed(forms, 1.6, resolved).assign(batch=b) for b in batches]
    return timing.latency(pd.concat(frames), 0.05)


def process_memory(batches, forms):
    rows = [
        dict(batch=b, form=form, weights_bytes=9e6 + 1e6 * i, peak_bytes=1e8 + 3e5 * i * (1 + r))
        for b in batches
        for i, form in enumerate(forms)
        for r in range(3)
    ]
    return timing.memory(above_base(pd.DataFrame(rows)))


def benchmark_steps(classes, names, peak=True):
    rows = [
        dict(classes=c, name=name, seconds_median=c * (1 + i), seconds_q1=0.9 * c * (1 + i))
        | dict(seconds_q3=1.2 * c * (1 + i), peak_bytes=2.0**30 * c / 99 if peak else math.nan)
        for c in classes
        for i, name in enumerate(names)
    ]
    return benchmark.steps_by_classes(pd.DataFrame(rows))


def benchmark_growth(axes, values):
    rows = [
        dict(axis=axis, value=v, seconds_median=1 + v / 100, seconds_q1=1 + v / 110)
        | dict(seconds_q3=1 + v / 90)
        for axis in axes
        for v in values
    ]
    lines = [
        dict(axis=axis, quantity="seconds", slope=0.01234, slope_low=0.01, slope_high=0.02)
        | dict(intercept=1.0)
        for axis in axes
        if axis != "threads"
    ]
    return benchmark.growth_lines(pd.DataFrame(rows), pd.DataFrame(lines))


FORMS = ("lora", "block_lora", "frozen_a", "collapsed")


def bounds(settings, titles, shots):
    rows = [
        dict(setting=s, dataset=t, title=t, shots=k, samples=k * (7 + 97 * i), form=form)
        | dict(bound=math.sqrt(1e5 * (1 + j) / (k * (7 + 97 * i))), samples_needed=1e5 * (1 + j))
        for s in settings
        for i, t in enumerate(titles)
        for k in shots
        for j, form in enumerate(FORMS)
    ]
    return pd.DataFrame(rows)


def bound_map(settings, titles, shots):
    frame = bounds(settings, titles, shots)
    return bound.bound_map(frame[frame["form"] == "lora"], {s: f"{s}: ViT-L-14" for s in settings})


def bound_ratios(ns):
    rows = [
        dict(form=form, n_blocks=n, ratio_to_lora=(1 + i) / n, ratio_to_same_class=n**0.5)
        for i, form in enumerate(FORMS)
        for n in ns
    ]
    return bound.bound_ratios(pd.DataFrame(rows))


def gap(methods, shots, sets):
    rows = [
        dict(method=m, method_label=label, dataset=name, shots=k)
        | dict(bound=(20 + 3 * i + j) / k**0.5, gap=0.6 - 0.1 * i + 0.01 * j)
        for i, (m, label) in enumerate(methods.items())
        for k in shots
        for j, name in enumerate(sets)
    ]
    return bound.gap_against_bound(pd.DataFrame(rows), over_data_sets(pd.DataFrame(rows)))


def bites(sets, settings):
    rows = [
        dict(
            dataset=name,
            setting=setting,
            prior="from the data" if "half" in setting else "fixed beforehand",
        )
        | dict(bits=100, empirical_error=0.1 * i, test_error=0.1 * i + 0.03, bound=0.1 * i + 0.2)
        | dict(chance=0.9, zero_shot_bound=0.8)
        for name in sets
        for i, setting in enumerate(settings)
    ]
    return bound.bounds_that_bite(pd.DataFrame(rows))


def controls(methods, shots, spread):
    rows = [
        dict(method=m, method_label=label, shots=k, mean=-0.2 * i, low=-0.2 * i - spread)
        | dict(high=-0.2 * i + spread, complete=i != 1)
        for i, (m, label) in enumerate(methods.items())
        for k in shots
    ]
    return claim.differences_by_shots(pd.DataFrame(rows))


def steps(optimizers, runs, last):
    rows = [
        dict(optimizer=o, run=run, control=control, step=s, difference=d * s)
        for o in optimizers
        for run, control, d in runs
        for s in (1, last // 2, last)
    ]
    return block.differences_over_steps(pd.DataFrame(rows), 1e-12)


def distances(runs):
    rows = [
        dict(run=run, step=s, distance=1 / s, predicted=1 / s, difference=1e-15 * s * i)
        for i, run in enumerate(runs)
        for s in (1, 100, 300)
    ]
    return block.distances_of_blocks(pd.DataFrame(rows))


def spectrum(forms, last, rank):
    rows = [
        dict(form=f, method="block_lora", site=site, index=k, value=1.0 if k <= rank else 1e-16)
        | dict(expected_rank=rank)
        for f in forms
        for site in "qk"
        for k in range(1, last + 1)
    ]
    return block.spectra(pd.DataFrame(rows))


def ratios(optimizers, sizes):
    rows = [
        dict(optimizer=name, lawful=i % 2 == 0, n_blocks=n, law=n ** (1 - i), low=n**-0.2)
        | dict(high=n**1.0, difference=1e-16 * i, control=0.1 * n)
        for i, name in enumerate(optimizers)
        for n in sizes
    ]
    return theory.ratio_law(pd.DataFrame(rows), 1e-12)


def curves(forms, cases, points):
    """Accuracy that rises and falls with τ, for each form at one case, and for other cases."""
    rows = [
        dict(part=part, form=form, case=case, rate=2.0 ** (k + i), tau=2.0**k, threshold=4.0 * j)
        | dict(accuracy=40.0 - abs(k - 2) * 5)
        for part, names, of in (
            ("forms", forms, cases[:1]),
            ("another rate of A", forms[:1], cases[:1]),
            ("cases", ["LoRA"], cases[1:]),
        )
        for i, form in enumerate(names)
        for j, case in enumerate(of, 1)
        for k in range(points)
    ]
    return theory.one_curve(pd.DataFrame(rows), 13.0, 0.08)


def certified(panels, many):
    rows = [
        dict(panel=panel, row=f"fashion: qkvo r=2, k={i}, L=5", seen=20.0 + i, certified=i - 10.0)
        for panel in panels
        for i in range(many)
    ]
    return theory.certified_gains(pd.DataFrame(rows))


def informed(counts):
    rows = [
        dict(method=m, supersamples=k, member=0.1, left_out=0.5, bound=0.8, conditional=1.0)
        for m in ("block_lora", "lora_plus")
        for k in counts
    ]
    labels = {"block_lora": "Block-LoRA", "lora_plus": "collapsed form"}
    return theory.information_over_supersamples(pd.DataFrame(rows), labels)


def cuts(tasks, blocks, counts):
    rows = [
        dict(task=task, samples=k, n_blocks=n, predicted=n / k, mean=1.1 * n / k)
        | dict(low=-0.1 if n == 1 else 0.9 * n / k, high=1.3 * n / k)
        for task in tasks
        for n in blocks
        for k in counts
    ]
    return theory.when_a_cut_pays(pd.DataFrame(rows))


def changes(many):
    rows = [
        dict(what="tensor clipping", against="threshold / $\\sqrt{n}$ for B", optimizer="AdamW")
        | dict(expected="leaves" if i % 2 else "coincides", difference=i * 1e-3, spread_of_blocks=i)
        for i in range(many)
    ]
    return block.breaks(pd.DataFrame(rows), 1e-12)


def shared(ns, samples):
    rows = [
        dict(task=task, form=form, samples=size, directions=8, n_blocks=n, floor=1 - 1 / n)
        | dict(mean=(1 - 1 / n) if task == "fails" else 9 / (n * size), low=1 / (n * size))
        | dict(high=20 / (n * size))
        for task, form in (("fails", "block_lora"), ("helps", "block_lora"), ("helps", "lora"))
        for size in samples
        for n in ns
    ]
    return block.sharing(pd.DataFrame(rows))


def readings(targets, ns):
    forms = ("block_lora", "total rank: rank r/n"), ("input", "input: rank r")
    forms += ("lora", "LoRA, as many parameters"), ("lora", "LoRA of rank r")
    rows = [
        dict(target=t, form=form, method=m, n_blocks=n, error=1 - 1 / n, floor=1 - 1 / n)
        for t in targets
        for m, form in forms
        for n in ns
    ]
    return block.readings(pd.DataFrame(rows))


def many(n):
    """(name, label, class of cost) of zero-shot, LoRA, Block-LoRA and n others."""
    classes = list(comparison.CLASSES)
    known = [("zero_shot", "Zero-shot CLIP"), ("lora", "LoRA"), ("block_lora", "Block-LoRA")]
    known += [(f"other_{i}", f"Comparator {i}, chosen") for i in range(n)]
    return [(*pair, classes[i % 3]) for i, pair in enumerate(known)]


def lines_of_methods(n, shots):
    rows = [
        dict(method=name, method_label=label, cost=cost, shots=k, mean=30.0 + i + 2 * k)
        | dict(low=29.0 + i + 2 * k, high=32.0 + i + 2 * k, complete=i % 4 != 3)
        for i, (name, label, cost) in enumerate(many(n))
        for k in ([0] if name == "zero_shot" else shots)
    ]
    return comparison.accuracy_of_methods(pd.DataFrame(rows), ["lora", "block_lora"])


def ranked(n, sets):
    labels = {name: label for name, label, _ in many(n)}
    scores = np.random.default_rng(0).normal(size=(sets, len(labels))) + np.arange(len(labels)) / 3
    found = average_ranks(pd.DataFrame(scores, columns=list(labels)))
    return comparison.critical_difference({1: found, 16: found}, labels, ["lora", "block_lora"])


def front(n):
    draw = np.random.default_rng(1)
    rows = [
        dict(
            method=name,
            method_label=label,
            cost=cost,
            accuracy=40 + 20 * draw.random(),
            complete=i % 4 != 3,
            image_passes=16 * i,
        )
        | dict(trainable_parameters=0 if i == 0 else 10 ** (3 + 3 * draw.random()))
        | dict(seconds_train=10 ** (4 * draw.random() - 2), fit_bytes=1e8 * i / (n + 3))
        for i, (name, label, cost) in enumerate(many(n))
    ]
    return comparison.fronts(pd.DataFrame(rows), ["lora", "block_lora"])


def leaked(sets, shots):
    rows = [
        dict(dataset=name, shots=k, chosen=what, gain=gain * (1 + i))
        for i, name in enumerate(sets)
        for k in shots
        for what, gain in (("epoch", 0.2), ("epoch, α and β", 1.1))
    ]
    return comparison.price_of_a_leak(pd.DataFrame(rows), TITLES)


def grid(runs, titles=TITLES, chance=None):
    return few_shot.accuracy_by_shots(few_shot_summary(runs), titles, chance)


def key(runs, titles=TITLES):
    numbers = trained_parameters(runs)
    return few_shot.key_figure(few_shot_summary(runs), gains(runs), titles, numbers)


PATHS = {"frozen_linear": "frozen projection", "dense": "LoRA, $BA$ formed", "low_rank": "LoRA",
         "loop": "blocks in a loop", "loop_once": "loop, $xA_s$ once", "sum_first": "Block-LoRA",
         "collapsed": "collapsed", "frozen_a": "w/o $A$"}  # fmt: skip
OWN = {
    m: METHODS[m] for m in ("zero_shot", "lora", "block_lora", "lora_plus", "lora_r1", "frozen_a")
}
TRAINED = {m: label for m, label in METHODS.items() if m != "zero_shot"}

# figure -> (small, large), each drawn when asked for
CASES = {
    few_shot.accuracy_by_shots: (
        lambda: grid(one_set()),
        lambda: grid(paper(), chance=dict.fromkeys(TITLES, 0.3)),
    ),
    few_shot.gain_by_dataset: (
        lambda: few_shot.gain_by_dataset(gains(one_set()), {}),
        lambda: few_shot.gain_by_dataset(gains(paper()), TITLES),
    ),
    chosen_rates.accuracy_by_rate: (
        lambda: chosen_rates.accuracy_by_rate(
            rate_curves(tried({"lora": "LoRA"}, RATES[:2], ("dtd",), (4,)))
        ),
        lambda: chosen_rates.accuracy_by_rate(
            rate_curves(tried({m: t for m, t in METHODS.items() if m != "zero_shot"}, RATES))
        ),
    ),
    few_shot.key_figure: (lambda: key(one_set()), lambda: key(paper())),
    transfer.differences_by_set: (
        lambda: transfer.differences_by_set(
            transferred({"v2": ""}, {m: OWN[m] for m in ("zero_shot", "lora", "block_lora")}),
            {},
            "imagenet",
        ),
        lambda: transfer.differences_by_set(
            transferred({n: t for n, t in TITLES.items() if n != "imagenet"}, METHODS),
            TITLES,
            "imagenet",
        ),
    ),
    transfer.domain_by_shots: (
        lambda: transfer.domain_by_shots(
            domain_summary(on_variants({"v2": ""}, OWN, 1), "imagenet"), {}, "imagenet"
        ),
        lambda: transfer.domain_by_shots(
            domain_summary(on_variants(VARIANTS, METHODS), "imagenet"),
            TITLES | VARIANTS,
            "imagenet",
        ),
    ),
    transfer.robustness_plane: (
        lambda: transfer.robustness_plane(
            robustness(domain_summary(on_variants({"v2": ""}, OWN, 1), "imagenet"), "imagenet")
        ),
        lambda: transfer.robustness_plane(
            robustness(domain_summary(on_variants(VARIANTS, METHODS), "imagenet"), "imagenet")
        ),
    ),
    ablation.blocks_and_parameters: (
        lambda: number_of_blocks(blocks(["EuroSAT"], ["total_rank"], [1], [1])),
        lambda: number_of_blocks(
            blocks(list(TITLES.values())[:4], READINGS, [1, 2, 4, 8, 16], [1, 2, 3])
        ),
    ),
    ablation.collapse_by_rate: (
        lambda: collapse(rates(["EuroSAT"], [0.02], [1.0], [1]), {}),
        lambda: collapse(
            rates(list(TITLES.values())[:3], RATES, (0.03, 0.1, 0.3, 1, 3, 10, 30), (1, 2, 3)),
            {"ImageNet": 0.66},
        ),
    ),
    ablation.trained_minus_frozen: (
        lambda: ablation.trained_minus_frozen(*frozen(paper(OWN, ["imagenet"], (1,)))),
        lambda: ablation.trained_minus_frozen(*frozen(paper(OWN))),
    ),
    ablation.placement: (
        lambda: ablation.placement(places(MANY_PLACES[:1], ["EuroSAT"])),
        lambda: ablation.placement(places(MANY_PLACES, list(TITLES.values())[:5], complete=False)),
    ),
    method.matrix_equations: (
        lambda: equations({"one": ["A_s", "·", "B_1", "=", "ΔW"]}, 2, 2),
        lambda: equations(
            {
                "a product": ["A_s", "·", "(", "B_1", "+", "B_2", ")", "=", "ΔW"],
                "the sum first": ["A_s", "·", "ΣB_i", "=", "ΔW"],
            },
            16,
            16,
        ),
    ),
    method.by_depth: (lambda: depths(["image"], 1), lambda: depths(["image", "text"], 24)),
    method.errors_against_tolerance: (
        lambda: errors({"float32": 1e-5}, ["forward"]),
        lambda: errors(
            {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2},
            [f"$W + ΔW$ after {n} steps" for n in range(50, 57)],
        ),
    ),
    cost.growth_with_blocks: (
        lambda: growth(["parameters"], [1]),
        lambda: growth(
            ["parameters", "multiply-adds of the path", "multiply-adds of a step"], [1, 2, 4, 8, 16]
        ),
    ),
    cost.parts_of_a_step: (
        lambda: parts(["PocketCLIP"], ["LoRA"]),
        lambda: parts(
            ["PocketCLIP", "ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50"], list(PATHS.values())
        ),
    ),
    cost.memory_by_variant: (
        lambda: step_memory(["as executed"], 24.0),
        lambda: step_memory([f"CLIP-LoRA's code, variant {i}" for i in range(12)], 24.0),
    ),
    cost.predicted_and_measured: (
        lambda: predicted([("PocketCLIP", 16, 20)]),
        lambda: predicted(
            list(itertools.product(("PocketCLIP", "ViT-B-16", "ViT-L-14-336"), (2, 128), (20, 999)))
        ),
    ),
    cost.paired_ratios: (
        lambda: paired(["to LoRA"], {"loop": "blocks in a loop"}, [1.0]),
        lambda: paired(
            [f"$d$={d}, $T$=1088, $r$=16, $n$=16" for d in (192, 768, 1024)], PATHS, [1.5, 12, 300]
        ),
    ),
    timing.latency: (
        lambda: latencies([1], ["base", "merged"], resolved=False),
        lambda: latencies([1, 2, 4, 8, 16, 32, 64, 128], list(timing.FORM_STYLES)),
    ),
    timing.memory: (
        lambda: process_memory([1], ["base"]),
        lambda: process_memory([1, 8, 32, 128], list(timing.FORM_STYLES)),
    ),
    benchmark.steps_by_classes: (
        lambda: benchmark_steps([10], ["independent"], peak=False),
        lambda: benchmark_steps(
            [10, 100, 397, 1000],
            "independent,shared_prefix,checkpointing,bf16,independent lora,peft,clip_lora".split(
                ","
            ),
        ),
    ),
    benchmark.growth_lines: (
        lambda: benchmark_growth(["classes"], [10]),
        lambda: benchmark_growth(
            ["classes", "images", "rank", "blocks", "threads"], [25, 100, 1000]
        ),
    ),
    bound.bound_ratios: (lambda: bound_ratios([1]), lambda: bound_ratios([1, 2, 4, 8, 16])),
    bound.bound_over_samples: (
        lambda: bound.bound_over_samples(bounds(["pocket"], ["Flags"], [1])),
        lambda: bound.bound_over_samples(
            bounds(["pocket: PocketCLIP", "paper: ViT-B-16"], TITLES.values(), [1, 2, 4, 8, 16])
        ),
    ),
    bound.bound_map: (
        lambda: bound_map(["pocket"], ["Flags"], [1]),
        lambda: bound_map(["pocket", "paper"], TITLES.values(), [1, 2, 4, 8, 16]),
    ),
    bound.gap_against_bound: (
        lambda: gap({"lora": "LoRA"}, [1], ["a"]),
        lambda: gap(TRAINED, [1, 2, 4, 8, 16], TITLES),
    ),
    bound.bounds_that_bite: (
        lambda: bites(["fashion"], ["zero-shot"]),
        lambda: bites(
            ["fashion", "mnist", "textures"],
            [
                "zero-shot",
                *(f"qkvo r=2, k={k}, L=3" for k in (25, 60, 100)),
                "half + qkvo r=2, k=25, L=5",
            ],
        ),
    ),
    claim.differences_by_shots: (
        lambda: controls({"lora_r1": "LoRA r = 1"}, [1], math.nan),
        lambda: controls(TRAINED, [1, 2, 4, 8, 16], 2.0),
    ),
    block.differences_over_steps: (
        lambda: steps(["SGD"], [("linear", False, 0.0)], 2),
        lambda: steps(
            ["SGD", "momentum", "Nesterov", "Adam", "AdamW"],
            [
                *((f"attention, total rank, r = {r}, n = 3", False, 1e-15) for r in (6, 8, 12)),
                ("control: rate of B not raised", True, 1e-2),
                ("control: decay of B not divided", True, 1e-4),
            ],
            3000,
        ),
    ),
    block.distances_of_blocks: (
        lambda: distances(["SGD"]),
        lambda: distances(
            [f"{o}, decoupled decay" for o in ("SGD", "momentum", "AdamW", "Adam", "Lion")]
        ),
    ),
    block.spectra: (
        lambda: spectrum(["LoRA"], 2, 1),
        lambda: spectrum(
            ["total rank r = 16, n = 2", "block rank r = 8", "input", "LoRA r = 8"], 16, 8
        ),
    ),
    block.breaks: (lambda: changes(1), lambda: changes(40)),
    theory.certified_gains: (
        lambda: certified(["paired"], 1),
        lambda: certified(["paired, on the sample", "counts, on test images"], 24),
    ),
    theory.information_over_supersamples: (
        lambda: informed([2]),
        lambda: informed([2, 10, 20, 100]),
    ),
    theory.when_a_cut_pays: (
        lambda: cuts(["one direction"], [1], [24]),
        lambda: cuts(["one direction", "each weaker"], [1, 2, 4, 8], [24, 32, 64, 128, 400]),
    ),
    theory.one_curve: (
        lambda: curves(["LoRA"], ["width 1"], 2),
        lambda: curves(
            [f"total rank ({n}, {n}), α/r" for n in (2, 4, 8, 16)],
            ["width 1", "width 4", "width 16", "width 1, last layers"],
            8,
        ),
    ),
    theory.ratio_law: (
        lambda: ratios(["SGD"], [2]),
        lambda: ratios([f"norm of the stack {i}" for i in range(30)], [2, 3, 4, 8]),
    ),
    block.sharing: (lambda: shared([1], [24]), lambda: shared([1, 2, 4, 8, 16], [24, 48, 96])),
    block.readings: (
        lambda: readings(["every direction"], [1]),
        lambda: readings(
            ["every direction", "two directions", "repeats along x"], [1, 2, 4, 8, 16]
        ),
    ),
    comparison.accuracy_of_methods: (
        lambda: lines_of_methods(0, [1]),
        lambda: lines_of_methods(23, [1, 2, 4, 8, 16]),
    ),
    comparison.critical_difference: (lambda: ranked(0, 2), lambda: ranked(23, 11)),
    comparison.fronts: (lambda: front(0), lambda: front(23)),
    comparison.price_of_a_leak: (
        lambda: leaked(["dtd"], [1]),
        lambda: leaked(list(TITLES), [1, 2, 4, 8, 16]),
    ),
}  # fmt: skip
