"""Time a whole run of Block-LoRA, the start included, beside the same run by peft in a plain loop.

Of either process the seconds of its training steps are taken apart from the rest. A process that
only imports torch and open_clip, and ends, runs beside them: no run can take less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from blocklora_lib.learning.count import Count
from blocklora_lib.measure.benchmark_output import (
    LEGEND,
    markdown,
    options,
    positive,
    progress,
    ratio_text,
    run,
    start,
    write,
)
from blocklora_lib.measure.timing import paired_times, ratios

HERE = Path(__file__).resolve().parent
LIBRARY = "from blocklora_lib.cli.app import app; app()"  # what the command `blocklora` runs
START = "from blocklora_lib.cli.run_options import load_libraries; load_libraries()"


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, model=None, rounds=7)
    parser.add_argument("--profile", default="pocket", help="whose training settings both take")
    parser.add_argument("--dataset", default="fashion", help="a bundled set")
    parser.add_argument("--shots", type=positive, default=16, help="images a class")
    parser.add_argument("--seed", type=int, default=1, help="of draw and training")
    parser.add_argument("--methods", nargs="+", default=["block_lora", "lora"],
                        help="of ours, as the profile names them; peft's is LoRA")  # fmt: skip
    parser.add_argument("--delay", type=float, default=0.0,
                        help="seconds to add to peft's run, to see a difference")  # fmt: skip
    given = parser.parse_args(arguments)
    if find_spec("peft") is None:
        raise RuntimeError(
            "peft is not installed, and there is nothing to compare with; pip install peft"
        )
    device, accuracies = start(given), {}
    trained = defaultdict(list)  # seconds of training, run by run
    common = ["--profile", given.profile, "--dataset", given.dataset, "--shots", str(given.shots),
              "--seed", str(given.seed), "--threads", str(given.threads),
              "--device", str(device)]  # fmt: skip

    def ours(method: str) -> None:
        with tempfile.TemporaryDirectory() as folder:  # a stored record would be shown, not run
            more = ["--method", method, "--results", folder]
            path = output([sys.executable, "-c", LIBRARY, "run", *common, *more], given.threads)
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        accuracies[method] = Count(**record["result"]["accuracy"][given.dataset]).accuracy
        trained[method].append(record["cost"]["seconds"]["train"])

    def theirs() -> None:
        time.sleep(given.delay)
        line = output([sys.executable, str(HERE / "plain_peft_loop.py"), *common], given.threads)
        found = json.loads(line)
        accuracies["peft"] = found["accuracy"][given.dataset]
        trained["peft"].append(found["train_seconds"])

    functions = {method: partial(ours, method) for method in given.methods}
    functions["imports alone"] = partial(output, [sys.executable, "-c", START], given.threads)
    functions["peft"] = theirs
    bar = progress(given.rounds, "whole runs")
    whole = paired_times(functions, given.rounds, warmup=1, min_seconds=0, on_round=bar)
    training = whole[whole["name"].isin(trained)]
    seconds = [
        trained[name][i] for i, name in zip(training["round"], training["name"], strict=True)
    ]
    training = training.assign(seconds=seconds)
    times = pd.concat(
        [whole.assign(part="process"), training.assign(part="training")], ignore_index=True
    )
    frame = pd.concat(
        [ratios(part, "peft").assign(part=name) for name, part in times.groupby("part")]
    )
    frame["accuracy"] = frame["name"].map(accuracies)
    frame.insert(0, "dataset", given.dataset)
    frame.insert(1, "shots", given.shots)
    show(frame)
    write("pocket_run", frame, given, device, times=times)


def output(command: list[str], threads: int) -> str:
    """Run a process and return the last line that it prints."""
    threads_of = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | threads_of
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"{Path(command[1]).name} {' '.join(command[3:])} failed: {last}")
    return done.stdout.strip().rpartition("\n")[2]


def show(frame: pd.DataFrame) -> None:
    shown = frame[["dataset", "shots", "part", "name"]].copy()
    shown["s a run"] = frame["seconds_median"].map("{:.3g}".format)
    shown["time / peft"] = [ratio_text(row) for row in frame.to_dict("records")]
    shown["accuracy"] = ["" if a != a else f"{a:.1%}" for a in frame["accuracy"]]
    print(f"\n{markdown(shown)}\n\n{LEGEND}")
    for row in frame[frame["resolved"]].to_dict("records"):
        fast = [1 / row[c] for c in ("ratio", "ratio_high", "ratio_low")]
        told = "{:.2f} [{:.2f}, {:.2f}] times as fast as peft".format(*fast)
        print(f"{row['name']}: {told}, {row['part']}")


if __name__ == "__main__":
    run(main)
