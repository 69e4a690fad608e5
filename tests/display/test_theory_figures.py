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
