"""`blocklora run --verify`: a record's run again, and what is the same."""

from __future__ import annotations

from pathlib import Path

import typer

from .lines import say
from .run_options import named_profile, workbench


def verify(path: Path, profile: str, draw: Path | None, device: str | None, threads: int) -> None:
    """Repeat the run of a record, storing nothing; exit code 1 where the outcome is another one.

    path: of a record's file, or of a packed one, runs.parquet/<key>.json.
    """
    from ..runs.store import RunStore

    record = RunStore(path.parent).load_key(path.stem)
    if record is None:
        raise FileNotFoundError(
            f"no record {path}; give the path of one, such as results/pocket/runs/<key>.json"
        )
    bench = workbench(named_profile(profile, False, False), device, threads)
    from ..runs.execute import execute
    from ..runs.verify import circumstances, differences
    from ..runs.workbench import with_draw

    if draw and with_draw(record.spec, draw, bench) != record.spec:
        raise ValueError(f"{path} was trained on other images than those of the draw {draw}")
    again = execute(record.spec, bench)
    found = differences(record, again)
    for line in circumstances(record, again):
        say(f"note: {line}", err=True)
    for line in found:
        say(line)
    what = f"{len(found)} differences to" if found else "the same bits as"
    say(f"{record.spec}: {what} {path}")
    if found:
        raise typer.Exit(1)
