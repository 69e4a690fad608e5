"""Notebook parameters: unknown names and wrong types are refused before anything runs."""

from __future__ import annotations

import nbformat
import pytest

from blocklora_lib.parameters import check_parameters, known_parameters, literals

CELL = (
    'profile: str = "pocket"\nshots = [1, 4]\nlr: float = 2e-3\nseed = 1\nquick: bool = False\nlimit = None\n'
)


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
        (dict(lr="1e-3"), 1e-3),  # text from the command line; YAML alone would not read it as a number
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
    ],
)
def test_types(notebook, given, expected):
    if expected == "refused":
        with pytest.raises(ValueError, match="must be"):
            check_parameters(notebook, given)
    else:
        assert list(check_parameters(notebook, given).values()) == [expected]


def test_unknown_name_is_refused_with_near_and_known_ones(notebook):
    with pytest.raises(ValueError, match=r"no parameter 'shot'; did you mean 'shots'.*Known: .*profile"):
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
