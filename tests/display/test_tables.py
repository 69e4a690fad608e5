"""Tables: the numbers are worked out here by hand, the LaTeX is checked as text."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import synthetic_runs

from blocklora_lib.analysis.summaries import AVERAGE, few_shot_summary
from blocklora_lib.display.tables import (
    escape_latex,
    few_shot_table,
    plain,
    to_html,
    with_interval,
)
from blocklora_lib.display.venues import booktabs_rows


def tiny_runs() -> pd.DataFrame:
    """Two sets, one method, three seeds: means 0.5 and 0.7."""
    frame = synthetic_runs(sets=("a", "b"), shots=(1,), methods=("zero_shot", "lora"))
    values = {
        ("a", 1): 0.4,
        ("a", 2): 0.5,
        ("a", 3): 0.6,
        ("b", 1): 0.7,
        ("b", 2): 0.7,
        ("b", 3): 0.7,
    }
    trained = frame["shots"] == 1
    keys = zip(frame["dataset"], frame["seed"], strict=True)
    frame["accuracy"] = [
        values.get(k, 0.2) if t else 0.2 for k, t in zip(keys, trained, strict=True)
    ]
    return frame


def test_summary_is_the_mean_and_students_interval_over_seeds():
    row = few_shot_summary(tiny_runs()).set_index(["dataset", "method"]).loc[("a", "lora")]
    half = 4.302652729911275 * 10 / math.sqrt(3)  # t(0.975, 2) s / sqrt(n), s = 10 points
    assert row["mean"] == pytest.approx(50)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half)
    assert row["n"] == 3


def test_average_is_over_sets_within_a_seed():
    row = few_shot_summary(tiny_runs()).set_index(["dataset", "method"]).loc[(AVERAGE, "lora")]
    assert row["mean"] == pytest.approx(60)  # seeds: 55, 60, 65
    assert (row["high"] - row["low"]) / 2 == pytest.approx(4.302652729911275 * 5 / math.sqrt(3))


def test_average_leaves_out_a_seed_that_lacks_a_set():
    runs = tiny_runs()
    runs = runs[~((runs["dataset"] == "b") & (runs["seed"] == 3))]
    row = few_shot_summary(runs).set_index(["dataset", "method"]).loc[(AVERAGE, "lora")]
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(57.5)


def test_other_evaluated_sets_do_not_enter():
    runs = tiny_runs()
    other = runs.assign(evaluated_on="variant", accuracy=0.0)
    assert few_shot_summary(pd.concat([runs, other])).equals(few_shot_summary(runs))


def test_table_has_methods_by_shots_and_sets_beside_their_average():
    table = few_shot_table(
        few_shot_summary(synthetic_runs(sets=("b", "a"))), {"a": "Apples", "b": "Boats"}
    )
    assert list(table.shown.columns) == ["method", "shots", "seeds", "Apples", "Boats", "Average"]
    assert list(table.shown["method"][:4]) == ["Zero-shot", "LoRA", "Block-LoRA", "w/o A"]
    assert len(table.shown) == 1 + 3 * 3


def test_best_mean_is_bold_in_latex_and_starred_in_text():
    table = few_shot_table(few_shot_summary(synthetic_runs(sets=("a", "b"))))
    best = table.tidy[(table.tidy["dataset"] == "a") & (table.tidy["shots"] == 16)].set_index(
        "method"
    )["mean"]
    assert best.idxmax() == "lora"
    shown = table.shown.set_index(["method", "shots"])
    assert shown.loc[("LoRA", 16), "a"].endswith("*")
    assert "*" not in shown.loc[("Block-LoRA", 16), "a"]
    assert rf"\textbf{{{best['lora']:.1f}}}" in table.latex


def test_a_mean_over_fewer_seeds_is_marked_and_never_the_best():
    """LoRA's means are 63.4 over three seeds, Block-LoRA's one seed is 64.1."""
    runs = synthetic_runs(sets=("a", "b"), shots=(1,), methods=("zero_shot", "lora", "block_lora"))
    values = {("lora", 1): 0.62, ("lora", 2): 0.634, ("lora", 3): 0.648, ("block_lora", 1): 0.641}
    keys = zip(runs["method"], runs["seed"], strict=True)
    runs = runs[
        (runs["shots"] == 0) | pd.Series([key in values for key in keys], index=runs.index)
    ].copy()
    keys = zip(runs["method"], runs["seed"], strict=True)
    runs["accuracy"] = [values.get(key, 0.2) for key in keys]
    table = few_shot_table(few_shot_summary(runs))
    shown = table.shown[table.shown["shots"] == 1].set_index("method")
    for column in ("a", "b", "Average"):
        assert shown.loc["Block-LoRA", column] == "64.1 (1 of 3)"
        assert re.fullmatch(r"63\.4 ± [\d.]+ \*", shown.loc["LoRA", column])
    assert shown["seeds"].to_dict() == {"LoRA": "3", "Block-LoRA": "1"}
    assert r"\textbf{63.4}" in table.latex
    assert "64.1 (1 of 3)" in table.latex
    assert r"\textbf{64.1}" not in table.latex


def test_latex_is_a_booktabs_tabular_with_equally_long_rows():
    latex = few_shot_table(few_shot_summary(synthetic_runs())).latex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\addlinespace"):
        assert rule in latex
    assert "|" not in latex
    assert r"\hline" not in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({row.count("&") for row in rows}) == 1
    assert latex.count("{") == latex.count("}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((71.234, 70.0, 72.468), "71.2 ± 1.2"),
        ((71.234, math.nan, math.nan), "71.2"),  # one run has no interval
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_cells(value, text):
    assert with_interval(*value) == text


def test_latex_special_characters_are_escaped():
    assert escape_latex("50% of A_s & B") == r"50\% of A\_s \& B"


def test_a_letter_and_its_accent_are_one_in_latex():
    assert escape_latex("Gro\u0308ße ≠ x₂ <r>") == r"Größe $\ne$ x$_2$ \textless{}r\textgreater{}"


@pytest.mark.parametrize("label", ["[ours] LoRA", "*LoRA"])
def test_a_row_is_no_option_of_the_line_before(label):
    """LaTeX takes a bracket behind \\midrule for a width, and never ends; a star behind a row's
    end, too.
    """
    tables = (
        plain(pd.DataFrame({label: [label, label]})).latex,
        booktabs_rows([label], [[label]], "l"),
    )
    for latex in tables:
        assert latex.count("{}" + label) == latex.count(label) > 1


def test_plain_table_keeps_all_digits_in_the_csv_and_few_in_the_text():
    frame = pd.DataFrame(
        {"name": ["a", "b"], "x": [0.123456789, float("nan")], "n": [1234, 2], "ok": [True, False]}
    )
    table = plain(frame)
    assert table.tidy["x"][0] == 0.123456789
    assert list(table.shown.iloc[0]) == ["a", "0.123", "1,234", "yes"]
    assert list(table.shown.iloc[1]) == ["b", "–", "2", "no"]


def test_html_aligns_numbers_right_and_escapes():
    html = few_shot_table(few_shot_summary(synthetic_runs(sets=("a<b", "c"))))._repr_html_()
    assert "a&lt;b" in html
    assert html.count('class="number"') > html.count('class="text"') > 0


def test_sentences_break_their_lines_and_pages():
    frame = pd.DataFrame(
        {"id": ["C1"], "evidence": ["a sentence that is far too long for one line " * 3], "n": [3]}
    )
    latex = plain(frame).latex
    assert "longtable" in latex
    found = re.search(
        r"begin\{longtable\}\{l>\{\\raggedright\\arraybackslash\}p\{([\d.]+)\\linewidth\}r\}", latex
    )
    assert 0.4 <= float(found[1]) < 1
    assert "longtable" not in plain(frame.assign(evidence="short")).latex


def test_a_zero_among_roundings_is_a_zero():
    assert plain(pd.DataFrame({"error": [4e-16, 0.0]})).shown["error"].tolist() == ["4e-16", "0"]
    assert plain(pd.DataFrame({"share": [0.25, 0.0]})).shown["share"].tolist() == ["0.250", "0.000"]


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=5))
def test_no_number_of_a_column_loses_all_but_one_of_its_digits(values):
    shown = plain(pd.DataFrame({"value": values})).shown["value"]
    for text, value in zip(shown, values, strict=True):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.051)


def test_a_small_number_beside_a_large_one_keeps_two_digits():
    shown = plain(pd.DataFrame({"slope": [1170.0, 1.49, 0.0, -12.345, math.inf]})).shown["slope"]
    assert shown.tolist() == ["1,170", "1.5", "0", "-12", "inf"]
    assert plain(pd.DataFrame({"gain": [-0.0, 12.5]})).shown["gain"].tolist() == ["0.0", "12.5"]


def test_a_sentence_beside_many_numbers_keeps_a_width_that_can_be_read():
    told = "open: 0.99x, within a spread of [0.98, 1.07] over 6 processes"
    shown = to_html(pd.DataFrame({"ratio": ["0.99"], "form": ["merged"], "verdict": [told]}))
    assert [style.count("min-width") for style in shown.split("<td")[1:]] == [0, 0, 1]
