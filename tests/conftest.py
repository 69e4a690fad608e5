"""Small stand-ins that every test can afford: coloured squares, a tiny CLIP, their profile."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from blocklora_lib.runs.profile import Profile

CLASSES = ("red square", "green square", "blue square")
TINY = "TinyCLIP-test"
TOYS = {  # an external set that no one has
    "name": "toys",
    "title": "Toys",
    "role": "target",
    "kind": "external",
    "classes": ["car", "doll"],
    "template": "a photo of a {}.",
    "counts": {},
    "licence": "none",
    "sources": [{"package": "none", "licence": "none", "attribution": "made by a test"}],
    "folders": {"coop": "toys", "clip_lora": "Toys"},
}


sys.modules.setdefault("rfc3987_syntax", None)  # see blocklora_lib/cli/__main__.py

SLOW = 0.5  # seconds of a core: twice what a test that is not marked may take
DEAREST = 60  # tests that are named


def core_seconds() -> float:
    """Seconds of a core that this process and its children took: others' load is not in them."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def _timed(item, phase):
    before = core_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((phase, core_seconds() - before))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("rare"):
            item.add_marker("slow")


def mostly_rare(values: Iterable, common: Collection) -> list:
    """Cases of which `make test` runs the common ones, and `make test-all` the others, too."""
    values = list(values)
    assert set(common) <= set(values)
    parts = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = [() if value in common else pytest.mark.rare for value in values]
    return [pytest.param(*part, marks=mark) for part, mark in zip(parts, marks, strict=True)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from _timed(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _timed(item, "call"))


def pytest_terminal_summary(terminalreporter):
    """Say which tests take most of the suite's time, what a fixture takes with the test that asks
    first, and which belong among the slow ones; a clock fails none of them.
    """
    reports = [r for r in terminalreporter.stats.get("passed", ()) if r.when == "call"]
    took = {report.nodeid: dict(report.user_properties) for report in reports}
    whole = {name: sum(phases.values()) for name, phases in took.items()}
    terminalreporter.write_line(f"{sum(whole.values()):,.0f} s of a core, most of it in:")
    for name in sorted(whole, key=whole.__getitem__, reverse=True)[:DEAREST]:
        if whole[name] > SLOW:
            terminalreporter.write_line(f"{whole[name]:8.1f} {name}")
    fast = [r.nodeid for r in reports if "slow" not in r.keywords and took[r.nodeid]["call"] > SLOW]
    for name in sorted(fast, key=lambda name: -took[name]["call"])[:DEAREST]:
        terminalreporter.write_line(f"not marked slow, {took[name]['call']:.1f} s: {name}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that make(folder) fills: once for all processes of a test run, by whoever asks."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = base / name, base / f"{name}.whole"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            make(folder)
            whole.touch()
    return folder


def write_bundle(
    folder: Path,
    name: str = "squares",
    counts: dict[str, int] | None = None,
    classes: tuple[str, ...] = CLASSES,
    size: int = 32,
    seed: int = 0,
    skip: tuple[str, int] | None = None,
    **manifest,
) -> Path:
    """Write name.parquet and manifests/name.yaml in the project's format; counts: of each split.

    `skip` = (split, class) leaves a class of a split without images.
    """
    counts = {"train": 6, "val": 2, "test": 4} if counts is None else counts
    random = np.random.default_rng(seed)
    rows: dict[str, list] = {"image": [], "label": [], "split": [], "group": [], "source": []}
    for split, per_class in counts.items():
        for label in range(len(classes)):
            for i in range(per_class if (split, label) != skip else 0):
                pixels = random.integers(0, 100, (size, size, 3), dtype=np.uint8)
                pixels[..., label % 3] += np.uint8(120)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "WEBP", quality=90)
                values = content.getvalue(), label, split, f"{split}{label}{i}", "synthetic"
                for key, value in zip(rows, values, strict=True):
                    rows[key].append(value)
    file = folder / f"{name}.parquet"
    pq.write_table(
        pa.table(
            {k: pa.array(v, pa.int16()) if k == "label" else pa.array(v) for k, v in rows.items()}
        ),
        file,
    )
    facts = {
        "name": name,
        "title": name.title(),
        "role": "target",
        "kind": "bundle",
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "classes": list(classes),
        "template": "a photo of a {}.",
        "counts": {s: sum(1 for r in rows["split"] if r == s) for s in counts},
        "licence": "CC0-1.0",
        "sources": [{"package": "none", "licence": "CC0-1.0", "attribution": "made by a test"}],
    }
    manifests = folder / "manifests"
    manifests.mkdir(exist_ok=True)
    (manifests / f"{name}.yaml").write_text(yaml.safe_dump(facts | manifest), encoding="utf-8")
    return manifests


def edit_manifest(folder: Path, changes: dict, name: str = "squares") -> None:
    """Change facts of a manifest; the value "delete" takes a key away."""
    path = folder / f"{name}.yaml"
    facts = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        yaml.safe_dump({k: v for k, v in facts.items() if v != "delete"}), encoding="utf-8"
    )


@pytest.fixture(scope="session")
def manifests(tmp_path_factory) -> Path:
    """A source set, a variant of it and a target."""
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(folder, "squares", role="source")
    write_bundle(folder, "noisy_squares", {"test": 3}, role="variant", variant_of="squares", seed=1)
    return write_bundle(folder, "dots", classes=("one dot", "two dots"), seed=2)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    """Config of a CLIP of random weights: 32 px, 4 + 1 tokens, two layers."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 16,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }
    path = tmp_path_factory.mktemp("clip") / f"{TINY}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_clip(tiny_config) -> str:
    """Name of that CLIP, which open_clip knows."""
    import open_clip

    open_clip.add_model_config(tiny_config)
    return TINY


@pytest.fixture(scope="session")
def quick_clip(tmp_path_factory) -> str:
    """A tiny CLIP with QuickGELU, as CLIP-LoRA's code has it."""
    import open_clip

    vision = dict(image_size=32, patch_size=16, width=32, layers=2, head_width=16)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=2)
    config = dict(embed_dim=16, quick_gelu=True, vision_cfg=vision, text_cfg=text)
    path = tmp_path_factory.mktemp("clip") / "TinyQuick-benchmark.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(path)
    return path.stem


def profile_facts(backbone: str) -> dict:
    """What a YAML file of this profile would hold."""
    return {
        "name": "tiny",
        "description": "three runs' worth of everything",
        "backbone": {"name": backbone, "pretrained": "none"},
        "source": "squares",
        "variants": ["noisy_squares"],
        "targets": ["dots"],
        "shots": [1, 2],
        "seeds": [1, 2],
        "methods": [
            {"name": "zero_shot"},
            {"name": "lora"},
            {"name": "block_lora", "settings": {"rank": 2, "n_blocks": 2}},
            {"name": "frozen_a"},
        ],
        "training": {
            "steps_per_shot": 2,
            "min_steps": 3,
            "max_steps": 4,
            "batch_size": 4,
            "lr": 1e-2,
        },
        "experiments": {"few_shot": {}},
    }


@pytest.fixture
def eurosat(tmp_path, monkeypatch) -> Path:
    """A miniature of EuroSAT, three images a class and split, where sets are looked for."""
    from blocklora_lib.data.manifest_files import load_manifest
    from blocklora_lib.data.obtain.miniature import make_fake

    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path / "data"))
    return make_fake(load_manifest("eurosat"), tmp_path / "data", per_class=3)


def eurosat_profile(backbone: str, **changes) -> Profile:
    """A profile of one set on disk."""
    facts = {
        "name": "external",
        "description": "one set on disk",
        "backbone": {"name": backbone, "pretrained": "none"},
        "targets": ["eurosat"],
        "shots": [2],
        "seeds": [1],
        "draw": "coop",
        "methods": [{"name": "lora"}, {"name": "zero_shot"}],
        "training": {"steps_per_shot": 2, "batch_size": 8, "lr": 1e-2},
        "experiments": {"few_shot": {}},
    }
    return Profile.model_validate(facts | changes)


@pytest.fixture
def tiny_profile(tiny_clip) -> Profile:
    return Profile.model_validate(profile_facts(tiny_clip))


@pytest.fixture
def bench(manifests):
    from blocklora_lib.runs.workbench import Workbench

    return Workbench("cpu", manifests)


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in for a GPU, with what would leave this process kept in it."""
    import fake_cuda

    fake_cuda.stay_here(monkeypatch)
    with fake_cuda.fake_cuda() as found:
        yield found
