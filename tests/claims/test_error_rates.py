"""How often each rule is wrong, over simulated scoreboards: at most once in 20 times.

A scenario draws evidence whose truth is known. Wrong is 'confirmed' where the claim is false, and
'contradicted' where it is true; where the truth stands on the margin, either one may be said at
most once in 20 times. What decides nothing is never wrong, so each claim has to be decided, in most
boards, where its effect is large.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
from given_evidence import Given, with_rates
from scipy.stats import binom

from blocklora_lib.claims.claim import judge
from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.judges import (
    ablations,
    accuracy,
    beyond,
    costs,
    counts,
    published_numbers,
)
from blocklora_lib.claims.paper_claims import BY_ID
from blocklora_lib.measure.timing import median_interval
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.theory.bounds import occam_bound

LEVEL = 0.05
BOARDS = 50
DEAR = {"C10": 25, "C15": 25, "C18": 25}  # boards of claims that compare many runs
MANY = 500  # absent, present, on the margin; by `make test-all`
MARGIN = "margin"  # the truth stands where confirmed turns into contradicted


@cache
def ends(processes):
    """Ranks of the ordered values between which the median lies at 95%."""
    return [int(end) for end in median_interval(range(processes))]


def timed(rng, ratio, processes=9, spread=0.08):
    """A paired ratio over so many processes, as `timing.ratios` has it."""
    values = np.sort(ratio * np.exp(spread * rng.standard_normal(processes)))
    low, high = ends(processes)
    seen = dict(ratio=np.median(values), ratio_low=values[low], ratio_high=values[high])
    return seen | dict(processes=processes)


def c5(rng, ratio):
    pairs = [("low_rank", "sum_first"), ("low_rank_plain", "sum_first_plain")]
    pairs += [("dense", "sum_first_plain"), ("dense", "low_rank_plain")]
    rows = [dict(baseline=b, form=f) | timed(rng, ratio) for b, f in pairs]
    return Given(training_step=pd.DataFrame(rows))


def c6(rng, case):
    loop, first = case
    rows = [
        dict(n_blocks=2, reading="total_rank", form=form) | timed(rng, ratio)
        for form, ratios in (("loop", loop), ("sum_first", first))
        for ratio in ratios
    ]
    return Given(adapter_path=pd.DataFrame(rows))


def c7(rng, ratios):
    # as measured: less moves between processes than of a path of a thousandth of a second
    rows = [dict(form="merged", batch=b) | timed(rng, r, spread=0.02) for b, r in enumerate(ratios)]
    memory = pd.DataFrame(
        [
            dict(batch=b, form=form, weights_bytes=100, peak_bytes=1000)
            for b in range(len(ratios))
            for form in ("base", "merged")
        ]
    )
    return Given(latency=pd.DataFrame(rows), memory=memory)


def published(values):
    common = dict(setting="few_shot", backbone="ViT-B/16")
    rows = [
        common | dict(method=m, target_dataset=name, shots=shots, accuracy=value)
        for m, name, shots, value in values
    ]
    return pd.DataFrame(rows)


def c9(rng, away):
    """Eleven methods, and a claim that is drawn as they are, or lies `away` from their mean."""
    values = 93.65 - (rng.standard_normal() if away is None else away) + rng.standard_normal(11)
    return Given(published=published([(f"m{i}", "ImageNet", 16, v) for i, v in enumerate(values)]))


def c10(rng, away):
    """Own runs of three seeds whose mean is so far from both numbers.

    0.2 points between seeds: at 0.4, three of them rarely tell that both are within the margin.
    """
    rows = [
        dict(
            dataset=name,
            evaluated_on=name,
            shots=shots,
            seed=seed,
            method="block_lora",
            accuracy=(claimed + away + 0.2 * rng.standard_normal()) / 100,
        )
        for name, shots, claimed in (("eurosat", 4, 88.08), ("imagenet", 1, 70.43))
        for seed in (1, 2, 3)
    ]
    known = published([("CLIP-LoRA", "EuroSAT", 4, 84.9), ("PromptSRC", "ImageNet", 1, 68.1)])
    given = Given(few_shot=pd.DataFrame(rows), published=known)
    given.profile = load_profile("paper")
    return given


def runs(rng, cells, sets, seeds, between=2.0, noise=1.0, **more):
    """Runs of each (method, shots) at a level in points; sets differ in each method's effect."""
    rows = [
        dict(
            method=method,
            shots=shots,
            dataset=name,
            evaluated_on=name,
            seed=seed,
            accuracy=(level + effect + noise * rng.standard_normal()) / 100,
            **more,
        )
        for (method, shots), level in cells.items()
        for name in sets
        for effect in [between * rng.standard_normal()]
        for seed in seeds
    ]
    return pd.DataFrame(rows)


SETS, SEEDS = ("a", "b", "c", "d", "e", "f"), (1, 2)


def c11(rng, gaps):
    few, many = gaps
    cells = {("block_lora", 1): 40.0, ("frozen_a", 1): 40.0 - few}
    cells |= {("block_lora", 16): 60.0, ("frozen_a", 16): 60.0 - many}
    return Given(few_shot=runs(rng, cells, SETS, SEEDS))


def c12(rng, loss):
    frames = [
        runs(rng, {("block_lora", 4): 50.0 - loss * (n == 8)}, SETS[:4], SEEDS).assign(
            reading="total_rank", rank=8, n_blocks=n, trainable_parameters=100 + 100 / n
        )
        for n in (1, 2, 4, 8)
    ]
    return Given(blocks=pd.concat(frames))


def c14(rng, losses):
    """One training a seed, whose luck all of its sets share."""
    frames = []
    for loss, names in zip(losses, (("x", "y", "z"), ("v", "w")), strict=True):
        lucky = {seed: 0.3 * rng.standard_normal() for seed in (1, 2, 3)}
        parts = [
            runs(rng, {("lora", 16): 50.0, ("block_lora", 16): 50.0}, ["s"], (1, 2, 3), 0, 0.1)
            for _ in names
        ]
        frame = pd.concat([p.assign(evaluated_on=n) for p, n in zip(parts, names, strict=True)])
        off = frame["seed"].map(lucky) - loss
        frame["accuracy"] += (frame["method"] == "block_lora") * off / 100
        frames.append(frame)
    return Given(cross_dataset=frames[0], few_shot=frames[1])


def c15(rng, case):
    """Losses (points) against LoRA and against zero-shot, in two families and two tasks.

    A task has one set, and what is said is of that one: nothing of a method differs by set there.
    """
    to_lora, to_zero = case
    frames = {}
    for name in ("sigmoid", "captioner", "retrieval", "texts"):
        family = name in ("sigmoid", "captioner")
        sets, seeds = (SETS, SEEDS) if family else (("x",), (1, 2, 3, 4, 5))
        cells = {("block_lora", 16): 60.0, ("lora", 16): 60.0 + to_lora}
        trained = runs(rng, cells, sets, seeds, 0.3 if family else 0.0, 0.3)
        zero = runs(rng, {("zero_shot", 0): 60.0 + to_zero}, sets, [0], 0, 0)
        frames[name] = pd.concat([trained, zero])
    return Given(**frames)


def c18(rng, losses):
    """Losses (points) against LoRA and PromptSRC, at few and at many shots."""
    to_lora, to_promptsrc = losses
    cells = {("block_lora", k): 50.0 for k in (1, 16)}
    for k, lora, promptsrc in zip((1, 16), to_lora, to_promptsrc, strict=True):
        cells |= {("lora", k): 50.0 + lora, ("promptsrc", k): 50.0 + promptsrc}
    given = Given(comparison=runs(rng, cells, SETS, SEEDS, 0.4, 0.4))
    if "promptsrc" not in [m.name for m in given.profile.methods]:
        rival = given.profile.entry("lora").model_copy(
            update={"name": "promptsrc", "method": "lora"}
        )
        methods = (*given.profile.methods, rival)
        given.profile = given.profile.model_copy(update={"methods": methods})
    return given


def c16a(rng, floor):
    rows = [
        dict(
            form="block_lora", task="fails", directions=8, n_blocks=n, seed=s, floor=f, error=f + e
        )
        for n, f in ((1, 0.0), (8, floor))
        for s, e in enumerate(1e-3 * rng.random(3))
    ]
    return Given(shared_task=pd.DataFrame(rows))


def c16b(rng, beyond):
    rows = []
    for n, seed in product((2, 4, 8), range(11)):
        width = rng.exponential(1 / n)
        both = (("lora", width), ("block_lora", width + beyond + 0.2 * rng.standard_normal()))
        rows += [
            dict(form=f, task="helps", samples=24, n_blocks=n, seed=seed, error=e) for f, e in both
        ]
    return Given(shared_task=pd.DataFrame(rows))


def c17(rng, excess):
    """Runs on two sets of ten classes; excess: (test, train) points above chance, by setting."""
    rows = [
        dict(
            lr=lr,
            init_scale=scale,
            seed=seed,
            dataset=name,
            evaluated_on=name,
            shots=1,
            total=1000,
            method=f"block_lora,lr={lr},init_scale={scale}",
            accuracy=0.1 + (test + 3 * rng.standard_normal()) / 100,
            train_accuracy=0.1 + (train + 6 * rng.standard_normal()) / 100,
        )
        for (lr, scale), (test, train) in excess.items()
        for seed in (1, 2, 3, 4, 5)
        for name in ("fashion", "mnist")
    ]
    return Given(collapse=pd.DataFrame(rows))


def grid(top, start=(25, 60)):
    """Settings at two rates and two scales: what ends at the highest rate, and from a bad start."""
    learns = (25, 60)
    return {(0.02, 1.0): learns, (0.2, 1.0): top, (0.02, 10.0): start, (0.2, 10.0): top}


def o2(rng, apart):
    frames = []
    for n, reading in ((3, "total_rank"), (5, "block_rank")):
        cells = {("block_lora", 4): 50.0, ("lora_plus", 4): 50.0 - apart}
        frames.append(
            runs(rng, cells, SETS[:4], SEEDS, 0.3, 0.3, reading=reading, rank=3, n_blocks=n)
        )
    frame = pd.concat(frames)
    return Given(twins=frame.assign(total=1000, correct=(1000 * frame["accuracy"]).round()))


def o3(rng, case):
    block, half = case
    cells = {("lora", 16): 60.0, ("block_lora", 16): 60.0 - block, ("lora_r1", 16): 60.0 - half}
    return Given(few_shot=runs(rng, cells, SETS, SEEDS, 0.4, 0.4))


def o4(rng, errors):
    """True errors of the best code and of zero-shot on two sets; their samples are independent."""
    rows = []
    for name, (adapter, zero) in zip(("a", "b"), errors, strict=True):
        wrong, other = (rng.binomial(400, error) / 400 for error in (adapter, zero))
        level = 0.05 / 4  # two ends on two sets
        bound, lower = occam_bound(wrong, 0, 400, level), 1 - occam_bound(1 - other, 0, 400, level)
        row = dict(dataset=name, prior="fixed beforehand", setting="code", bits=1, samples=400)
        row |= dict(empirical_error=wrong)
        seen = dict(delta=level, universal=1.0, test_error=adapter, chance=0.9)
        ends = dict(zero_shot_at_least=lower, zero_shot_at_least_paid=lower)
        rows.append(row | seen | ends | dict(bound=bound))
        rows.append(rows[-1] | dict(setting="zero-shot", empirical_error=other))
    return Given(occam=pd.DataFrame(rows))


def c13(rng, gib):
    noise = 1 + 0.01 * rng.standard_normal(3)
    common = dict(model="m", images=32, classes=1000, where="here")
    forms = ("low_rank", "sum_first", "clip_lora")
    rows = [
        common | dict(form=form, peak_bytes=gib * 2**30 * n)
        for form, n in zip(forms, noise, strict=True)
    ]
    memory = [dict(variant="CLIP-LoRA's code, float16", gib=16.0, images=32)]
    gpus = [("ours", gib * noise[0] / 1.6), ("CLIP-LoRA", 22.4)]
    gpus = pd.DataFrame([dict(device="g", case=case, reserved_gib=n) for case, n in gpus])
    return Given(
        measured_step=pd.DataFrame(rows), memory=pd.DataFrame(memory), measured_on_gpus=gpus
    )


def c1(rng, error):
    worst = {"precision": ["float64"], "peft": error * rng.random(1), "tolerance": [1e-12]}
    return Given(worst_errors=pd.DataFrame(worst))


def c2(rng, off):
    """off: by how much one run of one method, or one adapter on a model, trains another number."""
    width = 3 * (4 * 192 + 3 * 128)  # q, k and v in the layers of PocketCLIP's two towers
    trained = dict(lora=4, block_lora=3, lora_r1=2, lora_plus=2, frozen_a=2)  # r = 2, n = 2
    runs = pd.DataFrame(
        [
            dict(method=method, seed=seed, trainable_parameters=each * width)
            for method, each in trained.items()
            for seed in (1, 2, 3)
        ]
    )
    common = dict(model="ViT-B-16", reading="total_rank", rank=2)
    pairs = (("lora", 1, 184_320), ("block_lora", 2, 138_240))
    models = pd.DataFrame(
        [common | dict(form=f, n_blocks=n, closed_form=c, counted=c) for f, n, c in pairs]
    )
    frame, column = [(runs, "trainable_parameters"), (models, "counted")][rng.integers(2)]
    frame.loc[rng.integers(len(frame)), column] += off
    return Given(few_shot=runs, adapter_parameters=models)


def c3(rng, saved):
    common = dict(model="m", reading="total_rank", rank=2, closed_form=0)
    pairs = (("lora", 1, 1000), ("block_lora", 2, round(1000 * (1 - saved))))
    rows = [common | dict(form=f, n_blocks=n, counted=c) for f, n, c in pairs]
    return Given(adapter_parameters=pd.DataFrame(rows))


def c4(rng, off):
    d = int(rng.integers(8, 64))
    rows = [
        dict(rank=8, n_blocks=4, d=d, order=order, closed_form=c, counted=c)
        for order, c in (("loop", 8 * d * d), ("sum_first", 2 * d * d + off))
    ]
    return Given(forming=pd.DataFrame(rows))


def c8(rng, ratio):
    common = dict(form="block_lora", reading="total_rank", n_blocks=2, ratio_to_same_class=1.3)
    ratios = pd.DataFrame([common | dict(ratio_to_lora=ratio * (1 + 0.01 * rng.random()))])
    return Given(ratios=ratios, bounds=pd.DataFrame({"vacuous": [True]}))


def o1(rng, apart):
    row = dict(optimizer="SGD", steps=300, spread_of_blocks=0.0)
    row["max_relative_difference"] = apart * (0.5 + rng.random())
    return Given(trajectories=pd.DataFrame([row]))


# claim -> (its evidence, {effect: what is true of the claim, or that it is on the margin})
CASES = {
    "C1": (c1, {1e-13: True, 1e-6: False}),
    "C2": (c2, {0: True, 1: False, -8: False}),
    "C3": (c3, {0.25: False, 0.8: True}),
    "C4": (c4, {0: True, 4: False}),
    "C5": (c5, {0.69: True, 1.0: False, 0.74: MARGIN}),
    "C6": (
        c6,
        {
            ((1.3, 1.3, 1.3), (0.5, 0.6, 0.7)): True,
            ((1.3, 1.3, 1.3), (1.0, 1.0, 1.0)): False,
            ((0.7, 0.7, 0.7), (0.5, 0.6, 0.7)): False,
            ((0.95, 0.95, 0.95), (0.95, 0.95, 0.95)): MARGIN,
            ((0.95, 1.5, 1.5), (0.5, 0.5, 0.5)): MARGIN,  # one size decides
        },
    ),
    "C7": (c7, {(1, 1, 1): True, (1.2, 1.2, 1.2): False, (1.05, 1.05, 1.05): MARGIN}),
    "C8": (c8, {0.75: True, 1.2: False}),
    "C9": (c9, {None: True, 20.0: False}),
    "C10": (c10, {0.0: True, 8.0: False, 1.0: MARGIN, -1.0: MARGIN}),
    "C11": (
        c11,
        {
            (10.0, 1.0): True,
            (-5.0, -5.0): False,
            (0.0, -8.0): MARGIN,  # no gap, and what is none narrows
            (8.0, 8.0): MARGIN,  # a gap that stays
            (0.0, 0.0): MARGIN,
            (5.0, 15.0): False,
        },
    ),
    "C12": (c12, {8.0: True, -8.0: False, 0.0: MARGIN}),
    "C13": (c13, {6.0: True, 40.0: False, 22.35: MARGIN}),
    "C14": (
        c14,
        {
            (0.0, 0.0): True,
            (4.0, 0.0): False,
            (1.0, 0.0): MARGIN,
            (0.0, 1.0): MARGIN,
            (1.0, 1.0): MARGIN,
        },
    ),
    "C15": (
        c15,
        {
            (0.0, -8.0): True,
            (5.0, -8.0): False,
            (0.0, 5.0): False,  # worse than nothing
            (1.0, -8.0): MARGIN,
            (0.0, 0.0): MARGIN,
        },
    ),
    "C16a": (c16a, {0.875: True, 0.0: False}),
    "C16b": (c16b, {-0.2: True, 0.2: False, 0.0: MARGIN}),
    "C17a": (
        c17,
        {
            "collapses": True,
            "trains": False,
            "on the margin": MARGIN,
            "learns its images by the margin": MARGIN,
        },
    ),
    "C17b": (c17, {"bad start": True, "trains": False, "starts on the margin": MARGIN}),
    "C18": (
        c18,
        {
            ((-3.0, -3.0), (-4.0, 0.0)): True,
            ((-3.0, 5.0), (-3.0, -3.0)): False,
            ((1.0, 1.0), (1.0, 1.0)): MARGIN,
            ((1.0, -3.0), (-3.0, -3.0)): MARGIN,  # one rival at one number of shots decides
        },
    ),
    "O1": (o1, {1e-14: True, 1e-9: False}),
    "O2": (o2, {0.0: True, 4.0: False, 1.0: MARGIN, -1.0: MARGIN}),
    "O3": (
        o3,
        {
            (3.0, 3.0): True,
            (5.0, 1.0): False,
            (3.0, 2.0): MARGIN,
            (3.0, 4.0): MARGIN,
            (0.0, 0.0): MARGIN,  # nothing is lost
        },
    ),
    "O4": (o4, {((0.5, 0.8), (0.6, 0.6)): True, ((0.6, 0.6), (0.7, 0.7)): MARGIN}),
}
GRIDS = {
    "collapses": grid((0, 0)),
    "trains": grid((25, 60)),
    "on the margin": grid((10, 10)),
    "learns its images by the margin": grid((0, 10)),
    "bad start": grid((0, 0), start=(0, 0)),
    "starts on the margin": grid((0, 0), start=(10, 10)),
}


def test_every_claim_with_a_judge_is_simulated():
    assert set(CASES) == set(BY_ID)


def test_what_c15_was_asked_of_is_what_was_there():
    given = c15(np.random.default_rng(1), (9.0, 9.0))  # far below: one family settles it
    told = BY_ID["C15"].judge(given).but
    assert told == "two other families and two other tasks, all small"
    for name in ("captioner", "retrieval", "texts"):
        del given.frames[name]
    found = BY_ID["C15"].judge(given)
    assert (found.holds, found.but) == (False, "one other family and no other tasks, all small")


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "RN50", "hf-hub:timm/ViT-B-16-SigLIP"])
def test_a_model_without_closed_form_leaves_c2_open(name):
    """It ended the whole scoreboard of a profile on such a model."""
    given = c2(np.random.default_rng(1), 0)
    given.profile = given.profile.model_copy(
        update={"backbone": given.profile.backbone.model_copy(update={"name": name})}
    )
    with pytest.raises(MissingResults, match=f"architecture '?{name}"):
        BY_ID["C2"].judge(given)
    few_shot = given.profile.experiment("few_shot").model_copy(
        update={"backbone": c2(np.random.default_rng(1), 0).profile.backbone}
    )
    given.profile = given.profile.model_copy(
        update={"experiments": given.profile.experiments | {"few_shot": few_shot}}
    )
    assert BY_ID["C2"].judge(given).holds


def test_o3_holds_block_lora_against_its_own_width_and_rank():
    """Of r = 4, n = 2 LoRA of rank 1 was told, and judged, as that of rank r/n."""
    given = o3(np.random.default_rng(1), (3.0, 3.0))
    cut = {"rank": 4, "n_blocks": 2, "alpha": 2.0}  # of the scale that all have
    methods = [
        m.model_copy(update={"settings": m.settings | cut} if m.name == "block_lora" else {})
        for m in given.profile.methods
    ]
    other = given.profile.model_copy(update={"methods": tuple(methods)})
    given.profile = other
    with pytest.raises(MissingResults, match="the rank of block_lora, 2 and 4, and have 1 and 2"):
        BY_ID["O3"].judge(given)
    given = c11(np.random.default_rng(1), (10.0, 1.0))  # 'w/o A', neither
    assert BY_ID["C11"].judge(given).holds
    given.profile = other
    with pytest.raises(MissingResults, match=r"\(2, 4, 1.0\), and has \(1, 2, 0.7071\); "):
        BY_ID["C11"].judge(given)


def test_c15_names_an_experiment_without_zero_shot():
    """A profile that leaves it out: the scoreboard ended in difference_by_set's ValueError."""
    given = c15(np.random.default_rng(1), (0.0, -8.0))
    given.frames["texts"] = given.frames["texts"].query("method != 'zero_shot'")
    with pytest.raises(MissingResults, match="no run of zero_shot in texts to compare with; list"):
        BY_ID["C15"].judge(given)


def test_c15_is_open_where_a_rate_was_not_chosen():
    """As C11, C14, C18 and O3 are: LoRA's rate was chosen, and Block-LoRA lost by its own."""
    given = c15(np.random.default_rng(1), (5.0, -8.0))
    assert BY_ID["C15"].judge(given).holds is False
    given.profile = given.profile.knowing(["block_lora"])
    found = BY_ID["C15"].judge(given)
    assert (found.holds, "so nothing follows" in found.evidence) == (None, True)


def test_small_models_of_an_experiment_confirm_nothing_on_a_published_checkpoint(tmp_path):
    """C15 was plainly confirmed on `paper` with pocket.yaml's families, as its text advises."""
    pocket, paper = load_profile("pocket"), with_rates("paper")
    given = c15(np.random.default_rng(1), (0.0, -8.0))
    more = {name: pocket.experiments[name] for name in given.frames}
    own = paper.model_copy(update=dict(experiments=paper.experiments | more))
    own._waiting = ()  # all rates are chosen
    for profile in (own, pocket):
        evidence = Evidence(profile, tmp_path)
        evidence._runs, evidence._failed = given.frames, {key: [] for key in given.frames}
        (found,) = judge([BY_ID["C15"]], evidence)
        assert found.verdict == "confirmed on pocket only"


EFFECTS = [(id, effect) for id, (_, effects) in CASES.items() for effect in effects]


@pytest.mark.slow
@pytest.mark.parametrize(("id", "effect"), EFFECTS)
def test_a_rule_is_wrong_at_most_once_in_twenty_times(id, effect):
    count_wrong(id, effect, DEAR.get(id, BOARDS))


@pytest.mark.rare
@pytest.mark.parametrize(("id", "effect"), EFFECTS)
def test_so_it_is_over_many_boards(id, effect):
    count_wrong(id, effect, MANY)


def count_wrong(id, effect, boards):
    """Judge so many boards of an effect, and count what is said that is not so."""
    make, effects = CASES[id]
    rng, truth = np.random.default_rng(list(f"{id} {effect}".encode())), effects[effect]
    settings = GRIDS.get(effect, effect) if isinstance(effect, str) else effect
    # of few, more have a chance of 1 in 1000 at this level; of many it is the level itself
    allowed = int(LEVEL * boards if boards == MANY else binom.isf(1e-3, boards, LEVEL))
    found = [BY_ID[id].judge(make(rng, settings)).holds for _ in range(boards)]
    for said in (True, False):
        if truth is not said:  # on the margin, neither may be said often
            assert found.count(said) <= allowed, f"{found.count(said)} of {boards} say {said}"
    if truth is not MARGIN and (id, truth) not in UNDECIDABLE:
        assert found.count(truth) > boards / 3, "a large effect has to be seen"


# 'could be so' confirms nothing; two bounds that overlap contradict nothing
UNDECIDABLE = {("C9", True)}
JUDGES = (ablations, accuracy, beyond, costs, counts, published_numbers)


def test_no_judge_is_left_out():
    judges = {claim.judge.__name__ for claim in BY_ID.values()}
    written = {
        name
        for module in JUDGES
        for name, value in vars(module).items()
        if getattr(value, "__annotations__", {}).get("return") == "Finding"
    }
    assert written == judges


@pytest.mark.parametrize(
    ("id", "effect", "told"),
    [
        ("C2", 0, ": equal."),
        ("C2", 1, ": not equal in "),
        ("C4", 0, "in all 1 counted cases"),
        ("C4", 4, "in 0 of 1 counted cases"),
    ],
)
def test_what_is_said_is_what_was_found(id, effect, told):
    make, _ = CASES[id]
    assert told in BY_ID[id].judge(make(np.random.default_rng(1), effect)).evidence


@pytest.mark.parametrize(("ratio", "told"), [(1.3, ": looser."), (0.9, ": not looser.")])
def test_a_bound_is_called_looser_where_it_is(ratio, told):
    given = c8(np.random.default_rng(1), 0.7)
    given.frames["ratios"]["ratio_to_same_class"] = ratio
    assert told in BY_ID["C8"].judge(given).evidence
