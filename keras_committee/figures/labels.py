"""Where does a label stand, so that it covers neither a point nor another label?"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from keras_committee.figures.ink import settle

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
