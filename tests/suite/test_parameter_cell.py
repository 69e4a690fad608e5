"""Notebook parameters: unknown names and wrong types are refused before anything runs."""

from __future__ import annotations

import ast

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from blocklora_lib.core.paths import NOTEBOOKS
from blocklora_lib.suite.parameter_cell import SHARES, check_parameters, known_parameters, literals

CELL = 'profile: str = "pocket"\nshots = [1, 4]\nlr: float = 2e-3\nseed = 1\n'
CELL += "quick: bool = False\nlimit = None\n"


@pytest.fixture
def notebook(tmp_path):
    return write(tmp_path, CELL)


def write(folder, *cells):
    book = nbformat.v4.new_notebook()
    for source in cells:
        book.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}))
    path = folder / "07_example.ipynb"
    nbformat.write(book, path)
    return path


def test_known_parameters_are_the_literals_of_the_tagged_cell(notebook):
    assert known_parameters(notebook) == {
        "profile": "pocket", "shots": [1, 4], "lr": 2e-3, "seed": 1, "quick": False, "limit": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(lr=1), 1.0),  # a whole number where a float is meant
        (
            dict(lr="1e-3"),
            1e-3,
        ),  # text from the command line; YAML alone would not read it as a number
        (dict(lr="fast"), "refused"),
        (dict(shots="[2, 8]"), [2, 8]),
        (dict(quick="true"), True),
        (dict(limit="5"), 5),  # no default type: anything
        (dict(profile="paper"), "paper"),
        (dict(seed="one"), "refused"),
        (dict(seed=1.5), "refused"),
        (dict(seed=True), "refused"),  # a bool is no number here
        (dict(shots=3), "refused"),
        (dict(shots=[1, "two"]), "refused"),
        (dict(profile=3), "refused"),
        (dict(seed=-1), "refused"),
        (dict(seed=0), 0),
        (dict(seed=2**63), "refused"),
        (dict(lr=".inf"), "refused"),
        (dict(lr=".nan"), "refused"),
        (dict(lr=0), "refused"),
        (dict(lr="-1e-3"), "refused"),
        (dict(lr=10**400), "refused"),
        (dict(shots=[1, 0]), "refused"),
        (dict(shots=[1, 10**6]), [1, 10**6]),
        (dict(shots=[1, 10**6 + 1]), "refused"),
        (dict(seed=10**12), 10**12),
        (dict(shots=[True]), "refused"),
    ],
)
def test_types(notebook, given, expected):
    if expected == "refused":
        with pytest.raises(ValueError, match=r"must be|no finite|too large"):
            check_parameters(notebook, given)
    else:
        assert list(check_parameters(notebook, given).values()) == [expected]


def test_unknown_name_is_refused_with_near_and_known_ones(notebook):
    with pytest.raises(
        ValueError, match=r"no parameter 'shot'; did you mean 'shots'.*Known: .*profile"
    ):
        check_parameters(notebook, {"shot": [1]})


def test_unknown_notebook_is_refused_with_near_ones(notebook):
    with pytest.raises(FileNotFoundError, match="'07_exampel'; did you mean '07_example'"):
        known_parameters(notebook.with_name("07_exampel.ipynb"))


@pytest.mark.parametrize("cells", [(), (CELL, CELL)])
def test_there_is_exactly_one_parameters_cell(tmp_path, cells):
    with pytest.raises(ValueError, match="exactly one"):
        known_parameters(write(tmp_path, *cells))


@pytest.mark.parametrize(
    "source", ["import os", "a = [i for i in range(3)]", "a = 1\nb = a + 1", "print('x')"]
)
def test_derived_values_do_not_belong_there(source):
    with pytest.raises(ValueError, match="setup cell"):
        literals(source, "here")


# papermill's test_inspect_python, of which it reads types and helps in comments; here they are none
@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("a = 2 # type:int", {"a": 2}),
        ("a: float = 2.258 # type: int Nice", {"a": 2.258}),
        ("a: list[str] = [\n  'this', # First\n\n  'list' # Last\n] # Nice\n\nb: float = -2.3",
         {"a": ["this", "list"], "b": -2.3}),
        ("# Only a comment", {}),
        ("'''Text'''\na = 'x' 'y'; b = 1_000", {"a": "xy", "b": 1000}),
    ],
)  # fmt: skip
def test_how_a_cell_is_written_does_not_matter(source, values):
    assert literals(source, "here") == values


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a = 1\n%matplotlib inline", r"here, line 2: no Python \(invalid syntax\)"),
        ("a = [1,", r"here, line 1: no Python"),
        ("a = b = 2", r"here, line 1: not `name = literal`"),  # b was lost before
        ("a, b = 1, 2", r"here, line 1: not `name = literal`"),
        ("a: int", r"here, line 1: not `name = literal`"),
        ("a = 1\na += 1", r"here, line 2: not `name = literal`"),
        ("a = 1\na.b = 1", r"here, line 2: not `name = literal`"),
    ],
)
def test_what_is_no_parameter_is_told_by_its_line(source, says):
    with pytest.raises(ValueError, match=says):
        literals(source, "here")


# papermill's test_translate_type_python, and its test_execute of quotes and backslashes
INJECTED = [
    "foo", '{"foo": "bar"}', {"foo": '"bar"'}, ["foo", '"bar"'], -54321, -5432.1, True, None,
    "it's", "\\alpha", "end\\", '\\"quoted\\"', "two\nlines\r\t", "😍", "\u2028", "\0", "'''", "",
    [], 10**30, 1e22,
]  # fmt: skip


def test_what_papermill_injects_is_read_back():
    for value in INJECTED:
        source = PythonTranslator.codify({"value": value, "other": 1})
        assert literals(source, "injected") == {"value": value, "other": 1}


@pytest.mark.parametrize("value", [float("nan"), [float("-inf")]], ids=str)
def test_what_papermill_writes_as_a_call_is_named(value):
    """float('nan'), for one: a user of papermill was told to move it to another cell before."""
    source = PythonTranslator.codify({"value": value})
    told = ast.unparse(ast.parse(source).body[0])
    with pytest.raises(ValueError, match="give a finite number") as error:
        literals(source, "injected")
    assert f"injected: {told} is not a plain literal" in str(error.value)


def test_papermill_can_write_the_parameters_of_each_notebook():
    """What it has no form for, a tuple for one, it would write as text without a word."""
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        values = known_parameters(path)
        assert literals(PythonTranslator.codify(values), "injected") == values


def test_a_count_is_at_least_one(tmp_path):
    book = write(tmp_path, "steps: int = 50")
    for steps in (0, -3, "0"):
        with pytest.raises(
            ValueError, match=r"07_example: steps='?-?\d'? must be a whole number from 1"
        ):
            check_parameters(book, {"steps": steps})


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("12_inference", "batches", "[1, 8, 1]"),  # failed in its seventh cell
        ("18_your_data", "seeds", [1, 1]),  # ran, and counted each twice
        ("14_where_it_breaks", "octaves", [1, 0, 1]),
        ("06_generalization_bound", "backbones", ["1", "1"]),
        ("07_nonvacuous_bound", "candidates", [["q", 1, 2, 3, 1.0], ["q", 1, 2, 3, 1.0]]),
    ],
)
def test_what_is_listed_is_listed_once(name, parameter, value):
    path = NOTEBOOKS / f"{name}.ipynb"
    with pytest.raises(ValueError, match=rf"{name}: {parameter}=.* lists .*1.* twice; list each"):
        check_parameters(path, {parameter: value})


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("02_equivalence", "steps"), ("03_counts", "images"), ("12_inference", "batches")],
)
def test_a_count_has_an_end(name, parameter):
    value = [10**9] if parameter == "batches" else 10**12
    with pytest.raises(ValueError, match="must be a whole number from 1 to 1000000, such as"):
        check_parameters(NOTEBOOKS / f"{name}.ipynb", {parameter: value})


def test_every_default_may_be_given():
    """14's octaves, -2 among them, were refused as counts."""
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        defaults = known_parameters(path)
        assert check_parameters(path, defaults, typed=True) == defaults


def test_in_a_cell_text_is_no_number(tmp_path):
    """papermill -y "{steps: '3'}" injects the text '3'; on the command line all is text."""
    book = write(tmp_path, "steps: int = 50")
    assert check_parameters(book, {"steps": "3"}) == {"steps": 3}
    with pytest.raises(ValueError, match="07_example: steps='3' must be int, as in 50; it is str"):
        check_parameters(book, {"steps": "3"}, typed=True)


def test_a_list_that_papermill_took_for_a_text_is_told_how_to_be_given():
    """Its -p reads numbers and booleans alone: '[1, 4]' of a shell is a text in the notebook."""
    notebook = NOTEBOOKS / "08_few_shot.ipynb"
    with pytest.raises(ValueError, match=r"it is str: .* to papermill -y 'shots: \[1\]'"):
        check_parameters(notebook, {"shots": "[1, 4]"}, typed=True)
    assert check_parameters(notebook, {"shots": "[1, 4]"}) == {"shots": [1, 4]}


@pytest.mark.parametrize(
    "text", ["[1,", "{a: 1, a: 2}", "- " * 10**5, "!!python/name:os", "\0", "010"]
)
def test_bad_yaml_is_one_sentence_with_the_parameters_name(notebook, text):
    with pytest.raises(ValueError, match=r"07_example: shots=.* is not valid YAML") as error:
        check_parameters(notebook, {"shots": text})
    assert len(str(error.value)) < 300


def test_a_row_of_several_types_is_checked_place_by_place(tmp_path):
    book = write(tmp_path, 'candidates: list = [["qkvo", 2, 1.0], ["vo", 8, 2.0]]')
    assert check_parameters(book, {"candidates": "[[q, 4, 3]]"}) == {"candidates": [["q", 4, 3.0]]}
    for text in ("[[q, 4]]", "[[q, four, 1.0]]", "[[4, 4, 1.0]]"):
        with pytest.raises(ValueError, match="must"):
            check_parameters(book, {"candidates": text})


@pytest.mark.slow
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(["shots", "lr", "seed", "quick", "profile"]), text=st.text(max_size=30))
def test_whatever_is_typed_is_taken_with_its_type_or_refused_by_name(notebook, name, text):
    default = known_parameters(notebook)[name]
    try:
        value = check_parameters(notebook, {name: text})[name]
    except ValueError as error:
        told = str(error)
    else:
        assert type(value) is type(default)
        return
    assert told.startswith(f"07_example: {name}=")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3, "nbformat": 4, "metadata": {}}'])
def test_a_damaged_notebook_is_named(tmp_path, text):
    (tmp_path / "07_example.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"notebook .*07_example\.ipynb is damaged"):
        known_parameters(tmp_path / "07_example.ipynb")


@pytest.mark.parametrize("value", ["[]", [], ()])
def test_a_list_without_entries_is_refused_before_the_notebook_runs(value):
    with pytest.raises(
        ValueError, match=r"batches=.* has no entry; give at least one, as in \[1, 8, 32\]"
    ):
        check_parameters(NOTEBOOKS / "12_inference.ipynb", {"batches": value})


@pytest.mark.parametrize(
    ("name", "parameter"), [("07_nonvacuous_bound", "delta"), ("12_inference", "margin")]
)
@pytest.mark.parametrize("value", [1, 2.0, "1.5"])
def test_a_share_lies_between_0_and_1(name, parameter, value):
    notebook = NOTEBOOKS / f"{name}.ipynb"
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, as in 0\.05"):
        check_parameters(notebook, {parameter: value})
    assert check_parameters(notebook, {parameter: "0.5"}) == {parameter: 0.5}


def test_every_parameter_that_is_a_fraction_is_known_as_a_share():
    of_all = {path: known_parameters(path) for path in NOTEBOOKS.glob("*.ipynb")}
    found = {name for known in of_all.values() for name, v in known.items() if type(v) is float}
    assert found == SHARES
