"""Figures of our own theory: drawn from small frames, with what they must show."""

from __future__ import annotations

import pandas as pd
import pytest

from blocklora_lib.display.figures import theory as figures
from blocklora_lib.display.style import save_figure


def drawn(figure, tmp_path):
    paths = save_figure(figure, tmp_path / "figure", "a note")
    assert all(path.stat().st_size > 0 for path in paths)
    return figure


@pytest.mark.slow
def test_forms_of_one_tau_stand_together_and_each_case_over_its_own_threshold(tmp_path):
    row = dict(part="forms", form="LoRA", case="width 1", threshold=2.0, accuracy=30.0)
    rows = [
        row | dict(rate=0.1, tau=1.0),
        row | dict(form="n = 8", rate=0.8, tau=1.0, accuracy=32.0),
        row | dict(part="another rate of A", rate=0.1, tau=1.0, accuracy=20.0),
        row | dict(part="cases", case="width 16", rate=0.1, tau=1.0, threshold=0.5),
    ]
    figure = drawn(figures.one_curve(pd.DataFrame(rows), 13.0, 0.1), tmp_path)
    by_rate, by_tau, by_share = (
        [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for axes in figure.axes
    )
    assert ([0.1], [30.0]) in by_rate
    assert ([0.8], [32.0]) in by_rate
    assert all(([1.0], [y]) in by_tau for y in (30.0, 32.0, 31.0, 20.0))
    assert ([0.5], [31.0]) in by_share
    assert ([2.0], [30.0]) in by_share
    assert [x for x, _ in by_tau if x[0] == x[-1] and len(x) == 2] == [[0.2, 0.2]]
    assert [patch.get_extents().x1 for patch in figure.axes[1].patches] == pytest.approx(
        [figure.axes[1].transData.transform((2.0, 0))[0]]
    )


@pytest.mark.slow
def test_ratios_are_powers_of_n_and_only_what_has_a_law_shows_it(tmp_path):
    lawful = dict(optimizer="LARS", lawful=True, n_blocks=8, law=1.0, low=1.0, high=8.0)
    frame = pd.DataFrame(
        [lawful, lawful | dict(optimizer="noise", lawful=False, law=8.0, low=2.0)]
    ).assign(difference=0.0, control=0.1)
    figure = drawn(figures.ratio_law(frame, 1e-12), tmp_path)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["noise", "LARS"]
    ranges = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    assert ranges == [pytest.approx([0, 1]), pytest.approx([1 / 3, 1])]
    assert [line.get_xdata() for line in left.lines if line.get_marker() == "|"] == [[0.0]]
    assert [line.get_xdata()[0] for line in right.lines][:2] == [figures.ZERO, 0.1]
