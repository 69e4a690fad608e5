"""From a spec to a stored record: run, or found. The only way in which a run is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from types import MappingProxyType

from ..core.locks import Taken, locked
from .alike import execute_alike, machine
from .contexts import OnStep
from .record import MachineFailure, NotKept, RunRecord
from .spec import RunSpec
from .stacked import Stack, stacks
from .standing import Keeper, Stored, stored, to_run
from .store import RunStore
from .workbench import Inputs, Workbench

POLL = 1.0  # seconds between two looks at runs that other processes are at


def execute(
    spec: RunSpec,
    bench: Workbench | None = None,
    on_step: OnStep | None = None,
    inputs: Inputs | None = None,
    keeper: Keeper | None = None,
    stack: Stack | None = None,
) -> RunRecord:
    """Run the spec and return its record; all else as `execute_alike` has it."""
    (record,) = execute_alike({spec: inputs}, bench or Workbench(), on_step, keeper, stack)
    return record


def run_or_load(
    spec: RunSpec,
    store: RunStore,
    bench: Workbench | None = None,
    *,
    retry_failed: bool = False,
    on_step: OnStep | None = None,
    keep_old: bool = False,
    inputs: Inputs | None = None,
    wait: bool = True,
    keeper: Keeper | None = None,
    alike: Mapping[RunSpec, Inputs] = MappingProxyType({}),
    stack: Stack | None = None,
) -> RunRecord:
    """Return the stored record of the spec, or run it and store it.

    A record that no longer stands (see `standing`) is run again; a damaged file is set aside. A
    failure record is returned as it is (status 'failed', no result) and only run again with
    retry_failed. A finished run whose adapter `keeper` lacks is trained again for that alone: its
    record stands. inputs: as `execute` takes them. A run that another process is at, or one that
    trains the same, is waited for, or, without `wait`, Taken is raised: no run is made twice.
    alike: others that train the same, whose records are made with it where they are missing.
    stack: what trains it, with others that differ in their seed.
    """
    bench = bench or Workbench()

    def look(one: RunSpec) -> tuple[Stored, bool]:
        found = stored(store, one, keep_old, bench.images)
        return found, found.record is None or to_run(found, retry_failed, keeper)

    found, missing = look(spec)
    if found.record is not None and not missing:
        return found.record
    store.check_writable()
    with locked(store.lock(spec), _tell, wait):
        found, missing = look(spec)  # another process may have made it
        if found.record is not None and not missing:
            return found.record
        before = {spec: found}
        before |= {one: look(one)[0] for one in alike if one != spec and look(one)[1]}
        for one, was in before.items():
            if was.standing == "damaged":  # before hours of training, not after them
                store.set_aside(one)

        def saved(record: RunRecord) -> RunRecord:
            was = before[record.spec]
            if was.record is not None and not was.pending(retry_failed):
                return was.record
            with machine(record.spec, OSError):
                store.save(record)
            return record

        wanted = {one: inputs if one == spec else alike.get(one) for one in before}
        with closing(execute_alike(wanted, bench, on_step, keeper, stack)) as records:
            record = saved(next(records))
            try:
                for other in records:
                    saved(other)
            except NotKept:
                raise
            except (MachineFailure, ValueError, OSError) as error:  # it will have its own turn
                _tell(str(error))
    return record


def run_grid(
    specs: Sequence[RunSpec],
    store: RunStore,
    bench: Workbench | None = None,
    retry_failed: bool = False,
    keep_old: bool = False,
    keeper: Keeper | None = None,
    beside: Sequence[RunSpec] = (),
    stack: int = 1,
) -> Iterator[RunRecord]:
    """Yield the record of every spec, running what the store does not have.

    Bad input of any spec is found before the first one trains. MachineFailure ends it: what was
    finished is kept, and the next call goes on from there. A run that another process is at comes
    last: two grids over the same specs share the work. Runs that train the same are trained once
    (`RunSpec.fit_key`); beside: those of other grids, which are made with these where that is so.
    stack: up to so many runs that differ in their seed alone are trained at once.
    """
    bench = bench or Workbench()
    store.check_writable()
    checked: dict[RunSpec, Inputs] = {}
    for spec in specs:
        if to_run(stored(store, spec, keep_old, bench.images), retry_failed, keeper):
            checked[spec] = bench.check(spec)
    alike: dict[str, dict[RunSpec, Inputs]] = {}
    for spec in checked:
        alike.setdefault(spec.fit_key, {})[spec] = checked[spec]
    for spec in set(beside) - set(specs):
        if spec.fit_key in alike:
            with suppress(ValueError, OSError):  # it is told where that run is asked for
                alike[spec.fit_key][spec] = bench.check(spec)

    @contextmanager
    def hold(spec: RunSpec) -> Iterator[None]:
        with locked(store.lock(spec), _tell, wait=False):
            if not to_run(stored(store, spec, keep_old, bench.images), retry_failed, keeper):
                raise Taken(f"another process has made {spec}")
            yield

    stacked = stacks(checked, stack, hold)
    left = list(specs)
    try:
        while left:
            taken = []
            for spec in left:
                inputs, own = checked.get(spec), stacked.get(spec)
                if own:
                    own.release(spec)
                try:
                    record = run_or_load(
                        spec,
                        store,
                        bench,
                        retry_failed=retry_failed,
                        keep_old=keep_old,
                        inputs=inputs,
                        wait=False,
                        keeper=keeper,
                        alike=_together(spec, alike, keeper),
                        stack=own,
                    )
                except Taken:
                    taken.append(spec)
                else:
                    checked.pop(spec, None)
                    yield record
            if len(taken) == len(left):
                what = f"other processes are at {len(taken)} of the runs, such as {taken[0]}"
                _tell(f"{what}; waiting")
                time.sleep(POLL)
            left = taken
    finally:
        for each in stacked.values():
            each.close()


def _together(
    spec: RunSpec, alike: Mapping[str, dict[RunSpec, Inputs]], keeper: Keeper | None
) -> dict[RunSpec, Inputs]:
    """Those that train the same; of a method of another name only where no adapter is kept, whose
    file would be of the other's form.
    """
    found = alike.get(spec.fit_key, {})
    return {s: i for s, i in found.items() if keeper is None or s.method == spec.method}


@cache  # each line once
def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
