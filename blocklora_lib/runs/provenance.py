"""What a record says of its making: versions, device, threads, revision, peak memory."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from .. import __version__
from ..clip.backbone import Backbone
from ..core.devices import numerics
from ..core.files import package_version
from ..core.machine import peak_memory, release_memory, resident_memory, restart_peak
from ..core.paths import PACKAGE, ROOT
from ..data.dataset import Dataset
from ..methods import get_method
from .spec import RunSpec

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


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
        **numerics(device, spec.deterministic, spec.backbone.tf32),
        # a CPU's arithmetic rounds by the length of its vectors: AVX2, AVX512, NEON
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), "blocklora": __version__}
        | {package: package_version(package) for package in _PACKAGES},
    }


@cache
def git_revision() -> str:
    """The commit, with '+' when tracked files differ from it; '' outside a git checkout."""
    if PACKAGE.parent != ROOT:  # installed from a wheel: no commit of a clone is that of the code
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    command += ["--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


class PeakMemory:
    """Peak of memory since this object was made: of the GPU's allocator, or of a CPU's process."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._highest = device, 0
        self._above = self._held = 0
        if device.type == "cuda":
            torch.cuda.init()  # before which torch knows no device's statistics
        self._restart()

    def bytes(self) -> int:
        """The peak."""
        return max(self._highest, self._now())

    def begin(self) -> None:
        """Begin to measure what is held above what is held now."""
        self._above = 0
        self._mark()

    def above(self) -> int:
        """The most that was held above that, without what was done `apart`."""
        return max(self._above, self._now() - self._held)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done here, and what stays of it, counts in the peak alone."""
        self._above = self.above()
        try:
            yield
        finally:
            self._mark()

    def _mark(self) -> None:
        """Take what is held now for what was held before; of freed memory nothing is."""
        self._highest = self.bytes()
        if self.device.type == "cuda":
            self._held = torch.cuda.memory_allocated(self.device)
        else:
            release_memory()
            self._held = resident_memory()
        self._restart()

    def _restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            restart_peak()

    def _now(self) -> int:
        """The peak since the last restart."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_memory()
