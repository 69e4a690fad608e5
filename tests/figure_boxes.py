"""What is cut off, covered or lost in a figure, measured while its files are drawn.

    python tests/figure_boxes.py PROFILE RESULTS [NOTEBOOK ...]

executes notebooks on a results folder and measures every figure that they save; the folder's
exports are written anew. Inside a test: `with measured() as faults: save_figure(...)`.

A figure is laid out for one page and saved on another, once through Agg's hinted letters and once
through PDF's, which are wider. So boxes are taken from what draws, at the moment of drawing. What
counts is a rule for all figures, never a list of exceptions:

- a text, its arrow, a legend or what a panel or the figure draws unclipped lies on the canvas;
- two texts do not overlap, and on one line stand apart: nothing is written over a text;
- no text and no legend lies on a panel that is not its own;
- a text or legend in a panel covers no line, marker, point, bar or interval of it, unless it stands
  on a box of its own that says where the line goes on;
- a marker or a point is whole, and none lies outside its panel.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

APART = 1.0  # points between two texts on one line: half a blank of 8 pt
LEADING = 0.5  # points at each end of a text's box where no letter has ink: it is a line's height
ROUNDING = 0.5  # points: Agg sets letters on whole pixels, of 0.33 pt at 220 dpi, at both ends


@contextmanager
def measured(files: list[str] | None = None) -> Iterator[list[str]]:
    """Measure each file of each figure saved meanwhile; yield what is wrong, a line each.

    files: receives the name of each file that was measured.
    """
    faults: list[str] = []
    drawing: list[str] = []  # the file that is being drawn
    texts: list[tuple[Text, Bbox]] = []  # what has been drawn of it
    save, draw, write = Figure.savefig, Figure.draw, Text.draw

    def saved(figure, fname, *args, **kwargs):
        drawing.append(str(fname))
        try:
            save(figure, fname, *args, **kwargs)
        finally:
            drawing.pop()
        name = Path(str(fname)).name
        if files is not None:
            files.append(name)
        faults.extend(f"{name}: {fault}" for fault in dict.fromkeys(figure.__dict__.pop("_faults")))

    def drawn(figure, renderer):
        texts.clear()
        draw(figure, renderer)
        if drawing:
            figure._faults = list(_faults(figure, texts, renderer))

    def written(text, renderer):
        write(text, renderer)
        if drawing and text.get_visible() and text.get_text().strip():
            texts.append((text, Text.get_window_extent(text, renderer)))

    Figure.savefig, Figure.draw, Text.draw = saved, drawn, written
    try:
        yield faults
    finally:
        Figure.savefig, Figure.draw, Text.draw = save, draw, write


def _faults(
    figure: Figure, texts: list[tuple[Text, Bbox]], renderer: RendererBase
) -> Iterator[str]:
    point = renderer.points_to_pixels(1.0)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    # a drawing without axes is no area of its own: other panels' texts may reach into it
    plots = {axes: axes.get_window_extent(renderer) for axes in panels if axes.axison}
    legends = [(legend, legend.get_window_extent(renderer)) for legend in _legends(figure)]
    owner = {text: legend for legend, _ in legends for text in legend.findobj(Text)}
    yield from _off_canvas(figure, panels, texts, legends, renderer, point)
    for (a, box), (b, other) in itertools.combinations(texts, 2):
        if _touch(box, other, APART * point / 2, -LEADING * point):
            yield f"{_name(a)} and {_name(b)} overlap"
    for text, box in texts:
        for axes, plot in plots.items():
            if axes is not text.axes and _touch(box, plot, 0, 0) and text not in owner:
                yield f"{_name(text)} lies on the panel {_panel(axes)}"
        for legend, around in legends:
            if owner.get(text) is not legend and _touch(box, around, 0, -LEADING * point):
                yield f"{_name(text)} lies on a legend"
    for legend, box in legends:
        for axes, plot in plots.items():
            if axes is not legend.axes and _touch(box, plot, -ROUNDING * point, -ROUNDING * point):
                yield f"a legend lies on the panel {_panel(axes)}"
    for axes in panels:
        within = [
            (_name(text), box.padded(-LEADING * point))
            for text, box in texts
            if text in axes.texts and text.get_bbox_patch() is None
        ]
        within += [("its legend", box) for legend, box in legends if legend.axes is axes]
        for name, box in within:
            if _covers(axes, box, point):
                yield f"{name} covers what the panel {_panel(axes)} draws"
        yield from _cut_markers(axes, axes.get_window_extent(renderer), point)


def _off_canvas(figure, panels, texts, legends, renderer, point) -> Iterator[str]:
    canvas = figure.bbox.padded(ROUNDING * point)
    free = [
        (
            f"a {type(artist).__name__} of the panel {_panel(axes)}",
            artist.get_window_extent(renderer),
        )
        for axes in panels
        for artist in (*axes.lines, *axes.patches, *axes.collections)
        if artist.get_visible() and not artist.get_clip_on()
    ]
    free += [
        (f"a {type(artist).__name__} of the figure", artist.get_window_extent(renderer))
        for artist in (*figure.lines, *figure.patches, *figure.artists)
        if artist.get_visible() and artist is not figure.patch
    ]
    free += [
        (f"the arrow of {_name(text)}", text.arrow_patch.get_window_extent(renderer))
        for text, _ in texts
        if getattr(text, "arrow_patch", None) is not None
    ]
    boxes = [(_name(text), box) for text, box in texts]
    for name, box in [*boxes, *(("a legend", box) for _, box in legends), *free]:
        over = max(canvas.x0 - box.x0, canvas.y0 - box.y0, box.x1 - canvas.x1, box.y1 - canvas.y1)
        if over > 0:
            yield f"{name} runs {over / point + ROUNDING:.1f} pt off the canvas"


def _legends(figure: Figure) -> list:
    own = [axes.get_legend() for axes in figure.axes if axes.get_visible()]
    return [legend for legend in (*figure.legends, *own) if legend and legend.get_visible()]


def _touch(a: Bbox, b: Bbox, across: float, along: float) -> bool:
    """Whether a and b, each widened by `across` left and right and `along` up and down, overlap."""
    return (
        a.x0 - across < b.x1 + across
        and b.x0 - across < a.x1 + across
        and a.y0 - along < b.y1 + along
        and b.y0 - along < a.y1 + along
    )


def _covers(axes: Axes, box: Bbox, point: float) -> bool:
    """Whether a line, marker or interval of the panel passes through the box."""
    for line in axes.lines:
        path = line.get_path().transformed(line.get_transform())
        if line.get_linestyle() not in ("None", "", " ") and path.intersects_bbox(box, False):
            return True
        reach = box.padded(_radius(line) * point)
        if _radius(line) and any(reach.contains(*at) for at in path.vertices):
            return True
    if any(box.padded(radius * point).contains(*at) for at, radius in _scattered(axes) if radius):
        return True
    bars = [bar for bar in axes.patches if bar.get_zorder() >= 1]  # below: shades behind all
    if any(_touch(bar.get_window_extent(), box, 0, 0) for bar in bars if bar.get_fill()):
        return True
    return any(
        path.transformed(lines.get_transform()).intersects_bbox(box, False)
        for lines in axes.collections
        if isinstance(lines, LineCollection)
        for path in lines.get_paths()
    )


def _radius(line: Line2D) -> float:
    return 0.0 if line.get_marker() in ("None", "", " ", None) else line.get_markersize() / 2


def _scattered(axes: Axes) -> Iterator[tuple[tuple[float, float], float]]:
    """Places and radii, in points, of the markers of scatter plots."""
    for points in axes.collections:
        if isinstance(points, PathCollection) and points.get_visible():
            offsets = np.ma.filled(points.get_offsets(), np.nan)
            sizes = np.resize(points.get_sizes(), len(offsets))  # of area, in points squared
            yield from zip(
                map(tuple, points.get_offset_transform().transform(offsets)),
                np.sqrt(sizes) / 2,
                strict=True,
            )


def _cut_markers(axes: Axes, plot: Bbox, point: float) -> Iterator[str]:
    """A marker may pass the panel's edge by its own edge, as one on an axis of a bar chart does."""
    for line in axes.lines:
        if not (radius := _radius(line)) or not line.get_clip_on():
            continue
        whole = plot.padded((ROUNDING - radius) * point)
        places = line.get_path().transformed(line.get_transform()).vertices
        if lost := [at for at in places if at[0] == at[0] and not whole.contains(*at)]:
            yield f"{len(lost)} of {len(places)} markers are cut at the edge of {_panel(axes)}"
    if any(
        isinstance(points, PathCollection) and not points.get_clip_on()
        for points in axes.collections
    ):
        return
    scattered = [(at, r) for at, r in _scattered(axes) if at[0] == at[0]]
    cut = [at for at, r in scattered if not plot.padded((ROUNDING - r) * point).contains(*at)]
    if cut:
        yield f"{len(cut)} of {len(scattered)} points are cut at the edge of {_panel(axes)}"


def _name(text: Text) -> str:
    return repr(text.get_text())


def _panel(axes: Axes) -> str:
    named = axes.get_title() or axes.get_title("left") or axes.get_xlabel() or axes.get_ylabel()
    return repr(named or f"number {axes.figure.axes.index(axes) + 1}")


# -- notebooks: their kernels measure too ----------------------------------------------------------

STARTUP = """
import atexit, json, sys
sys.path.insert(0, {tests!r})
from figure_boxes import measured
_files = []
_measuring = measured(_files)
_faults = _measuring.__enter__()
atexit.register(lambda: open({report!r}, "w").write(json.dumps([_files, _faults])))
"""


@contextmanager
def measuring_kernels() -> Iterator[tuple[list[str], list[str]]]:
    """Let the IPython kernel that starts meanwhile measure what it saves.

    Yields the names of the files that were measured and what is wrong, both filled at the end.
    The hook is a start-up file of a profile of IPython that only these kernels see.
    """
    files: list[str] = []
    faults: list[str] = []
    before = os.environ.get("IPYTHONDIR")
    with tempfile.TemporaryDirectory() as place:
        startup = Path(place, "profile_default", "startup")
        startup.mkdir(parents=True)
        report = Path(place, "faults.json")
        tests = str(Path(__file__).resolve().parent)
        text = STARTUP.format(tests=tests, report=str(report))
        (startup / "00_figure_boxes.py").write_text(text, encoding="utf-8")
        os.environ["IPYTHONDIR"] = place
        try:
            yield files, faults
        finally:
            if before is None:
                del os.environ["IPYTHONDIR"]
            else:
                os.environ["IPYTHONDIR"] = before
            if report.exists():
                found = json.loads(report.read_text(encoding="utf-8"))
                files += found[0]
                faults += found[1]


def main(profile: str, results: str, *names: str) -> int:
    """Execute notebooks on a results folder; print what is wrong in their figures."""
    from blocklora_lib.suite.catalogue import notebook_names
    from blocklora_lib.suite.execution import run_notebook

    found = 0
    for name in names or notebook_names():
        with measuring_kernels() as (files, faults):
            run_notebook(name, profile, {}, results)
        found += len(faults)
        print(f"{name}: {len(files)} files of figures measured, {len(faults)} faults")
        print(*(f"    {fault}\n" for fault in faults), sep="", end="")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
