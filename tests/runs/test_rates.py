"""Each method's learning rate: chosen on validation images by a stated rule, and refused if it was
not.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from conftest import profile_facts
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.claims.evidence import Evidence
from blocklora_lib.claims.judges.accuracy import own_rates
from blocklora_lib.core.paths import PROFILES, RESULTS
from blocklora_lib.data.dataset import Dataset
from blocklora_lib.learning.count import Count
from blocklora_lib.runs import rates as chosen_rates
from blocklora_lib.runs.execute import run_grid
from blocklora_lib.runs.experiment import RATES
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.packed import SUFFIX
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile, profile_files, rates_file
from blocklora_lib.runs.rates import best, choose, read_choice, write_choice
from blocklora_lib.runs.record import Failure, Result, RunRecord, RunSpec
from blocklora_lib.runs.results import MissingResults
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.variant import vary

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TRAINED = ("lora", "block_lora", "frozen_a")
DECLARED = {"grid": list(GRID), "datasets": ["squares", "dots"], "shots": [1, 2], "seeds": [2]}
COMMITTED = sorted(path.stem for path in (PROFILES / "rates").glob("*.yaml"))


def facts(clip: str, **changes) -> dict:
    return profile_facts(clip) | {"rates": DECLARED} | changes


@pytest.fixture
def profile(tiny_clip) -> Profile:
    return Profile.model_validate(facts(tiny_clip))


@pytest.fixture
def file(tmp_path, tiny_clip) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(facts(tiny_clip)))
    return path


def record(spec: RunSpec, correct: int | None, total: int = 1000) -> RunRecord:
    """A record of the spec with so many correct answers; None: it diverged."""
    about = {"key": spec.key, "spec": spec}
    if correct is None:
        error = Failure(kind="diverged", message="loss nan", retry="use a lower lr")
        return RunRecord(**about, status="failed", error=error)
    result = Result(
        accuracy={name: Count(correct=correct, total=total) for name in spec.evaluate_on},
        train=Count(correct=1, total=2),
        loss=(1.0,) * spec.training.steps(spec.shots),
        trainable_parameters=1,
    )
    return RunRecord(**about, status="done", result=result)


def fill(profile: Profile, folder: Path, manifests: Path, correct) -> RunStore:
    """Store a made-up record of every run of the choice; correct(spec): answers of a thousand."""
    store = RunStore(folder)
    for spec in expand(profile, RATES, manifests=manifests):
        store.save(record(spec, correct(spec)))
    return store


def hill(peaks: dict[str, float]):
    """A landscape: accuracy falls with the distance from a method's best rate, on a log scale."""

    def correct(spec: RunSpec) -> int:
        far = math.log(spec.training.lr / peaks[spec.method.name]) ** 2
        level = 300 * (spec.dataset == "dots") + 100 * spec.shots + 7 * spec.seed
        return round(level + 300 * math.exp(-far / 2))

    return correct


@given(
    st.lists(st.none() | st.integers(0, 6).map(lambda n: Fraction(n, 6)), min_size=1, max_size=7)
)
def test_the_rule_takes_the_highest_mean_and_of_equal_ones_the_lowest_rate(accuracies):
    known = [a for a in accuracies if a is not None]
    if not known:
        with pytest.raises(ValueError, match="declare lower ones"):
            best(accuracies)
        return
    i = best(accuracies)
    assert accuracies[i] is not None
    assert all(a is None or a < accuracies[i] for a in accuracies[:i])
    assert all(a is None or a <= accuracies[i] for a in accuracies[i:])


@pytest.mark.parametrize(
    "peaks", [(1e-3, 1e-3, 1e-3), (3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1), (1e-1, 1e-3, 1e-2)]
)
def test_every_method_gets_the_rate_of_its_own_peak(profile, manifests, tmp_path, peaks):
    wanted = dict(zip(TRAINED, peaks, strict=True))
    choice = choose(profile, fill(profile, tmp_path, manifests, hill(wanted)), manifests)
    assert {name: method.lr for name, method in choice.methods.items()} == wanted
    assert set(choice.at_the_edge()) == {n for n, lr in wanted.items() if lr in (1e-3, 1e-1)}


def test_a_mean_counts_each_run_alike_and_equal_means_tie_exactly(profile, manifests, tmp_path):
    """At 1e-3 two sets have 3/10 and 12/20, at 1e-2 both 9/20: the mean is the same."""
    thirds = {
        1e-3: {"squares": (3, 10), "dots": (12, 20)},
        1e-2: {"squares": (9, 20), "dots": (45, 100)},
    }
    store = RunStore(tmp_path)
    for spec in expand(profile, RATES, manifests=manifests):
        store.save(record(spec, *thirds.get(spec.training.lr, {}).get(spec.dataset, (1, 10))))
    choice = choose(profile, store, manifests)
    assert [m.lr for m in choice.methods.values()] == [1e-3] * 3
    assert choice.methods["lora"].accuracy == (0.45, 0.1, 0.45, 0.1, 0.1)


def test_a_rate_at_which_a_run_failed_is_not_chosen(profile, manifests, tmp_path):
    def correct(spec):
        failed = spec.training.lr == 1e-2 and spec.seed == 2 and spec.dataset == "dots"
        return None if failed else hill(dict.fromkeys(TRAINED, 1.2e-2))(spec)

    choice = choose(profile, fill(profile, tmp_path, manifests, correct), manifests)
    assert {m.lr for m in choice.methods.values()} == {3e-2}
    assert choice.methods["lora"].accuracy[2] is None


def test_where_every_rate_failed_there_is_none_to_choose(profile, manifests, tmp_path):
    store = fill(profile, tmp_path, manifests, lambda s: None if s.method.name == "lora" else 5)
    with pytest.raises(ValueError, match="no learning rate for method lora: runs failed at each"):
        choose(profile, store, manifests)


def test_a_choice_lacks_no_run(profile, manifests, tmp_path):
    store = fill(profile, tmp_path, manifests, hill(dict.fromkeys(TRAINED, 1e-2)))
    missing = expand(profile, RATES, dataset="dots", manifests=manifests)[3]
    store.path(missing).unlink()
    with pytest.raises(
        MissingResults, match=r"at lr=0\.003 is missing in .* `blocklora rates --profile"
    ):
        choose(profile, store, manifests)


def test_the_runs_of_a_choice_see_validation_images_of_their_own_set_alone(profile, manifests):
    specs = expand(profile, RATES, manifests=manifests)
    assert len(specs) == len(TRAINED) * len(GRID) * 2 * 2
    assert {spec.split for spec in specs} == {"val"}
    assert all(spec.evaluate_on == (spec.dataset,) for spec in specs)  # no variant of the source
    rates = {name: [s.training.lr for s in specs if s.method.name == name] for name in TRAINED}
    assert all(sorted(set(found)) == list(GRID) for found in rates.values())
    rest = {spec.training.model_copy(update={"lr": 1.0}) for spec in specs}
    assert rest == {profile.training.model_copy(update={"lr": 1.0})}  # the rate, and only that


@pytest.mark.slow
def test_no_test_image_is_opened(profile, manifests, bench, tmp_path, monkeypatch):
    opened = []
    for name in ("images", "labels", "unreadable"):
        method = getattr(Dataset, name)

        def seen(self, split, *args, _method=method, **kwargs):
            opened.append(split)
            return _method(self, split, *args, **kwargs)

        monkeypatch.setattr(Dataset, name, seen)
    specs = expand(profile, RATES, method="lora,lr=0.01", manifests=manifests)
    records = list(run_grid(specs, RunStore(tmp_path / "runs"), bench))
    assert {r.status for r in records} == {"done"}
    assert [c.total for r in records for c in r.result.accuracy.values()] == [6, 6, 4, 4]
    assert set(opened) == {"train", "val"}


@pytest.fixture
def choose_for(manifests, tmp_path, monkeypatch):
    """Write a profile's choice from a made-up landscape, as the command does."""
    peaks = {"lora": 1e-2, "block_lora": 3e-2, "frozen_a": 1e-1}

    def write(file: Path, peaks=peaks):
        profile = load_profile(file, chosen=False)
        store = fill(profile, tmp_path / "runs", manifests, hill(peaks))
        choice = choose(profile, store, manifests)
        write_choice(profile, choice, store, rates_file(file, own=True), manifests)
        return choice

    return write


def test_a_profile_has_the_rates_that_were_chosen_for_it(file, choose_for, manifests):
    choice = choose_for(file)
    profile = load_profile(file)
    assert {e.name: profile.training_of(e).lr for e in profile.trained} == {
        "lora": 1e-2,
        "block_lora": 3e-2,
        "frozen_a": 1e-1,
    }
    specs = expand(profile, manifests=manifests)
    assert {(s.method.name, s.training.lr) for s in specs if s.training} == {
        (name, method.lr) for name, method in choice.methods.items()
    }
    assert read_choice(rates_file(file)) == choice
    assert rates_file(file) in profile_files(file)
    # the runs of the choice are what they were: it may be looked at, and made, again
    before = expand(load_profile(file, chosen=False), RATES, manifests=manifests)
    assert expand(profile, RATES, manifests=manifests) == before
    # and the packed ones choose the same again
    packed = RunStore(rates_file(file).with_suffix(SUFFIX))
    assert len(packed.records()) == len(before)
    assert choose(profile, packed, manifests) == choice


def test_a_rate_that_an_experiment_varies_wins(file, choose_for, tiny_clip, manifests):
    vary = [{"training.lr": [0.5, 0.7]}]
    experiments = {"few_shot": {}, "collapse": {"methods": ["lora"], "vary": vary}}
    file.write_text(yaml.safe_dump(facts(tiny_clip, experiments=experiments)))
    choose_for(file)
    specs = expand(load_profile(file), "collapse", manifests=manifests)
    assert {spec.training.lr for spec in specs} == {0.5, 0.7}


@pytest.mark.slow
def test_a_profile_that_extends_another_shares_its_choice_or_has_its_own(file, choose_for):
    choose_for(file)
    child = file.with_name("child.yaml")
    child.write_text("extends: tiny.yaml\nname: child\ndescription: d\nseeds: [7]\n")
    assert load_profile(child).methods == load_profile(file).methods
    assert rates_file(child) == rates_file(file)
    assert rates_file(child, own=True) == file.with_name("rates") / "child.yaml"
    # other training: the choice is for other settings, until one is made, beside the first
    child.write_text(child.read_text() + "training: {batch_size: 2}\n")
    with pytest.raises(
        ValueError, match=r"tiny\.yaml has a rate of method lora for other settings"
    ):
        load_profile(child)
    choose_for(child, dict.fromkeys(TRAINED, 3e-3))
    rates = {
        name: {m.training.get("lr") for m in load_profile(name).trained} for name in (child, file)
    }
    assert rates == {child: {3e-3}, file: {1e-2, 3e-2, 1e-1}}
    child.write_text(child.read_text() + "rates: null\n")
    assert {load_profile(child).training_of(m).lr for m in load_profile(child).trained} == {1e-2}


def test_until_rates_are_chosen_the_declared_one_is_everyones(file, choose_for, tiny_clip):
    file.write_text(yaml.safe_dump(facts(tiny_clip, rates=DECLARED | {"until_chosen": 2e-4})))
    assert {m.training["lr"] for m in load_profile(file).trained} == {2e-4}
    choose_for(file)
    assert {m.training["lr"] for m in load_profile(file).trained} == {1e-2, 3e-2, 1e-1}


@pytest.mark.slow
def test_a_method_to_come_needs_a_rate_of_its_own(file, choose_for, tiny_clip):
    """An entry whose method the choice did not know is named, and choosing again gives it one."""
    choose_for(file)
    methods = [
        *profile_facts(tiny_clip)["methods"],
        {"name": "new", "method": "lora", "settings": {"rank": 1}},
    ]
    file.write_text(yaml.safe_dump(facts(tiny_clip, methods=methods)))
    with pytest.raises(ValueError, match=r"has no rate of method new; say `blocklora rates --prof"):
        load_profile(file)
    waits = facts(tiny_clip, methods=methods, rates=DECLARED | {"until_chosen": 2e-4})
    file.write_text(yaml.safe_dump(waits))
    assert load_profile(file).entry("new").training == {"lr": 2e-4}
    assert load_profile(file).entry("lora").training == {"lr": 1e-2}
    assert load_profile(file).waiting == ("new",)
    choose_for(file)
    assert load_profile(file).entry("new").training == {"lr": 1e-2}
    assert load_profile(file).waiting == ()


def test_a_method_that_chose_the_rate_of_those_that_wait_has_a_rate_of_its_own(
    file, choose_for, tiny_clip
):
    """`paper` has CLIP-LoRA's rate until it chooses, and its grid has that rate, too."""
    file.write_text(yaml.safe_dump(facts(tiny_clip, rates=DECLARED | {"until_chosen": 1e-2})))
    before = load_profile(file)
    choose_for(file, dict.fromkeys(TRAINED, 1e-2))
    after = load_profile(file)
    assert before.methods == after.methods  # the same rates
    for profile, fair in ((before, False), (after, True)):
        assert own_rates(Evidence(profile, file.parent), "lora", "block_lora") == fair
        needs = {"experiments": ["few_shot"], "datasets": "trained"}
        varied = vary(profile, needs, {"shots": [1]})
        assert own_rates(Evidence(varied, file.parent), "lora", "block_lora") == fair


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            dict(rates=DECLARED | {"grid": [1e-3, 1e-2]}),
            r"chooses from the rates \[0\.001, 0\.003.* profile tiny from \[0\.001, 0\.01\]; say",
        ),
        (dict(rates=DECLARED | {"seeds": [3]}), "lora for other settings than profile tiny's; say"),
        (dict(training={"batch_size": 2}), "rate of method lora for other settings"),
        (dict(draw="coop"), "rate of method lora for other settings"),
        (dict(methods=[{"name": "lora", "settings": {"rank": 3}}]), "lora for other settings"),
        (dict(methods=[{"name": "lora", "training": {"augment": "none"}}]), "for other settings"),
        (
            dict(methods=[{"name": "lora", "training": {"lr": 0.1}}]),
            r"training\.lr=0\.1, and the profile chooses rates; leave the one out, or say rates",
        ),
    ],
)
def test_a_choice_for_something_else_is_refused_in_a_sentence(
    file, choose_for, tiny_clip, changes, says
):
    choose_for(file)
    load_profile(file)
    file.write_text(yaml.safe_dump(facts(tiny_clip, **changes)))
    with pytest.raises(ValueError, match=says) as error:
        load_profile(file)
    assert "\n" not in str(error.value)


def test_what_does_not_bear_on_the_choice_may_change(file, choose_for, tiny_clip):
    choose_for(file)
    before = {m.name: m.training for m in load_profile(file).methods}
    file.write_text(yaml.safe_dump(facts(tiny_clip, seeds=[7], shots=[2], rounds=9, device="cpu")))
    assert {m.name: m.training for m in load_profile(file).methods} == before


def test_a_profile_whose_rates_were_not_chosen_is_refused_with_the_command(file):
    with pytest.raises(
        ValueError,
        match=r"learning rates of profile tiny were not chosen \(.*rates/tiny\.yaml is missing\); "
        r"say `blocklora rates --profile .*tiny\.yaml`",
    ):
        load_profile(file)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda t: t.replace("lr: 0.01", "lr: 0.1"),
            "has lr=0.1 of method lora, which is not what",
        ),
        (lambda t: t.replace("settings: ", "settings: z"), r"tiny\.yaml: methods\.lora\.settings"),
        (lambda t: t.replace("lr: 0.01", "lrr: 0.01"), "unknown key 'lrr'; did you mean 'lr'"),
        (lambda t: t[:40], "no mapping|not valid YAML|must hold|is missing|required"),
    ],
)
def test_a_file_of_rates_that_was_changed_by_hand_is_refused(file, choose_for, edit, says):
    choose_for(file)
    path = rates_file(file)
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=says) as error:
        load_profile(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        (dict(grid=[1e-2, 1e-3]), r"rates\.grid: .*does not rise; list each rate once, the lowest"),
        (dict(grid=[1e-2, 1e-2]), "does not rise"),
        (dict(grid=[1e-2]), r"rates\.grid"),
        (dict(grid=[0.0, 1e-2]), r"rates\.grid"),
        (dict(datasets=["squars"]), "rates: unknown dataset 'squars'; did you mean 'squares'"),
        (dict(seeds=[1, 1]), "rates: seeds lists 1 twice"),
        (dict(shots=[]), r"rates\.shots"),
        (dict(gird=[1e-2, 1e-1]), "unknown key 'gird'; did you mean 'grid'"),
        (dict(grid=[1e-9 * (i + 1) for i in range(1000)], seeds=list(range(100))), "runs, at most"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_be_is_refused(file, tiny_clip, rates, says):
    file.write_text(yaml.safe_dump(facts(tiny_clip, rates=DECLARED | rates)))
    with pytest.raises(ValueError, match=says):
        load_profile(file, chosen=False)


def test_a_set_without_validation_images_is_refused(tiny_clip, manifests):
    given = facts(tiny_clip, source=None, variants=[], targets=["noisy_squares"])
    profile = Profile.model_validate(given | {"rates": DECLARED | {"datasets": ["noisy_squares"]}})
    with pytest.raises(ValueError, match="noisy_squares has no validation images; choose on other"):
        expand(profile, RATES, manifests=manifests)


def test_a_profile_without_rates_has_none_to_choose(tiny_profile, tmp_path):
    with pytest.raises(
        ValueError, match="profile tiny declares no rates to choose from; give rates"
    ):
        choose(tiny_profile, RunStore(tmp_path))
    with pytest.raises(ValueError, match="unknown experiment 'rates'"):
        expand(tiny_profile, RATES)
    named = profile_facts(tiny_profile.backbone.name) | {"experiments": {"rates": {}}}
    with pytest.raises(ValueError, match="'rates' are the runs that choose rates; choose another"):
        Profile.model_validate(named)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_rates_are_what_their_packed_records_choose(name):
    file = PROFILES / "rates" / f"{name}.yaml"
    profile, packed = load_profile(name), RunStore(file.with_suffix(SUFFIX))
    waiting = chosen_rates.not_chosen(profile, file)
    methods = tuple(entry for entry in profile.methods if entry.name not in waiting)
    profile = profile.model_copy(update={"methods": methods})
    assert choose(profile, packed) == read_choice(file)
    assert {r.key for r in packed.records()} == {s.key for s in expand(profile, RATES)}
    assert {r.spec.split for r in packed.records()} == {"val"}


def test_pocket_and_pocket_full_share_their_rates():
    assert {"pocket", "smoke"} <= set(COMMITTED)
    assert rates_file("pocket-full") == rates_file("pocket")
    assert load_profile("pocket-full").methods == load_profile("pocket").methods


def test_the_pocket_grid_is_wide_enough():
    choice, pocket = read_choice(rates_file("pocket")), load_profile("pocket")
    assert choice.at_the_edge() == []
    # one that was added since waits at a rate that no choice can be
    waiting = chosen_rates.not_chosen(pocket, rates_file("pocket"))
    assert {*choice.methods, *waiting} == {m.name for m in pocket.trained}
    assert pocket.rates.until_chosen not in pocket.rates.grid
    waits = {pocket.entry(name).training["lr"] for name in waiting}
    assert waits <= {pocket.rates.until_chosen}


def test_papers_methods_have_clip_loras_rate_until_theirs_are_chosen():
    profile = load_profile("paper")
    if not rates_file("paper").exists():
        assert {m.training["lr"] for m in profile.trained} == {2e-4}  # CLIP-LoRA's released code
    assert 2e-4 in profile.rates.grid


def test_the_rule_is_told_where_the_choice_is(file, choose_for):
    choose_for(file)
    told = [line[2:] for line in rates_file(file).read_text().splitlines() if line[:1] == "#"]
    assert "; ".join(told[1:]) == chosen_rates.RULE


@pytest.mark.slow
def test_with_its_own_rate_every_method_of_the_reference_gains_from_16_shots_over_8():
    runs = RunStore(RESULTS / "reference" / "pocket-full" / "runs").frame()
    few_shot = runs[(runs["dataset"] == runs["evaluated_on"]) & runs["shots"].isin([8, 16])]
    sets = few_shot.groupby(["method_label", "dataset", "shots"])["accuracy"].mean().unstack()
    means = sets.dropna().groupby("method_label").mean()
    assert len(means) > 20
    assert means.index[means[16] <= means[8]].tolist() == []
