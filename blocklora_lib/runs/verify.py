"""A record's run repeated: what is the same, to the bit, and what is not."""

from __future__ import annotations

from typing import Any

from .record import RunRecord
from .standing import ROUNDING

# what may move the last bits of a result, by its name in a record's provenance
MOVING = (*ROUNDING, "versions", "weights", "tf32", "cuda")


def differences(stored: RunRecord, again: RunRecord) -> list[str]:
    """Say, a line each, in what the outcome of a run made again is another one.

    Nothing where every bit is the same: counts, the loss of each step, the draw, or the failure.
    """
    if stored.status != again.status:
        return [f"it was {stored.status} and is {again.status}"]
    before, now = (_outcome(record) for record in (stored, again))
    return [
        f"{name}: it was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def circumstances(stored: RunRecord, again: RunRecord) -> list[str]:
    """Say, a line each, in which circumstances that may move a result the two were made."""
    lines = ["code of the library: another state"] * (stored.code != again.code)
    for name in MOVING:
        before, now = stored.provenance.get(name), again.provenance.get(name)
        if before != now:
            lines.append(f"{name}: it was {_short(before)} and is {_short(now)}")
    if others := stored.provenance.get("stacked_with"):
        lines.append(f"it was trained at once with {len(others)} more (stack), and is alone")
    return lines


def _outcome(record: RunRecord) -> dict[str, Any]:
    """What the spec determines, flat: a set's counts and a step's loss have a name of their own."""
    if record.result is None:
        return {} if record.error is None else record.error.model_dump()
    facts = record.result.model_dump()
    facts |= {f"accuracy on {name}": told for name, told in facts.pop("accuracy").items()}
    return facts | {f"loss of step {i}": x for i, x in enumerate(facts.pop("loss"), 1)}


def _short(value: object) -> str:
    """A value as a line can show it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
