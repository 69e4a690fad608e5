"""`blocklora diff A B`: what sets two results folders apart, as text that a person reads."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..analysis.intervals import holm
from ..analysis.two_stores import (
    Difference,
    Pair,
    Paired,
    changes,
    differences,
    origins,
    pair_up,
    two_binomials,
)
from ..core.collection import no_collection
from ..core.files import printable
from ..core.json_data import read_json, undamaged
from ..runs.packed import SUFFIX
from ..runs.results import counted, judged
from ..runs.store import RunStore

SHOWN = 12  # rows of a list; how many more there are is said
LEVEL = 0.05
WIDTH = 100  # characters of a line of prose


@no_collection()  # records by the thousand, which stay
def difference(a: Path, b: Path) -> tuple[str, list[str]]:
    """Return the text, and what is wrong with records that could not be read.

    a, b: a results folder, a folder of records, or a Parquet of them. MissingResults where one of
    them holds no record that can be counted.
    """
    stores = [_store(path) for path in (a, b)]
    (left, bad_a), (right, bad_b) = map(counted, stores, (a, b))
    with judged(*stores):
        paired = pair_up(left, right)
        lines = [_told("A", a, left), _told("B", b, right), ""]
        lines += [part for line in _overlap(paired) for part in textwrap.wrap(line, WIDTH)]
        lines += ["", "Settings", *_settings(paired)]
        lines += ["", "Versions and machines (with numbers of runs)", *_versions(left, right)]
        lines += ["", *_accuracies(paired)]
    lines += ["", "Verdicts", *_verdicts(a, b)]
    return "\n".join(map(printable, lines)) + "\n", [str(error) for error in (*bad_a, *bad_b)]


def _store(path: Path) -> RunStore:
    if path.suffix == SUFFIX:
        return RunStore(path)
    inner = RunStore(path / "runs")
    return inner if inner.folder.is_dir() or inner.file.is_file() else RunStore(path)


def _told(name: str, path: Path, records: Sequence[Any]) -> str:
    failed = sum(record["status"] == "failed" for record in records)
    return f"{name}: {path}, {len(records):,} runs" + (f", {failed:,} failed" if failed else "")


def _overlap(paired: Paired) -> Iterator[str]:
    same = [pair for pair in paired.pairs if not pair.changed]
    other = len(paired.pairs) - len(same)
    equal = sum(pair.equal for pair in same)
    yield (
        f"{len(same):,} runs are of one spec in both: {equal:,} gave the same counts, "
        f"{len(same) - equal:,} did not."
    )
    if other:
        yield (
            f"{other:,} more are paired by set, method, shots and seed, and differ in settings "
            "(below)."
        )
    for name, records in (("A", paired.only_a), ("B", paired.only_b)):
        if records:
            kinds = Counter(record["spec"]["method"]["name"] for record in records)
            some = [f"{kind} {n:,}" for kind, n in kinds.most_common(SHOWN)]
            more = f" and {len(kinds) - SHOWN} methods more" if len(kinds) > SHOWN else ""
            yield f"{len(records):,} runs are in {name} alone: {', '.join(some)}{more}."


def _settings(paired: Paired) -> list[str]:
    found = changes(paired)
    if not found:
        return ["  no pair differs in a setting"]
    rows = [(name, x, "->", y, f"{n:,} pairs") for (name, x, y), n in found.most_common(SHOWN)]
    return [*_columns(rows), *_more(len(found) - SHOWN, "settings")]


def _versions(left: Sequence[Any], right: Sequence[Any]) -> list[str]:
    a, b = origins(left), origins(right)
    rows, same = [], []
    for name in dict.fromkeys([*a, *b]):
        if set(a[name]) == set(b[name]):
            same.append(f"{name} {', '.join(a[name])}")
        else:
            rows.append((name, _spread(a[name]), "->", _spread(b[name])))
    told = f"the same: {'; '.join(same)}" if same else ""
    return _columns(rows) + textwrap.wrap(told, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _spread(found: Counter[str]) -> str:
    some = [f"{value} ({n:,})" for value, n in found.most_common(3)]
    return ", ".join(some) + (", ..." if len(found) > 3 else "") or "–"


def _accuracies(paired: Paired) -> Iterator[str]:
    found = differences(paired.pairs)
    yield "Accuracy, B - A in points. p: how often noise alone gives a difference as large;"
    yield "Holm: the same, corrected for the number of rows. Equal: pairs with the same counts."
    if not found:
        yield "  no pair of runs has a set in common"
        return
    moved = [d for d in found if d.equal < d.n]
    adjusted = dict(zip([d.group for d in moved], holm([d.p_value for d in moved]), strict=True))
    if still := len(found) - len(moved):
        yield f"  {still} of {len(found)} rows (method, shots) are equal to the last count."
    if moved:
        head = ("method", "shots", "pairs", "equal", "A", "B", "B - A", "95%", "p", "Holm", "test")
        rows = [_row(d, adjusted[d.group]) for d in moved]
        yield from _columns([head, *rows])
        beyond = sum(p < LEVEL for p in adjusted.values())
        yield f"  {beyond} of {len(moved)} are beyond noise at {LEVEL:g} after Holm's correction."
        yield from _single(paired.pairs)


def _row(d: Difference, adjusted: float) -> tuple[str, ...]:
    interval = "–" if math.isnan(d.low) else f"[{d.low:+.1f}, {d.high:+.1f}]"
    numbers = (f"{d.n:,}", f"{d.equal:,}", f"{d.a:.1f}", f"{d.b:.1f}", f"{d.mean:+.2f}", interval)
    return (d.group[0], str(d.group[1]), *numbers, _p(d.p_value), _p(adjusted), d.test)


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"


def _single(pairs: Sequence[Pair]) -> Iterator[str]:
    """The runs that differ most, each by itself."""
    found = []
    for pair in pairs:
        spec = pair.a["spec"]
        for name, a, b in pair.counts():
            if a != b:
                where = spec["dataset"] if name == spec["dataset"] else f"{spec['dataset']}>{name}"
                what = (where, spec["method"]["name"], str(spec["shots"]), str(spec["seed"]))
                found.append((two_binomials(a, b), what, a, b))
    found.sort()
    corrected = holm([row[0] for row in found])
    yield ""
    yield "Single runs, by two binomials: records hold counts and not which images were right, so"
    yield "that McNemar's test cannot be made. Of the same images two binomials are cautious."
    head = ("set", "method", "shots", "seed", "A", "B", "p", "Holm")
    rows = [
        (*what, *(f"{100 * x / n:.1f}% of {n:,}" for x, n in (a, b)), _p(p), _p(adjusted))
        for (p, what, a, b), adjusted in zip(found, corrected, strict=True)
    ]
    yield from _columns([head, *rows[:SHOWN]])
    yield from _more(len(rows) - SHOWN, "runs that differ")


def _verdicts(a: Path, b: Path) -> list[str]:
    boards = []
    for folder in (a, b):
        path = folder / "claims.json"
        if not path.is_file():
            return [f"  {folder} has no claims.json, which notebook 16_claims writes"]
        with undamaged(str(path), "delete it and execute notebook 16_claims again"):
            boards.append({row["id"]: str(row["verdict"]) for row in read_json(path)["claims"]})
    ids = dict.fromkeys([*boards[0], *boards[1]])
    sides = {name: tuple(board.get(name, "–") for board in boards) for name in ids}
    rows = [(name, x, "->", y) for name, (x, y) in sides.items() if x != y]
    return _columns(rows) or [f"  all {len(ids)} are the same"]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in lines]


def _more(n: int, what: str) -> list[str]:
    return [f"  and {n:,} {what} more"] if n > 0 else []
