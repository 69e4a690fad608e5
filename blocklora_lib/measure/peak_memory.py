"""Peak memory of a piece of work, measured in a fresh process: nothing earlier grew its heap.

The work is named, 'module:function', and prepared in two steps: `function(device=..., **arguments)`
loads what it needs and returns the work, a function without arguments. The work runs twice. The
first time loads what libraries load at first use; the second is measured. Counted above the process
that has only imported the module: what is there before it (prepared) and what it reaches (peak).

On a CPU this is the process's resident memory. The allocator is told to hand every large block back
at once (glibc's thresholds), so the peak is of live tensors and not of what was freed before. Code
that libraries load at first use is in both numbers, some tens of MB, so compare forms rather than
read one alone. On a GPU it is what torch's allocator has given out.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..core.machine import resident_memory
from ..core.paths import ROOT

_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


class MeasurementFailed(RuntimeError):
    """The fresh process ended without a result; carries its last line."""


@dataclass(frozen=True)
class Memory:
    """Bytes above those of the bare process: what stays prepared, and the peak during the work."""

    prepared_bytes: int
    peak_bytes: int


def peak_memory(
    work: str, arguments: Mapping[str, Any] | None = None, device: str = "cpu"
) -> Memory:
    """Measure `work` ('module:function', arguments as JSON has them) once."""
    return peak_memories(work, [arguments or {}], device)[0]


def peak_memories(
    work: str, arguments: Sequence[Mapping[str, Any]], device: str = "cpu", timeout: float = 1800
) -> list[Memory]:
    """Measure `work` once for each of `arguments`, each in a process of its own.

    All are forks of one process that has imported the module and done nothing else: as fresh as new
    ones, and the imports, which take longer than small works, are paid once. timeout: seconds that
    each may take, on average. MeasurementFailed where it takes longer or ends without a result.
    """
    import torch

    module, colon, function = work.partition(":")
    if not (module and colon and function):
        raise ValueError(f"work={work!r}; name a function as 'module:function'")
    request: dict[str, Any] = {"arguments": [dict(a) for a in arguments], "device": str(device)}
    request["threads"] = torch.get_num_threads()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, work],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout * max(1, len(arguments)),
            env=os.environ | _ALLOCATOR | {"PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(
            f"measuring the memory of {work} was ended after {error.timeout:.0f} s; give it less "
            "to do, or more threads"
        ) from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(arguments):
        last = done.stderr.strip().rpartition("\n")[2]
        last = last or "it was ended from outside; is there enough memory?"
        raise MeasurementFailed(f"measuring the memory of {work} failed: {last}")
    return [Memory(**json.loads(line)) for line in lines]


def main() -> None:
    """Import the module, then measure in one fork after another. argv: work; stdin: the request."""
    from ..runs.provenance import PeakMemory  # torch: imported before the forks, and only here

    request, (module, _, function) = json.load(sys.stdin), sys.argv[1].partition(":")
    prepare = getattr(importlib.import_module(module), function)
    gc.collect()
    gc.freeze()  # a fork that collects would otherwise copy every page that holds an object
    for arguments in request["arguments"]:
        child = os.fork()
        if child == 0:
            _measure(prepare, PeakMemory, arguments, request["device"], request["threads"])
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)


def _measure(
    prepare: Callable[..., Callable[[], object]],
    peak_of: type,
    arguments: Mapping[str, Any],
    device: str,
    threads: int,
) -> None:
    """Write one line with the result, and end the process."""
    import torch

    try:
        torch.set_num_threads(threads)
        place = torch.device(device)
        bare = resident(place)
        work = prepare(device=device, **arguments)
        work()
        prepared = resident(place)
        peak = peak_of(place)
        work()
        found = Memory(prepared - bare, peak.bytes() - bare)
        os.write(1, f"{json.dumps(asdict(found))}\n".encode())
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {' '.join(str(error).split())}\n".encode())
        os._exit(1)
    os._exit(0)


def resident(device: Any) -> int:
    """Bytes held now, garbage collected and handed back."""
    gc.collect()
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # glibc
        ctypes.CDLL(None).malloc_trim(0)
    return resident_memory()


if __name__ == "__main__":
    main()
