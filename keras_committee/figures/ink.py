"""How does a picture look on paper, on a light screen and on a dark one?

Pictures are drawn once, in the colours of paper. In the page their colours become variables of its style sheet, which
has two values for each: one chosen for a light surface, one for a dark one.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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
