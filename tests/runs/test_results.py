"""What is read from a results folder, and what is said when it is not there."""

from __future__ import annotations

import pytest

from blocklora_lib.runs.execute import run_grid
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.results import MissingResults, experiment_runs, notebook_table
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.catalogue import notebook_needs
from blocklora_lib.suite.variant import vary


@pytest.fixture
def profile(tiny_profile):
    """LoRA stands twice: once under its own name, once as a control with another rank."""
    methods = [
        dict(name="lora"),
        dict(name="half", method="lora", label="LoRA r = 1", settings={"rank": 1}),
    ]
    changes = {
        "methods": methods,
        "shots": [1],
        "seeds": [1],
        "targets": ["dots"],
        "source": None,
        "variants": [],
    }
    return Profile.model_validate(tiny_profile.model_dump() | changes)


@pytest.fixture
def here(monkeypatch, manifests):
    """The profile's sets are the synthetic ones."""
    monkeypatch.setattr(
        "blocklora_lib.runs.results.expand", lambda p, e: expand(p, e, manifests=manifests)
    )
    from blocklora_lib.runs.grid import entries

    monkeypatch.setattr("blocklora_lib.runs.results.entries", lambda p, e: entries(p, e, manifests))


def test_missing_runs_are_named_with_the_command_that_makes_them(profile, here, tmp_path):
    store = RunStore(tmp_path / "runs")
    with pytest.raises(MissingResults) as error:
        experiment_runs(profile, store)
    text = str(error.value)
    assert "2 runs of few_shot missing" in text
    assert "dots lora(2) shots=1 seed=1" in text
    assert (
        f"blocklora grid --profile {profile.name} --experiment few_shot --results {tmp_path}"
        in text
    )
    assert experiment_runs(profile, store, partial=True).empty


@pytest.mark.slow
def test_runs_carry_the_names_of_the_profile(profile, here, bench, tmp_path, manifests):
    store = RunStore(tmp_path / "runs")
    for _ in run_grid(expand(profile, manifests=manifests), store, bench):
        pass
    runs = experiment_runs(profile, store).set_index("method")
    assert runs.loc["half", "method_label"] == "LoRA r = 1"
    assert runs.loc["lora", "method_label"] == "LoRA"
    assert runs.loc["half", "trainable_parameters"] * 2 == runs.loc["lora", "trainable_parameters"]


def test_a_missing_table_is_named_with_the_notebook_that_makes_it(profile, tmp_path):
    with pytest.raises(
        MissingResults,
        match=r"step\.csv of notebook 04_time is missing .*`blocklora notebook",
    ):
        notebook_table(profile, tmp_path, "04_time", "step")
    folder = tmp_path / "tables" / "04_time"
    folder.mkdir(parents=True)
    (folder / "step.csv").write_text("form,ratio\nloop,2.5\n")
    assert notebook_table(profile, tmp_path, "04_time", "step")["ratio"].tolist() == [2.5]


@pytest.mark.slow
def test_miniatures_never_stand_beside_published_numbers(profile, here, bench, tmp_path, manifests):
    store = RunStore(tmp_path / "runs")
    first, *_ = list(run_grid(expand(profile, manifests=manifests), store, bench))
    published = Profile.model_validate(profile.model_dump() | {"published": True})
    assert len(experiment_runs(published, store)) == 2
    store.save(first.model_copy(update={"provenance": first.provenance | {"miniature": True}}))
    assert len(experiment_runs(profile, store)) == 2
    with pytest.raises(MissingResults, match=r"1 runs of few_shot in .* are of miniatures"):
        experiment_runs(published, store)


def test_a_command_names_a_profile_of_a_file_by_the_file(tmp_path):
    """Its name alone is none that the command knows."""
    file = tmp_path / "my own.yaml"
    file.write_text("extends: smoke\nname: own\ndescription: x\n")
    read = load_profile(file)
    for profile in (read, vary(read, notebook_needs("08_few_shot"), {"shots": [1]})):
        with pytest.raises(MissingResults, match=f"--profile '{file}' --experiment few_shot"):
            experiment_runs(profile, RunStore(tmp_path / "runs"))
        with pytest.raises(MissingResults, match=f"notebook 04_time --profile '{file}' --results"):
            notebook_table(profile, tmp_path, "04_time", "step")
