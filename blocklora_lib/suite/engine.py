"""What the Snakefile needs around its rules: groups of the grid, true indexes, one process at a
time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from ..core.files import holds_none, read_text, remove, same_error, sweep, user_path, write_whole
from ..core.json_data import read_json
from ..core.locks import Taken, locked
from ..core.paths import NOTEBOOKS
from ..core.yaml_data import parse_yaml
from ..runs.grid import planned
from ..runs.kept import Kept, has_adapter
from ..runs.profile import Profile
from ..runs.profile_files import is_file_name
from ..runs.spec import RunSpec
from ..runs.standing import stands, stored
from ..runs.store import RunStore
from .catalogue import choose_notebooks, notebook_needs
from .parameter_cell import check_parameters
from .variant import NAMES, place

_LOCK = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW  # not what a link leads to
ALL = "all"  # datasets, or methods, of a group
OF_ALL = {"profile", "results_dir"}  # parameters that a sweep has once


def only_one(folder: Path) -> IO[str]:
    """Return an open lock on the results folder.

    Raises RuntimeError if another reproduction has it, OSError where it cannot be written. The
    operating system drops the lock with the process, however that ends: nothing is unlocked by
    hand. What writers that were killed left in the folder is swept.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder / ".lock", _LOCK, 0o666)
        lock = open(place, "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
    except OSError as error:
        raise same_error(
            error,
            f"results folder {folder} cannot be written ({error.strerror or error}); make it "
            "writable, or choose another one with --config results=FOLDER",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):  # not held: there are no locks
            print(
                f"the file system of {folder} has no locks ({error.strerror}): start one "
                "reproduction in it at a time",
                file=sys.stderr,
            )
            return lock
        lock.seek(0)
        raise RuntimeError(
            f"process {lock.read(20).strip() or 'unknown'} is already reproducing in {folder}; "
            "wait for it, or end it and call again"
        ) from None
    try:
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except OSError as error:
        raise same_error(
            error, f"{folder / '.lock'} cannot be written ({error.strerror})"
        ) from None
    sweep(folder)
    for left in (folder / "runs").glob(".*.lock"):  # of processes that were killed
        with suppress(Taken, OSError), locked(left, print, wait=False):
            pass
    return lock


def grid_groups(
    profile: Profile, experiments: Iterable[str]
) -> dict[tuple[str, str, str], list[RunSpec]]:
    """Return (experiment, dataset or "all", method or "all") -> its runs.

    One group is one job: `profile.job` says whether the methods of a dataset share a process. A
    method that trains nothing is one job for all sets: its model is loaded once. The runs' keys
    follow from profile, data and weights.
    """
    found: dict[tuple[str, str, str], dict[str, RunSpec]] = {}
    for experiment in sorted(experiments):
        for entry, spec in planned(profile, experiment):
            if profile.job == "dataset":
                group = experiment, spec.dataset, ALL
            else:
                group = experiment, spec.dataset if spec.shots else ALL, entry.name
            found.setdefault(group, {})[spec.key] = spec
    return {group: list(specs.values()) for group, specs in found.items()}


def variant_jobs(text: str, profile: Profile) -> dict[tuple[str, str], list[str]]:
    """Return (folder's name, notebook) -> the parameters of `blocklora notebook`, as words.

    text: YAML, or the path of a YAML file: a list of {notebook: NAME, and its parameters: ...}.
    """
    if not text:
        return {}
    path = user_path(text) if is_file_name(text) else None
    listed = parse_yaml(read_text(path) if path else text, str(path or "variants"))
    jobs: dict[tuple[str, str], list[str]] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict) or not isinstance(entry.get("notebook"), str):
            raise ValueError(
                f"variants: {entry!r} names no notebook; write {{notebook: NAME, ...}}"
            )
        if len(chosen := choose_notebooks(entry["notebook"])) != 1 or {*entry} & OF_ALL:
            raise ValueError(
                f"variants: {entry!r} is to name one notebook, and what is varied; the profile and "
                "the results folder are those of the sweep"
            )
        (name,), entry = chosen, {key: value for key, value in entry.items() if key != "notebook"}
        given = check_parameters(NOTEBOOKS / f"{name}.ipynb", entry, typed=True)
        varied = {key: value for key, value in given.items() if key in NAMES}
        if not notebook_needs(name)["varies"] or not varied:
            raise ValueError(
                f"variants: {name} with {entry} varies nothing; name {', '.join(NAMES)}"
            )
        folder = place(profile.results, profile, notebook_needs(name), varied)
        if folder == profile.results:
            raise ValueError(f"variants: {name} with {entry} is the profile's own; leave it out")
        words = [("-p", key, json.dumps(value)) for key, value in given.items()]
        told = [word for three in words for word in three]
        if jobs.setdefault((folder.name, name), told) != told:
            raise ValueError(
                f"variants: two entries of {name} vary {varied} alike and would be written to one "
                "folder; leave one of them out"
            )
    return jobs


def digest(paths: Iterable[Path]) -> str:
    """Return a short hash of what these files say: unlike their dates, it survives a fresh
    checkout.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def write_index(
    path: Path, experiment: str, dataset: str | None, method: str | None, specs: Sequence[RunSpec]
) -> None:
    """Write a group's index: that each of these runs has a record that stands, done or failed."""
    names = {"experiment": experiment, "dataset": dataset or ALL, "method": method or ALL}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**names, "keys": [spec.key for spec in specs]}) + "\n")


def drop_stale_indexes(
    folder: Path,
    groups: Mapping[str, Sequence[RunSpec]],
    keep_old: bool = False,
    images: Callable[[RunSpec], str | None] = lambda spec: None,
    lacks: Callable[[RunSpec], bool] = lambda spec: False,
) -> list[Path]:
    """Delete each group's index that does not name exactly the runs of the group, or names a record
    that is gone, damaged, of other images or, unless keep_old, of an earlier state of the library;
    or a run that `lacks` says is to be made again for what it trains.

    So an edited profile, data bundle, image, checkpoint or library costs exactly the runs that it
    changed, and no other. images: as `RunImages.digest`, which reads only files that have changed
    since.
    """
    dropped = []
    for name, specs in groups.items():
        path = Path(name)
        if os.path.lexists(path) and (
            not _is_true(path, specs, folder / "runs", keep_old, images) or any(map(lacks, specs))
        ):
            remove(path)
            dropped.append(path)
    return dropped


def without_adapter(folder: Path) -> Callable[[RunSpec], bool]:
    """Return what says of a run in this results folder, by a glance, whether it is done and its
    adapter has no file; whether a file is whole the grid finds, by `Kept.lacks`.
    """
    keeper, store = Kept.of(folder), RunStore(folder / "runs")

    def lacks(spec: RunSpec) -> bool:
        without = has_adapter(spec) and not keeper.path(spec).exists()
        return without and stored(store, spec, keep_old=True).standing == "done"

    return lacks


def _is_true(
    path: Path,
    specs: Sequence[RunSpec],
    runs: Path,
    keep_old: bool,
    images: Callable[[RunSpec], str | None],
) -> bool:
    try:
        listed = read_json(path)["keys"]
    except (ValueError, KeyError, TypeError):
        return False
    except OSError as error:
        if not holds_none(error):
            raise
        return False
    return listed == [spec.key for spec in specs] and all(
        stands(runs / f"{spec.key}.json", keep_old, partial(images, spec)) for spec in specs
    )
