"""Configurations that refuse unknown keys, and errors that name the near ones."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class UnknownName(ValueError, KeyError):
    """A name that is not in a registry or a folder; the message lists the near ones.

    beside: what else to say.
    """

    def __init__(self, what: str, name: object, known: Iterable[str], beside: str = "") -> None:
        super().__init__(
            f"unknown {what} {short(str(name))}; {near(name, known)}{beside and f'; {beside}'}"
        )

    def __str__(self) -> str:  # KeyError's own would put the sentence in quotes
        return str(self.args[0])


def near(name: object, known: Iterable[str]) -> str:
    """Return "did you mean ...? Known: ...", the tail of every 'unknown name' sentence.

    Small and capital letters are alike here. Of more than forty names only the near ones are said.

        >>> near("Pockt", ["pocket", "paper"])
        "did you mean 'pocket'? Known: paper, pocket"
    """
    known = sorted(known)
    spelled = {text.casefold(): text for text in reversed(known)}
    close = difflib.get_close_matches(str(name).casefold(), spelled, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(repr(spelled[c]) for c in close)}?" if close else ""
    if guess and len(known) > 40:
        return f"{guess} ({len(known)} are known)"
    return f"{guess} Known: {', '.join(known) if known else 'none'}".strip()


def short(value: Any) -> str:
    """A value as an error shows it, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# how pydantic's report names a kind that a value may have, where there are several
_KIND = re.compile(r"(constrained-)?(bool|bytes|float|int|str)|(dict|list|literal|tuple)\[.*\]")


def explain(error: ValidationError) -> str:
    """Put pydantic's multi-line report into one sentence: key: what is wrong; key: ...

    Of a value that may be of several kinds, what is wrong with it as the kind that it is; the kinds
    that it may be where it is none of them. Of a very long report, the beginning.
    """
    problems: dict[str, list[Any]] = {}
    errors = error.errors()
    wrong = [problem["loc"] for problem in errors]
    for problem in errors:
        n = len(problem["loc"])
        if problem["type"] == "too_short" and any(w[:n] == problem["loc"] for w in wrong if w[n:]):
            continue  # of the right entries, and what is wrong with the others is said
        loc = [str(part) for part in problem["loc"]]
        where = ".".join(part for part in loc if not _KIND.fullmatch(part))
        problems.setdefault(where, []).append(problem)
    parts = []
    for where, found in problems.items():
        kinds = [p for p in found if p["type"].endswith("_type") or p["type"] == "literal_error"]
        told = [p for p in found if p not in kinds] or kinds
        what = " or ".join(dict.fromkeys(_said(p, first=p is told[0]) for p in told))
        what += _given(told[0]) + (_as_list(told[0]) if len(told) == 1 else "")
        parts.append(f"{where}: {what}" if where else what)
    whole = "; ".join(parts)
    return whole if len(whole) <= 1500 else f"{whole[:1497]}..."


def _said(problem: Any, first: bool) -> str:
    """What is wrong; after another one, without the words that both begin with."""
    said: str = problem["msg"].removeprefix("Value error, ")
    return said if first else said.removeprefix("Input should be ")


def _given(problem: Any) -> str:
    """The value that is wrong, where it is short and what is said does not hold it already."""
    given = problem.get("input")
    if problem["type"] in ("missing", "value_error") or isinstance(given, (dict, list)):
        return ""
    quoted = problem["type"] == "float_type" and isinstance(given, str)
    return f" (got {short(given)})" + "; a number stands without quotes" * quoted


def _as_list(problem: Any) -> str:
    """How a value is written where a list is wanted, which pydantic calls a tuple."""
    given = problem.get("input")
    if problem["type"] != "tuple_type" or type(given) not in (int, float, str):
        return ""
    words = re.split(r"[,;\s]+", str(given).strip(",;[]() "))
    return f"; write a list, such as [{', '.join(words)[:60]}]"


# settings that count: more than 32 bits hold overflows where PyTorch takes it
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Whole = Annotated[Natural, Field(ge=1)]


class Strict(BaseModel):
    """A frozen model. An unknown key is an error with the near names: a typo is not a default.

    Types are what they say: "7" and true are no numbers, and no number is infinite. A whole number
    may stand for a float, and a list, all that JSON and YAML have, for a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known, tuples = _known(cls)
        if not data.keys() <= known:
            unknown = next(key for key in data if key not in known)
            raise ValueError(f"unknown key {unknown!r}; {near(unknown, known)}")
        lists = {
            key: _with_tuples(data[key]) for key in tuples if type(data.get(key)) in (list, dict)
        }
        return data | lists if lists else data

    @cached_property
    def canonical(self) -> str:
        """The JSON text that is hashed: sorted keys, no blanks."""
        return canonical(self.model_dump(mode="json"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values; what was computed of the old ones stays behind."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy


canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


@cache
def _known(model: type[BaseModel]) -> tuple[frozenset[str], frozenset[str]]:
    """The keys of a model's dict, and those in whose value a tuple stands anywhere."""
    fields = {
        field.alias or name: str(field.annotation) for name, field in model.model_fields.items()
    }
    return frozenset(fields), frozenset(key for key, kind in fields.items() if "tuple[" in kind)


def _with_tuples(value: Any, depth: int = 0) -> Any:
    """Lists as tuples, all the way down; ValueError beyond where anything of ours ends."""
    if depth > 100:
        raise ValueError("lists and mappings are nested more than 100 deep")
    if type(value) is list:
        if not {list, dict} & set(map(type, value)):
            return tuple(value)
        return tuple(_with_tuples(inner, depth + 1) for inner in value)
    if type(value) is dict:
        return {key: _with_tuples(inner, depth + 1) for key, inner in value.items()}
    return value


class FrozenDict(dict[str, Any]):
    """A dict of plain values that can be hashed and not changed; lists inside become tuples."""

    def __init__(self, items: Any = ()) -> None:
        if not isinstance(items, Mapping) and items != ():
            raise ValueError(f"settings are a mapping, of names and values, not {short(items)}")
        super().__init__({str(k): freeze(v) for k, v in dict(items).items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "settings of a run spec cannot be changed; make a new spec with the other value"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def freeze(value: Any) -> Any:
    """Return value with dicts frozen and lists as tuples, all the way down."""
    if isinstance(value, dict):
        return FrozenDict(value)
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    return value


class AdapterError(ValueError):
    """An adapter cannot be built, attached, merged or loaded as asked; the message says why."""


class Recorded(BaseModel):
    """As `Strict`, for what the library alone writes: no near names for a key that nobody types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
