"""Plots of accuracy against cost, gain by committee size, and cascade exits."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keras_committee.evaluation.report.run_data import CostPoint, SelectedCommittee, Series
from keras_committee.figures.style import (
    BACKGROUND,
    FOREGROUND,
    MUTED,
    NARROW_INCHES,
    PARETO_FRONT,
    Label,
    color,
    marker,
    place_labels,
    set_log_ticks,
)

TIMES_SIGN = "\N{MULTIPLICATION SIGN}"


def accuracy_against_mflops(
    series: Sequence[Series],
    selected: Sequence[SelectedCommittee],
    front: Sequence[CostPoint],
    split: str,
    width: float,
) -> Figure:
    """Plot accuracy over MFLOPs (logarithmic): single networks hollow, committees filled, cascades as stars.

    Series and selections with an unknown cost are left out; at least one cost is known.
    """
    series = [_without_unknown_costs(architecture) for architecture in series]
    selected = [committee for committee in selected if math.isfinite(committee.mflops)]
    narrow = width <= NARROW_INCHES
    figure = Figure((width, 4.6 if narrow else 5.0))
    axes = figure.subplots()
    _draw_front(axes, front)
    for index, architecture in enumerate(series):
        _draw_series(axes, architecture, _series_color(architecture, index), marker(index))
    for committee in selected:
        _draw_selected(axes, committee)
    _set_log_axes(
        axes,
        [*_error_bar_ends(series), *((committee.mflops, 100 * committee.scores["accuracy"]) for committee in selected)],
    )
    axes.set_xlabel(f"MFLOPs for one image (2 {TIMES_SIGN} multiply-adds / 1e6), logarithmic")
    axes.set_title(f"{split} accuracy, %", loc="left", fontsize=8.5, color=MUTED)
    _add_legend(figure, selected, any(len(one.committees) > 1 for one in series), 2 if narrow else 4)
    _add_labels(axes, series, selected, front, narrow)
    return figure


def gain_by_size(series: Sequence[Series], width: float) -> Figure:
    """Plot the accuracy gained over one member, in points, and the NLL over the committee size."""
    narrow = width <= NARROW_INCHES
    figure = Figure((width, 5.2 if narrow else 3.1))
    left, right = figure.subplots(2, 1, sharex=True) if narrow else figure.subplots(1, 2)
    multi_member = [
        (index, architecture) for index, architecture in enumerate(series) if len(architecture.committees) > 1
    ]
    for number, one in multi_member:
        sizes = [committee["size"] for committee in one.committees]
        gains = [100 * (each["accuracy"]["mean"] - one.single_member["accuracy"]["mean"]) for each in one.committees]
        style = {"color": _series_color(one, number), "marker": marker(number), "markersize": 5, "linewidth": 1.4}
        left.errorbar(sizes, gains, [100 * each["accuracy"]["std"] for each in one.committees], elinewidth=1, **style)
        nll_scores = [each["nll"] for each in one.committees]
        right.errorbar(
            sizes, [loss["mean"] for loss in nll_scores], [loss["std"] for loss in nll_scores], elinewidth=1, **style
        )
    _format_size_axes(left, right, multi_member, narrow)
    return figure


def exit_rates(cascade: SelectedCommittee, width: float) -> Figure:
    """Plot the fraction of images that exit at each stage as one stacked bar."""
    figure = Figure((width, 1.3))
    axes = figure.subplots()
    start = 0.0
    for index, stage in enumerate(cascade.exits):
        rate = 100 * stage["rate"]
        axes.barh(0, rate, left=start, height=0.6, color=color(0), alpha=1 / (1 + 0.8 * index), linewidth=0)
        if rate > (16 if width <= NARROW_INCHES else 8):
            on_dark_bar = index == 0
            members = f"{stage['members']} member{'s' if stage['members'] > 1 else ''}"
            axes.text(start + rate / 2, 0, f"{members}\n{rate:.0f} %", ha="center", va="center",
                      color=BACKGROUND if on_dark_bar else FOREGROUND, fontsize=8)  # fmt: skip
        start += rate
    axes.set(xlim=(0, 100), ylim=(-0.4, 0.4), yticks=[])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("images that exit after this number of members, %")
    return figure


def _without_unknown_costs(series: Series) -> Series:
    known = tuple(committee for committee in series.committees if math.isfinite(committee["mflops"]))
    return dataclasses.replace(series, committees=known)


def _series_color(series: Series, index: int) -> str:
    return MUTED if series.mixed else color(index)


def _draw_front(axes: Axes, front: Sequence[CostPoint]) -> None:
    axes.plot(
        [point.mflops for point in front], [100 * point.accuracy for point in front],
        color=PARETO_FRONT, linewidth=9, solid_joinstyle="round", solid_capstyle="round", zorder=1,
    )  # fmt: skip


def _draw_series(axes: Axes, architecture: Series, line_color: str, shape: str) -> None:
    costs = [committee["mflops"] for committee in architecture.committees]
    means = [100 * each["accuracy"]["mean"] for each in architecture.committees]
    errors = [100 * each["accuracy"]["std"] for each in architecture.committees]
    axes.plot(costs, means, color=line_color, linewidth=1.4, zorder=3)
    axes.errorbar(costs, means, errors, fmt="none", ecolor=line_color, elinewidth=1.1, capsize=0, zorder=3)
    axes.plot(costs[1:], means[1:], shape, color=line_color, markersize=6.5, markeredgecolor=BACKGROUND, zorder=4)
    axes.plot(
        costs[:1],
        means[:1],
        shape,
        color=BACKGROUND,
        markersize=6.5,
        markeredgecolor=line_color,
        markeredgewidth=1.6,
        zorder=4,
    )


def _draw_selected(axes: Axes, committee: SelectedCommittee) -> None:
    shape, size = ("*", 14) if committee.kind == "cascade" else ("X", 9)
    axes.plot(
        [committee.mflops], [100 * committee.scores["accuracy"]], shape, color=FOREGROUND, markersize=size,
        markeredgecolor=BACKGROUND, markeredgewidth=1.0, zorder=5,
    )  # fmt: skip


def _mean_points(series: Sequence[Series]) -> list[tuple[float, float]]:
    return [
        (committee["mflops"], 100 * committee["accuracy"]["mean"])
        for architecture in series
        for committee in architecture.committees
    ]


def _error_bar_ends(series: Sequence[Series]) -> list[tuple[float, float]]:
    """Return the end points of the error bars."""
    committees = [committee for architecture in series for committee in architecture.committees]
    scores = [(each["mflops"], each["accuracy"]) for each in committees]
    return [(cost, 100 * (score["mean"] + sign * score["std"])) for cost, score in scores for sign in (-1, 1)]


def _set_log_axes(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    costs, accuracies = zip(*points, strict=True)
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.35, max(costs) * 1.45)
    margin = max(0.12 * (max(accuracies) - min(accuracies)), 0.3)
    axes.set_ylim(min(accuracies) - margin, min(max(accuracies) + margin, 100.5))
    set_log_ticks(axes.xaxis, *axes.get_xlim())


def _add_legend(figure: Figure, selected: Sequence[SelectedCommittee], has_committees: bool, columns: int) -> None:
    hollow = Line2D([], [], marker="o", color=BACKGROUND, markeredgecolor=MUTED, markeredgewidth=1.6, markersize=6)
    filled = Line2D([], [], marker="o", color=MUTED, markeredgecolor=BACKGROUND, markersize=6.5, linewidth=1.4)
    star = Line2D([], [], marker="*", color=FOREGROUND, markeredgecolor=BACKGROUND, markersize=12, linewidth=0)
    cross = Line2D([], [], marker="X", color=FOREGROUND, markeredgecolor=BACKGROUND, markersize=8, linewidth=0)
    front = Line2D([], [], color=PARETO_FRONT, linewidth=7)
    kinds = {committee.kind for committee in selected}
    rows = [
        (hollow, "single network", True),
        (filled, "committee, ± std over subsets" if columns > 2 else "committee ± std", has_committees),
        (star, "cascade, mean cost", "cascade" in kinds),
        (cross, "selected committee", "committee" in kinds),
        (front, "Pareto front", True),
    ]
    handles, names, _ = zip(*(row for row in rows if row[2]), strict=True)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, labelcolor=MUTED, handlelength=1.5)


def _add_labels(
    axes: Axes,
    series: Sequence[Series],
    selected: Sequence[SelectedCommittee],
    front: Sequence[CostPoint],
    narrow: bool,
) -> None:
    labels = [
        Label(
            x=committee.mflops, y=100 * committee.scores["accuracy"], text=committee.name, color=FOREGROUND,
            weight="bold", preferred_positions=("above left", "left", "above"),
        )
        for committee in selected
    ]  # fmt: skip
    labels += [
        Label(
            x=x,
            y=y,
            text=architecture.name,
            color=_series_color(architecture, index),
            size=9,
            weight="bold",
            preferred_positions=("below right", "below", "right"),
        )
        for index, architecture in enumerate(series)
        for x, y in _mean_points([architecture])[:1]
    ]
    labels += [
        Label(
            x=x,
            y=y,
            text=f"{TIMES_SIGN}{each['size']}",
            color=_series_color(one, number),
            size=8,
            preferred_positions=("above left", "above", "below right"),
        )
        for number, one in enumerate(series)
        for each, (x, y) in list(zip(one.committees, _mean_points([one]), strict=True))[:: -1 if narrow else 1]
        if each["size"] > 1 and (not narrow or each["size"] in (2, 4, 8, len(one.committees)))
    ]
    points = [
        *_mean_points(series),
        *((committee.mflops, 100 * committee.scores["accuracy"]) for committee in selected),
    ]
    place_labels(axes, labels, points, [_mean_points([one]) for one in series if len(one.committees) > 1])


def _format_size_axes(left: Axes, right: Axes, multi_member: Sequence[tuple[int, Series]], narrow: bool) -> None:
    left.set_title("accuracy gained over one member, points", loc="left", fontsize=8.5, color=MUTED)
    right.set_title("NLL (lower is better)", loc="left", fontsize=8.5, color=MUTED)
    max_size = max(len(architecture.committees) for _, architecture in multi_member)
    for axes in (left, right):
        axes.set_xlim(0.6, max_size + 0.4 + 0.25 * max_size)
        axes.set_xticks(range(1, max_size + 1))
        axes.set_xlabel("members of the committee")
    if narrow:
        left.set_xlabel("")
    gain_labels = [
        Label(
            x=one.committees[-1]["size"],
            y=100 * (one.full_committee["accuracy"]["mean"] - one.single_member["accuracy"]["mean"]),
            text=one.name, color=_series_color(one, index), weight="bold", preferred_positions=("right",),
        )
        for index, one in multi_member
    ]  # fmt: skip
    place_labels(left, gain_labels, *_drawn_points_and_lines(left))
    nll_labels = [
        dataclasses.replace(label, y=one.full_committee["nll"]["mean"])
        for label, (_, one) in zip(gain_labels, multi_member, strict=True)
    ]
    place_labels(right, nll_labels, *_drawn_points_and_lines(right))


def _drawn_points_and_lines(axes: Axes) -> tuple[list, list]:
    """Return the points and lines of axes, for labels to avoid."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    return [tuple(point) for line in lines for point in line], lines
