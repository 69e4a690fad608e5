"""Whether a GPU computes what the suite promises, and what it costs: under ten minutes on one card.

Each result is one JSON object: what, case, numbers, accept (in words; '' where nothing is asked),
ok (true, false, or null: for information). The script ends with 1 if one is false, with 2 if it
cannot begin.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.devices import repeatable, resolve_device
from blocklora_lib.core.files import user_path, write_whole
from blocklora_lib.core.machine import usable_cpus
from blocklora_lib.core.paths import RESULTS
from blocklora_lib.learning.replayed import can_replay
from blocklora_lib.measure import gpu_acceptance as measure
from blocklora_lib.measure.benchmark_output import markdown
from blocklora_lib.measure.gpu_acceptance import Sizes
from blocklora_lib.measure.gpu_bars import (
    AT,
    CORES,
    FASTER,
    FINITE,
    FROM_FILES,
    FROM_VIEWS,
    HOST,
    RESERVED,
    above,
    finite,
    fits,
    hides_python,
    standard,
    times_as_fast,
)
from blocklora_lib.measure.gpu_steps import Numbers, release, step_costs
from blocklora_lib.measure.prompts import class_prompts
from blocklora_lib.measure.steps import NotCovered, Step, clip_lora_step, peft_step, random_images
from blocklora_lib.measure.timing import conditions
from blocklora_lib.runs.provenance import git_revision
from blocklora_lib.weights.tags import open_clip_name

# precision; whether only kernels that repeat are used; whether CUDA graphs repeat the step: as runs
# do by default, then without
OURS = (
    *((precision, True, True) for precision in ("fp32", "tf32", "fp16", "bf16")),
    *(("fp16", False, True), ("fp32", True, False), ("fp16", True, False)),
)
LARGE = 1000  # classes


class Case(NamedTuple):
    """measure() gives numbers, judge(numbers) accepts them or not; None: for information."""

    what: str
    case: str
    measure: Callable[[], Numbers]
    accept: str = ""
    judge: Callable[[Numbers], bool] | None = None


def cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Yield what is measured; what must be right comes before what it costs."""
    yield Case("CUDA against CPU", "5 steps, no dropout",
               partial(measure.against_cpu, sizes, device),
               "losses within 1e-4, adapters within 1e-2 (Adam divides by small gradients), "
               "relative",
               lambda n: n["losses_relative"] < 1e-4 and n["adapters_relative"] < 1e-2)  # fmt: skip
    for name, how in (("class_chunk", {"class_chunk": True}), ("checkpoint", {"checkpoint": True}),
                      ("both", {"class_chunk": True, "checkpoint": True})):  # fmt: skip
        yield Case("recomputed against kept", f"{name}, dropout {measure.DROPOUT}",
                   partial(measure.recomputed_against_kept, sizes, device, **how),
                   "gradients within 1e-4, relative", lambda n: n["relative"] < 1e-4)  # fmt: skip
    for precision in ("tf32", "fp16", "bf16"):
        yield Case("error of a number format", f"{precision}, dropout {measure.DROPOUT}",
                   partial(measure.against_fp32, sizes, device, precision))  # fmt: skip
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        for strict in (True, False):
            told = "three runs give the same bits" if strict else ""
            yield Case("repeats", f"{precision}, {'strict' if strict else 'fast'}",
                       partial(measure.repeats, sizes, device, precision, strict), told,
                       (lambda n: n["same_bits"]) if strict else None)  # fmt: skip
    for precision in ("fp32", "fp16") if device.type == "cuda" else ():
        yield Case("CUDA graphs against none", f"{precision}, dropout {measure.DROPOUT}",
                   partial(measure.graphs_against_none, sizes, device, precision),
                   "a graph is made, and gives the same bits",
                   lambda n: n["graphs"] > 0 and n["same_bits"])  # fmt: skip
    yield Case("whole runs", "smoke profile, twice", partial(measure.whole_runs, device),
               "equal results", lambda n: n["same_result"])  # fmt: skip
    least = {"files": FROM_FILES if usable_cpus() >= CORES else 0, "kept views": FROM_VIEWS}
    for source in ("files", "kept views", "memory"):
        measured, bar = partial(measure.evaluation_rate, sizes, device, source), least.get(source)
        told = f"at least {bar} images a second" if bar and standard(sizes, device) else ""
        yield Case("evaluation", source, measured, told,
                   partial(above, "images_per_second", bar) if told else None)  # fmt: skip
    for classes in sizes.classes:
        yield from step_cases(sizes, device, classes)
    most = max(sizes.classes)
    small = {"share_prefix": True, "checkpoint": True, "class_chunk": max(1, most // 4)}
    fit = f"{FINITE}, the peak below 24 GB, less than {RESERVED} GiB reserved", fits
    plain = fit if standard(sizes, device) else (FINITE, finite)
    ways = ({}, plain), ({"share_prefix": True}, plain), (small, fit)
    for way, (accept, judge) in ways:
        told = ", ".join(f"{name} {value}" for name, value in way.items()) or "plain"
        measured = partial(ours, sizes, device, most, "fp16", True, way)
        yield Case("memory", f"ours, fp16, {most} classes, {told}", measured, accept, judge)


def step_cases(sizes: Sizes, device: torch.device, classes: int) -> Iterator[Case]:
    """Yield a training step in each precision, and the same of CLIP-LoRA's computation and peft's.

    Their images lie in batches on the device.
    """
    for precision, strict, by_graphs in OURS:
        graphs = by_graphs and device.type == "cuda"
        how = f"{'strict' if strict else 'fast'}, {'' if graphs else 'no '}graphs"
        hidden = f"{FINITE}, Python takes less than {HOST:.0%} of the step", hides_python
        accept, judge = hidden if graphs and standard(sizes, device) else (FINITE, finite)
        yield Case("step", f"ours, {precision}, {how}, {classes} classes",
                   partial(ours, sizes, device, classes, precision, strict, {}, graphs),
                   accept, judge)  # fmt: skip
    for autocast in (False, True):
        told = f"CLIP-LoRA, {'fp16 autocast' if autocast else 'fp32'}, {classes} classes"
        yield Case("step", told, partial(theirs, sizes, device, classes, autocast))
    if classes < LARGE:  # it pads all prompts, and keeps what it computes of the padding
        yield Case("step", f"peft, fp32, {classes} classes",
                   partial(theirs, sizes, device, classes, None))  # fmt: skip


def speeds(sizes: Sizes, device: torch.device, results: list[dict[str, Any]]) -> Iterator[Case]:
    """Yield, of a GPU, CLIP-LoRA's step in fp16 by ours, from the results of both."""
    for classes in sizes.classes if device.type == "cuda" else ():
        asked = classes == AT and standard(sizes, device)
        yield Case("speed", f"CLIP-LoRA by ours, fp16, {classes} classes",
                   partial(times_as_fast, results, classes),
                   f"ours is at least {FASTER} times as fast" if asked else "",
                   partial(above, "times_as_fast", FASTER) if asked else None)  # fmt: skip


def ours(
    sizes: Sizes,
    device: torch.device,
    classes: int,
    precision: str,
    strict: bool,
    way: dict,
    graphs: bool = True,
) -> Numbers:
    """Return the costs of this library's step."""

    def make() -> Step:
        backbone = sizes.load(precision, device)
        step = measure.step_of(backbone, measure.adapted(backbone), classes, sizes.batch, **way)
        recomputes = bool(way.get("checkpoint") or way.get("class_chunk"))
        return step.replay() if graphs and can_replay(backbone, recomputes) else step

    with repeatable(device, strict, precision == "tf32"):
        return step_costs(make, sizes.steps, device)


def theirs(sizes: Sizes, device: torch.device, classes: int, autocast: bool | None) -> Numbers:
    """Return the costs of CLIP-LoRA's step, with whatever kernels torch likes; of None, peft's."""

    def make() -> Step:
        backbone = sizes.load("fp32", device)
        config = AdapterConfig(kind="lora", dropout=measure.DROPOUT)
        tokens = backbone.tokenize(class_prompts(classes))
        images = random_images(backbone, sizes.batch)
        if autocast is None:
            return peft_step(backbone, config, tokens, images)
        return clip_lora_step(backbone, config, tokens, images, autocast)

    with repeatable(device, strict=False):
        return step_costs(make, sizes.steps, device)


def judged(case: Case, device: torch.device) -> dict[str, Any]:
    """Measure a case. An error is a result: false, but no room for what is for information."""
    start = time.perf_counter()
    try:
        numbers = case.measure()
        ok = bool(case.judge(numbers)) if case.judge else None
    except Exception as error:  # whatever it is, the next case is measured
        told = " ".join(str(error).split())
        numbers = {"error": f"{type(error).__name__}: {told[:200]}"}
        no_room = isinstance(
            error, (torch.OutOfMemoryError, MemoryError, NotCovered, ModuleNotFoundError)
        )
        ok = None if no_room and not case.judge else False
    release(device)
    seconds = round(time.perf_counter() - start, 1)
    facts = {"what": case.what, "case": case.case, "numbers": numbers, "accept": case.accept}
    return facts | {"ok": ok, "seconds": seconds}


def short(value: Any) -> str:
    """Return a number or a list of them as a table has room for it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{len(value)} numbers" if isinstance(value, list) else str(value)


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row a result, for people."""
    words = {True: "yes", False: "NO", None: "-"}
    rows = []
    for r in results:
        found = ", ".join(f"{k} {short(v)}" for k, v in r["numbers"].items() if v is not None)
        rows.append((r["what"], r["case"], found, words[r["ok"]]))
    return pd.DataFrame(rows, columns=["what", "case", "found", "accepted"])


def keep(results: list[dict[str, Any]], folder: Path) -> None:
    """Write the results so far: JSON lines, and a CSV with a column for each number."""
    lines = "".join(f"{json.dumps(result)}\n" for result in results)
    write_whole(folder / "gpu-check.jsonl", lines)
    flat = [{**{k: v for k, v in r.items() if k != "numbers"}, **r["numbers"]} for r in results]
    write_whole(
        folder / "gpu-check.csv", pd.DataFrame(flat).to_csv(index=False, lineterminator="\n")
    )


def check(sizes: Sizes) -> None:
    """Raise ValueError for sizes that nothing can be measured at."""
    for name in ("batch", "steps", "images"):
        if getattr(sizes, name) < 1:
            raise ValueError(f"--{name} {getattr(sizes, name)}; use at least 1")
    for classes in sizes.classes:
        if classes < 2:
            raise ValueError(
                f"--classes {classes}; use at least 2, between which a gradient decides"
            )
        class_prompts(classes)  # refuses more than ImageNet has
    open_clip_name(sizes.model)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = Sizes()
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, or cpu to try the script itself"
    )
    parser.add_argument(
        "--model", default=default.model, help="a CLIP of open_clip (random weights)"
    )
    parser.add_argument(
        "--classes", type=int, nargs="+", default=list(default.classes), help="of ImageNet"
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="images in every step")
    parser.add_argument("--steps", type=int, default=default.steps, help="steps that are timed")
    parser.add_argument(
        "--images", type=int, default=default.images, help="images that are evaluated"
    )
    parser.add_argument(
        "--output", type=user_path, default=RESULTS / "gpu-check", help="folder to write to"
    )
    given = parser.parse_args(arguments)
    try:
        device = resolve_device(given.device)
        sizes = Sizes(given.model, tuple(given.classes), given.batch, given.steps, given.images)
        check(sizes)
        given.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    facts = conditions(device) | {"cuda": torch.version.cuda, "revision": git_revision()}
    facts |= {"date": date.today().isoformat(), "batch": sizes.batch, "model": sizes.model}
    first = {"what": "conditions", "case": "", "numbers": facts, "accept": ""}
    results: list[dict[str, Any]] = [first | {"ok": None, "seconds": 0.0}]
    print(json.dumps(results[0]), flush=True)
    for case in chain(cases(sizes, device), speeds(sizes, device, results)):
        results.append(judged(case, device))
        print(json.dumps(results[-1]), flush=True)
        keep(results, given.output)  # after each: what was measured stays if the time runs out
    print(f"\n{markdown(table(results[1:]))}\n")
    print(f"written: {given.output}/gpu-check.jsonl, gpu-check.csv")
    if failed := [f"{r['what']} ({r['case']})" for r in results if r["ok"] is False]:
        print(f"not accepted: {'; '.join(failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
