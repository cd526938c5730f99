"""Figure style: colors, fonts, label placement, ticks, and conversion to PNG and SVG.

Figures are drawn once, in the colors for paper. In the SVG of an HTML page, colors are replaced by CSS variables, which
the page defines for a light and for a dark background.
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

from keras_committee.step_display import in_notebook

FOREGROUND, MUTED, GRID_LINE, BACKGROUND = "#16202a", "#5a6672", "#dfe4e8", "#fffffe"
PARETO_FRONT = "#d2dbe3"  # a broad line behind everything
# Distinguishable with the common kinds of color blindness, and by the shapes of MARKERS.
SERIES_COLORS = ("#0068b5", "#c84b00", "#00795a", "#93358f", "#8a6100", "#47525d")
DARK_SERIES_COLORS = ("#62b5f5", "#ff9a57", "#3fcb9f", "#e294dc", "#e9bd4b", "#aeb8c2")
MARKERS = ("o", "s", "^", "D", "v", "P")
_CSS_VARIABLES = {
    FOREGROUND: "foreground",
    MUTED: "muted",
    GRID_LINE: "grid",
    PARETO_FRONT: "front",
    BACKGROUND: "background",
} | {color: f"series-{index}" for index, color in enumerate(SERIES_COLORS)}
WIDE_INCHES, NARROW_INCHES = 7.6, 3.9  # a column of text, and a phone
_RC_PARAMS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": FOREGROUND,
    "text.parse_math": False,  # class names may contain $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.facecolor": BACKGROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID_LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": BACKGROUND,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "path.simplify": False,
}

_MARKER_CLEARANCE = 4.5  # points around the center of a marker that stay free
# Alignment of the text and its offset in points; of equally good positions the first is used.
_LABEL_POSITIONS = {
    "right": ("left", "center", 8, 0), "above": ("center", "bottom", 0, 7), "below": ("center", "top", 0, -7),
    "left": ("right", "center", -8, 0), "above left": ("right", "bottom", -5, 5), "below right": ("left", "top", 5, -5),
    "above right": ("left", "bottom", 5, 5), "below left": ("right", "top", -5, -5),
    "far above left": ("right", "bottom", -9, 15), "far below right": ("left", "top", 9, -15),
    "far above": ("center", "bottom", 0, 18), "far below": ("center", "top", 0, -18),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure that can be drawn at any width.

    Attributes:
        name: File name without extension.
        caption: Description for screen readers.
        draw: Function of the width in inches that returns a new `Figure`.
    """

    name: str
    caption: str
    draw: Callable[[float], Figure]

    def png(self, dots_per_inch: int = 200) -> bytes:
        """Return the PNG file, for README pages and TensorBoard."""
        with _plot_style(self.name):
            content = io.BytesIO()
            freeze_layout(self.draw(WIDE_INCHES)).savefig(
                content, format="png", dpi=dots_per_inch, metadata={"Software": None}
            )
        return content.getvalue()

    def figure(self, width: float = WIDE_INCHES) -> Figure:
        """Return the Matplotlib figure, which a notebook shows as the last value of a cell."""
        _show_figures_in_notebook()
        with _plot_style(self.name):
            return freeze_layout(self.draw(width))

    def svg(self, width: float) -> str:
        """Return SVG for an HTML page: text stays text, colors are CSS variables, nothing is loaded."""
        salt = f"{self.name}-{width}"
        with _plot_style(salt):
            content = io.StringIO()
            freeze_layout(self.draw(width)).savefig(content, format="svg")
        return _prepare_inline_svg(content.getvalue())


def _show_figures_in_notebook() -> None:
    """Let IPython draw figures that no `pyplot` made, as it draws the others."""
    if in_notebook():
        from IPython.core.getipython import get_ipython  # a notebook has it  # pyright: ignore[reportMissingImports]
        from IPython.core.pylabtools import select_figure_formats  # pyright: ignore[reportMissingImports]

        shell: Any = get_ipython()
        if Figure not in shell.display_formatter.formatters["image/png"].type_printers:
            select_figure_formats(shell, {"png"})


def freeze_layout(figure: Figure) -> Figure:
    """Compute the layout once; otherwise every drawing repeats it, which takes longer than the drawing itself."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


def color(index: int) -> str:
    """Return the color of series number `index`."""
    return SERIES_COLORS[index % len(SERIES_COLORS)]


def marker(index: int) -> str:
    """Return the marker of series number `index`; it differs where colors repeat."""
    return MARKERS[(index + index // len(SERIES_COLORS)) % len(MARKERS)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A text label for a data point.

    Attributes:
        x, y: The point, in data coordinates.
        text: The label.
        color: Text color.
        size: Font size in points.
        weight: Font weight.
        preferred_positions: Names of positions that are tried first.
    """

    x: float
    y: float
    text: str
    color: str
    size: float = 8.5
    weight: str = "normal"
    preferred_positions: tuple[str, ...] = ()


def place_labels(
    axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]], lines: Sequence = ()
) -> None:
    """Place each label where it overlaps least, in order.

    Args:
        axes: Axes with final limits.
        labels: Labels to place.
        points: Markers to keep free, in data coordinates.
        lines: Polylines `(n, 2)` to avoid, in data coordinates.
    """
    canvas = FigureCanvasAgg(axes.get_figure(root=True))
    freeze_layout(canvas.figure)
    pixels_per_point, renderer = canvas.figure.dpi / 72, canvas.get_renderer()
    occupied = [_box_around(axes, point, _MARKER_CLEARANCE * pixels_per_point) for point in points]
    line_boxes = [
        _box_around(axes, point, pixels_per_point) for line in lines for point in _resample_polyline(axes, line)
    ]
    axes_box = axes.get_window_extent(renderer)
    for label in labels:
        candidates = [
            (_overlap_penalty(box, occupied, line_boxes, axes_box) + rank, text, box)
            for rank, text, box in _candidate_annotations(axes, label, renderer)
        ]
        _, best_text, box = min(candidates, key=lambda candidate: candidate[0])
        for _, text, _ in candidates:
            text.set_visible(text is best_text)
        occupied.append(box)
    for text in [text for text in axes.texts if not text.get_visible()]:
        text.remove()


def set_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Set round ticks between `low` and `high` on a logarithmic axis, as plain numbers."""
    coarse, medium, fine = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    mantissas = coarse if high / low > 12 else medium if high / low > 2.5 else fine
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        mantissa * 10.0**power for power in powers for mantissa in mantissas if low <= mantissa * 10.0**power <= high
    ]
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def set_integer_ticks(axis: Axis, maximum: int) -> None:
    """Set a few integer ticks from 1 to `maximum`, also if the axis is longer."""
    ticks = MaxNLocator(8, integer=True).tick_values(1, max(maximum, 2))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if 1 <= tick <= maximum]))


@contextlib.contextmanager
def _plot_style(salt: str) -> Iterator[None]:
    # The salt makes the ids in each figure unique, and equal each time the report is written.
    rc_params: dict[Any, Any] = {**_RC_PARAMS, "svg.hashsalt": salt}
    with matplotlib.rc_context(rc_params):
        yield


def _prepare_inline_svg(svg: str) -> str:
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"(?:[A-Za-z0-9.]+_)+\d+\"", "", svg)  # names of the parts, equal in every figure
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^;\"']*?)'[^;\"]*", r"font: \1var(--font)", svg)
    # A point is 1/72 inch and an inch 100 CSS pixels: a figure is never shown larger than it was drawn.
    width = float(svg.partition(' width="')[2].partition("pt")[0])
    svg = re.sub(r"(<svg [^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"", r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg style="max-width: {width / 0.72:.0f}px" aria-hidden="true" focusable="false" ', 1)
    for light_color, variable in _CSS_VARIABLES.items():
        svg = svg.replace(light_color, f"var(--{variable})")
    return svg


def _candidate_annotations(axes: Axes, label: Label, renderer) -> Iterator[tuple[int, Annotation, Bbox]]:
    for rank, position in enumerate(dict.fromkeys((*label.preferred_positions, *_LABEL_POSITIONS))):
        horizontal_alignment, vertical_alignment, dx, dy = _LABEL_POSITIONS[position]
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            (dx, dy),
            textcoords="offset points",
            ha=horizontal_alignment,
            va=vertical_alignment,
            color=label.color,
            fontsize=label.size,
            fontweight=label.weight,
            annotation_clip=False,
        )
        text.set_in_layout(False)
        yield rank, text, text.get_window_extent(renderer)


def _overlap_penalty(box: Bbox, occupied: list[Bbox], line_boxes: list[Bbox], axes_box: Bbox) -> float:
    """Return a penalty: overlaps with texts and markers weigh most, then the border, then lines."""
    outside = (
        max(axes_box.x0 - box.x0, 0)
        + max(box.x1 - axes_box.x1, 0)
        + max(axes_box.y0 - box.y0, 0)
        + max(box.y1 - axes_box.y1, 0)
    )
    return 1000 * box.count_overlaps(occupied) + 50 * outside + 20 * box.count_overlaps(line_boxes)


def _box_around(axes: Axes, point, radius: float) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def _resample_polyline(axes: Axes, line) -> np.ndarray:
    """Return points along a polyline that are close to each other on the screen, in data coordinates."""
    corners = axes.transData.transform(np.asarray(line, float))
    steps = np.linspace(0, len(corners) - 1, 25 * max(len(corners) - 1, 1))
    resampled = np.stack([np.interp(steps, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)
    return axes.transData.inverted().transform(resampled)
