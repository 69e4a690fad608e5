"""What a results folder holds for a profile: runs under the profile's names, tables, and what is
missing.

No torch: whoever reads results needs none.
"""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import read_text, user_path
from .grid import entries, expand
from .profile import Profile
from .record import frame as run_frame
from .record import in_order
from .standing import remarks
from .store import DamagedRecord, RunStore

if TYPE_CHECKING:
    from pandas import DataFrame


class MissingResults(FileNotFoundError):
    """Runs or tables that are not there yet; the message says which, and the command that makes
    them.

    damaged: the records among them that are there and cannot be counted.
    """

    def __init__(self, message: str, damaged: Sequence[DamagedRecord] = ()) -> None:
        self.damaged = tuple(damaged)
        super().__init__(message)


def results_folder(profile: Profile, results_dir: str | Path = "") -> Path:
    """Return the folder of this profile's results: results_dir (of the working folder if relative),
    or the default.
    """
    return user_path(results_dir) if str(results_dir) else profile.results


def experiment_runs(
    profile: Profile,
    store: RunStore,
    experiment: str = "few_shot",
    partial: bool = False,
    way_out: str = "",
) -> DataFrame:
    """Return an experiment's finished runs, as the profile now defines it: a row for each evaluated
    set.

    `method` and `method_label` are the profile's names, so that one method with two settings is two
    methods. `seeds_planned` is how many seeds a row's cell should have: 1 without training. Records
    of earlier settings stay in the store and are left out. A failed run has a record and no row.
    Runs without a record, or with one that is damaged, raise MissingResults, and so does an
    experiment whose trained runs all failed, unless `partial` asks for what there is. It says how
    they are made: way_out, for a variant of a profile, which `blocklora grid` does not know. Runs
    on miniatures in a profile that stands beside published numbers raise it, too.
    `attrs["remarks"]` says what else sets the records apart (see standing.remarks).
    """
    records, missing, damaged = [], [], []
    specs = list(expand(profile, experiment))
    for spec in specs:
        try:
            record = store.load(spec)
        except DamagedRecord as error:
            damaged.append(error)
            continue
        missing += [spec] if record is None else []
        records += [record] if record else []
    folder = store.folder.parent
    where = "" if folder == profile.results else f" --results {shlex.quote(str(folder))}"
    command = (
        way_out or f"`blocklora grid --profile {profile.argument} --experiment {experiment}{where}`"
    )
    if damaged and not partial:
        raise MissingResults(
            f"{_runs(damaged)} of {experiment} cannot be counted: "
            f"{damaged[0]}{', and so on' * (len(damaged) > 1)}; make them again with {command}",
            damaged,
        )
    if missing and not partial:
        some = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise MissingResults(
            f"{_runs(missing)} of {experiment} missing in {store.folder} ({some}); make them with "
            f"{command}"
        )
    names = entries(profile, experiment)
    done = [record for record in in_order(records) if record.status == "done"]
    if not partial and any(s.shots for s in specs) and not any(r.spec.shots for r in done):
        again = way_out or f"{command[:-1]} --retry-failed`"
        raise MissingResults(
            f"no trained run of {experiment} in {store.folder} has a result, all failed; mend what "
            f"their records say, or the settings, and make them again with {again}"
        )
    frame = run_frame(done)
    frame.attrs["remarks"] = remarks(done) + [str(error) for error in damaged]
    if profile.published and frame["miniature"].any():
        raise MissingResults(
            f"{frame[frame['miniature']]['key'].nunique()} runs of {experiment} in {store.folder} "
            f"are of miniatures, but profile {profile.name} stands beside published numbers; set "
            "BLOCKLORA_DATA to the real sets, or use a profile that is not published, such as "
            "paper-smoke"
        )
    frame["method"] = [names[key].name for key in frame["key"]]
    labels = [names[key].label for key in frame["key"]]
    seeds = profile.experiment(experiment).seeds or profile.seeds
    frame[PLANNED] = [len(seeds) if shots else 1 for shots in frame["shots"]]
    frame["method_label"] = [a or b for a, b in zip(labels, frame["method_label"], strict=True)]
    return frame


def counted(store: RunStore, given: Path) -> tuple[list[dict[str, Any]], list[DamagedRecord]]:
    """Return `store.facts()`, of which there is one at least.

    MissingResults where nothing can be counted: no record is there, or all of them are damaged and
    named. given: what the user gave, for the message.
    """
    found, damaged = store.facts()
    if not (found or damaged):
        raise MissingResults(
            f"{given} holds no run record; give a results folder, such as results/pocket or "
            "results/reference/pocket, a folder of records or a Parquet of `records pack`"
        )
    if not found:
        others = ", ".join(error.path.name for error in damaged[1:4])
        more = ", and more" * (len(damaged) > 4)
        raise MissingResults(
            f"no run record of {given} can be counted: {damaged[0]}"
            + (f"; damaged, too: {others}{more}" if others else ""),
            damaged,
        )
    return found, damaged


@contextmanager
def judged(*stores: RunStore) -> Iterator[None]:
    """Name the record whose form is another, where what is done with `RunStore.facts` fails for
    it: DamagedRecord.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        for store in stores:
            told = set(map(str, store.facts()[1]))
            for error in store.read()[1]:
                if str(error) not in told:
                    raise error from None
        raise


def _runs(found: Sized) -> str:
    return f"{len(found)} run{'s' * (len(found) > 1)}"


def notebook_table(profile: Profile, folder: Path, notebook: str, name: str) -> DataFrame:
    """Return a table or a figure's data that a notebook exported, or raise MissingResults."""
    import pandas as pd

    for kind in ("tables", "figures"):
        path = folder / kind / notebook / f"{name}.csv"
        if not path.is_file():
            continue
        try:
            return pd.read_csv(io.StringIO(read_text(path)))
        except ValueError as error:  # pandas' own errors are such
            raise ValueError(
                f"{path} is damaged ({' '.join(str(error).split())}); delete it and execute "
                f"notebook {notebook} again"
            ) from None
    where = "" if folder == profile.results else f" --results {shlex.quote(str(folder))}"
    raise MissingResults(
        f"{name}.csv of notebook {notebook} is missing in {folder}; make it with `blocklora "
        f"notebook {notebook} --profile {profile.argument}{where}`"
    )


def table_checksum(path: Path) -> str:
    """Return the SHA-256 of an exported CSV's text, which its notebook's index states."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def changed_tables(folder: Path, index: Mapping[str, Any], name: str) -> list[str]:
    """Return the CSVs of this name, in `folder`, that are not what the notebook's index states.

    Of what an index of an earlier state of the suite states no checksum of, nothing is known.
    """
    return [
        file
        for kind in ("tables", "figures")
        for entry in index.get(kind, ())
        for file in entry["files"]
        if entry["name"] == name and "sha256" in entry and file.endswith(".csv")
        if (folder / file).is_file() and table_checksum(folder / file) != entry["sha256"]
    ]


# of results.experiment_runs: how many seeds the experiment has for this row's cell
PLANNED = "seeds_planned"
