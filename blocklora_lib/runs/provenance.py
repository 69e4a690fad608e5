"""What a record says of its making: versions, device, threads, revision, peak of memory. No host."""

from __future__ import annotations

import platform
import resource
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..clip.backbone import Backbone
from ..core.devices import numerics
from ..core.paths import PACKAGE, ROOT
from ..data.dataset import Dataset
from ..methods import get_method
from .spec import RunSpec

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy")


def provenance(
    spec: RunSpec, backbone: Backbone, dataset: Dataset, evaluated: Sequence[Dataset] = ()
) -> dict[str, Any]:
    """Facts that do not name the run but help to explain it."""
    device = backbone.device
    return {
        "method_label": get_method(spec.method.name).label,
        "template": dataset.manifest.template,
        # made by `blocklora data fake`: a test of the machinery, no result
        "miniature": any(d.is_fake for d in (dataset, *evaluated)),
        "resolution": backbone.resolution,
        "weights": backbone.weights,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **numerics(device, spec.deterministic),
        "threads": torch.get_num_threads(),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), "blocklora": __version__, **_versions()},
    }


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


@cache
def git_revision() -> str:
    """The commit, with '+' when tracked files differ from it; '' outside a git checkout."""
    if PACKAGE.parent != ROOT:  # installed from a wheel: no commit of a clone is that of the code
        return ""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


class PeakMemory:
    """Peak of memory since this object was made: of the GPU's allocator, or of the process on a
    CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.init()  # before which torch knows no device's statistics
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # Linux: start the kernel's high-water mark again
                Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The peak."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
