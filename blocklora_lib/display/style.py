"""How every figure looks and is saved: width, fonts, colours with one meaning suite-wide.

Nothing here or in the figures touches pyplot or any other global state, so a figure looks the same
wherever it is drawn.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from ..core.files import whole_file
from .labels import with_texts

Draw = TypeVar("Draw", bound=Callable[..., Any])
TEXT_WIDTH = 6.75  # inches: NeurIPS 5.5, ICML 6.75, ECCV 4.8; scaled down, 8 pt stays above 5.5 pt
GREY = "#595959"

# Type 42 keeps text as text (editable, searchable); STIX ships with matplotlib and matches
# Times-like paper text.
STYLE: Mapping[str, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # the latter for letters that the former lacks
    "mathtext.fontset": "stix",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#333333",
    "axes.titlepad": 4,
    "axes.labelpad": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.labelsize": 8.5,
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "axes.unicode_minus": True,
}


def in_style(draw: Draw) -> Draw:
    """The decorator of every function that draws a figure; labels and titles given are texts."""
    asked = inspect.signature(draw)

    @wraps(draw)
    def drawn(*args: Any, **more: Any) -> Any:
        given = asked.bind(*args, **more)
        given.arguments.update(with_texts(given.arguments))
        with rc_context(dict(STYLE)):
            return draw(*given.args, **given.kwargs)

    return drawn  # type: ignore[return-value]


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn in every figure of the suite."""

    colour: str
    marker: str
    line: str = "-"


# Okabe and Ito's colours, which colour-blind readers tell apart; markers and lines repeat the
# message in print.
METHOD_STYLES: Mapping[str, MethodStyle] = {
    "zero_shot": MethodStyle(GREY, "*", ":"),
    "lora": MethodStyle("#0072B2", "o"),
    "block_lora": MethodStyle("#D55E00", "s"),
    "frozen_a": MethodStyle("#009E73", "^", "--"),
    "collapsed": MethodStyle("#CC79A7", "D", "-."),
    "lora_plus": MethodStyle("#CC79A7", "D", "-."),  # the collapsed form by its other name
    "lora_r1": MethodStyle("#56B4E9", "v", "--"),
    "tip_adapter": MethodStyle("#E69F00", "P", "--"),
    "coop": MethodStyle("#8C6D1F", "X", "--"),
    "maple": MethodStyle("#7A4EAB", "<", "--"),
    "promptsrc": MethodStyle("#3A3A3A", ">", "--"),
}
# what else it is compared with, in Paul Tol's muted colours: few of a kind share one, and no two
# share both colour and marker
_TOL = dict(
    indigo="#332288", cyan="#88CCEE", teal="#44AA99", green="#117733", olive="#999933",
    sand="#DDCC77", rose="#CC6677", wine="#882255", purple="#AA4499", brown="#8C6D1F",
)  # fmt: skip
_COMPARED = {
    name: MethodStyle(_TOL[look.split()[0]], look.split()[1], "--")
    for name, look in dict(
        tip_adapter_f="indigo p", clip_adapter="teal h", task_res="purple d", prolip="olive X",
        linear_probe="sand o", lp_plus="green p", zs_lp="wine X", clap="rose h", gda="cyan P",
        proker="olive 8", zero_shot_ensemble="brown 8", coop_4="brown P", kgcoop="rose p",
        prograd="wine d", cocoop="sand h", two_stage="purple p", dora="teal p", pissa="wine h",
        vera="olive d", lora_alpha_r="indigo X", task_res_1="purple 8", lp_plus_last="green 8",
        maple_5="indigo d", promptsrc_45="teal d", prograd_08="wine 8",
        tip_adapter_f_100="indigo 8",
    ).items()
}  # fmt: skip
_SPARE = tuple(MethodStyle(colour, "H", "--") for colour in _TOL.values())
FAMILY = ("lora", "block_lora", "lora_plus", "lora_r1", "frozen_a")
MOST = 8  # methods that are told apart in one panel, beside zero-shot
OTHER = MethodStyle("#b4b4b4", ".", "-")


def method_style(method: str) -> MethodStyle:
    """Return the method's style; an unlisted method's is a spare one that its name decides."""
    listed = METHOD_STYLES.get(method) or _COMPARED.get(method)
    return listed or _SPARE[zlib.crc32(method.encode()) % len(_SPARE)]


def styles_of(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """How each method of a panel is drawn: of more than MOST, those that are none of FAMILY grey.

    Where there are only such, the first MOST keep their own.
    """
    names = list(dict.fromkeys(methods))
    trained = [name for name in names if name != "zero_shot"]
    own = [name for name in trained if name in FAMILY or len(trained) <= MOST]
    grey = set(trained) - set(own or trained[:MOST])
    return {name: OTHER if name in grey else method_style(name) for name in names}


# than planned, or than a neighbour has: captions say from how many to how many
HOLLOW = "hollow: fewer seeds"


def hollow(
    axes: Axes, x: Sequence[float], y: Sequence[float], marker: str, colour: str, **more: Any
) -> None:
    """Draw markers of means that are not complete (see summaries): hollow, over those of a line;
    nothing where all are.
    """
    if not len(x):
        return
    look = {
        "color": colour,
        "markerfacecolor": "white",
        "markeredgecolor": colour,
        "markeredgewidth": 1.0,
    }
    axes.plot(x, y, marker, linestyle="none", **{"zorder": 3.5, **look, **more})


def hollow_handle(text: str = HOLLOW) -> Line2D:
    """Return what explains a hollow marker in a legend."""
    return Line2D(
        [], [], color="#8c8c8c", marker="o", markerfacecolor="white", linestyle="none", label=text
    )


def method_handle(method: str, label: str, **more: Any) -> Line2D:
    """Return what explains a method's marker and line in a legend."""
    return style_handle(method_style(method), label, **more)


def style_handle(style: MethodStyle, label: str, **more: Any) -> Line2D:
    """Return what explains a marker and a line in a legend."""
    look = dict(color=style.colour, marker=style.marker, linestyle=style.line, markersize=4.5)
    look |= dict(markeredgecolor="white", markeredgewidth=0.4, label=label)
    return Line2D([], [], **look | more)


def legend_outside(
    figure: Figure, handles: Sequence[Artist], where: str = "upper center", **look: Any
) -> None:
    """Add a legend outside the panels: in the fewest lines that fit the width, with their height.

    where: "upper center", "lower center" or "right upper"; on the right it is one column.
    """
    width, height = figure.get_size_inches()
    for lines in range(1, len(handles) + 1):
        columns = 1 if where.startswith("right") else math.ceil(len(handles) / lines)
        legend = figure.legend(handles=handles, loc=f"outside {where}", ncols=columns, **look)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= 0.96 * figure.bbox.width:
            break
        legend.remove()
    needed = box.height / figure.dpi
    if where.startswith("right"):
        figure.set_size_inches(width, max(height, needed + 0.1))
    else:  # a figure's height counts with one line
        figure.set_size_inches(width, height + max(0.0, needed - 0.25))


def apart(places: Sequence[float], gap: float) -> list[bool]:
    """Return which of ascending places can be labelled so that labels are at least `gap` apart."""
    kept: list[bool] = []
    last = -math.inf
    for place in places:
        kept.append(place - last >= gap)
        last = place if kept[-1] else last
    return kept


def new_figure(width: float = TEXT_WIDTH, height: float = 2.6) -> Figure:
    """Return an empty figure, in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    return figure


@in_style
def save_figure(figure: Figure, stem: Path, note: str | None = None) -> list[Path]:
    """Write stem.pdf (Type 42 fonts) and stem.png, with `note` in a strip under the figure.

    The note says what a profile's results are not. The strip is added below the figure's own edge,
    so that neither its layout nor its width changes, whoever drew it.
    """
    width, height = figure.get_size_inches()
    strip = 0.24 if note else 0.0
    if note:
        look = dict(ha="center", fontsize=7.5, style="italic", color=GREY)
        figure.text(0.5, -0.8 * strip / height, note, **look)
    # lay it out as it is, and keep that: the page that follows is larger
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    box = Bbox([[0, -strip], [width, height]])
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    # No dates in the files: the same records give the same bytes.
    for path, dated in zip(paths, ("CreationDate", "Software"), strict=True):
        with whole_file(path) as temporary:
            figure.savefig(temporary, bbox_inches=box, metadata={dated: None})
    return paths


def plain_log_ticks(axis: Axis) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade in plain numbers, once data are drawn.

    Where it spans too little for two of them, marks are even.
    """
    low, high = axis.get_view_interval()
    narrow = high < 5 * low
    axis.set_major_locator(
        MaxNLocator(4, steps=[1, 2, 5, 10]) if narrow else LogLocator(subs=(1, 2, 5))
    )
    axis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return the places nearest to values, in their order, that are at least `gap` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []  # [sum of (value - offset), size]
    for i in order:
        blocks.append([values[i], 1])
        while (
            len(blocks) > 1
            and blocks[-2][0] / blocks[-2][1] + gap * blocks[-2][1] > blocks[-1][0] / blocks[-1][1]
        ):
            total, size = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total - gap * blocks[-1][1] * size, blocks[-1][1] + size]
    places = [total / size + gap * k for total, size in blocks for k in range(int(size))]
    return [places[order.index(i)] for i in range(len(values))]
