"""pip's lock, conda's environment and pyproject.toml say the same; the Makefile does what README.md
says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

import blocklora_lib
from blocklora_lib.core.paths import ROOT
from blocklora_lib.suite.catalogue import notebook_names

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [
    Requirement(r)
    for r in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line.strip()
]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
PINS = {canonical(r.name): str(r.specifier) for r in LOCK}


def test_lock_pins_every_package_exactly_and_names_no_place():
    for requirement in LOCK:
        assert re.fullmatch(r"==[^=*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--" not in text
    assert len(PINS) == len(LOCK)


@pytest.mark.parametrize("requirement", WANTED, ids=lambda r: r.name)
def test_lock_satisfies_what_the_project_asks_for(requirement):
    pin = PINS[canonical(requirement.name)].removeprefix("==")
    assert requirement.specifier.contains(pin, prereleases=True)


@pytest.mark.slow
def test_lock_is_complete():
    """What a locked package depends on here is locked, too, in a version that it accepts."""
    from importlib.metadata import PackageNotFoundError, requires

    for name in PINS:
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # of another platform
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                pin = PINS[canonical(need.name)].removeprefix("==")
                assert need.specifier.contains(pin, prereleases=True), (
                    f"{name} needs {need}, the lock has {pin}"
                )


def test_conda_has_the_pins_of_the_lock():
    """conda gives Python and tools; pip, under the same lock as constraint, gives the packages."""
    listed = [Requirement(line) for line in CONDA_PIP if not line.startswith("-")]
    assert {canonical(r.name) for r in listed} == {canonical(r.name) for r in WANTED}
    for requirement in listed:
        assert str(requirement.specifier) == PINS[canonical(requirement.name)], requirement
    assert "--constraint requirements.lock" in CONDA_PIP
    assert "--editable ." in CONDA_PIP
    assert "python=3.11" in CONDA["dependencies"]


def test_the_running_packages_are_the_locked_ones():
    for name in (
        "torch",
        "open_clip_torch",
        "numpy",
        "pandas",
        "matplotlib",
        "papermill",
        "snakemake",
    ):
        assert version(name).split("+")[0] == PINS[canonical(name)].removeprefix("=="), name


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == blocklora_lib.__version__ == citation["version"]
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def readme_commands():
    """The command lines of README.md, without their remarks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["setup", "reproduce", "test", "lint", "notebooks", "clean"])
def test_make_has_the_targets_that_the_readme_names(target):
    dry = subprocess.run(
        ["make", "-n", "-C", str(ROOT), target], capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr
    assert f"make {target}" in (ROOT / "README.md").read_text()


HOSTILE = "my 'own' $(HOME) $HOME; touch x & `date` {x} é.yaml"


@pytest.fixture
def make(tmp_path):
    """Call make in a copy whose path has blanks; its Python only says what it is called with."""
    place = tmp_path / "a b" / "c & d's"
    (place / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (place / name).write_bytes((ROOT / name).read_bytes())
    python = place / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    (place / ".venv" / ".ready").touch()

    def call(*arguments):
        own = ("MAKEFLAGS", "PROFILE", "NOTEBOOKS", "JOBS")
        environment = {k: v for k, v in os.environ.items() if k not in own}
        done = subprocess.run(
            ["make", "-s", *arguments],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    call.place = place
    return call


@pytest.mark.slow
def test_make_reproduce_hands_its_options_on_as_they_were_typed(make):
    given = [f"PROFILE={HOSTILE}", "NOTEBOOKS=01_method 08_few_shot", "JOBS=3"]
    code, words, _ = make("reproduce", *given)
    assert code == 0
    assert words == ["-m", "blocklora_lib.cli", "reproduce", f"--profile={HOSTILE}",
                     "--notebooks=01_method 08_few_shot", "--jobs=3"]  # fmt: skip
    assert not (make.place / "x").exists()
    code, words, _ = make("reproduce", "JOBS=$(shell touch x)`touch x`", "PYTHON=$(shell touch x)")
    assert words[-1] == "--jobs=$(shell touch x)`touch x`"
    assert not (make.place / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", [[], ["JOBS="]])
def test_how_many_jobs_is_left_to_what_knows_the_cpus_of_this_process(make, given):
    """`getconf` counts those of the machine, of which `taskset` or Slurm may leave one."""
    code, words, _ = make("reproduce", *given)
    assert code == 0
    assert words[-1] == "--jobs=0"


@pytest.mark.slow
@pytest.mark.parametrize("torch", ["", "cpu"])
def test_what_set_up_installs_is_the_lock_with_cuda_or_without(make, torch):
    python, place = make.place / ".venv" / "bin" / "python", make.place
    (place / ".venv" / ".ready").unlink()
    python.write_text(f'{python.read_text()}case "$*" in */dev/stdin*) cat;; esac\n')
    code, words, err = make("setup", f"PYTHON={python}", f"TORCH={torch}")
    assert code == 0, err
    assert (place / ".venv" / ".ready").exists()
    pins = [line for line in words if "==" in line]
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    if torch == "cpu" and sys.platform == "linux":
        lock = [line for line in lock if not re.match("nvidia|cuda|triton", line)]
        assert sum(line.endswith("+cpu") for line in pins) == 2
        assert "https://download.pytorch.org/whl/cpu" in words
    else:
        assert "--extra-index-url" not in words
    assert [line.replace("+cpu", "") for line in pins] == [line for line in lock if "==" in line]


@pytest.mark.slow
def test_another_torch_than_there_is_is_refused(make):
    (make.place / ".venv" / ".ready").unlink()
    code, _, err = make("setup", f"PYTHON={make.place}/.venv/bin/python", "TORCH=rocm")
    assert code == 2
    assert "TORCH=rocm: say TORCH=cpu" in err
    assert not (make.place / ".venv" / ".ready").exists()


@pytest.mark.slow
def test_an_environment_with_another_torch_is_not_taken_for_this_one(make):
    """`make setup TORCH=cpu` did nothing beside one that was there, and did not say so."""
    code, _, err = make("setup", f"PYTHON={make.place}/.venv/bin/python", "TORCH=cpu")
    assert code == 2
    assert ".venv was set up without TORCH=cpu; delete it" in err


def test_no_variable_that_make_hands_on_is_looked_into(make):
    exported = re.findall(r"^export (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    names = " ".join(exported).split()
    assert {"RESULTS", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PROFILE"} <= {*names}
    make("help", *(f"{name}=$(shell touch x)`touch x`" for name in names))
    assert not (make.place / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["test", "lint", "notebooks"])
def test_every_target_runs_where_the_path_has_blanks(make, target):
    code, words, err = make(target)
    assert (code, words[0]) == (0, "-m"), err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/tmp", "a/b", "reference", "mine.yaml", "-r"]
)
def test_make_clean_removes_no_folder_but_that_of_a_profile(make, name):
    kept = make.place / "results" / "reference"
    kept.mkdir(parents=True)
    code, _, err = make("clean", f"PROFILE={name}")
    assert code == 2
    assert "names no folder of results/" in err
    assert kept.is_dir()


@pytest.mark.slow
def test_make_clean_removes_that_of_the_profile(make):
    for name in ("mine", "other"):
        (make.place / "results" / name).mkdir(parents=True)
    assert make("clean", "PROFILE=mine")[0] == 0
    assert [p.name for p in (make.place / "results").iterdir()] == ["other"]


@pytest.mark.slow
def test_make_reference_keeps_a_profile_by_its_name(make):
    assert make("reference", "PROFILE=mine")[:2] == (
        0,
        ["-m", "blocklora_lib.cli", "reference", "--profile=mine"],
    )
    code, _, err = make("reference", "PROFILE=../mine")
    assert code == 2
    assert "names no folder of results/" in err


def test_continuous_integration_runs_the_readmes_test_command():
    assert "make test" in readme_commands()
    assert re.search(r"^make .*\btest$", (ROOT / ".ci" / "run").read_text(), re.M)


def test_readme_lists_every_notebook():
    text = (ROOT / "README.md").read_text()
    for name in notebook_names():
        assert f"notebooks/{name}.ipynb" in text


def test_readme_links_lead_to_files():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
