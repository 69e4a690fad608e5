"""The wheel, used outside the clone: its face where nothing is installed but what the wheel asks
for, its commands without the packages of the suite, and without the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import made_once
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from blocklora_lib.core.paths import ROOT

pytestmark = pytest.mark.slow

USE = """
import importlib.util, sys
import torch
from torch import nn
import blocklora_lib
from blocklora_lib import AdapterConfig, AdapterSet, attach, attach_linear, find_adapters

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))

def fresh():
    torch.manual_seed(0)
    return Small()

def train(model, adapters):
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=0.05, weight_decay=0.0))
    for _ in range(2):  # B starts at zero: A moves in the second step
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
        loss.backward(), optimizer.step(), optimizer.zero_grad()

x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
config = AdapterConfig(kind="block_lora", rank=4, n_blocks=2)
for put in (attach, lambda model, config: attach_linear(model, "head", config)):
    base, model = fresh().eval()(x), fresh()
    adapters = put(model, config)
    torch.testing.assert_close(model.eval()(x), base)  # ΔW starts at zero
    train(model.train(), adapters)
    adapted = model.eval()(x)
    assert not torch.allclose(adapted, base)
    adapters.save(sys.argv[1])
    adapters.merge()
    torch.testing.assert_close(model(x), adapted)
    adapters.unmerge()
    assert torch.equal(model(x), adapted)
    other = fresh().eval()
    loaded = AdapterSet.load(sys.argv[1], other)
    assert torch.equal(other(x), adapted)
    assert find_adapters(other)[0].num_parameters() == loaded.num_parameters() > 0
    assert torch.equal(loaded.detach()(x), base)
try:
    AdapterSet.load(sys.argv[1], nn.Linear(3, 3))
except blocklora_lib.AdapterError as error:
    assert isinstance(error, ValueError)
else:
    raise AssertionError("no attention there")
for name in "yaml pandas scipy matplotlib tqdm typer open_clip papermill IPython snakemake".split():
    assert importlib.util.find_spec(name) is None, name
print("used", sys.modules["blocklora_lib"].__file__)
"""

TYPED = """
from pathlib import Path

import torch
from torch import nn

from blocklora_lib import AdapterConfig, AdapterSet, attach, attach_linear, find_adapters

model: nn.Module = nn.TransformerEncoderLayer(16, 2)
config = AdapterConfig(kind="block_lora", rank=4, n_blocks=2)
adapters: AdapterSet = attach(model, config, torch.Generator().manual_seed(1))
optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=1e-3))
rank: int | None = adapters.config.rank
adapters.merge().unmerge().save(Path("a.safetensors"), {"note": "mine"})
count: int = sum(found.num_parameters() for found in find_adapters(model))
plain: nn.Module = adapters.detach()
attach_linear(plain, ["linear?"], AdapterConfig(rank=2)).merge_and_unload()
again: AdapterSet = AdapterSet.load("a.safetensors", plain)
"""


def brought_by(name: str) -> set[str]:
    """The distributions that a requirement brings with it in this environment, itself included."""
    extras: dict[str, set[str]] = {}
    todo = [Requirement(name)]
    while todo:
        one = todo.pop()
        known = extras.setdefault(canonical(one.name), set())
        if {"", *one.extras} <= known:
            continue
        known |= {"", *one.extras}
        needs = map(Requirement, distribution(one.name).requires or ())
        todo += [
            n for n in needs if not n.marker or any(n.marker.evaluate({"extra": e}) for e in known)
        ]
    return set(extras)


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def build(place: Path) -> None:
    """Build the wheel, without a network and from a copy: a build leaves folders in its source."""
    source = place / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "blocklora_lib", source / "blocklora_lib", ignore=unwanted)
    words = "-m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir".split()
    built = run(sys.executable, *words, place, source)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built once for all processes of a test run."""
    (found,) = made_once(tmp_path_factory, "wheel", build).glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as files:
        (name,) = (n for n in files.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(files.read(name))


@pytest.fixture(scope="module")
def bare(wheel, metadata, tmp_path_factory) -> Path:
    """An environment with the wheel and links to what its requirements bring here, no more."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(place, with_pip=False)
    words = "install --no-deps --no-index --quiet".split()
    done = run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", *words, wheel)
    assert done.returncode == 0, done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    wanted = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    for name in set().union(*map(brought_by, wanted)):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not top.endswith(".pth"):
                link = site / top
                if not link.exists():
                    link.symlink_to(Path(str(distribution(name).locate_file(top))).resolve())
    return place


def test_it_asks_for_torch_safetensors_and_pydantic_alone(metadata):
    wanted = [Requirement(r) for r in metadata.get_all("Requires-Dist")]
    assert {r.name for r in wanted if not r.marker} == {"torch", "safetensors", "pydantic"}
    assert {"suite", "test", "docs", "cluster", "hugging-face"} == set(
        metadata.get_all("Provides-Extra")
    )


def test_it_holds_every_module_the_templates_and_the_mark_of_a_typed_package(wheel):
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    kinds = (".py", ".j2", ".js", ".typed")
    here = {p for p in (ROOT / "blocklora_lib").rglob("*") if p.suffix in kinds}
    assert held == {p.relative_to(ROOT).as_posix() for p in here}
    assert "blocklora_lib/py.typed" in held


def test_the_face_works_in_an_empty_environment(bare, tmp_path):
    done = run(bare / "bin" / "python", "-I", "-c", USE, tmp_path / "a.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"used {bare.resolve()}")


@pytest.mark.rare  # of the library itself test_habits.py says the same
def test_a_file_that_uses_the_face_is_clean_under_a_strict_checker(bare, tmp_path):
    (tmp_path / "mine.py").write_text(TYPED, encoding="utf-8")
    words = ["--strict", "--config-file=", "--cache-dir=.", "--python-executable"]
    done = run(
        sys.executable, "-m", "mypy", *words, bare / "bin" / "python", "mine.py", cwd=tmp_path
    )
    assert done.stdout == "Success: no issues found in 1 source file\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["grid", "--list"], ["data", "list"], ["nonsense"]], ids=" ".join
)
def test_a_command_of_a_bare_install_says_what_to_install(bare, tmp_path, words):
    for command in (
        [bare / "bin" / "blocklora"],
        [bare / "bin" / "python", "-m", "blocklora_lib.cli"],
    ):
        done = run(*command, *words, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "the package " in line
        assert line.endswith("pip install 'blocklora[suite]'")


@pytest.fixture(scope="module")
def without_repository(wheel, tmp_path_factory):
    """Run Python with the wheel, and with all packages of the suite, in a folder."""
    place = tmp_path_factory.mktemp("elsewhere") / "site-packages"
    zipfile.ZipFile(wheel).extractall(place)
    environment = os.environ | {"PYTHONPATH": str(place)}

    def call(folder: Path, *words: str):
        return run(sys.executable, "-P", *words, cwd=folder, env=environment)

    return call


COMMANDS = ["grid --list", "reproduce", "data list", "weights find"]
CALLS = {
    "data.manifest_files": "load_manifest('dtd')",
    "data.dataset": "load_dataset('photos')",
    "runs.profile_files": "load_profile('pocket')",
    "suite.catalogue": "notebook_names()",
    "claims.published": "read_published()",
    "clip.architectures": "read_config('PocketCLIP')",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_without_the_repository_says_where_it_is_found(
    without_repository, tmp_path, words
):
    done = without_repository(tmp_path, "-m", "blocklora_lib.cli", *words.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: {tmp_path / 'profiles'} is missing: an installed blocklora is the library alone, "
        "its profiles, datasets, notebooks and PocketCLIP are in the repository; work in a clone "
        "of it"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", CALLS)
def test_a_fact_without_the_repository_is_missing_in_a_sentence(
    without_repository, tmp_path, module
):
    name, _, arguments = CALLS[module].partition("(")
    code = f"from blocklora_lib.{module} import {name} as f; f({arguments}"
    done = without_repository(tmp_path, "-c", code)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"FileNotFoundError: {tmp_path}/")
    assert last.endswith("work in a clone of it")


def test_help_needs_no_repository(without_repository, tmp_path):
    for words in (["--help"], ["grid", "--help"]):
        done = without_repository(tmp_path, "-m", "blocklora_lib.cli", *words)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_in_a_clone_the_installed_command_works(without_repository, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("profiles", "data_manifests", "pocket"):
        (clone / name).symlink_to(ROOT / name)
    words = "-m blocklora_lib.cli grid --profile smoke --list".split()
    done = without_repository(clone, *words)
    assert done.returncode == 0, done.stderr
    assert "0 done" in done.stdout
