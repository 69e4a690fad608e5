"""How `blocklora grid` says how far it is and what a run gave."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.durations import clock
from ..core.files import printable
from ..core.schema import UnknownName

if TYPE_CHECKING:
    from ..runs.profile import Profile
    from ..runs.spec import RunSpec

# a step of ViT-B/16, 32 images, by CUDA graphs: the least of 10, 100 and 1000 classes
CARD = "an H200 31 in fp32 and 120 in fp16 by results/reference/benchmarks/gpu_check_h200.jsonl"


def forecast(specs: Sequence[RunSpec], tflops: float, profile: Profile | None = None) -> str:
    """What these runs will cost, in a line, and in another what their image files will.

    profile: what it says of how runs are computed counts.
    """
    from ..core.gpus import wants_gpu
    from ..runs.estimate import estimate, settings_of

    try:
        cost = estimate(specs, **settings_of(profile))
    except (UnknownName, FileNotFoundError) as error:  # a model or a set of one's own
        return f"no estimate of their cost: {error}"
    models = ", ".join(f"{n} of {model}" for model, n in cost.unpriced.items())
    if not cost.runs:
        return f"no estimate of their cost: there is no closed form for the model of {models}"
    without = f"; without {models}, for which there is no closed form" if models else ""
    host = (
        f"; a GPU's host takes {_hours(cost.host_hours)} hours, for which a faster GPU waits"
        if profile is None or wants_gpu(profile.device)
        else ""
    )
    lines = [
        f"the missing ones: {cost.steps:,} steps, {cost.flops:.2g} floating-point operations, "
        f"about {_hours(cost.hours(tflops))} hours at {tflops:g} TFLOP/s (--tflops: "
        f"what your device sustains, {CARD}), at most "
        f"{cost.peak_bytes / 2**30:.1f} GiB a step{host}{without}"
    ]
    if cost.test_images and profile and not profile.keep_views:
        lines.append(
            f"image files: {cost.evaluated:,} test images are decoded, each as often as runs ask "
            "for it (keep_views: false); with the few-shot images that is "
            f"{_hours(cost.decoding_hours(kept=False))} hours of one core"
        )
    elif cost.test_images:
        lines.append(
            f"image files: {cost.test_images:,} test images are decoded once and kept in "
            f"{cost.view_bytes / 2**30:.1f} GiB of disk, features of them that are asked for in "
            f"{cost.feature_bytes / 2**30:.1f} GiB; with the few-shot images that is "
            f"{_hours(cost.decoding_hours())} hours of one core, or "
            f"{_hours(cost.decoding_hours(kept=False))} without (keep_views: false)"
        )
    if cost.training_views:
        lines.append(
            f"{cost.training_views:,} views of training images take "
            f"{_hours(cost.viewing_hours)} hours of one core, and the images that they are cut of "
            f"at most {cost.image_bytes / 2**30:.1f} GiB of a process's memory on the host"
        )
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def outcome(record: Any) -> str:
    """One run in one line: accuracy with counts, or why it failed."""
    if record.status == "failed":
        return f"failed: {record.error.message}"
    sets = ", ".join(
        f"{name} {100 * c.accuracy:.1f}% ({c.correct}/{c.total})"
        for name, c in record.result.accuracy.items()
    )
    return f"{sets} in {sum(record.cost.seconds.values()):.1f} s"


class Progress:
    """Which run of how many, and the time left: a bar on a terminal, else one plain line a run."""

    def __init__(self, total: int, done: int) -> None:
        from tqdm import tqdm

        self.total, self.done, self.ran, self.start = total, done, 0, time.monotonic()
        self.bar = tqdm(total=total, initial=done, unit="run", disable=not sys.stderr.isatty())
        if done:
            self.say(f"{done} of {total} runs are already done")

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        line = printable(text)
        self.bar.write(line) if not self.bar.disable else print(line, flush=True)

    def report(self, text: str) -> None:
        """One more run is finished."""
        self.done, self.ran = self.done + 1, self.ran + 1
        left = (time.monotonic() - self.start) / self.ran * (self.total - self.done)
        self.say(f"[{self.done}/{self.total}] {text}; {clock(left)} left")
        self.bar.update()

    def close(self) -> None:
        """Finish the bar."""
        self.bar.close()
