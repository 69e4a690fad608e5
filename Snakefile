# The one engine: the grid of runs, the notebooks, the report. `make reproduce` calls it; so can a
# cluster, by profiles/slurm/config.yaml:
#   snakemake --workflow-profile slurm --config profile=paper
# A grid job runs all shots and seeds of a dataset (and of one method, where the profile says
# `job: method`) in one process and keeps one record a run, so that a job that was cut off goes on
# with the run it was at. Records are named by the hash of their spec: nothing runs twice.
import atexit
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from blocklora_lib.runs.code_digest import sources
from blocklora_lib.runs.experiment import RATES
from blocklora_lib.runs.images import RunImages
from blocklora_lib.cli.exits import exit_code, sentence
from blocklora_lib.core.files import user_path
from blocklora_lib.core.gpus import visible_gpus, wants_gpu
from blocklora_lib.suite.catalogue import choose_notebooks, drop_damaged_indexes, notebook_needs
from blocklora_lib.core.paths import NOTEBOOKS as SOURCES, ROOT
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.runs.estimate import DAY, minutes
from blocklora_lib.runs.profile_files import is_file_name, load_profile, profile_files
from blocklora_lib.suite.engine import (
    ALL,
    digest,
    drop_stale_indexes,
    grid_groups,
    only_one,
    variant_jobs,
    without_adapter,
)
from blocklora_lib.suite.monitor import Monitor
from blocklora_lib.suite.reproduce import as_typed

if config.get("quiet"):  # errors, what the jobs say and the monitor's lines are enough for a person
    logger.setLevel("WARNING")
# one thread a job, and no network unless it is asked for
for variable in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
    os.environ.setdefault(variable, "1")
os.environ["BLOCKLORA_JOB"] = "1"  # that all was stopped is said once, here
# products on a GPU repeat, see blocklora_lib/core/devices.py
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def end(error):
    """What a person may have mistyped, or a machine refuses, is answered in one sentence."""
    print(f"error: {sentence(error)}", file=sys.stderr)
    sys.exit(exit_code(error))


TYPED = config | as_typed(workflow.config_settings.config_args)
KEYS = ("profile", "results", "notebooks", "variants", "rates", "keep_old", "quiet")


def switched(name):
    """Whether a switch of --config is on, however it was spelled."""
    return str(TYPED.get(name, 0)).lower() not in ("0", "", "false", "no", "off", "none")


GIVEN = str(TYPED.get("profile", "pocket"))  # a profile's name, or the path of a YAML file
CHOICE = switched("rates")  # the runs alone by which `blocklora rates` chooses
KEEP_OLD = switched("keep_old")  # records of an earlier library stand
try:
    for name in TYPED:
        if name not in KEYS:
            raise UnknownName("key of --config", name, KEYS)
    GIVEN = str(user_path(GIVEN)) if is_file_name(GIVEN) else GIVEN  # jobs may run in other folders
    PROFILE = load_profile(GIVEN, chosen=not CHOICE)
    RESULTS = user_path(str(TYPED.get("results") or f"results/{PROFILE.name}"))
    if {"{", "}"} & {*str(RESULTS)}:
        raise ValueError(
            f"results folder {RESULTS}: Snakemake reads braces as wildcards; choose another name"
        )
    CHOSEN = () if CHOICE else choose_notebooks(str(TYPED.get("notebooks", "") or ""))
    NEEDS = {name: notebook_needs(name) for name in CHOSEN}
    # a sweep: --config variants=FILE.yaml
    VARIANTS = variant_jobs(str(TYPED.get("variants", "") or ""), PROFILE)
    # of a notebook's experiments those that the profile has
    needed = {RATES} if CHOICE else {e for n in NEEDS.values() for e in n["experiments"]}
    needed &= {RATES, *PROFILE.experiments}
    GROUPS = grid_groups(PROFILE, needed)
    # runs of theirs that train what a job trains are made by that job
    BESIDE = " ".join(f"--beside {name}" for name in sorted(needed - {RATES}))
    # a notebook and the report are made again when these change
    HERE = ROOT / "blocklora_lib"
    made_by = [path for ending in ("py", "j2", "js") for path in sources(HERE, ending)]
    LIBRARY = digest([*made_by, *profile_files(GIVEN)])
except (ValueError, KeyError, OSError) as error:
    end(error)
OUT = str(RESULTS if TYPED.get("results") else RESULTS.relative_to(Path.cwd()))
LOGS = f"{OUT}/logs"
# What a job asks a cluster for.  Of a job that was ended, the next attempt asks for more.
GPU = int(wants_gpu(PROFILE.device))
MEMORY = 16_000 if GPU else 4_000  # MB of the host
CLUSTER = workflow.resource_settings.nodes is not None  # it counts its GPUs itself
RETRIES = 0  # of the engine that runs one job, on a node
if workflow.is_main_process:
    RETRIES = 3 if CLUSTER else 1  # each goes on with the run that the job was at
# on this machine a GPU runs one job at a time
if not CLUSTER and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", max(1, len(visible_gpus())))
BLOCKLORA = f"{shlex.quote(sys.executable)} -m blocklora_lib.cli"


def index(experiment, dataset, method):
    return f"{OUT}/grid/{experiment}/{dataset}-{in_file(method)}.json"


def in_file(method):
    """A method's name without commas, by which a job on a cluster tells its wildcards apart."""
    return method.replace(",", "~")


def group_of(wildcards):
    return wildcards.experiment, wildcards.dataset, wildcards.method.replace("~", ",")


def executed(name):
    return f"{OUT}/notebooks/{name}.ipynb"


def notebook_inputs(wildcards):
    """The groups of its experiments and the chosen notebooks that it reads; all for the overview."""
    needs = NEEDS[wildcards.name]
    reads = CHOSEN if needs["last"] else [name for name in CHOSEN if name in needs["notebooks"]]
    before = [executed(name) for name in reads if name != wildcards.name]
    return before + [index(*group) for group in GROUPS if group[0] in needs["experiments"]]


def memory(wildcards, attempt):
    return MEMORY + (attempt - 1) * MEMORY // 2


def runtime(wildcards, attempt):
    """Minutes of a group of runs, by the cost model."""
    return min(DAY, attempt * minutes(GROUPS[group_of(wildcards)], bool(GPU), PROFILE))


def all_cores(wildcards):
    """Every core, for a notebook that measures time; a cluster has no such number: slurm_extra."""
    try:
        return workflow.cores if NEEDS[wildcards.name]["alone"] else 1
    except WorkflowError:
        return 1


if workflow.is_main_process:
    RUNS = {spec.key: spec for specs in GROUPS.values() for spec in specs}
    IMAGES = RunImages()
    try:
        LOCK = only_one(RESULTS)
        for path in drop_damaged_indexes(RESULTS):
            print(f"{path} is damaged: its notebook is executed again", file=sys.stderr)
        indexes = {index(*group): specs for group, specs in GROUPS.items()}
        lacks = without_adapter(RESULTS) if PROFILE.save_adapters else lambda spec: False
        drop_stale_indexes(RESULTS, indexes, KEEP_OLD, IMAGES.digest, lacks)
    except (OSError, RuntimeError) as error:
        end(error)
    MONITOR = Monitor(
        RESULTS / "runs", list(RUNS), keep_old=KEEP_OLD, images=lambda k: IMAGES.digest(RUNS[k])
    )
    if GPU and not CLUSTER and (found := len(visible_gpus())) > 1:
        few = f", {workflow.cores} at a time (JOBS)" * (workflow.cores < found)
        print(f"{found} GPUs, 1 job each{few}", file=sys.stderr)
    STOPPED = []

    def stop(number, frame):
        """Ctrl-C: how the jobs of this machine, which get it too, end is no error to be told."""
        STOPPED.append(number)
        if not CLUSTER:
            logger.setLevel("CRITICAL")
        signal.signal(number, signal.SIG_IGN)
        if os.getpgrp() == os.getpid():
            os.killpg(0, number)
        signal.signal(number, signal.default_int_handler)
        raise KeyboardInterrupt

    def say_stopped():
        if STOPPED:
            jobs = ", its jobs are cancelled (squeue --me lists what is left)" if CLUSTER else ""
            print(f"stopped{jobs}; the same command goes on", file=sys.stderr)

    signal.signal(signal.SIGINT, stop)
    atexit.register(say_stopped)


wildcard_constraints:
    experiment="[a-z0-9_]+",
    dataset="[a-z0-9_]+",
    method="[A-Za-z0-9_~=+.-]+",  # a dataset's name has no hyphen, so the first one parts the two
    name="[0-9]+_[a-z0-9_]+",
    variant="[A-Za-z0-9_+.-]+",


localrules:
    all,
    variants,
    report,


rule all:
    input:
        [index(*group) for group in GROUPS] if CHOICE else f"{OUT}/report.html",
        [f"{OUT}/variants/{folder}/notebooks/{name}.ipynb" for folder, name in VARIANTS],


rule variants:
    input:
        [f"{OUT}/variants/{folder}/notebooks/{name}.ipynb" for folder, name in VARIANTS],


rule grid:
    output:
        f"{OUT}/grid/{{experiment}}/{{dataset}}-{{method}}.json",
    params:
        dataset=lambda w: "" if w.dataset == ALL else f"--dataset {w.dataset}",
        method=lambda w: "" if w.method == ALL else f"--method {group_of(w)[2]}",
        keep="--keep-old" if KEEP_OLD else "",
    log:
        f"{LOGS}/grid/{{experiment}}/{{dataset}}-{{method}}.log",
    threads: 1
    retries: RETRIES
    resources:
        gpu=GPU,
        mem_mb=memory,
        runtime=runtime,
    # The grid looks at every record and writes the index once each run has one that stands, done or
    # failed. Exit code 1: some are recorded as failed and listed on the terminal; the grid goes on.
    # Any other is an error of the job.  What it says of each run is in the log, errors are on the
    # terminal too.
    shell:
        """
        echo "$(date '+%F %T') on $(uname -n)" >> {log:q}
        {{ {BLOCKLORA} grid --profile {GIVEN:q} --results {RESULTS:q} \
            --experiment {wildcards.experiment} {params.dataset} {params.method} {BESIDE} \
            {params.keep} --index {output:q} 2>&1 >> {log:q} || [ $? -eq 1 ]; }} \
            | tee -ia {log:q} >&2
        """


rule notebook:
    input:
        notebook_inputs,
        source=lambda w: str(SOURCES / f"{w.name}.ipynb"),
    output:
        f"{OUT}/notebooks/{{name}}.ipynb",
        f"{OUT}/notebooks/{{name}}.json",
    params:
        place=lambda w: f"{CHOSEN.index(w.name) + 1} of {len(CHOSEN)}",
        library=LIBRARY,
    log:
        f"{LOGS}/notebooks/{{name}}.log",
    priority: 1  # before other runs: there is something to read at once
    threads: all_cores  # who measures time works alone
    retries: RETRIES if CLUSTER else 0
    resources:
        slurm_extra=lambda w: "--exclusive" if NEEDS[w.name]["alone"] else "",
        gpu=lambda w: GPU if NEEDS[w.name]["computes"] else 0,
        mem_mb=memory,
        runtime=240,
    shell:
        """
        {{ echo "notebook {params.place}: {wildcards.name}"
        {BLOCKLORA} notebook {wildcards.name} --profile {GIVEN:q} --results {RESULTS:q} \
            2>&1 >/dev/null; }} | tee -ia {log:q} >&2
        """


rule variant:  # a notebook with parameters of its own; it computes the runs that are missing
    input:
        source=lambda w: str(SOURCES / f"{w.name}.ipynb"),
    output:
        f"{OUT}/variants/{{variant}}/notebooks/{{name}}.ipynb",
        f"{OUT}/variants/{{variant}}/notebooks/{{name}}.json",
    params:
        given=lambda w: VARIANTS[w.variant, w.name],
        library=LIBRARY,
    log:
        f"{LOGS}/variants/{{variant}}/{{name}}.log",
    threads: 1
    retries: RETRIES if CLUSTER else 0
    resources:
        gpu=GPU,
        mem_mb=memory,
        runtime=DAY,
    shell:
        """
        {{ echo "variant {wildcards.variant}: {wildcards.name}"
        {BLOCKLORA} notebook {wildcards.name} --profile {GIVEN:q} --results {RESULTS:q} \
            {params.given:q} 2>&1 >/dev/null; }} | tee -ia {log:q} >&2
        """


rule report:
    input:
        [executed(name) for name in CHOSEN],
    output:
        f"{OUT}/report.html",
    params:
        library=LIBRARY,
    log:
        f"{LOGS}/report.log",
    shell:
        # exit code 1: records that no notebook here needs are damaged; the report lists them
        """
        {{ {BLOCKLORA} report --profile {GIVEN:q} --results {RESULTS:q} 2>&1 >/dev/null \
            || [ $? -eq 1 ]; }} | tee -i {log:q} >&2
        """


onstart:
    MONITOR.start()


onsuccess:
    MONITOR.stop()


onerror:
    MONITOR.stop()
    if STOPPED:
        sys.exit(130)
    place = f"--profile {shlex.quote(GIVEN)} --results {shlex.quote(str(RESULTS))}"
    print(
        "Something failed; its error is above. What is finished is kept: the same command goes on "
        f"from here, and\n`blocklora report {place}` shows what is there.",
        file=sys.stderr,
    )
