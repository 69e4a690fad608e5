"""What the machine says of itself and of this process: its processor, its memory. No torch.

Linux says it in /proc; elsewhere what it says there is not known.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def processor_name() -> str:
    """The processor's name as the system states it; its architecture where it states none."""
    named = _facts(PROC / "cpuinfo").get("model name")
    return named or platform.processor() or platform.machine()


def free_memory(facts: Path = PROC / "meminfo", group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this process may still take, of machine or control group; inf where unknown."""
    free = math.inf
    with suppress(OSError, KeyError, ValueError):  # 'max': no limit
        free = _kilobytes(facts, "MemAvailable")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    return free


def resident_memory() -> int:
    """Bytes of memory that this process holds now."""
    return int((PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def release_memory() -> None:
    """Give back what C's allocator keeps of memory that is free, where it is glibc's."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def restart_peak() -> None:
    """Start the kernel's high-water mark of this process's memory again, where that is possible."""
    with suppress(OSError):
        (PROC / "self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes that this process held, since `restart_peak` or its start."""
    with suppress(OSError, KeyError):
        return _kilobytes(PROC / "self/status", "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kilobytes(path: Path, name: str) -> int:
    """Return the bytes of a line 'name: 12 kB'."""
    return int(_facts(path)[name].split()[0]) * 1024


def _facts(path: Path) -> dict[str, str]:
    """The lines 'name: value' of a file, the last of a name; none where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (li.partition(":") for li in lines)}


def usable_cpus(groups: Path = Path("/sys/fs/cgroup"), own: Path = PROC / "self/cgroup") -> int:
    """How many CPUs this process may use now: by its affinity, and by the quotas of its control
    groups and of those above them.
    """
    allowed = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if allowed else os.cpu_count() or 1
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, place = line.split(":", 2)
            if not kinds or "cpu" in kinds.split(","):
                mount = groups / "cpu" if kinds else groups  # of version 1, each kind has its own
                group = Path(place.lstrip("/"))
                for part in (group, *group.parents):
                    cpus = min(cpus, _quota(mount / part, cpus))
    return cpus


def _quota(group: Path, most: int) -> int:
    """CPUs that a control group may use; `most` where it has no limit."""
    names = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    for files in names:
        with suppress(OSError, ValueError):  # 'max': no limit
            text = " ".join((group / name).read_text() for name in files)
            quota, period = map(int, text.split())
            return max(1, round(quota / period)) if quota > 0 else most  # nor does -1
    return most
