"""No figure is cut off, covered or lost at its edges; the rule that says so sees each fault."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import figure_cases
import pandas as pd
import pytest
from figure_boxes import measured
from figure_cases import CASES, METHODS, RATES, TITLES, front, paper, ranked, tried
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from blocklora_lib.analysis.rates import rate_curves
from blocklora_lib.analysis.summaries import few_shot_summary, gains, trained_parameters
from blocklora_lib.display import figures
from blocklora_lib.display.figures.comparison import fronts
from blocklora_lib.display.figures.few_shot import accuracy_by_shots, key_figure
from blocklora_lib.display.figures.rates import accuracy_by_rate
from blocklora_lib.display.style import in_style, legend_outside, new_figure, save_figure

DRAWN = [
    pytest.param(draw, id=f"{figure.__name__}-{size}")
    for figure, cases in CASES.items()
    for size, draw in zip(("small", "large"), cases, strict=True)
]


def faults_of(figure, tmp_path, note="pocket profile: PocketCLIP; not the paper's numbers"):
    with measured() as faults:
        save_figure(figure, tmp_path / "figure", note)
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWN)
def test_nothing_is_cut_off_or_covered(draw, tmp_path):
    figure = draw()
    assert not faults_of(figure, tmp_path)
    assert all(text.get_fontsize() >= 7 for text in figure.findobj(Text) if text.get_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "label"),
    [
        (lambda: ranked(23, 11), "ProGrad, λ = 0.{} (of three sets from 8 shots on)"),
        (lambda: front(23), "PromptSRC, μ = 45, σ = {} (of five sets)"),
    ],
)
def test_names_as_long_as_profiles_have_them_leave_room(draw, label, tmp_path, monkeypatch):
    """Those of `paper` ran off the canvas and, on a front, took its panels all their width."""
    renamed = [
        (name, label.format(i) if i % 3 == 1 else own, cost)
        for i, (name, own, cost) in enumerate(figure_cases.many(23))
    ]
    monkeypatch.setattr(figure_cases, "many", lambda n: renamed)
    assert not faults_of(draw(), tmp_path)


@pytest.mark.slow
def test_a_long_name_leaves_both_panels_of_the_key_figure_room(tmp_path):
    long = "Block-LoRA of rank sixteen in sixteen blocks, one more word"
    runs = paper({"zero_shot": "Zero-shot", "lora": f"{long}: LoRA", "block_lora": long})
    runs = runs[runs["dataset"].isin([*runs["dataset"].unique()[:3]])]
    figure = key_figure(few_shot_summary(runs), gains(runs), {}, trained_parameters(runs))
    assert not faults_of(figure, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("many", [2, 5])
def test_long_titles_of_sets_do_not_run_into_each_other(many, tmp_path):
    runs = paper({"zero_shot": "Zero-shot", "lora": "LoRA"}, [*TITLES][:many])
    titles = {name: f"{name}: household objects, second version" for name in TITLES}
    assert not faults_of(accuracy_by_shots(few_shot_summary(runs), titles), tmp_path)


@pytest.mark.slow
def test_names_of_equal_methods_stand_apart(tmp_path):
    rows = [
        dict(method=name, method_label=label, cost="both towers", accuracy=24.0, complete=True)
        | dict(image_passes=i, trainable_parameters=i, seconds_train=0.1 * i, fit_bytes=i * 2e6)
        for i, (name, label) in enumerate(METHODS.items())
        if i < 4
    ]
    assert not faults_of(fronts(pd.DataFrame(rows), [*METHODS][:4]), tmp_path)


@pytest.mark.slow
def test_titles_of_methods_do_not_run_into_each_other(tmp_path):
    names = {f"m{i}": f"Block-LoRA, n = {i}, a long name of one's own" for i in range(5)}
    assert not faults_of(accuracy_by_rate(rate_curves(tried(names, RATES))), tmp_path)


def test_every_figure_of_the_library_is_looked_at():
    found = set()
    for module in pkgutil.iter_modules(figures.__path__, f"{figures.__name__}."):
        for name, function in inspect.getmembers(importlib.import_module(module.name)):
            own = inspect.isfunction(function) and function.__module__ == module.name
            if own and not name.startswith("_") and "Figure" in str(inspect.signature(function)):
                found.add(function)
    assert found == set(CASES)
    assert len(found) > 30


@in_style
def one_panel(**settings) -> tuple[Figure, object]:
    figure = new_figure(4, 2)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1])
    panel.set(**settings)
    return figure, panel


def long_legend(figure, panel):
    handles = [panel.plot([], [], label=f"a long label {i}")[0] for i in range(9)]
    figure.legend(handles=handles, loc="outside upper center", ncols=9)


def text(x, y, words="a text", **look):
    return lambda figure, panel: panel.text(x, y, words, transform=panel.transAxes, **look)


def two_texts(figure, panel):
    for x in (0.1, 0.12):
        text(x, 0.8)(figure, panel)


def other_panel(figure, panel):
    panel.set_position([0.1, 0.2, 0.3, 0.6])
    figure.add_axes([0.6, 0.2, 0.3, 0.6])
    text(1.8, 0.5)(figure, panel)
    figure.set_layout_engine("none")


def dense_ticks(figure, panel):
    panel.set_xticks([0.50, 0.52], ["0.50", "0.52"])


def cut_marker(figure, panel):
    panel.plot([0.5], [1.0], "o")
    panel.set_ylim(0, 1)


def lost_marker(figure, panel):
    panel.plot([0.5], [1.4], "o")
    panel.set_ylim(0, 1.2)


def free_marker(figure, panel):
    panel.plot([0.5], [9.0], "o", clip_on=False, in_layout=False)
    panel.set_ylim(0, 1.2)


def cut_point(figure, panel):
    panel.scatter([0.2, 0.5], [0.3, 1.0], s=30)
    panel.set_ylim(0, 1)


def text_on_a_point(figure, panel):
    panel.scatter([0.2], [0.8], s=30)
    panel.text(0.2, 0.8, "a text", ha="center", va="center")


def arrow_beyond(figure, panel):
    panel.annotate("here", (0.2, 0.8), (-0.6, 0.8), arrowprops=dict(arrowstyle="->"),
                   annotation_clip=False, in_layout=False)  # fmt: skip
    panel.texts[-1].set_position((0.3, 0.5))
    panel.texts[-1].xy = (-0.9, 0.8)


def line_of_the_figure(figure, panel):
    figure.add_artist(Line2D([0.5, 1.2], [0.5, 0.5], clip_on=False, in_layout=False))


def drawing_without_axes(figure, panel):
    panel.set_axis_off()
    free_marker(figure, panel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (long_legend, "a legend runs"),
        (text(0.9, 0.1, "a text that ends beyond the edge", in_layout=False), "off the canvas"),
        (text(-0.5, 0.9, in_layout=False), "off the canvas"),
        (two_texts, "'a text' and 'a text' overlap"),
        (text(0.5, 1.02, "on the title", ha="center"), "overlap"),
        (dense_ticks, "'0.50' and '0.52' overlap"),
        (text(0.45, 0.45), "covers what the panel 'A title' draws"),
        (other_panel, "lies on the panel"),
        (lambda figure, panel: panel.legend(["a line"], loc="center"), "its legend covers"),
        (cut_marker, "1 of 1 markers are cut"),
        (lost_marker, "1 of 1 markers are cut"),
        (free_marker, "a Line2D of the panel 'A title' runs"),
        (cut_point, "1 of 2 points are cut"),
        (text_on_a_point, "'a text' covers what the panel"),
        (arrow_beyond, "the arrow of 'here' runs"),
        (line_of_the_figure, "a Line2D of the figure runs"),
        (drawing_without_axes, "a Line2D of the panel 'A title' runs"),
    ],
)
def test_each_fault_is_caught(spoil, fault, tmp_path):
    assert not faults_of(one_panel(title="A title")[0], tmp_path)
    figure, panel = one_panel(title="A title")
    spoil(figure, panel)
    found = faults_of(figure, tmp_path)
    assert any(fault in line for line in found), found
    assert {line.split(":")[0].rsplit(".")[-1] for line in found} == {"pdf", "png"}


@pytest.mark.slow
def test_a_text_on_a_box_of_its_own_may_stand_on_a_line(tmp_path):
    figure, panel = one_panel()
    text(0.45, 0.45, bbox=dict(facecolor="white", linewidth=0))(figure, panel)
    assert not faults_of(figure, tmp_path)


@pytest.mark.slow
def test_a_legend_takes_the_lines_that_it_needs_and_the_figure_grows_by_them(tmp_path):
    heights = []
    for many in (1, 12):
        figure, panel = one_panel()
        legend_outside(figure, [panel.plot([], [], label=f"label {i}")[0] for i in range(many)])
        assert not faults_of(figure, tmp_path)
        heights.append(figure.get_size_inches()[1])
    assert heights[1] > heights[0] + 0.2
