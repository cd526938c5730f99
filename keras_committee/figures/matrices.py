"""Heatmaps of matrices, and galleries of images with predictions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from keras_committee.figures.style import BACKGROUND, FOREGROUND, GRID_LINE, MUTED, NARROW_INCHES, color

MAX_LABELED_ROWS = 20  # more rows are not legible
MAX_ANNOTATED_ROWS = 12  # up to this size every cell shows its value


def heatmap(values: np.ndarray, names: Sequence[str], axes_names: tuple[str, str], digits: int, width: float) -> Figure:
    """Draw a matrix of fractions in percent; darker is more, the diagonal is gray.

    Args:
        values: Floats `(n, n)`.
        names: Names of the rows and columns.
        axes_names: Labels of the vertical and the horizontal axis, possibly empty.
        digits: Digits after the decimal point.
        width: In inches; the figure is square, up to 6 inches.
    """
    narrow = width <= NARROW_INCHES
    side = min(width, 1.6 + 0.55 * len(names), 6.0)
    figure = Figure((side, side * (0.95 if len(names) > 4 else 0.8)))
    axes = figure.subplots()
    off_diagonal = ~np.eye(len(names), dtype=bool)
    max_value = max(float(values[off_diagonal].max()) if off_diagonal.any() else 0.0, 1e-12)
    for row, column in zip(*np.nonzero(off_diagonal), strict=True):
        _draw_cell(
            axes,
            row,
            column,
            float(values[row, column]),
            max_value,
            len(names),
            0 if narrow and len(names) > 6 else digits,
        )
    for index in range(len(names)):
        axes.add_patch(
            Rectangle((index - 0.5, index - 0.5), 1, 1, facecolor=GRID_LINE, edgecolor=BACKGROUND, linewidth=1.2)
        )
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    size = 8.5 if len(names) <= MAX_ANNOTATED_ROWS else 6.5
    axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0, fontsize=size,
                    ha="right" if max(map(len, names)) > 3 else "center", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylabel(axes_names[0])
    axes.set_xlabel(axes_names[1])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def confusion_heatmap(row_fractions: np.ndarray, names: Sequence[str], width: float) -> Figure:
    """Draw a confusion matrix in percent of each true class: the recall on the diagonal, errors as in `heatmap`.

    Args:
        row_fractions: Floats `(classes, classes)`: true class (row), predicted class (column).
        names: Names of the classes.
        width: In inches.
    """
    figure = heatmap(row_fractions, names, ("true class", "predicted class"), 0, width)
    [axes] = figure.axes
    for index, recall in enumerate(np.diag(row_fractions).tolist()):
        corner = (index - 0.5, index - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color(1), alpha=0.7 * recall, linewidth=0))
        _draw_value(axes, index, index, recall, len(names), 0, weight="bold")
    return figure


def image_gallery(
    images: Sequence[np.ndarray], true_classes: Sequence[str], predictions: Sequence[Sequence[str]], width: float
) -> Figure:
    """Draw images with their true class above and the members' predictions below.

    Args:
        images: uint8 `(height, width, channels)` each.
        true_classes: Class name of each image.
        predictions: Lines of text below each image.
        width: In inches.
    """
    columns = 3 if width <= NARROW_INCHES else 6
    rows = -(-len(images) // columns)
    max_lines = max(len(lines) for lines in predictions)
    figure = Figure((width, rows * (width / columns + 0.34 + 0.16 * max_lines)))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, true_class, member_lines in zip(grid.flat, images, true_classes, predictions, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(true_class, fontsize=8.5, color=FOREGROUND, pad=3)
        axes.text(
            0.5,
            -0.04,
            "\n".join(member_lines),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=7.5,
            color=MUTED,
        )
    return figure


def _draw_cell(axes: Axes, row: int, column: int, value: float, max_value: float, num_rows: int, digits: int) -> None:
    # Transparent, so that a pale cell is also pale on a dark background and the number stays legible.
    axes.add_patch(
        Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color(0), alpha=0.7 * value / max_value, linewidth=0)
    )
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=BACKGROUND, linewidth=1.2))
    if num_rows <= MAX_ANNOTATED_ROWS and round(100 * value, digits) > 0:
        _draw_value(axes, row, column, value, num_rows, digits)


def _draw_value(
    axes: Axes, row: int, column: int, value: float, num_rows: int, digits: int, weight: str = "normal"
) -> None:
    axes.text(
        column,
        row,
        f"{100 * value:.{digits}f}",
        ha="center",
        va="center",
        fontsize=8 if num_rows <= 8 else 7 if num_rows <= MAX_ANNOTATED_ROWS else 5.5,
        color=FOREGROUND,
        weight=weight,
    )
