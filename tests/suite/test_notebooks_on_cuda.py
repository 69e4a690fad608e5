"""The cells of every notebook on a GPU that is not there (see fake_cuda.py): no device error.

In one process, by the smoke profile with `device: cuda`. Records are made up, but for a few runs,
which notebook 08 computes; repetitions are cut where a notebook's parameters let them be. Left out
is what is on the CPU or on "meta" whatever the profile says, and long: notebooks 13 to 15, and what
03 and 05 count of products and allocations. What the numbers say is test_notebooks.py's.
"""

from __future__ import annotations

from contextlib import suppress

import fake_cuda
import matplotlib
import nbformat
import pytest
from conftest import mostly_rare
from synthetic_records import write_records

from blocklora_lib.core.paths import NOTEBOOKS, PROFILES
from blocklora_lib.measure import counted
from blocklora_lib.runs import profile_files
from blocklora_lib.runs.grid import expand
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite import notebook
from blocklora_lib.suite.catalogue import notebook_names, notebook_needs

pytestmark = pytest.mark.slow

NAMES = notebook_names()
LAST = [name for name in NAMES if notebook_needs(name)["last"]]
LESS = {  # parameters of a notebook that repeat what one step shows
    "02_equivalence": {"steps": 2},
    "07_nonvacuous_bound": {"steps": 1, "sweeps": 1, "candidates": [["o", 8, 15, 2, 1.0]],
                            "coded_sets": ["chess"], "supersamples": 2, "paired_shots": 1,
                            "paired_on": "chess"},
    "12_inference": {"rounds_factor": 1, "batches": [1], "repeats": 1},
}  # fmt: skip
COMPUTES = "08_few_shot"  # runs, by nb.compute(); the others find all of theirs
ON_THE_CPU = {"13_theorem", "14_where_it_breaks", "15_shared_subspace"}
TRIED = sorted(set(NAMES) - ON_THE_CPU, key=lambda name: (name in LAST, name))
# of `make test-all`: what they do on a device, others do, too
LONG = {"05_memory", "07_nonvacuous_bound", "12_inference", "18_your_data"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The profile's file; beside it lie the records."""
    folder = tmp_path_factory.mktemp("cuda")
    path = folder / "smoke.yaml"
    text = (PROFILES / "smoke.yaml").read_text(encoding="utf-8")
    assert "\ndevice: cpu\n" in text
    path.write_text(text.replace("\ndevice: cpu\n", "\ndevice: cuda\n"), encoding="utf-8")
    profile = load_profile(str(path))
    needed = {experiment for name in NAMES for experiment in notebook_needs(name)["experiments"]}
    write_records(profile, folder / "runs", sorted(needed))
    return path


def forget_runs(path):
    """Delete the records of a few runs, so that notebook 08 computes them."""
    chosen = {("chess", 0, "zero_shot"), ("chess", 1, "block_lora")}
    store = RunStore(path.parent / "runs")
    for spec in expand(load_profile(str(path)), "few_shot"):
        if (spec.dataset, spec.shots, spec.method.name) in chosen:
            store.path(spec).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch, smoke):
    """Nothing leaves this thread and process, or is drawn to a file."""
    matplotlib.use("Agg")
    fake_cuda.stay_here(monkeypatch)
    monkeypatch.setattr(counted, "build_clip", fake_cuda.on_meta(counted.build_clip))
    monkeypatch.setattr(counted, "count_multiply_adds", lambda function: (1, 1))
    for function in ("kept_bytes", "peak_bytes"):
        monkeypatch.setattr(counted, function, lambda *_: 1 << 20)
    files = [".pdf", ".png"]  # as save_figure names them; notebook 00 reads that each has a PNG
    monkeypatch.setattr(
        notebook, "save_figure", lambda figure, stem, note: [stem.with_suffix(e) for e in files]
    )
    monkeypatch.setattr(notebook, "show_figure", lambda *_: None)
    monkeypatch.setattr(  # notebook 07 trains by pocket's settings
        profile_files,
        "load_profile",
        lambda name: load_profile(str(smoke) if name == "pocket" else name),
    )


def code_cells(name):
    return [
        c
        for c in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        if c.cell_type == "code"
    ]


@pytest.mark.parametrize("name", mostly_rare(TRIED, set(TRIED) - LONG))
def test_no_cell_mixes_devices(name, smoke, monkeypatch):
    computed, on_gpu = fake_cuda.computed, []
    monkeypatch.setattr(
        fake_cuda, "computed", lambda *given: (on_gpu.append(1), computed(*given))[1]
    )
    space, cells = {"__name__": "__main__"}, code_cells(name)
    if name == COMPUTES:
        forget_runs(smoke)
    with fake_cuda.fake_cuda():
        for i, cell in enumerate(cells):
            with suppress(notebook.CheckFailed):  # two steps prove nothing
                exec(compile(cell.source, f"{name}, code cell {i}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                given = {
                    "profile": str(smoke),
                    "results_dir": str(smoke.parent),
                    **LESS.get(name, {}),
                }
                assert given.keys() <= space.keys()
                space |= given
    asked = name == COMPUTES or any("nb.device" in cell.source for cell in cells)
    assert bool(on_gpu) == asked, "it computes where its profile does not say"


@pytest.mark.parametrize("name", sorted(ON_THE_CPU))
def test_what_is_left_out_names_the_cpu_alone(name):
    source = "\n".join(cell.source for cell in code_cells(name))
    source = source.replace('Workbench("cpu")', "")  # any other bench chooses for itself
    assert not any(word in source for word in ("nb.device", "cuda", '"auto"', "Workbench("))
    loaded = source.count("load_backbone(")
    assert loaded == source.count('"bundled"), "cpu")') == (name == "13_theorem")
