"""Figures are pure functions of a frame: what they draw, their width, what their files hold."""

from __future__ import annotations

import math
import re
import warnings
from itertools import combinations

import matplotlib
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from PIL import Image, ImageChops, ImageStat
from synthetic import LABELS, synthetic_runs

from blocklora_lib.analysis.summaries import few_shot_summary, gains, trained_parameters
from blocklora_lib.display.figures import few_shot
from blocklora_lib.display.figures.comparison import (
    accuracy_of_methods,
    critical_difference,
    fronts,
)
from blocklora_lib.display.style import (
    METHOD_STYLES,
    MOST,
    OTHER,
    STYLE,
    TEXT_WIDTH,
    method_style,
    new_figure,
    plain_log_ticks,
    save_figure,
    spread,
    styles_of,
)
from blocklora_lib.runs.profile_files import load_profile

SETS = ("chess", "flags", "letters", "photos")


def accuracy_by_shots(runs, **more):
    return few_shot.accuracy_by_shots(few_shot_summary(runs), **more)


def gain_by_dataset(runs):
    return few_shot.gain_by_dataset(gains(runs))


def key_figure(runs):
    return few_shot.key_figure(few_shot_summary(runs), gains(runs), {}, trained_parameters(runs))


FIGURES = [accuracy_by_shots, gain_by_dataset, key_figure]


@pytest.fixture(scope="module")
def runs():
    return synthetic_runs(SETS)


def drawn(axes):
    """Label-free lines of a panel: (x values, y values, colour)."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()), line.get_color())
        for line in axes.get_lines()
    ]


@pytest.mark.slow
def test_grid_has_a_panel_for_each_set_and_the_average_first(runs):
    figure = accuracy_by_shots(runs)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles[0] == f"Average of {len(SETS)} sets"
    assert sorted(titles[1:]) == sorted(SETS)


@pytest.mark.slow
def test_grid_draws_the_means_of_the_runs(runs):
    figure = accuracy_by_shots(runs)
    axes = next(a for a in figure.axes if a.get_title() == "chess")
    part = runs[(runs["dataset"] == "chess") & (runs["method"] == "lora")]
    expected = [100 * part[part["shots"] == k]["accuracy"].mean() for k in (1, 4, 16)]
    (line,) = [line for line in drawn(axes) if line[2] == METHOD_STYLES["lora"].colour]
    assert line[0] == [1, 4, 16]
    assert line[1] == pytest.approx(expected)


@pytest.mark.slow
def test_shots_stand_on_a_log2_axis_with_their_own_tick_labels(runs):
    axes = accuracy_by_shots(runs).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "4", "16"]


def test_average_is_not_drawn_over_fewer_sets(runs):
    """A method that lacks one set has no average: a mean over fewer sets is another quantity."""
    part = runs[~((runs["method"] == "lora") & (runs["dataset"] == "chess"))]
    colours = [line[2] for line in drawn(accuracy_by_shots(part).axes[0])]
    assert METHOD_STYLES["lora"].colour not in colours
    assert METHOD_STYLES["block_lora"].colour in colours


def test_gain_is_the_difference_to_zero_shot(runs):
    found = gains(runs).set_index(["dataset", "method"])["mean"]
    part = runs[runs["dataset"] == "flags"].groupby(["method", "shots"])["accuracy"].mean()
    assert found["flags", "lora"] == pytest.approx(100 * (part["lora", 16] - part["zero_shot", 0]))


def test_gain_without_zero_shot_says_so(runs):
    with pytest.raises(ValueError, match="no zero-shot run"):
        gains(runs[runs["shots"] > 0])


def test_gain_at_shots_that_were_not_run_names_those_that_were(runs):
    with pytest.raises(ValueError, match=r"shots=8.*1, 4, 16"):
        gains(runs, shots=8)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_frame_without_runs_is_refused(runs, figure):
    with pytest.raises(ValueError, match="no finished run"):
        figure(runs.iloc[:0])


@pytest.mark.parametrize("figure", FIGURES)
def test_a_frame_that_lacks_a_column_is_refused(runs, figure):
    with pytest.raises(ValueError, match="no column seed"):
        figure(runs.drop(columns="seed"))


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_leaves_its_frame_and_global_state_alone(runs, figure):
    before, settings = runs.copy(), dict(matplotlib.rcParams)
    figure(runs)
    assert runs.equals(before)
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs",
    [
        dict(sets=("chess",)),  # no average
        dict(sets=("chess", "fashion"), shots=(1,)),  # a single column of points
        dict(sets=("chess", "fashion"), seeds=(1,)),  # no interval
        dict(sets=("chess", "fashion"), methods=("zero_shot", "lora")),
    ],
)
@pytest.mark.parametrize("figure", FIGURES)
def test_small_grids_are_drawn_too(figure, runs, tmp_path):
    save_figure(figure(synthetic_runs(**runs)), tmp_path / "figure", "a note")


@pytest.mark.slow
def test_files_have_the_text_width_embedded_type_42_fonts_and_no_dates(runs, tmp_path):
    pdf, png = save_figure(accuracy_by_shots(runs), tmp_path / "a", "a note under it")
    again, _ = save_figure(accuracy_by_shots(runs), tmp_path / "b", "a note under it")
    content = pdf.read_bytes()
    assert content == again.read_bytes()
    assert (
        b"/FontType 42" in content or b"/CIDFontType2" in content
    )  # TrueType, not Type 3 outlines
    assert b"/Type3" not in content
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", content)
    assert float(box[1]) / 72 == pytest.approx(TEXT_WIDTH, abs=0.01)
    with Image.open(png) as image:
        assert image.width == pytest.approx(TEXT_WIDTH * STYLE["savefig.dpi"], abs=2)


@pytest.mark.slow
def test_the_note_takes_a_strip_of_its_own_and_no_room_from_the_figure(runs, tmp_path):
    _, plain = save_figure(accuracy_by_shots(runs), tmp_path / "plain")
    _, noted = save_figure(accuracy_by_shots(runs), tmp_path / "noted", "a note")
    with Image.open(plain) as a, Image.open(noted) as b:
        assert a.width == b.width
        assert a.height < b.height
        top = ImageChops.difference(a.convert("L"), b.convert("L").crop((0, 0, *a.size)))
        assert ImageStat.Stat(top).mean[0] < 2  # of 255: what is left is anti-aliasing


@pytest.mark.slow
def test_nothing_is_smaller_than_seven_points(runs):
    for figure in FIGURES:
        for text in figure(runs).findobj(matplotlib.text.Text):
            assert text.get_fontsize() >= 7


def test_methods_have_different_colours_and_markers():
    assert METHOD_STYLES["collapsed"] == METHOD_STYLES["lora_plus"]  # one thing by two names
    for what in ("colour", "marker"):
        values = [
            getattr(style, what) for name, style in METHOD_STYLES.items() if name != "collapsed"
        ]
        assert len(set(values)) == len(values)


def test_no_two_methods_of_the_profiles_look_alike():
    """Whatever a user chooses to see together."""
    names = {entry.name for name in ("pocket", "paper") for entry in load_profile(name).methods}
    looks = {name: (method_style(name).colour, method_style(name).marker) for name in names}
    same = [pair for pair in combinations(sorted(names), 2) if looks[pair[0]] == looks[pair[1]]]
    assert len(names) > 25
    assert same == []


@pytest.mark.parametrize("told", [math.nan, 2e7])
def test_a_cost_that_not_all_methods_tell_has_no_panel(told):
    rows = [dict(method=m, method_label=m, cost="text tower", accuracy=i, complete=True,
                 trainable_parameters=10 * i, seconds_train=1.0 + i, fit_bytes=math.nan,
                 image_passes=8)
            for i, m in enumerate("ab")]  # fmt: skip
    rows[0]["fit_bytes"] = told  # one of two is no front
    labels = [axes.get_xlabel() for axes in fronts(pd.DataFrame(rows), []).axes]
    assert labels == ["trained parameters\n(left edge: none)", "seconds of fitting"]
    whole = fronts(pd.DataFrame([row | {"fit_bytes": 2e7} for row in rows]), [])
    assert whole.axes[2].get_xlabel() == "memory of fitting (MiB)"


def test_what_looks_at_no_image_has_no_cost_of_fitting():
    """Its microseconds and bytes are the clock's: they stretched both axes over six decades."""
    rows = [dict(method=m, method_label=m, cost="text tower", accuracy=i, complete=True,
                 trainable_parameters=10 * i, seconds_train=1e-4**(1 - i), fit_bytes=1e4 ** (1 + i),
                 image_passes=8 * i)
            for i, m in enumerate("ab")]  # fmt: skip
    for panel in fronts(pd.DataFrame(rows), []).axes:
        assert panel.get_xlabel().endswith("(left edge: none)")
        assert panel.get_xscale() == "linear"  # less than a decade


@pytest.mark.slow
def test_of_many_methods_the_papers_own_stand_out_and_all_others_are_grey(runs):
    assert OTHER not in styles_of(f"m{i}" for i in range(MOST)).values()
    own = styles_of(["zero_shot", "lora", *(f"m{i}" for i in range(MOST))])
    assert {name for name, style in own.items() if style is not OTHER} == {"zero_shot", "lora"}
    only = styles_of(["zero_shot", *(f"m{i}" for i in range(MOST + 1))])
    assert sum(style is OTHER for style in only.values()) == 1

    lora = runs[runs["method"] == "lora"]
    more = [lora.assign(method=f"m{i}", method_label=f"M{i}") for i in range(MOST)]
    many = pd.concat([runs, *more], ignore_index=True)
    for figure in FIGURES:
        words = [text.get_text() for text in figure(many).findobj(matplotlib.text.Text)]
        assert "M3" not in words
    axes = accuracy_by_shots(many).axes[0]
    grey = [line for line in drawn(axes) if line[2] == OTHER.colour]
    assert len(grey) == MOST


def test_a_new_method_gets_a_style_of_its_own_that_does_not_change():
    assert method_style("brand_new") == method_style("brand_new")
    assert method_style("brand_new") not in METHOD_STYLES.values()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 5.0], [1.0, 5.0]),  # far apart: stay
        ([2.0, 2.0], [1.5, 2.5]),  # pushed apart about their mean
        ([3.0, 2.9, 0.0], [3.45, 2.45, 0.0]),  # order kept
        ([], []),
    ],
)
def test_labels_are_spread_no_further_than_needed(values, expected):
    assert spread(values, 1.0) == pytest.approx(expected)


@pytest.mark.slow
def test_legend_names_every_method_once(runs):
    (legend,) = accuracy_by_shots(runs).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert [t for t in texts if t in LABELS.values()] == [
        "Zero-shot",
        "LoRA",
        "Block-LoRA",
        "w/o A",
    ]


@pytest.mark.parametrize(("guess", "seen"), [(0.5, True), (0.1, False)])
def test_chance_is_drawn_where_it_does_not_flatten_what_is_to_be_seen(runs, guess, seen):
    chess = runs[runs["dataset"] == "chess"]
    figure = accuracy_by_shots(
        chess.assign(accuracy=chess["accuracy"] + 0.5), chance={"chess": guess}
    )
    level = [
        line.get_ydata()[0]
        for line in figure.axes[0].get_lines()
        if len(set(line.get_ydata())) == 1
    ]
    assert (100 * guess in level) is seen  # means lie between 62 and 88
    assert ("chance" in [text.get_text() for text in figure.legends[0].get_texts()]) is seen


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((1.5, 60), ["2", "5", "10", "20", "50"]),
        ((0.18, 1.7), ["0.2", "0.5", "1"]),
        ((88, 112), ["90", "100", "110"]),
    ],
)
def test_a_logarithmic_axis_has_plain_marks_however_narrow(ends, expected):
    panel = new_figure().subplots()
    panel.set(yscale="log", ylim=ends)
    plain_log_ticks(panel.yaxis)
    texts = dict(
        zip(panel.get_yticks(), (t.get_text() for t in panel.get_yticklabels()), strict=True)
    )
    shown = [text for value, text in texts.items() if ends[0] <= value <= ends[1]]
    assert shown == expected


@pytest.mark.parametrize("untrained", [False, True])
def test_of_a_store_with_few_runs_there_is_no_mean_yet(untrained):
    """Notebook 17 of one set of three was an IndexError."""
    row = dict(method="zero_shot", method_label="Zero-shot", cost="cached features", shots=0)
    rows = pd.DataFrame([row | dict(mean=1.0, low=1.0, high=1.0, complete=True)])
    (panel,) = accuracy_of_methods(rows if untrained else rows.iloc[:0], []).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["Zero-shot"] * untrained


def test_where_no_set_has_all_methods_there_are_no_ranks():
    (panel,) = critical_difference({}, {}, []).axes
    assert not panel.get_lines()


@pytest.mark.slow
def test_dollars_of_labels_and_titles_are_no_formula(runs):
    """matplotlib would draw what stands between two as one, or raise where it is none."""
    label = "$A_$ & #1"
    named = runs.assign(method_label=runs["method_label"].replace("LoRA", label))
    summary, gained = few_shot_summary(named), gains(named)
    titles = {name: f"{name} {label}" for name in SETS}
    for figure in (
        few_shot.accuracy_by_shots(summary, titles),
        few_shot.key_figure(summary, gained, titles, trained_parameters(named)),
    ):
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts
        assert not any(map(is_math_text, texts))
    assert any("12,288 parameters" in text for text in texts)


@pytest.mark.parametrize("label", ["x₂", "חתול"])
def test_letters_of_other_scripts_are_drawn(label, tmp_path):
    figure = new_figure(2, 1)
    with rc_context(dict(STYLE)):
        figure.text(0.1, 0.5, label)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # matplotlib draws a box for a letter that it lacks, and warns
        save_figure(figure, tmp_path / "figure")
