"""Curves: training, stochastic depth, reliability and robustness."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_committee import metrics
from keras_committee.figures.style import (
    FOREGROUND,
    MUTED,
    NARROW_INCHES,
    Label,
    color,
    place_labels,
    set_integer_ticks,
    set_log_ticks,
)

Curve = tuple[Sequence[float], Sequence[float]]


def training_curves(members: Mapping[int, Sequence[dict]], committee: Curve | None, width: float) -> Figure:
    """Plot training loss and validation accuracy of each member over the epochs.

    Args:
        members: Rows of each member's history, by member index.
        committee: Epochs and the committee's validation accuracy after each; None if unknown.
        width: In inches.
    """
    figure, (left, right) = _two_panels(width)
    alphas = _member_alphas(len(members))
    for rows, alpha in zip(members.values(), alphas, strict=True):
        epochs = [row["epoch"] for row in rows]
        style = {"color": color(0), "alpha": alpha, "linewidth": 1.3, **_marker_style(len(rows))}
        left.plot(epochs, [row["loss"] for row in rows], **style)
        right.plot(epochs, [100 * row["validation_accuracy"] for row in rows], **style)
    if committee is not None:
        accuracy = 100 * np.asarray(committee[1])
        right.plot(committee[0], accuracy, color=color(1), linewidth=1.8, **_marker_style(len(accuracy)))
    _set_title(left, "training loss (logarithmic)")
    left.set_yscale("log")
    set_log_ticks(left.yaxis, *left.get_ylim())
    _set_title(right, "validation accuracy, %")
    for axes in (left, right):
        _format_epoch_axis(axes, max(row["epoch"] for rows in members.values() for row in rows))
    _label_curves(right, members, committee)
    return figure


def depth_curves(
    runs: Mapping[str, Mapping[int, Sequence[dict]]], blocks: int, expected: float, width: float
) -> Figure:
    """Plot the residual blocks that ran per training step and the images per second over the epochs.

    Args:
        runs: Rows of the members' histories, by run name; without stochastic depth only the speed is plotted.
        blocks: Number of residual blocks with stochastic depth.
        expected: Expected number of blocks that run.
        width: In inches.
    """
    figure, (left, right) = _two_panels(width)
    for index, members in enumerate(runs.values()):
        for rows in members.values():
            epochs = [row["epoch"] for row in rows]
            style = {"color": color(index), "linewidth": 1.3, **_marker_style(len(rows))}
            if "realised_depth" in rows[0]:
                left.plot(epochs, [row["realised_depth"] for row in rows], **style)
            right.plot(epochs, [row["images_per_second"] for row in rows], **style)
    for height, text in ((blocks, "all blocks"), (expected, "expected")):
        left.axhline(height, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        left.annotate(text, (1, height), (0, 3), xycoords=left.get_yaxis_transform(), textcoords="offset points",
                      ha="right", color=MUTED, fontsize=8)  # fmt: skip
    left.set_ylim(0, blocks * 1.12)
    right.set_ylim(bottom=0)
    _set_title(left, "residual blocks run per step, mean of the epoch")
    _set_title(right, "images per second in training")
    max_epoch = max(row["epoch"] for members in runs.values() for rows in members.values() for row in rows)
    for axes in (left, right):
        _format_epoch_axis(axes, max_epoch)
    _label_runs(right, runs)
    return figure


def reliability_diagrams(panels: Sequence[tuple[str, Sequence[Curve], Curve]], width: float) -> Figure:
    """Plot accuracy over confidence, one panel per architecture: members thin, committee bold, diagonal dashed.

    Args:
        panels: Name, curves of the members and curve of the committee: confidence and accuracy of each bin.
        width: In inches.
    """
    columns = min(len(panels), 2 if width <= NARROW_INCHES else 3)
    rows = -(-len(panels) // columns)
    side = min(width / columns, 3.6)
    figure = Figure((side * columns, side * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, members, committee) in zip(grid.flat, panels, strict=False):
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for confidence, accuracy in members:
            axes.plot(100 * np.asarray(confidence), 100 * np.asarray(accuracy), color=color(0), alpha=0.45, linewidth=1)
        axes.plot(
            *(100 * np.asarray(values) for values in committee), "o-", color=color(1), linewidth=1.8, markersize=3.5
        )
        axes.set(xlim=(0, 101), ylim=(0, 101), aspect="equal")
        _set_title(axes, name)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("confidence, %")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    return figure


def reliability_data(
    name: str, members: np.ndarray, committee: np.ndarray, labels: np.ndarray
) -> tuple[str, Sequence[Curve], Curve]:
    """Return a panel of `reliability_diagrams`.

    Args:
        name: Title of the panel.
        members: Probabilities `(examples, members, classes)`.
        committee: Probabilities `(examples, classes)`.
        labels: Integers `(examples,)`.
    """
    member_curves = [_reliability_points(members[:, index], labels) for index in range(members.shape[1])]
    return name, member_curves, _reliability_points(committee, labels)


def _reliability_points(probabilities: np.ndarray, labels: np.ndarray) -> Curve:
    """Return confidence and accuracy of those of 15 bins that hold 1 in 500 examples and at least five.

    Args:
        probabilities: Floats `(examples, classes)`.
        labels: Integers `(examples,)`.
    """
    curve = metrics.reliability_curve(probabilities, labels, 15)
    has_enough_examples = curve["count"] >= max(5, len(labels) / 500)
    return curve["confidence"][has_enough_examples].tolist(), curve["accuracy"][has_enough_examples].tolist()


def robustness_curves(severities: Mapping[int, tuple[float, float]], width: float) -> Figure:
    """Plot the accuracy of the mean member and the committee over the severity of corruptions.

    Args:
        severities: `(mean member, committee)` accuracy by severity; 0 is uncorrupted.
        width: In inches.
    """
    figure = Figure((width, 3.1))
    axes = figure.subplots()
    end_labels = []
    for index, name in enumerate(("mean member", "committee")):
        heights = [100 * accuracies[index] for accuracies in severities.values()]
        axes.plot(list(severities), heights, "o-", color=color(index), linewidth=1.6, markersize=4)
        end_labels.append(Label(x=max(severities), y=heights[-1], text=name, color=color(index), weight="bold",
                           preferred_positions=("right", "below right", "above right")))  # fmt: skip
    _set_title(axes, "accuracy, %")
    axes.set_xlabel("severity of the corruption")
    axes.set_xticks(list(severities))
    _widen_x_axis(axes)
    place_labels(
        axes, end_labels[::-1], [(label.x, label.y) for label in end_labels], [line.get_xydata() for line in axes.lines]
    )
    return figure


def risk_coverage_curves(curves: Mapping[str, Curve], width: float) -> Figure:
    """Plot the error rate among the most confident answers over the fraction of answers that are accepted.

    Args:
        curves: Coverage and risk by the name of the predictor.
        width: In inches.
    """
    figure = Figure((width, 3.1))
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        coverage, risk = (100 * np.asarray(values) for values in curve)
        axes.plot(coverage, risk, color=color(index), linewidth=1.6, label=name)
    for percent in (1, 5):
        axes.axhline(percent, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    _set_title(axes, "error rate among accepted answers, %")
    axes.set_xlabel("accepted answers, %")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, None)
    axes.legend(frameon=False, loc="upper left")
    return figure


def accuracy_front(
    front: Sequence[tuple[float, float]], selected: tuple[float, float], name: str, width: float
) -> Figure:
    """Plot accuracy over MFLOPs (logarithmic): the Pareto front as a line, what was selected as a star.

    Args:
        front: MFLOPs and accuracy of each point, by ascending cost; NaN where a cost is unknown.
        selected: Those of the selected committee or cascade.
        name: Label of the selected one.
        width: In inches.
    """
    figure = Figure((width, 3.1))
    axes = figure.subplots()
    costs, accuracies = np.array([*front, selected]).T
    axes.plot(costs[:-1], 100 * accuracies[:-1], "o-", color=color(0), linewidth=1.6, markersize=4, label="committees")
    axes.plot(costs[-1:], 100 * accuracies[-1:], "*", color=FOREGROUND, markersize=14, label=f"selected {name}")
    _set_title(axes, "validation accuracy, %")
    axes.set_xlabel("MFLOPs for one image, logarithmic")
    axes.set_xscale("log")
    if np.isfinite(costs).any():
        set_log_ticks(axes.xaxis, *axes.get_xlim())
    axes.legend(frameon=False, loc="lower right")
    return figure


def _two_panels(width: float) -> tuple[Figure, Sequence[Axes]]:
    narrow = width <= NARROW_INCHES
    figure = Figure((width, 5.2 if narrow else 3.1))
    return figure, figure.subplots(2, 1) if narrow else figure.subplots(1, 2)


def _set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, color=MUTED)


def _marker_style(epochs: int) -> dict:
    """Return markers for up to 15 epochs; a single epoch has no line."""
    return {"marker": "o", "markersize": 3 if epochs <= 15 else 0}


def _member_alphas(members: int) -> np.ndarray:
    return np.linspace(1.0, 0.4, members)


def _format_epoch_axis(axes: Axes, max_epoch: int) -> None:
    axes.set_xlabel("epoch")
    set_integer_ticks(axes.xaxis, max_epoch)
    axes.set_xlim(1 - 0.03 * max_epoch, 1 + 1.03 * (max_epoch - 1) + (0.6 if max_epoch == 1 else 0))


def _label_curves(axes: Axes, members: Mapping[int, Sequence[dict]], committee: Curve | None) -> None:
    _widen_x_axis(axes)
    end_points = [(rows[-1]["epoch"], 100 * rows[-1]["validation_accuracy"]) for rows in members.values()]
    labels = [Label(x=max(x for x, _ in end_points), y=min(y for _, y in end_points), text="members", color=color(0),
                    weight="bold", preferred_positions=("right", "below right"))]  # fmt: skip
    if committee is not None:
        labels.append(Label(x=committee[0][-1], y=100 * committee[1][-1], text="committee", color=color(1),
                            weight="bold", preferred_positions=("right", "above right")))  # fmt: skip
    place_labels(axes, labels, end_points, [line.get_xydata() for line in axes.lines])


def _widen_x_axis(axes: Axes) -> None:
    """Make room for labels after the last point."""
    first, last = axes.get_xlim()
    axes.set_xlim(first, last + 0.3 * (last - first))


def _label_runs(axes: Axes, runs: Mapping[str, Mapping[int, Sequence[dict]]]) -> None:
    _widen_x_axis(axes)
    last_rows = [(next(iter(members.values()))[-1], index, name) for index, (name, members) in enumerate(runs.items())]
    labels = [
        Label(x=row["epoch"], y=row["images_per_second"], text=name, color=color(number), weight="bold",
              preferred_positions=("right", "below right", "above right"))
        for row, number, name in last_rows
    ]  # fmt: skip
    place_labels(axes, labels, [(label.x, label.y) for label in labels], [line.get_xydata() for line in axes.lines])
