"""What is wrong with given values, as one sentence."""

import math

import pytest
from pydantic import ValidationError

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import Strict, Whole, explain
from blocklora_lib.learning.prompt_method import PromptSettings, Tokens
from blocklora_lib.learning.spec import DasslSchedule, TrainingSpec
from blocklora_lib.methods import get_method, method_names
from blocklora_lib.runs.experiment import Experiment
from blocklora_lib.runs.profile import Profile


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        # of words, what is wrong with words; of a number, what with a number; else both
        (PromptSettings, {"context": ""}, "String should have at least 1 character"),
        (PromptSettings, {"context": 0}, "Input should be greater than or equal to 1"),
        (PromptSettings, {"context": 1.5}, "Input should be a valid integer or a valid string"),
        (Experiment, {"evaluate_on": 3}, "Input should be 'own' or 'targets' or a valid tuple"),
    ],
)
def test_a_value_that_may_be_of_several_kinds_is_told_of_once(model, given, says):
    with pytest.raises(ValidationError) as error:
        model(**given)
    ((key, value),) = given.items()
    assert explain(error.value) == f"{key}: {says} (got {value!r})"


def test_lists_deep_in_one_another_are_told_of():
    """JSON reads nine hundred; making tuples of them ended in a RecursionError."""
    deep: list = []
    for _ in range(900):
        deep = [deep]

    class Rows(Strict):
        rows: tuple[tuple[int, ...], ...]

    with pytest.raises(ValidationError) as error:
        Rows(rows=deep)
    assert explain(error.value) == "lists and mappings are nested more than 100 deep"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"targets": "q,k"}, "targets: Input should be a valid tuple (got 'q,k'); {}[q, k]"),
        (
            {"targets": "[ q;v ]"},
            "targets: Input should be a valid tuple (got '[ q;v ]'); {}[q, v]",
        ),
        ({"towers": "text"}, "towers: Input should be a valid tuple (got 'text'); {}[text]"),
        ({"towers": None}, "towers: Input should be a valid tuple (got None)"),
        ({"layers": -1}, "layers: Input should be 'all' or a valid tuple (got -1)"),
    ],
)
def test_a_list_is_asked_for_by_an_example(given, says):
    with pytest.raises(ValidationError) as error:
        AdapterConfig(**given)
    assert explain(error.value) == says.format("write a list, such as ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["4"], "shots.0: Input should be a valid integer (got '4')"),
        ([], "shots: Tuple should have at least 1 item after validation, not 0 (got ())"),
    ],
)
def test_a_list_of_a_wrong_entry_is_not_called_empty(given, says):
    facts = {"name": "a", "description": "b", "targets": ["mnist"], "seeds": [1], "methods": [{}]}
    with pytest.raises(ValidationError) as error:
        Profile.model_validate(facts | {"shots": given})
    told = [part for part in explain(error.value).split("; ") if part.startswith("shots")]
    assert told == [says]


SETTINGS = [
    (model, name, about.annotation)
    for model in (TrainingSpec, DasslSchedule, *(get_method(n).Settings for n in method_names()))
    for name, about in model.model_fields.items()
]
FLOATS = [(model, name) for model, name, kind in SETTINGS if kind is float]
COUNTS = [(model, name) for model, name, kind in SETTINGS if kind in (int, Whole | None, Tokens)]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(("model", "name"), FLOATS)
def test_no_setting_is_infinite(model, name, value):
    """eps = inf trained nothing and was 'done'; others diverged, or were 'no JSON'."""
    with pytest.raises(ValidationError) as error:
        model.model_validate({name: value})
    assert explain(error.value).startswith(f"{name}: Input should be ")


@pytest.mark.parametrize(("model", "name"), COUNTS)
def test_no_setting_counts_further_than_pytorch(model, name):
    """class_chunk of 400 digits was a failure of the machine, steps_per_shot a traceback."""
    with pytest.raises(ValidationError) as error:
        model.model_validate({name: 2**31})
    assert explain(error.value).startswith(f"{name}: Input should be ")


@pytest.mark.parametrize(("name", "epochs"), [("clip_adapter", (1, 0, 1)), ("task_res", (-3, 1))])
def test_epochs_are_at_least_one(name, epochs):
    """None of them was a failure of the machine, which is tried again."""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        get_method(name).Settings(epochs=epochs)
