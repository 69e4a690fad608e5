"""Figures of the blocks: drawn from small frames, with what they must show, zeros included."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from blocklora_lib.display.figures import block as figures
from blocklora_lib.display.style import save_figure


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def drawn(figure, tmp_path):
    paths = save_figure(figure, tmp_path / "figure", "a note")
    assert all(path.stat().st_size > 0 for path in paths)
    return figure


@pytest.mark.slow
def test_differences_have_a_panel_for_each_optimizer_and_a_place_for_zero(tmp_path):
    rows = [
        {"optimizer": o, "run": run, "control": run == "control", "step": s, "difference": d}
        for o in ("SGD", "Adam")
        for run, d in (("same", 0.0), ("control", 1e-2))
        for s in (1, 2)
    ]
    figure = drawn(figures.differences_over_steps(pd.DataFrame(rows), 1e-12), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["SGD", "Adam"]
    assert labels(figure.axes[0].yaxis)[0] == "0"
    assert list(figure.axes[0].lines[0].get_ydata()) == [figures.ZERO] * 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["same", "control", "bar"]


@pytest.mark.slow
def test_distances_start_at_one(tmp_path):
    frame = pd.DataFrame(
        {"run": ["a", "a", "b", "b"], "step": [1, 2, 1, 2], "distance": [4.0, 2.0, 1.0, 1.0],
         "predicted": [4.0, 2.0, math.nan, math.nan], "difference": [0.0, 1e-15, 0.1, 0.2]}
    )  # fmt: skip
    figure = drawn(figures.distances_of_blocks(frame), tmp_path)
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.5]


@pytest.mark.slow
def test_spectra_mark_the_rank(tmp_path):
    rows = [
        {
            "form": f,
            "method": m,
            "site": "q",
            "index": k,
            "value": 10.0 ** (-8 * k),
            "expected_rank": 2,
        }
        for f, m in (("one", "lora"), ("two", "block_lora"))
        for k in range(1, 6)
    ]
    figure = drawn(figures.spectra(pd.DataFrame(rows)), tmp_path)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["rank 2", "rank 2"]


@pytest.mark.slow
def test_breaks_have_a_line_each(tmp_path):
    frame = pd.DataFrame(
        [
            dict(
                what="nothing",
                against="n",
                optimizer="SGD",
                expected="coincides",
                difference=0.0,
                spread_of_blocks=0.0,
            ),
            dict(
                what="noise",
                against="n",
                optimizer="SGD",
                expected="leaves",
                difference=0.3,
                spread_of_blocks=1.0,
            ),
        ]
    )
    figure = drawn(figures.breaks(frame, 1e-12), tmp_path)
    assert labels(figure.axes[0].yaxis) == ["noise [SGD] vs n", "nothing [SGD] vs n"]


@pytest.mark.slow
def test_sharing_and_readings(tmp_path):
    rows = [
        dict(
            task=task,
            form=form,
            samples=24,
            directions=8,
            n_blocks=n,
            floor=1 - 1 / n,
            mean=0.5,
            low=0.4,
            high=0.6,
        )
        for task, form in (("fails", "block_lora"), ("helps", "block_lora"), ("helps", "lora"))
        for n in (1, 2)
    ]
    figure = drawn(figures.sharing(pd.DataFrame(rows)), tmp_path)
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.0, 0.5]
    assert labels(figure.axes[1].xaxis) == ["1", "2"]
    rows = [
        dict(target=t, form=f, method="lora", n_blocks=n, error=0.5, floor=0.4)
        for t in ("T", "U") for f in ("one", "two") for n in (1, 2)
    ]  # fmt: skip
    figure = drawn(figures.readings(pd.DataFrame(rows)), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["T", "U"]
