"""Two sets of records against each other: which runs are the same, what differs, and by chance or
not.

Works on records as JSON (see `RunStore.facts`), so that thousands are compared in a second. No
pandas, no torch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.standing import ROUNDING
from .intervals import paired_difference

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """One run of A and one of B. changed: setting -> (value in A, value in B); empty: one spec."""

    a: Facts
    b: Facts
    changed: Mapping[str, tuple[Any, Any]]

    def counts(self) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
        """Yield evaluated set, (correct, images) of A and of B, where both finished."""
        found = [(record["result"] or {}).get("accuracy", {}) for record in (self.a, self.b)]
        for name in found[0].keys() & found[1].keys():
            a, b = ((f[name]["correct"], f[name]["total"]) for f in found)
            yield name, a, b

    @property
    def equal(self) -> bool:
        """Whether both ended alike, with the same counts on the same sets."""
        ends = [(r["status"], (r["result"] or {}).get("accuracy")) for r in (self.a, self.b)]
        return ends[0] == ends[1]


@dataclass(frozen=True)
class Paired:
    """All pairs, and the records without a partner."""

    pairs: tuple[Pair, ...]
    only_a: tuple[Facts, ...]
    only_b: tuple[Facts, ...]


def settings(record: Facts) -> dict[str, Any]:
    """Return a record's spec, flat: 'training.lr', 'method.settings.rank', 'backbone.name', ..."""

    def leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                yield from leaves(f"{prefix}.{name}" if prefix else name, part)
        else:
            yield prefix, value

    return dict(leaves("", record["spec"]))


def pair_up(a: Sequence[Facts], b: Sequence[Facts]) -> Paired:
    """Pair the records of two stores: those of one spec; then, of the rest with the same set,
    method, shots, seed and split, those that are each other's nearest by settings.

    Nearest is whose spec differs in fewest settings. Where two are equally near, neither is paired:
    a guess would compare what nobody meant to compare.
    """
    by_key = {record["key"]: record for record in b}
    pairs = [Pair(r, by_key[r["key"]], {}) for r in a if r["key"] in by_key]
    taken = {pair.a["key"] for pair in pairs}
    groups: dict[tuple[Any, ...], tuple[list[Facts], list[Facts]]] = defaultdict(lambda: ([], []))
    for side, records in enumerate((a, b)):
        for record in records:
            if record["key"] not in taken:
                groups[_what(record)][side].append(record)
    only: tuple[list[Facts], list[Facts]] = ([], [])
    for left, right in groups.values():
        found = list(_nearest(left, right))
        pairs += found
        for side, (records, mine) in enumerate(((left, "a"), (right, "b"))):
            used = {getattr(pair, mine)["key"] for pair in found}
            only[side].extend(r for r in records if r["key"] not in used)
    return Paired(tuple(pairs), tuple(only[0]), tuple(only[1]))


def _what(record: Facts) -> tuple[Any, ...]:
    spec = record["spec"]
    names = ("dataset", "shots", "seed", "split")
    return (*(spec[name] for name in names), spec["method"]["name"])


def _nearest(left: Sequence[Facts], right: Sequence[Facts]) -> Iterator[Pair]:
    flat = [[settings(record) for record in records] for records in (left, right)]
    changed = [[_changed(x, y) for y in flat[1]] for x in flat[0]]
    rows = [[len(c) for c in row] for row in changed]
    columns = list(zip(*rows, strict=True))
    for i, row in enumerate(rows):
        for j, distance in enumerate(row):
            if all(
                distance == min(near) and near.count(distance) == 1
                for near in (row, list(columns[j]))
            ):
                yield Pair(left[i], right[j], changed[i][j])


def _changed(x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*x, *y])
    return {n: (x.get(n), y.get(n)) for n in names if x.get(n) != y.get(n)}


def changes(paired: Paired) -> Counter[tuple[str, str, str]]:
    """Count over the pairs each setting that differs, with its two values as text."""
    return Counter(
        (name, _short(a), _short(b))
        for pair in paired.pairs
        for name, (a, b) in pair.changed.items()
    )


def origins(records: Iterable[Facts]) -> dict[str, Counter[str]]:
    """Count what records say of their making: versions, device, threads, revision, weights."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        said = record["provenance"]
        facts = {**said.get("versions", {}), "weights": said.get("weights", {}).get("sha256")}
        facts |= {name: said.get(name) for name in (*ROUNDING, "git_revision")}
        for name, value in facts.items():
            if value is not None:
                found[name][_short(value)] += 1
    return found


def _short(value: Any) -> str:
    """A value as text; of a checksum the first twelve digits."""
    text = "–" if value is None else str(value)
    is_hash = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if is_hash else text


def two_binomials(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Return the two-sided p-value of (correct, images) against another: pooled z of proportions.

    It takes the images as drawn anew for each. Where both looked at the same ones, on which runs
    mostly agree, true p-values are smaller: the test is cautious.
    """
    (x, n), (y, m) = a, b
    pooled = (x + y) / (n + m)
    variance = pooled * (1 - pooled) * (1 / n + 1 / m)
    if variance == 0:
        return 1.0
    return math.erfc(abs(x / n - y / m) / math.sqrt(2 * variance))


@dataclass(frozen=True)
class Difference:
    """B - A of one group of pairs, in points. test: which one gave p_value; low, high: 95%."""

    group: tuple[str, int]  # method, shots
    n: int  # pairs
    equal: int  # pairs with the same counts
    a: float
    b: float
    mean: float
    low: float
    high: float
    p_value: float
    test: str


def differences(pairs: Iterable[Pair]) -> list[Difference]:
    """Return B - A by method and shots: over the sets that were trained on, else seeds.

    A paired t-test over these sets, or, of a single one, over its seeds; of a single training, two
    binomials. What one training is evaluated on is in its mean: such sets share its luck, and do
    not count as many.
    """
    groups: dict[tuple[str, int], list[tuple[str, int, tuple[int, int], tuple[int, int]]]] = (
        defaultdict(list)
    )
    for pair in pairs:
        spec = pair.a["spec"]
        for _, a, b in pair.counts():
            group = spec["method"]["name"], spec["shots"]
            groups[group].append((spec["dataset"], spec["seed"], a, b))
    return [_difference(group, rows) for group, rows in sorted(groups.items())]


def _difference(group: tuple[str, int], rows: list[Any]) -> Difference:
    def points(count: tuple[int, int]) -> float:
        return 100 * count[0] / count[1]

    sets, seeds = ({row[i] for row in rows} for i in (0, 1))
    by, over = (0, "sets") if len(sets) > 1 else (1, "seeds")
    means = []
    for name in sorted(sets if by == 0 else seeds):
        mine = [row for row in rows if row[by] == name]
        means.append([math.fsum(points(row[i]) for row in mine) / len(mine) for i in (2, 3)])
    a, b = ([mean[i] for mean in means] for i in (0, 1))
    d = paired_difference(b, a)
    p, test = d.p_value, f"t over {len(means)} {over}"
    if len(means) == 1:
        total = [tuple(sum(row[i][k] for row in rows) for k in (0, 1)) for i in (2, 3)]
        p, test = two_binomials(*total), "two binomials"
    equal = sum(row[2] == row[3] for row in rows)
    middle = (math.fsum(a) / len(a), math.fsum(b) / len(b))
    return Difference(group, len(rows), equal, *middle, d.mean, d.low, d.high, p, test)
