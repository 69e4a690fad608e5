"""YAML and JSON: nothing is lost, guessed or without end."""

from __future__ import annotations

import contextlib
import json
import math
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora_lib.core.json_data import parse_json
from blocklora_lib.core.paths import MANIFESTS, PROFILES
from blocklora_lib.core.yaml_data import parse_yaml, read_yaml, to_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "path", sorted([*PROFILES.glob("*.yaml"), *MANIFESTS.glob("*.yaml")]), ids=lambda p: p.stem
)
def test_our_own_files_mean_the_same_to_every_reader(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),  # text to YAML 1.1
        ("1.0e-3", 1e-3),
        ("-.5", -0.5),
        ("+.inf", math.inf),
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("0o17", 15),
        ("0x1F", 31),
        ("no", "no"),  # Norway
        ("on", "on"),
        ("1:30", "1:30"),  # 90 to YAML 1.1
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'010'", "010"),
        ("true", True),
        ("~", None),
        ("", None),
        ("a:\tb", {"a": "b"}),
        ("[&x {a: 1, b: 2}, {<<: " "*x, b: 3}, {<<: *x}]",
         [dict(a=1, b=2), dict(a=1, b=3), dict(a=1, b=2)]),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text, "here")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("x: {a: 1, a: 1}", "the key 'a' stands twice"),
        ("- {'a': 1, a: 2}", "the key 'a' stands twice"),
        ("010", "leading zero"),
        ("-007", "leading zero"),
        ("9" * 5000, "5000 digits"),
        ("[1,", "line 2"),
        ("\t- a", "cannot start any token"),
        ("a\0b", "control characters"),
        ("--- 1\n--- 2", "single document"),
        ("a: &a [*a]", "structure that it stands in"),
        (BOMB, "more than 200,000 values"),
        ("- a\n" * 500_000, "more than 200,000 values"),
        ("!!bool x", "'x' is no truth value"),
        ("a: \ud800", "surrogates not allowed"),
        ("[" * 200_000, "nested more than 50 deep"),  # the C composer ends the process at this
        ("- " * 100_000, "nested more than 50 deep"),
        ("!!python/object/apply:os.system [date]", "tag .*os.system is not read"),
        ("!!binary aGk=", "tag .*binary is not read"),
        ("!!int x", "no whole number"),
        ("!!map [1]", "tag"),
        ("1: a", "the key 1 is no text"),
        ("? [a]\n: 1", "is no text"),
        ("[*x]", "undefined alias"),
    ],
)
def test_what_is_no_plain_data_is_one_sentence(text, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_yaml(text, "notes.yaml")
    assert str(error.value).startswith("notes.yaml is not valid YAML: ")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["[],", "{},"])
def test_json_of_more_values_than_fit_is_not_read(part):
    text = f"[{part * 2_000_000}1]"
    with pytest.raises(ValueError, match=r"it holds some 4,000,00\d values, one of its"):
        parse_json(text, "a.json")


def test_a_key_that_stands_twice_among_many_is_found_at_once():
    names = [*range(50_000), 49_999]
    start = time.process_time()
    with pytest.raises(ValueError, match="the key '49999' stands twice"):
        parse_json("{" + ",".join(f'"{i}":0' for i in names) + "}", "a.json")
    assert time.process_time() - start < 5  # looked for one by one: 50 s


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERLIKE = st.text("0123456789eE+-._:xonyfalsNt~<=", max_size=6)


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(NUMBERLIKE | st.text(max_size=5), PLAIN | NUMBERLIKE, max_size=4))
def test_what_is_written_is_read_back_the_same(facts):
    try:
        text = to_yaml(facts)
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    assert repr(parse_yaml(text, "here")) == repr(facts)


@pytest.mark.slow
@settings(deadline=None)
@given(st.text(max_size=60) | st.text("[]{}:,-?&*!|>'\"# \na1<=", max_size=40))
def test_any_text_is_read_or_refused_in_a_sentence(text):
    for parse in (parse_yaml, parse_json):
        with contextlib.suppress(ValueError):  # any other error fails the test
            parse(text, "here")


@pytest.mark.slow
@given(PLAIN)
def test_json_is_read_as_the_standard_library_reads_it(value):
    text = json.dumps(value)
    if "Infinity" not in text:
        assert repr(parse_json(text, "here")) == repr(json.loads(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is no number"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_would_lose_something_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text, "index.json")
