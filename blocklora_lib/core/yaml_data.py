"""YAML as plain data, read so that nothing in it is lost or guessed. No torch.

A key that stands twice is an error: a plain reader lets the last one win in silence. Scalars are
YAML 1.2's: `1e-3` is a number, `no`, `on` and `1:30` are text, true and false alone are truth
values. `010`, which is 8 to one version of YAML and 10 to the other, is refused, and so is what no
file of ours needs: several documents, tags, a structure that grows without end as its aliases are
written out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .files import read_text

DEPTH = 50  # of nested lists and mappings
NODES = 200_000  # values and keys, every alias counted as what it stands for

_Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
_TAG = "tag:yaml.org,2002:"
_TAGS = {
    yaml.MappingNode: {f"{_TAG}map"},
    yaml.SequenceNode: {f"{_TAG}seq"},
    yaml.ScalarNode: {_TAG + name for name in ("str", "int", "float", "bool", "null", "merge")},
}


class _Loader(_Safe):  # type: ignore[misc, valid-type]
    """The safe loader with YAML 1.2's scalars."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def _truth(loader: Any, node: yaml.ScalarNode) -> bool:
    if (text := node.value.lower()) not in ("true", "false"):
        raise _problem(node, f"{node.value!r} is no truth value; write true or false")
    return text == "true"


def _whole(loader: Any, node: yaml.ScalarNode) -> int:
    text = node.value
    if re.match(r"[-+]?0[0-9]", text):
        raise _problem(
            node, f"{text} has a leading zero; write it without, or in quotes if it is text"
        )
    if len(text) > 1000:
        raise _problem(node, f"a number of {len(text)} digits is no number of ours")
    try:
        return int(text, 0)
    except ValueError:
        raise _problem(node, f"{text!r} is no whole number") from None


def _real(loader: Any, node: yaml.ScalarNode) -> float:
    try:
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", node.value.lower()))
    except ValueError:
        raise _problem(node, f"{node.value!r} is no number") from None


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as text: readers of both get the same."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # a class's in PyYAML
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML's plain style folds these
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar(f"{_TAG}str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor(f"{_TAG}bool", _truth)
_Loader.add_constructor(f"{_TAG}int", _whole)
_Loader.add_constructor(f"{_TAG}float", _real)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(rf"^(?:{_pattern})\Z"), _first)


def parse_yaml(text: str, where: str) -> Any:
    """Return what one YAML document says: dict, list, text, number, truth value or None.

    where: what the text is, as an error names it. Raises ValueError, one sentence with the line.
    """
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {_sentence(error)}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises OSError where the file cannot be read, ValueError with its path where it is no such file.
    """
    return mapping_of(read_text(path), str(path))


def mapping_of(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that a YAML text says; where: as for `parse_yaml`."""
    facts = parse_yaml(text, where)
    if not isinstance(facts, dict):
        what = "is empty" if facts is None else f"holds a {_kind(facts)}"
        raise ValueError(f"{where} {what}; it must hold a mapping, lines of the form `key: value`")
    return facts


def to_yaml(facts: Mapping[str, Any]) -> str:
    """Return the YAML text of plain data, in the order given, as `parse_yaml` reads it."""
    return yaml.dump(dict(facts), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _check_events(text: str) -> None:
    """Events come one by one; the composer calls itself for each level, until the stack is full,
    and keeps all that there are.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if number > 2 * NODES:
            raise yaml.YAMLError(f"it holds more than {NODES:,} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise yaml.YAMLError(f"lists and mappings are nested more than {DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check(root: yaml.Node) -> None:
    """Refuse keys that stand twice or are no text, tags, loops, aliases for over NODES values."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise yaml.YAMLError("an alias names the structure that it stands in")
        if id(node) not in sizes:
            inside = above | {id(node)}
            sizes[id(node)] = 1 + sum(size(part, inside) for part in _parts(node))
            if sizes[id(node)] > NODES:
                what = f"with its aliases written out it holds more than {NODES:,} values"
                raise yaml.YAMLError(what)
        return sizes[id(node)]

    size(root, frozenset())


def _parts(node: yaml.Node) -> list[yaml.Node]:
    """The keys and values, or the entries, of a node whose tag and keys are as they may be."""
    if node.tag not in _TAGS[type(node)]:
        raise _problem(node, f"the tag {node.tag} is not read here; leave it out")
    if isinstance(node, yaml.ScalarNode):
        return []
    if isinstance(node, yaml.SequenceNode):
        return node.value
    seen = set()
    for key, _ in node.value:
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            raise _problem(
                key, f"the key {_shown(key)} is no text; keys are text, a number stands in quotes"
            )
        if key.value in seen:
            raise _problem(key, f"the key {key.value!r} stands twice; keep one of the two")
        seen.add(key.value)
    return [part for pair in node.value for part in pair]


def _shown(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "of several values"


def _problem(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _sentence(error: yaml.YAMLError) -> str:
    """PyYAML's report, without the excerpt of the text and with the place as people say it."""
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    what = " ".join(" ".join(part for part in parts if part).split()) or " ".join(
        str(error).split()
    )
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value"}.get(type(value), "number")
