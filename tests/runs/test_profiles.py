"""Profiles: the committed ones, the specs that they expand to, and what a bad one says."""

from __future__ import annotations

import itertools

import pytest
import yaml
from conftest import profile_facts
from hypothesis import given
from hypothesis import strategies as st

from blocklora_lib.core.paths import PROFILES, ROOT
from blocklora_lib.data.manifest_files import manifest_names
from blocklora_lib.runs.estimate import estimate
from blocklora_lib.runs.experiment import Experiment
from blocklora_lib.runs.grid import entries, expand, make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile, profile_files
from blocklora_lib.runs.record import TrainingSpec

PROFILE_NAMES = sorted(p.stem for p in PROFILES.glob("*.yaml"))


def test_the_profiles_are_there():
    assert {"pocket", "pocket-full", "paper", "paper-smoke", "smoke"} <= set(PROFILE_NAMES)


def test_only_papers_numbers_stand_beside_published_ones():
    assert {name for name in PROFILE_NAMES if load_profile(name).published} == {"paper"}


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_committed_profiles_are_valid(name):
    profile = load_profile(name)
    assert profile.name == name
    assert "few_shot" in profile.experiments


def test_pocket_and_smoke_name_bundled_sets_only():
    for name in ("pocket", "pocket-full", "smoke"):
        profile = load_profile(name)
        assert set(profile.datasets + profile.variants) <= set(manifest_names())


def test_paper_has_clip_loras_settings():
    # golden values: MaxZanella/CLIP-LoRA's released defaults
    training = load_profile("paper").training
    assert training == TrainingSpec(
        steps_per_shot=500,
        batch_size=32,
        lr=2e-4,
        weight_decay=1e-2,
        betas=(0.9, 0.999),
        lr_min=1e-6,
        augment="clip_lora",
    )
    assert training.steps(16) == 8000


@pytest.mark.parametrize("name", ["pocket", "pocket-full", "paper"])
def test_steps_are_proportional_to_shots_as_in_clip_lora(name):
    """No number of shots trains as short as a smaller one does, but for the few of a short run."""
    profile = load_profile(name)
    for entry in profile.trained:
        steps = [profile.training_of(entry).steps(shots) for shots in (2, 4, 8, 16)]
        assert [b / a for a, b in itertools.pairwise(steps)] == [2, 2, 2]


@pytest.mark.parametrize("name", ["pocket", "paper"])
def test_blocks_are_counted_under_each_reading(name):
    """The forms of notebook 11, as the issue lists them: r = 8 with n = 1, 2, 4, 8, and every
    reading.
    """
    profile = load_profile(name)
    settings = [
        entry.adapter_config() for entry in profile.methods_of(profile.experiment("blocks"))
    ]
    forms = {(config.reading, config.rank, config.n_blocks) for config in settings}
    assert forms == {
        (reading, rank, n)
        for reading, rank in (("total_rank", 8), ("block_rank", 2), ("input", 2))
        for n in (1, 2, 4, 8)
    }


@pytest.mark.slow
def test_the_full_pocket_grid_holds_all_runs_of_pocket():
    def specs(name, experiment):
        return {spec.key for spec in expand(load_profile(name), experiment)}

    for experiment in ("few_shot", "cross_dataset"):
        assert specs("pocket", experiment) < specs("pocket-full", experiment)
    full = load_profile("pocket-full")
    assert full.shots == load_profile("paper").shots
    assert full.training == load_profile("pocket").training
    assert all(len(full.experiment(e).seeds or full.seeds) >= 3 for e in full.experiments)


def test_the_paper_profile_names_its_836_runs_without_the_images():
    specs = expand(load_profile("paper"))
    assert (
        len(specs) == 11 + 11 * 5 * 5 * 3
    )  # zero-shot once a set; five methods, five shots, three seeds


def test_a_set_without_a_manifest_is_named(manifests, tiny_profile):
    profile = tiny_profile.model_copy(update={"targets": ("stripes",)})
    with pytest.raises(
        FileNotFoundError, match=r"without a manifest: stripes; add data_manifests/<name>\.yaml"
    ):
        expand(profile, manifests=manifests)


def test_pocket_grid_is_the_agreed_one(tiny_clip):
    pocket = load_profile("pocket")
    pocket = pocket.model_copy(
        update={"backbone": pocket.backbone.model_copy(update={"pretrained": "none"})}
    )
    specs = expand(pocket)
    assert (
        len(specs) == 11 + 11 * 5 * 3 * 2
    )  # zero-shot once a set; five methods, three shots, two seeds
    assert len({s.key for s in specs}) == len(specs)
    for spec in specs:
        assert spec.evaluate_on == (
            (spec.dataset, *pocket.variants) if spec.dataset == "emoji_source" else (spec.dataset,)
        )
    lora = [s for s in specs if s.dataset == "fashion" and s.method.name == "lora"]
    both = [
        s for name in ("lora", "lora_r1") for s in expand(pocket, dataset="fashion", method=name)
    ]
    assert lora == both


def test_runs_are_known_by_their_entry(tiny_clip, manifests, tiny_profile):
    twice = [
        dict(name="lora"),
        dict(name="half", method="lora", label="LoRA r = 1", settings={"rank": 1}),
    ]
    profile = Profile.model_validate(tiny_profile.model_dump() | {"methods": twice})
    found = entries(profile, manifests=manifests)
    assert {found[s.key].name for s in expand(profile, method="half", manifests=manifests)} == {
        "half"
    }
    assert {e.name for e in found.values()} == {"lora", "half"}


def test_vary_is_every_combination_of_each_grid(tiny_clip, manifests, tiny_profile):
    vary = [
        {"settings.n_blocks": [1, 2], "training.lr": [1e-3, 1e-2]},
        {
            "settings.reading": ["block_rank"],
            "settings.n_blocks": [8],
            "settings.targets": [["q", "v"]],
        },
    ]
    changes = {"experiments": {"blocks": {"methods": ["block_lora"], "shots": [1], "vary": vary}}}
    profile = Profile.model_validate(tiny_profile.model_dump() | changes)
    found = entries(profile, "blocks", manifests)
    assert len({e.name for e in found.values()}) == 2 * 2 + 1
    by_name = {
        e.name: s for s in expand(profile, "blocks", manifests=manifests) for e in [found[s.key]]
    }
    spec = by_name["block_lora,n_blocks=2,lr=0.01"]
    assert (spec.method.settings["n_blocks"], spec.training.lr) == (2, 0.01)
    assert spec.method.settings["reading"] == "total_rank"  # what is not varied stays
    last = by_name["block_lora,reading=block_rank,n_blocks=8,targets=q+v"]
    assert last.method.settings["targets"] == ("q", "v")
    labels = {e.name: e.label for e in found.values()}
    assert labels["block_lora,n_blocks=2,lr=0.01"] == "Block-LoRA, n_blocks = 2, lr = 0.01"


def test_vary_refuses_what_is_neither_a_setting_nor_training(tiny_profile):
    changes = {"experiments": {"blocks": {"vary": [{"n_blocks": [1, 2]}]}}}
    with pytest.raises(
        ValueError, match=r"vary names 'n_blocks'; write settings\.<name> or training\.<name>"
    ):
        Profile.model_validate(tiny_profile.model_dump() | changes)


def with_experiment(profile, **facts):
    return Profile.model_validate(
        profile.model_dump() | {"experiments": {"few_shot": {}, "new": facts}}
    )


def test_cross_dataset_trains_on_the_source_and_evaluates_on_every_target(
    tiny_clip, manifests, tiny_profile
):
    profile = with_experiment(
        tiny_profile, evaluate_on="targets", methods=["zero_shot", "lora"], shots=[2]
    )
    specs = expand(profile, "new", manifests=manifests)
    assert len(specs) == 1 + 2  # zero-shot, and LoRA with two seeds
    assert {(s.dataset, s.evaluate_on) for s in specs} == {("squares", ("squares", "dots"))}
    assert {e.name for e in entries(profile, "new", manifests).values()} == {"zero_shot", "lora"}
    one = expand(profile, "new", "squares", "lora", manifests=manifests)
    assert one == [s for s in specs if s.shots]
    own = make_spec(
        profile, "squares", "lora", 2, 1, manifests=manifests
    )  # a run of few_shot, as before
    assert own.evaluate_on == ("squares", "noisy_squares")
    assert own.key not in {s.key for s in specs}
    with pytest.raises(ValueError, match=r"unknown dataset 'dots'; .*Known: squares"):
        expand(profile, "new", "dots", manifests=manifests)


def test_cross_dataset_runs_count_each_set_with_its_own_classes(manifests, bench, tiny_profile):
    from blocklora_lib.runs.execute import execute

    profile = with_experiment(
        tiny_profile, evaluate_on="targets", methods=["lora"], shots=[1], seeds=[1]
    )
    (spec,) = expand(profile, "new", manifests=manifests)
    result = execute(spec, bench).result
    assert {name: count.total for name, count in result.accuracy.items()} == {
        "squares": 12,
        "dots": 8,
    }


@pytest.mark.parametrize(
    ("facts", "source", "says"),
    [
        (
            dict(datasets=["dots"]),
            "squares",
            r"source 'squares' alone, not on datasets=\['dots'\]; leave datasets",
        ),
        (dict(datasets=["squares", "dots"]), "squares", "trains on the source 'squares' alone"),
        ({}, None, "evaluate_on=targets needs a source set to train on; give source"),
        (dict(evaluate_on="target"), "squares", "Input should be 'own' or 'targets'"),
    ],
)
def test_only_the_source_is_trained_on_for_other_sets(tiny_profile, facts, source, says):
    changed = tiny_profile.model_copy(update={"source": source, "variants": ()})
    with pytest.raises(ValueError, match=says):
        with_experiment(changed, **({"evaluate_on": "targets"} | facts))


def test_layers_and_targets_given_as_lists_reach_the_settings(tiny_clip, manifests, tiny_profile):
    vary = [
        {"settings.layers": [[0], [-1], [0, 1]]},
        {"settings.targets": [["q"], ["q", "k", "v"]]},
    ]
    profile = with_experiment(tiny_profile, methods=["block_lora"], shots=[1], seeds=[1], vary=vary)
    named = entries(profile, "new", manifests)
    layers = {
        named[s.key].name: (s.method.settings["layers"], s.method.settings["targets"])
        for s in expand(profile, "new", "dots", manifests=manifests)
    }
    assert layers == {
        "block_lora,layers=0": ((0,), ("q", "k", "v")),
        "block_lora,layers=-1": ((-1,), ("q", "k", "v")),
        "block_lora,layers=0+1": ((0, 1), ("q", "k", "v")),
        "block_lora,targets=q": ("all", ("q",)),
        "block_lora,targets=q+k+v": ("all", ("q", "k", "v")),
    }
    default = make_spec(profile, "dots", "block_lora", 1, 1, manifests=manifests)
    assert (
        named[default.key].name == "block_lora,targets=q+k+v"
    )  # written out or not, it is one run


@pytest.mark.parametrize("name", ["pocket", "paper", "smoke"])
def test_the_profiles_have_the_protocols_of_transfer_and_placement(name):
    profile = load_profile(name)
    assert profile.source
    assert profile.variants
    transfer = expand(profile, "cross_dataset")
    assert {s.dataset for s in transfer} == {profile.source}
    assert {s.evaluate_on for s in transfer} == {(profile.source, *profile.targets)}
    assert "lora_plus" not in {s.method.name for s in transfer}
    assert {"zero_shot", "lora", "block_lora"} <= {s.method.name for s in transfer}
    places = {
        (s.method.settings["targets"], s.method.settings["layers"])
        for s in expand(profile, "placement")
    }
    assert {(("q", "k", "v"), "all"), (("q",), "all"), (("q", "k", "v"), (-1,))} <= places


def test_specs_are_complete(tiny_profile, manifests):
    spec = make_spec(tiny_profile, "squares", "block_lora", 2, 1, manifests=manifests)
    assert spec.method.settings["dropout"] == 0.25  # not in the profile: the default is written out
    assert spec.method.settings["targets"] == ("q", "k", "v")
    assert spec.evaluate_on == ("squares", "noisy_squares")
    assert (spec.shots, spec.seed, spec.draw) == (2, 1, "nested")
    zero = make_spec(tiny_profile, "dots", "zero_shot", 2, 1, manifests=manifests)
    assert (zero.shots, zero.seed, zero.draw, zero.training) == (0, 0, None, None)


def test_the_written_out_defaults_and_the_silent_ones_are_one_run(tiny_clip, manifests):
    facts = profile_facts(tiny_clip)
    silent = make_spec(Profile.model_validate(facts), "dots", "lora", 1, 1, manifests=manifests)
    facts["methods"][1]["settings"] = {
        "rank": 2,
        "alpha": 1,
        "dropout": 0.25,
        "targets": ["q", "k", "v"],
    }
    assert (
        make_spec(Profile.model_validate(facts), "dots", "lora", 1, 1, manifests=manifests).key
        == silent.key
    )


def test_one_method_can_stand_in_a_profile_twice(tiny_clip, manifests):
    facts = profile_facts(tiny_clip)
    facts["methods"].append(
        {
            "name": "wide",
            "method": "block_lora",
            "settings": {"rank": 8, "n_blocks": 4},
            "training": {"lr": 1e-3},
        }
    )
    spec = make_spec(Profile.model_validate(facts), "dots", "wide", 1, 1, manifests=manifests)
    assert (spec.method.name, spec.method.settings["rank"], spec.training.lr) == (
        "block_lora",
        8,
        1e-3,
    )
    assert spec.training.batch_size == 4  # the rest is the profile's


@pytest.mark.parametrize("settings", [{"rank": 4}, {"rank": 2, "dropout": 0.25}])
def test_two_methods_that_are_one_are_refused(tiny_profile, settings):
    """They would share their runs, and tables would show them under the last name alone."""
    methods = [
        dict(name="lora", settings={"rank": 2}),
        dict(name="mine", method="lora", settings=settings),
    ]
    facts = tiny_profile.model_dump() | {"methods": methods}
    facts["experiments"] = {"few_shot": {"methods": ["lora"]}, "wide": {"settings": {"rank": 4}}}
    told = "wide: methods lora and mine are one here, of the same settings and training; list one"
    with pytest.raises(ValueError, match=told):
        Profile.model_validate(facts)
    facts["experiments"]["wide"] = {"vary": [{"settings.rank": [3]}]}
    with pytest.raises(ValueError, match=told):
        Profile.model_validate(facts)
    methods[1]["training"] = {"lr": 1e-3}
    assert len(Profile.model_validate(facts).methods) == 2


def change(path: str, value):
    def apply(facts):
        *parents, last = path.split(".")
        for p in parents:
            facts = facts[int(p) if p.isdigit() else p]
        facts[int(last) if last.isdigit() else last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("shot", [1], "unknown key 'shot'; did you mean 'shots'"),
        ("training.learning_rate", 1, "training: unknown key 'learning_rate'"),
        ("backbone.pretrain", "x", "unknown key 'pretrain'; did you mean 'pretrained'"),
        (
            "experiments.few_shot.dataset",
            ["dots"],
            "unknown key 'dataset'; did you mean 'datasets'",
        ),
        (
            "experiments.few_shot.datasets",
            ["dotts"],
            "unknown dataset 'dotts'; did you mean 'dots'",
        ),
        (
            "experiments.few_shot.methods",
            ["blocklora"],
            "unknown method .*'blocklora'; did you mean 'block_lora'",
        ),
        (
            "experiments.few_shot.shots",
            [0],
            r"experiments.few_shot.shots.0: .*greater than or equal to 1",
        ),
        ("shots", [0, 1], r"shots.0: .*greater than or equal to 1"),
        ("seeds", [1, 1], "seeds lists 1 twice"),
        ("seeds", [-1], r"seeds.0: .*greater than or equal to 0"),
        ("seeds", [2**63], r"seeds.0: .*less than or equal to 9223372036854775807"),
        ("shots", [10**30], r"shots.0: .*less than or equal to 1000000"),
        ("rounds", 10**9, "rounds: .*less than or equal to 10000"),
        ("experiments.few_shot.seeds", [], "experiments.few_shot.seeds: .*at least 1"),
        ("experiments.few_shot.vary", [{"settings.alpha": []}], "no values of settings.alpha"),
        ("experiments.few_shot.vary", [{}], "no values"),
        (
            "experiments.few_shot.vary",
            [{"settings.alpha": [1.0, 2.0, 1.0]}],
            "settings.alpha twice",
        ),
        ("experiments", {"a b": {}}, "experiments.a b"),
        ("experiments", {"all": {}}, "'all' means every one"),
        ("methods.1.name", "../lora", "methods.1.name"),
        ("methods.1.name", "all", "'all' means every one"),
        ("shots", [1.5], "shots"),
        ("methods.1.name", "zero_shot", "zero_shot stands twice"),
        (
            "methods.1.training",
            {"lrr": 1},
            "training of method lora: unknown key 'lrr'; did you mean 'lr'",
        ),
        ("source", None, "need the source set"),
        (
            "methods.0.training",
            {"lr": 0.1},
            r"method zero_shot has training settings \(lr\), but a way of its own",
        ),
        (
            "methods.1",
            {"name": "coop", "settings": {"schedule": {}}, "training": {"batch_size": 2}},
            r"method coop has training settings \(batch_size\), but a way of its own",
        ),
        (
            "experiments.few_shot.vary",
            [{"training.lr": [0.1]}],
            r"method zero_shot,lr=0.1 has training settings \(lr\)",
        ),
    ],
)
def test_bad_profiles_say_what_is_wrong(tmp_path, tiny_clip, path, value, says):
    facts = profile_facts(tiny_clip)
    change(path, value)(facts)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(facts))
    with pytest.raises(ValueError, match=says) as error:
        load_profile(file)
    assert "\n" not in str(error.value)


def test_a_schedule_takes_the_place_of_the_rate_that_a_profile_chose():
    """It was refused, and the command line has no way to leave that rate out."""
    pocket = load_profile("pocket")
    assert pocket.entry("coop").training
    own = pocket.changed("coop", {"schedule": {}}, {})
    assert own.entry("coop").training == {}
    assert not own.entry("coop").method_spec.scheduled
    with pytest.raises(ValueError, match="lr says nothing to method coop"):
        pocket.changed("coop", {"schedule": {}}, {"lr": 0.1})


def test_words_and_schedules_may_be_varied():
    """Names were refused by a pattern, schedules for the profile's rate."""
    coop = load_profile("pocket").entry("coop")
    words = {"settings.context": ["a photo of a", 4]}
    schedules = {"settings.schedule": [{}, {"lr": 0.1}]}
    found = Experiment.model_validate({"vary": [words, schedules]}).variations(coop)
    assert [entry.settings.get("context") for entry in found] == ["a photo of a", 4, None, None]
    assert [bool(entry.training) for entry in found] == [True, True, False, False]
    assert found[0].name == "coop,context=a-photo-of-a"
    assert found[0].label == "CoOp, context = a photo of a"
    assert len({entry.name for entry in found}) == 4
    alike = Experiment.model_validate({"vary": [{"settings.context": ["a b", "a-b"]}]})
    with pytest.raises(ValueError, match="two methods of the name 'coop,context=a-b'"):
        alike.variations(coop)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            "methods.1.settings",
            {"rnak": 2},
            "settings of method lora: unknown key 'rnak'; did you mean 'rank'",
        ),
        ("methods.2.settings", {"rank": 2, "n_blocks": 4}, "rank=2 cannot be cut into n_blocks=4"),
        ("methods.1.name", "lorra", "unknown method 'lorra'; did you mean 'lora'"),
        ("methods.0.settings", {"temperature": 1}, "settings of method zero_shot: unknown key"),
        ("variants", ["dots"], "dots is no variant of squares"),
        ("targets", ["dogs"], "without a manifest: dogs"),
        (
            "backbone.pretrained",
            "no/such.safetensors",
            "checkpoint no/such.safetensors .* is missing",
        ),
    ],
)
def test_bad_settings_are_found_before_anything_runs(tiny_clip, manifests, path, value, says):
    facts = profile_facts(tiny_clip)
    change(path, value)(facts)
    with pytest.raises((ValueError, OSError), match=says):
        expand(Profile.model_validate(facts), manifests=manifests)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p, m: load_profile("poket"), "unknown profile 'poket'; did you mean 'pocket'"),
        (
            lambda p, m: expand(p, "fewshot", manifests=m),
            "unknown experiment 'fewshot'; did you mean 'few_shot'",
        ),
        (lambda p, m: expand(p, dataset="square", manifests=m), "did you mean 'squares'"),
        (lambda p, m: expand(p, method="lorah", manifests=m), "did you mean 'lora'"),
        (
            lambda p, m: make_spec(p, "noisy_squares", "lora", 1, 1, manifests=m),
            "unknown dataset 'noisy_squares'",
        ),
    ],
)
def test_unknown_names_list_the_near_ones(tiny_profile, manifests, call, says):
    with pytest.raises(ValueError, match=says):
        call(tiny_profile, manifests)


@given(st.text(alphabet="{}[]:,-#&*!|>'\"%@ \nab01", max_size=40))
def test_any_text_is_a_profile_or_one_sentence(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"any\.yaml") as error:
        load_profile(file)
    assert "\n" not in str(error.value)


BASE = """
name: base
description: what others extend
backbone: {name: TinyCLIP-test, pretrained: none}
source: squares
variants: [noisy_squares]
targets: [dots]
shots: [1, 2]
seeds: [1, 2]
methods: [{name: zero_shot}, {name: lora, settings: {rank: 2}}]
training: {lr: 1.0e-2, batch_size: 4}
published: true
experiments:
  few_shot: {}
  collapse: {shots: [1], seeds: [1]}
"""
HEAD = "name: child\ndescription: d\n"


@pytest.fixture
def family(tmp_path):
    """Write profiles by name, base.yaml among them; returns the folder's loader."""

    def write(**files):
        for name, text in ({"base": BASE} | files).items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return lambda name="child": load_profile(name, tmp_path)

    return write


def test_a_profile_that_extends_another_holds_what_differs(family):
    child = "extends: base\n" + HEAD + (
        "shots: [4]\nsource: null\nvariants: []\nmethods: [{name: lora, settings: {alpha: 4}}]\n"
        "training: {lr: 0.5}\nexperiments: {collapse: {shots: [4]}, new: {}}\n"
    )  # fmt: skip
    load = family(child=child)
    base, child = load("base"), load()
    assert (child.name, child.description, child.shots, child.seeds) == ("child", "d", (4,), (1, 2))
    assert (child.training.lr, child.training.batch_size) == (0.5, 4)  # mappings are merged
    assert [m.settings for m in child.methods] == [
        {"alpha": 4}
    ]  # lists are replaced, with all they hold
    assert (child.source, child.variants) == (None, ())  # null is a value ...
    assert set(child.experiments) == {"few_shot", "collapse", "new"}
    assert (child.experiment("collapse").shots, child.experiment("collapse").seeds) == ((4,), (1,))
    assert child.published
    assert base.source == "squares"


def test_an_experiment_set_to_null_is_dropped_and_a_grandparent_is_read(family):
    load = family(
        child="extends: base\n" + HEAD + "experiments: {collapse: null}\npublished: false",
        last="extends: child.yaml\nname: last-one\ndescription: d\nseeds: [7]\n",
    )
    last = load("last")
    assert (last.name, last.seeds, last.shots, last.published) == ("last-one", (7,), (1, 2), False)
    assert set(last.experiments) == {"few_shot"}


def test_the_files_of_a_profile_are_its_own_and_its_bases():
    assert [path.name for path in profile_files("paper-smoke")] == [
        "paper-smoke.yaml",
        "paper.yaml",
    ]
    found = [path.relative_to(PROFILES).as_posix() for path in profile_files("pocket")]
    assert found == ["pocket.yaml", "rates/pocket.yaml"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            dict(child="extends: bas\n" + HEAD),
            r"child\.yaml: extends: unknown profile 'bas'; did you mean 'base'",
        ),
        (
            dict(child="extends: [base]\n" + HEAD),
            r"child\.yaml: extends: \['base'\] is no profile's name",
        ),
        (
            dict(child="extends: child\n" + HEAD),
            r"child\.yaml: extends: child -> child is a circle",
        ),
        (
            dict(child="extends: other\n" + HEAD, other="extends: child\n" + HEAD),
            r"other\.yaml: extends: child -> other -> child is a circle",
        ),
        (
            dict(child="extends: base\nname: child\n"),
            r"child\.yaml: description is missing: a profile that",
        ),
        (dict(child="extends: base\ndescription: d\n"), r"child\.yaml: name is missing"),
        (dict(child="extends: base\n"), r"child\.yaml: name and description are missing: a"),
        (
            dict(child="extends: base\n" + HEAD + "shot: [1]"),
            r"child\.yaml: unknown key 'shot'; did you mean",
        ),
        (
            dict(
                child="extends: base\n" + HEAD, base=BASE + "rouns: 3"
            ),  # the base's typo is the base's
            r"base\.yaml: unknown key 'rouns'; did you mean 'rounds'",
        ),
        (
            dict(child="extends: base\n" + HEAD + "experiments: {collapse: {shot: [1]}}"),
            r"child\.yaml: experiments\.collapse: unknown key 'shot'",
        ),
        (
            dict(child="extends: base\n" + HEAD, base=BASE.replace("lr: 1.0e-2", "lrr: 1")),
            r"base\.yaml: training: unknown key 'lrr'",
        ),
        (
            dict(child="extends: base\n" + HEAD + "experiments: {colapse: null}"),
            r"child\.yaml: .*colapse",
        ),
        (dict(child="extends: base\n" + HEAD, base="shots: ["), r"base\.yaml is not valid YAML"),
    ],
)
def test_what_is_wrong_with_an_extension_is_one_sentence_that_names_the_file(family, files, says):
    with pytest.raises(ValueError, match=says) as error:
        family(**files)()
    assert "\n" not in str(error.value)


def test_a_grid_too_large_is_counted_not_written_out(tmp_path, tiny_clip):
    facts = profile_facts(tiny_clip)
    values = {f"training.k{i}": list(range(100)) for i in range(6)}
    facts["experiments"]["few_shot"]["vary"] = [values]
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(facts))
    # 2 datasets, 4 methods, 100^6 variations, 2 shots, 2 seeds
    with pytest.raises(
        ValueError, match=r"experiments\.few_shot: .* are 32,000,000,000,000 runs, at most 100,000"
    ):
        load_profile(file)


@pytest.mark.slow
def test_ten_thousand_seeds_are_counted_too(tmp_path, tiny_clip):
    facts = profile_facts(tiny_clip) | {"seeds": list(range(10_000))}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(facts))
    with pytest.raises(ValueError, match="10,000 seeds are 160,000 runs"):
        load_profile(file)


def test_a_file_is_named_as_a_person_names_it(tmp_path, monkeypatch, tiny_clip):
    place = tmp_path / "a b" / "pröfile's $HOME"
    place.mkdir(parents=True)
    (place / "my own;.yaml").write_text(yaml.safe_dump(profile_facts(tiny_clip)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place)
    for name in (
        "my own;.yaml",
        "./my own;.yaml",
        "~/a b/pröfile's $HOME/my own;.yaml",
        "../" + place.name + "/my own;.yaml",
    ):
        assert load_profile(name).name == "tiny"
        assert profile_files(name) == [place / "my own;.yaml"]
    (place / "child.yaml").write_text(
        "extends: ~/a b/pröfile's $HOME/my own;.yaml\nname: child\ndescription: d\n"
    )
    assert load_profile("child.yaml").name == "child"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../profiles/pocket", "no profile's name"),
        ("pocket/", "no profile's name"),
        ("", "no profile's name"),
        ("a\0b", "no profile's name"),
        ("~/missing.yaml", r"missing\.yaml is missing; name a file, or one of .*pocket"),
        ("~nobody-at-all/x.yaml", "not known here"),
    ],
)
def test_what_names_no_profile_is_said(name, says):
    with pytest.raises((ValueError, OSError), match=says):
        load_profile(name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"name: a\nname: b\n", "line 2, column 1: the key 'name' stands twice"),
        (b"\xff\xfen\0a\0", "is not UTF-8"),
        (b"name: a\n---\nname: b\n", "single document"),
    ],
)
def test_a_file_that_is_no_profile_is_said_in_a_sentence(tmp_path, content, says):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_profile(tmp_path / "mine.yaml")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("training", "says"),
    [({"lr": 0.1}, "lr says nothing to"), ({"lr": 0.1, "batch_size": 2}, "lr, batch_size say no")],
)
def test_training_settings_of_a_method_with_a_way_of_its_own_are_refused(training, says):
    with pytest.raises(ValueError, match=says):
        load_profile("pocket").changed("tip_adapter", {}, training)


@pytest.mark.parametrize(
    ("name", "plain", "constants"),
    [  # what the methods' authors have on some sets, beside what they have on the others
        ("task_res_1", "task_res", {"alpha": 1.0}),
        ("promptsrc_45", "promptsrc", {"mean": 45 / 50, "deviation": 5 / 50}),
        ("prograd_08", "prograd", {"strength": 0.8}),
        ("tip_adapter_f_100", "tip_adapter_f", {"epochs": 100}),
    ],
)
def test_constants_tuned_for_some_sets_are_rows_that_say_so(name, plain, constants):
    paper = load_profile("paper")
    own, usual = (dict(paper.entry(n).method_spec.settings) for n in (name, plain))
    assert own == usual | constants
    assert usual != own
    assert paper.entry(name).label != paper.entry(plain).label
    assert f"| `{name}`" in (ROOT / "docs" / "paper.md").read_text()


def test_pages_say_what_the_paper_profile_takes():
    paper = load_profile("paper")
    every = {spec for name in paper.experiments for spec in expand(paper, name)}
    hours = round(estimate(every).hours(20))
    assert f"about {hours} hours at 20 TFLOP/s" in (ROOT / "docs" / "profiles.md").read_text()
    of = expand(paper, "comparison", method="cocoop")
    large = estimate([spec for spec in of if spec.dataset == "imagenet"])
    told = f"{large.steps:,} steps, {large.hours(20):.0f} of its {estimate(of).hours(20):.0f} hours"
    assert told in (ROOT / "docs" / "paper.md").read_text()


def test_pockets_grids_of_rates_span_two_decades():
    """Of 1e-3 and 1e-2 nearly all runs of Tip-Adapter-F chose the higher one."""
    grids = {e.name: e.method_spec.settings.get("lr", ()) for e in load_profile("pocket").methods}
    grids = {name: grid for name, grid in grids.items() if len(grid) > 1}
    assert "tip_adapter_f" in grids
    assert all(max(grid) >= 99 * min(grid) for grid in grids.values())


def test_two_settings_of_one_method_have_labels_of_their_own(tiny_profile):
    """Figures and tables know a method by its label: of two LoRA, one was in no table."""
    methods = [
        dict(name="lora", settings={"rank": 2}),
        dict(name="wide", method="lora", settings={"rank": 4}),
        dict(name="mine", label="LoRA, mine", method="lora", settings={"rank": 8}),
    ]
    facts = tiny_profile.model_dump() | {"methods": methods, "experiments": {"few_shot": {}}}
    profile = Profile.model_validate(facts)
    labels = ["LoRA (lora)", "LoRA (wide)", "LoRA, mine"]
    assert [entry.label for entry in profile.methods] == labels
    assert Profile.model_validate(profile.model_dump()) == profile
    for entry in methods:
        entry["label"] = "ours"
    labels = [entry.label for entry in Profile.model_validate(facts).methods]
    assert labels == ["ours (lora)", "ours (wide)", "ours (mine)"]


def test_a_method_that_an_experiment_lists_is_missed_by_its_name(tmp_path):
    """Of a profile that extends another the list may be that one's: its file does not show it."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, description: d, extends: smoke, methods: [{name: zero_shot}, {name: gda}]}"
    )
    with pytest.raises(ValueError, match=r"experiments\.few_shot: unknown method 'lora'; .*gda"):
        load_profile(path)
