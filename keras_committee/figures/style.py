"""How does a picture look on paper, on a light screen and on a dark one?

Pictures are drawn once, in the colours of paper. In the page their colours become variables of its style sheet, which
has two values for each: one chosen for a light surface, one for a dark one.
"""

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

_CLEAR = 4.5  # points around the middle of a marker that stay free
# Alignment of the text, and how far from its point it hangs, in points; where two are as free, the first is taken.
_PLACES = {
    "right": ("left", "center", 8, 0), "above": ("center", "bottom", 0, 7), "below": ("center", "top", 0, -7),
    "left": ("right", "center", -8, 0), "above left": ("right", "bottom", -5, 5), "below right": ("left", "top", 5, -5),
    "above right": ("left", "bottom", 5, 5), "below left": ("right", "top", -5, -5),
    "far above left": ("right", "bottom", -9, 15), "far below right": ("left", "top", 9, -15),
    "far above": ("center", "bottom", 0, 18), "far below": ("center", "top", 0, -18),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A text for the point `(x, y)`, in the units of the data; `first` are the places that suit it best."""

    x: float
    y: float
    text: str
    colour: str
    size: float = 8.5
    weight: str = "normal"
    first: tuple[str, ...] = ()


def place(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]], lines: Sequence = ()) -> None:
    """Writes each label where it covers least, the earlier ones first.

    Args:
        axes: Finished but for its labels: its limits no longer change.
        labels: What to write.
        points: Markers to keep clear of, in the units of the data.
        lines: Polylines `(n, 2)` that are better not crossed.
    """
    canvas = FigureCanvasAgg(axes.get_figure(root=True))
    settle(canvas.figure)
    unit, renderer = canvas.figure.dpi / 72, canvas.get_renderer()
    taken = [_around(axes, point, _CLEAR * unit) for point in points]
    crossed = [_around(axes, point, unit) for line in lines for point in _dense(axes, line)]
    room = axes.get_window_extent(renderer)
    for label in labels:
        tries = [
            (_covered(box, taken, crossed, room) + rank, text, box) for rank, text, box in _tries(axes, label, renderer)
        ]
        _, best, box = min(tries, key=lambda each: each[0])
        for _, text, _ in tries:
            text.set_visible(text is best)
        taken.append(box)
    for text in [text for text in axes.texts if not text.get_visible()]:
        text.remove()


def _tries(axes: Axes, label: Label, renderer) -> Iterator[tuple[int, Annotation, Bbox]]:
    for rank, where in enumerate(dict.fromkeys((*label.first, *_PLACES))):
        across, up, right, above = _PLACES[where]
        text = axes.annotate(
            label.text, (label.x, label.y), (right, above), textcoords="offset points", ha=across, va=up,
            color=label.colour, fontsize=label.size, fontweight=label.weight, annotation_clip=False,
        )  # fmt: skip
        text.set_in_layout(False)
        yield rank, text, text.get_window_extent(renderer)


def _covered(box: Bbox, taken: list[Bbox], crossed: list[Bbox], room: Bbox) -> float:
    """What is wrong with a place: other texts and markers weigh most, then the border, then lines."""
    outside = max(room.x0 - box.x0, 0) + max(box.x1 - room.x1, 0) + max(room.y0 - box.y0, 0) + max(box.y1 - room.y1, 0)
    return 1000 * box.count_overlaps(taken) + 50 * outside + 20 * box.count_overlaps(crossed)


def _around(axes: Axes, point, radius: float) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def _dense(axes: Axes, line) -> np.ndarray:
    """Points along a polyline, close to each other on the screen, in the units of the data."""
    corners = axes.transData.transform(np.asarray(line, float))
    steps = np.linspace(0, len(corners) - 1, 25 * max(len(corners) - 1, 1))
    along = np.stack([np.interp(steps, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)
    return axes.transData.inverted().transform(along)


INK, QUIET, LINE, PAPER = "#16202a", "#5a6672", "#dfe4e8", "#fffffe"
FRONT = "#d2dbe3"  # broad, and behind everything
# Told apart by readers with any of the common kinds of colour blindness, and by the shapes of MARKERS.
SERIES = ("#0068b5", "#c84b00", "#00795a", "#93358f", "#8a6100", "#47525d")
DARK_SERIES = ("#62b5f5", "#ff9a57", "#3fcb9f", "#e294dc", "#e9bd4b", "#aeb8c2")
MARKERS = ("o", "s", "^", "D", "v", "P")
_VARIABLES = {INK: "ink", QUIET: "quiet", LINE: "line", FRONT: "front", PAPER: "paper"} | {
    colour: f"series-{place}" for place, colour in enumerate(SERIES)
}
WIDE, NARROW = 7.6, 3.9  # inches: a column of text, and a phone
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 8.5,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "path.simplify": False,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that can be drawn at any width.

    Attributes:
        name: Name of its file, without the ending.
        says: What it shows, for those who cannot see it.
        draw: Function of the width in inches that returns a new figure.
    """

    name: str
    says: str
    draw: Callable[[float], Figure]

    def png(self, dots_per_inch: int = 200) -> bytes:
        """For README pages and TensorBoard."""
        with _style(self.name):
            content = io.BytesIO()
            settle(self.draw(WIDE)).savefig(content, format="png", dpi=dots_per_inch, metadata={"Software": None})
        return content.getvalue()

    def svg(self, width: float) -> str:
        """For the page: text stays text, colours are the page's variables, and nothing is loaded from anywhere."""
        salt = f"{self.name}-{width}"
        with _style(salt):
            content = io.StringIO()
            settle(self.draw(width)).savefig(content, format="svg")
        return _inlined(content.getvalue())


def settle(figure: Figure) -> Figure:
    """Lays out the figure for good: it would be laid out anew at each drawing, which takes longer than the drawing."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


def colour(place: int) -> str:
    """The colour of series number `place`."""
    return SERIES[place % len(SERIES)]


def marker(place: int) -> str:
    """The shape of series number `place`: another one where the colours begin anew."""
    return MARKERS[(place + place // len(SERIES)) % len(MARKERS)]


@contextlib.contextmanager
def _style(salt: str) -> Iterator[None]:
    # The salt makes the ids inside each picture its own, and the same in every writing of the report.
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        yield


def _inlined(svg: str) -> str:
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"(?:[A-Za-z0-9.]+_)+\d+\"", "", svg)  # names of the parts, the same in every picture
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^;\"']*?)'[^;\"]*", r"font: \1var(--font)", svg)
    # A point is a 72nd of an inch, and an inch 100 pixels of the page: a picture never stands larger than it was drawn.
    width = float(svg.partition(' width="')[2].partition("pt")[0])
    svg = re.sub(r"(<svg [^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"", r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg style="max-width: {width / 0.72:.0f}px" aria-hidden="true" focusable="false" ', 1)
    for paper, variable in _VARIABLES.items():
        svg = svg.replace(paper, f"var(--{variable})")
    return svg


def round_numbers(axis: Axis, low: float, high: float) -> None:
    """Round numbers between `low` and `high`, written out, on a logarithmic axis."""
    few, some, many = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    digits = few if high / low > 12 else some if high / low > 2.5 else many
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def whole_numbers(axis: Axis, most: int) -> None:
    """A few whole numbers from 1 to `most`, though the axis may go on."""
    ticks = MaxNLocator(8, integer=True).tick_values(1, max(most, 2))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if 1 <= tick <= most]))
